"""The files of a comparison: JSON and CSV for programs, a Markdown table and an HTML page for people."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from softcpt._version import __version__
from softcpt.compare.differences import Analysis, Difference, analyse
from softcpt.compare.presets import PUBLISHED_TABLE
from softcpt.compare.published import markdown_beside
from softcpt.compare.report import sections_beside, write_report
from softcpt.compare.results import Results, Score
from softcpt.compare.sentences import sharing_sentence
from softcpt.compare.store import CSV, RESULTS, TABLE
from softcpt.compare.tables import markdown
from softcpt.core.files import to_json, write_whole

FORMAT = 1

COLUMNS = (
    "suite", "method", "row", "tuning", "shots", "seed", "task", "metric", "score", "zero_shot",
    "overall_acc", "mean_acc", "test_images", "parameters", "train_seconds", "cell",
)  # fmt: skip


def write_results(folder: Path | str, results: Results) -> Analysis:
    """Everything that a comparison found, in files of its folder; fractions, but in tables percent."""
    folder = Path(folder)
    analysis = analyse(results)
    write_whole(folder / RESULTS, to_json(to_content(results, analysis)))
    write_whole(folder / CSV, to_csv(results))
    is_beside = results.about["preset"] == PUBLISHED_TABLE
    write_whole(folder / TABLE, markdown(results, analysis, markdown_beside(results) if is_beside else ()))
    write_report(folder, results, analysis, sections_beside(results) if is_beside else ())
    return analysis


def to_content(results: Results, analysis: Analysis) -> dict[str, Any]:
    """For programs; accuracies are fractions, differences too."""
    names = {suite.name: suite for suite in results.suites}
    return {
        "format": FORMAT,
        "softcpt": __version__,
        **results.about,
        "settings": dict(results.settings),
        "suites": {
            name: {task.name: {"classes": len(task.classes), "metric": task.metric} for task in suite.tasks}
            for name, suite in names.items()
        },
        "shots": list(results.shots),
        "seeds": list(results.seeds),
        "rows": [
            {
                "label": row.label,
                "method": row.method,
                "settings": dict(row.settings),
                "tuning": row.tuning,
                "tasks_together": row.together,
                "parameters": {name: results.n_learned(name, row) for name in names},
                "train_seconds": {name: _rounded(results.train_s(name, row)) for name in names},
            }
            for row in results.rows
        ],
        "scores": [
            {
                "suite": name,
                "row": row.label,
                "shots": "average" if shots is None else shots,
                **_of_score(score),
            }
            for name in names
            for row in results.rows
            for shots in (*results.shots, None)
            if (score := results.score(name, row, shots)) is not None
        ],
        "reference": analysis.references[0].label if analysis.references else None,
        "references": [row.label for row in analysis.references],
        "differences": [_of_difference(d) for d in analysis.differences],
        "sharing": [
            _of_difference(d) | {"task": d.task, "sentence": sharing_sentence(d)} for d in analysis.sharing
        ],
        "cells": [
            {
                "suite": suite,
                "row": row,
                "shots": shots,
                "seed": seed,
                "key": cell["key"],
                "settings": cell["settings"],
                "score": _rounded(results.value(suite, results_row(results, row), shots, seed)),
                "val_score": _rounded(cell["val_score"]),
                "tasks": {task["name"]: _rounded(task["score"]) for task in cell["tasks"]},
                "zero_shot": {task["name"]: _rounded(task["zero_shot"]) for task in cell["tasks"]},
                "test_images": {task["name"]: len(task["images"]) for task in cell["tasks"]},
                "train_seconds": cell["train_s"],
                "learning": cell.get("learning", []),
            }
            for (suite, row, shots, seed), cell in results.found.items()
        ],
        "failed": dict(results.failed),
        "notes": list(results.notes),
        "cell_notes": [{"note": note, "cells": n} for note, n in results.cell_notes()],
    }


def results_row(results: Results, label: str) -> Any:  # noqa: ANN401
    """The row of a label."""
    return next(row for row in results.rows if row.label == label)


def to_csv(results: Results) -> str:
    """A line for each cell and task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    rows = {row.label: row for row in results.rows}
    for (suite, label, shots, seed), cell in results.found.items():
        row = rows[label]
        for task in cell["tasks"]:
            writer.writerow(
                [
                    suite, row.method, label, row.tuning, shots, seed, task["name"], task["metric"],
                    _rounded(task["score"]), _rounded(task["zero_shot"]), _rounded(task["overall_acc"]),
                    _rounded(task["mean_acc"]), len(task["images"]), cell["n_learned"], cell["train_s"],
                    cell["key"],
                ]
            )  # fmt: skip
    return text.getvalue()


def _of_score(score: Score) -> dict[str, Any]:
    return {
        "mean": _rounded(score.mean),
        "deviation": _rounded(score.deviation),
        "n_seeds": score.n_seeds,
    }


def _of_difference(d: Difference) -> dict[str, Any]:
    found = d.interval
    return {
        "suite": d.suite,
        "shots": "average" if d.shots is None else d.shots,
        "row": d.row,
        "reference": d.reference,
        "difference": _rounded(found.value),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
        "over": found.over,
        "n_seeds": found.n_seeds,
        "p": float(f"{found.p:.3g}"),
        "p_holm": float(f"{d.p:.3g}"),
        "larger_than_noise": d.is_clear,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
