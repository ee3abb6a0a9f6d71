"""What rows learned with: settings that were chosen on val, and what a rate comes to on a context."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from softcpt.compare.results import Results
from softcpt.compare.rows import Row
from softcpt.compare.tune import points_of
from softcpt.methods.registry import get_method

CHOSEN_SAID = (
    "Settings that val chose, over suites and seeds, and of how many trainings; at an end of what was tried, "
    'the best may lie beyond. "By itself": what heads chose inside one training, as the median over tasks, '
    "suites and seeds, with the least and the most."
)
RATES_SAID = (
    "Effective rate: what a step multiplies a task's gradient with before it moves that task's own context, "
    "at the start; median over tasks and runs. At one rate, methods may take steps of quite different size. "
    "AdamW's steps have none: they do not grow with the gradient."
)
_EVIDENCE = ("accuracy", "trainings", "fits")
"""How keys end that a head notes beside what it chose."""
_STEPS = ("epoch", "iteration")
"""Keys of a head's length, which ``keep`` decides about and not ``tune``."""


def chosen_rows(results: Results) -> list[tuple[str, ...]]:
    """Label and, for each number of shots, what val chose.

    Of tuned rows with counts, ``lr=0.02 (4), lr=0.06 (2)``; of heads the median, ``alpha=2 (0.5 to 10)``.
    """
    found = []
    for row in results.rows:
        if row.tuning != "published":
            n = len(points_of(row, results.settings))
            said = f"{row.label} ({n} trainings a choice)"
            found.append((said, *(_chosen(results, row, shots) for shots in results.shots)))
        own = [_by_itself(results, row, shots) for shots in results.shots]
        if any(own):
            found.append((f"{row.label}, by itself", *own))
    return found


def itself_sentence(results: Results) -> str:
    """Which rows that are not tuned chose something on val all the same; empty if none did."""
    labels = [
        row.label
        for row in results.rows
        if row.tuning == "published"
        and any(
            _keeps_best(row, cell) or any(_own_choice(row, cell))
            for suite in results.suites
            for shots in results.shots
            for seed in results.seeds
            if (cell := results.cell(suite.name, row, shots, seed)) is not None
        )
    ]
    if not labels:
        return ""
    return f"Chose settings, or the epoch, on val by themselves, with or without tuning: {'; '.join(labels)}."


def _keeps_best(row: Row, cell: Mapping[str, Any]) -> bool:
    """Whether the training loop kept the epoch that was best on val."""
    settings = cell["identity"]["settings"]
    by_val = settings.get("epochs") == "auto" or settings.get("keep") == "best"
    return get_method(row.method).trains and by_val and cell["val_score"] is not None


def _own_choice(row: Row, cell: Mapping[str, Any]) -> Iterator[Mapping[str, float]]:
    """What the cell's heads chose on val, task by task."""
    settings = cell["identity"]["settings"]
    given = "published" in (settings.get("tune"), settings.get("head_tune"))
    last = not get_method(row.method).trains and settings.get("keep") == "last"
    for run in cell.get("learning", ()):
        for record in run["tuned"].values():
            numbers = {
                key: float(value)
                for key, value in record.items()
                if isinstance(value, int | float) and not key.endswith(_EVIDENCE)
                if not (last if key in _STEPS else given)
            }
            # Ridge may choose without val, and says so.
            if numbers and "val_accuracy" in record and record.get("chosen_by") != "loo":
                yield numbers


def _by_itself(results: Results, row: Row, shots: int) -> str:
    values: dict[str, list[float]] = {}
    for suite in results.suites:
        for seed in results.seeds:
            cell = results.cell(suite.name, row, shots, seed)
            for record in () if cell is None else _own_choice(row, cell):
                for key, value in record.items():
                    values.setdefault(key, []).append(value)
    return ", ".join(
        f"{key}={statistics.median(own):.3g} ({min(own):.3g} to {max(own):.3g})"
        for key, own in values.items()
    )


def _chosen(results: Results, row: Row, shots: int) -> str:
    published = row.tuned("published")
    counts: Counter[str] = Counter()
    for suite in results.suites:
        for seed in results.seeds:
            cell = results.cell(suite.name, row, shots, seed)
            base = results.cell(suite.name, published, shots, seed)
            if cell is None or base is None:
                continue
            own, given = cell["identity"]["settings"], base["identity"]["settings"]
            changed = {key: value for key, value in own.items() if value != given.get(key)}
            said = " ".join(f"{key}={value}" for key, value in changed.items())
            counts[said or "as published"] += 1
    return ", ".join(f"{said} ({n})" for said, n in counts.most_common())


def rate_rows(results: Results) -> list[tuple[str, ...]]:
    """Label and, for each number of shots, the median effective rate; of rows whose runs tell of it."""
    found = []
    for row in results.rows:
        cells = [_rate(results, row, shots) for shots in results.shots]
        if any(cells):
            found.append((row.label, *(cell or "none" for cell in cells)))
    return found


def _rate(results: Results, row: Row, shots: int) -> str:
    rates: Sequence[float] = [
        rate
        for suite in results.suites
        for seed in results.seeds
        for run in (results.cell(suite.name, row, shots, seed) or {}).get("learning", ())
        for rate in run["effective_rates"]["start"].values()
    ]
    return f"{statistics.median(rates):.3g}" if rates else ""
