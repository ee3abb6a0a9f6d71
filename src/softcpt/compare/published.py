"""Our table beside the published one: figures read off the paper's result table, kept as data."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from softcpt.compare.presets import PUBLISHED
from softcpt.compare.results import Results, Score
from softcpt.compare.rows import Row
from softcpt.compare.tables import NONE, show_score, table_line
from softcpt.core.errors import ConfigError, Fault


@cache
def published_figures() -> dict[str, Any]:
    """The published table: percent, mean and deviation over seeds, averaged over tasks."""
    file = resources.files("softcpt") / "presets" / "published_table.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def published_suite(name: str) -> str | None:
    """The published suite that is meant by a name, however it is spelt: ``general-10``, ``General 10``.

    Example:
        >>> published_suite("general_10"), published_suite("my_suite")
        ('General-10', None)
    """
    plain = {_plain(known): known for known in published_figures()["suites"]}
    return plain.get(_plain(name))


def check_names(names: Sequence[str]) -> None:
    """Refuse a comparison none of whose suites was published.

    Raises:
        ConfigError: none has a published name.
    """
    if not any(published_suite(name) for name in names):
        known = ", ".join(published_figures()["suites"])
        fault = Fault(
            ", ".join(names), "no suite of this name was published", f"name yours in its suite.yaml: {known}"
        )
        raise ConfigError(fault, about="the preset published-table")


def beside(results: Results, suite: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each cell ours, a stroke, and the published one."""
    figures = published_figures()["suites"][published_suite(suite)]["methods"]
    ours = {PUBLISHED.get(row.method, ""): row for row in results.rows if row.tuning == "published"}
    levels: list[int | None] = [*results.shots, None]
    rows = []
    for name, published in figures.items():
        row = ours.get(name)
        cells = [_cell(results, suite, row, published, level) for level in levels]
        rows.append([name, _parameters(results, suite, row, published), *cells])
    theirs = sorted({int(key) for published in figures.values() for key in published if key.isdigit()})
    average = "Average"
    if theirs != sorted(results.shots):
        average += f" (published: of {', '.join(map(str, theirs))})"
    heads = ["Method", "Parameters", *(str(level) for level in results.shots), average]
    return heads, rows


def markdown_beside(results: Results) -> list[str]:
    """Sections for the table's page."""
    lines = []
    for suite in results.suites:
        known = published_suite(suite.name)
        if known is None:
            continue
        heads, rows = beside(results, suite.name)
        lines += ["", f"## {suite.name} beside the published table", "", f"{meaning()}", ""]
        lines += [
            table_line(heads),
            "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|",
        ]
        lines += map(table_line, rows)
    return lines


def meaning() -> str:
    """How to read the cells."""
    return (
        f"Ours / published; percent, mean ± deviation over seeds. Published figures: "
        f"{published_figures()['source']}. Their samples, splits and seeds are not ours."
    )


def _cell(results: Results, suite: str, row: Row | None, published: dict[str, Any], level: int | None) -> str:
    ours = results.score(suite, row, level) if row is not None else None
    if row is not None and not results.learns(row) and level is not None:
        ours = None  # as in the published table, where zero-shot has no shots
    figure = published.get("average" if level is None else str(level))
    theirs = Score(figure[0] / 100, figure[1] / 100, 1 if figure[1] == 0 else 2) if figure else None
    if ours is None and theirs is None:
        return NONE
    # The published table shows two digits, which is as good as it can be compared.
    return f"{show_score(ours)} / {show_score(theirs, digits=2)}"


def _parameters(results: Results, suite: str, row: Row | None, published: dict[str, Any]) -> str:
    ours = results.n_learned(suite, row) if row is not None else None
    theirs = published["parameters"]
    if not ours and not theirs:
        return NONE
    return f"{f'{ours:,}' if ours else NONE} / {f'{theirs:,}' if theirs else NONE}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
