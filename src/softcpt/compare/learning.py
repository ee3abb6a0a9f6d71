"""What rows learned with: settings that were chosen on val, and what a rate comes to on a context."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from softcpt.compare.results import Results
from softcpt.compare.rows import Row

CHOSEN_SAID = (
    "Settings that val chose, over suites and seeds; at an end of what was tried, the best may lie beyond."
)
RATES_SAID = (
    "Effective rate: what a step multiplies a task's gradient with before it moves that task's own context, "
    "at the start; median over tasks and runs. At one rate, methods may take steps of quite different size."
)


def chosen_rows(results: Results) -> list[tuple[str, ...]]:
    """Label and, for each number of shots, the values chosen: ``lr=0.02 (4), lr=0.06 (2)``; of tuned rows."""
    return [
        (row.label, *(_chosen(results, row, shots) for shots in results.shots))
        for row in results.rows
        if row.tuning != "published"
    ]


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
            found.append((row.label, *cells))
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
