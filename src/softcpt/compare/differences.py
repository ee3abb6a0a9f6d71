"""Which differences are larger than the noise, and whether sharing prompts over tasks helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from softcpt.compare.grid import ALL_SUITES
from softcpt.compare.results import Results
from softcpt.compare.rows import Row, Tuning
from softcpt.compare.sharing import Rows
from softcpt.compare.statistics import Interval, SuiteTests, TaskTests, mean_interval
from softcpt.compare.student import holm
from softcpt.core.seeds import stream

CHANCE = 0.05
REFERENCES = ("coop-ca", "coop-ca-joint", "zero-shot")
"""The first of these that is there is what the others are compared with."""


@dataclass(frozen=True)
class Difference:
    """A row against another one on the same seeds, tasks and images.

    Attributes:
        suite: its name, or :data:`ALL_SUITES`.
        shots: None for the average over all.
        task: None for the mean over tasks.
        row: label.
        reference: label of the other.
        interval: of the difference.
        p: corrected for the number of comparisons (Holm).
    """

    suite: str
    shots: int | None
    task: str | None
    row: str
    reference: str
    interval: Interval
    p: float

    @property
    def is_clear(self) -> bool:
        """Whether it is larger than the noise."""
        return self.p < CHANCE


@dataclass(frozen=True)
class Analysis:
    """What the differences say.

    Attributes:
        references: what all rows are compared with; none with a single row.
        differences: every row against them, by suite and shots; each pair once.
        shared: the row that speaks for sharing, or None where there is none.
        alone: the row it is compared with, or None where no row is like it.
        sharing: task by task, by suite and shots.
        to_add: where no row is like it, the row that would be, if any is.
        single: suites of one task, which has nothing to share with; none where the question is not asked for
            want of a row.
    """

    references: Sequence[Row]
    differences: Sequence[Difference]
    shared: Row | None
    alone: Row | None
    sharing: Sequence[Difference]
    to_add: Row | None = None
    single: Sequence[str] = ()

    def against(self, reference: Row) -> list[Difference]:
        """The differences to one reference, as published or tuned."""
        labels = {reference.tuned(tuning).label for tuning in get_args(Tuning)}
        return [d for d in self.differences if d.reference in labels]


def analyse(results: Results) -> Analysis:
    """Compare the rows of a table."""
    columns = [(row, shots) for row in results.rows for shots in results.shots]
    tests = {}
    for suite in results.suites:
        drawn = _tests(results, suite.name, columns)
        if drawn is not None:
            tests[suite.name] = drawn
    references = references_of(results)
    rows = Rows(results.rows, results.settings, results.about.get("trained"))
    shared, alone = rows.pair()
    compared = _Compared(results, columns, tests)
    differences = _corrected(
        [d for row, other in _pairs(results.rows, references) for d in compared.everywhere(row, other)]
    )
    sharing: list[Difference] = []
    to_add = None
    single = [suite.name for suite in results.suites if len(suite.tasks) == 1]
    if len(single) == len(results.suites):
        shared = alone = None
    elif shared is not None and alone is not None:
        for shots in compared.levels:  # each a question of its own, asked of all tasks
            sharing += _corrected(compared.by_task(shared, alone, shots))
    else:  # not asked for want of a row, whichever suites have one task
        single = []
        shared, to_add = rows.to_add()
    return Analysis(references, differences, shared, alone, sharing, to_add, single)


def references_of(results: Results) -> list[Row]:
    """What the other rows are compared with: as asked for, else one that is taken."""
    one = reference_row(results.rows)
    asked = [row for row in results.references if row in results.rows]
    return [] if one is None else asked or [one]


def _pairs(rows: Sequence[Row], references: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each row with what it is compared with; two references once."""
    pairs: list[tuple[Row, Row]] = []
    for reference in references:
        for row in rows:
            other = reference_of(row, reference, rows)
            if row != reference and (other, row) not in pairs:
                pairs.append((row, other))
    return pairs


def reference_row(rows: Sequence[Row]) -> Row | None:
    """What the other rows are compared with; None with a single row."""
    if len(rows) < 2:
        return None
    for key in REFERENCES:
        for row in rows:
            if row.method == key:
                return row
    return rows[0]


def reference_of(row: Row, reference: Row, rows: Sequence[Row]) -> Row:
    """What a row is compared with: the reference, tuned alike if there is such a row.

    The reference's own tuned rows are compared with it as published.
    """
    alike = reference.tuned(row.tuning)
    return alike if alike in rows and alike != row else reference


class _Compared:
    def __init__(
        self, results: Results, columns: Sequence[tuple[Row, int]], tests: dict[str, SuiteTests]
    ) -> None:
        self.results, self.tests = results, tests
        self.column = {(row.label, shots): q for q, (row, shots) in enumerate(columns)}
        self.levels: list[int | None] = [*results.shots, *([None] if len(results.shots) > 1 else [])]

    def everywhere(self, row: Row, reference: Row) -> list[Difference]:
        found = []
        for shots in self.levels:
            weights = self._weights(row, reference, shots)
            parts = {name: tests.contrast(weights) for name, tests in self.tests.items()}
            there = {name: part for name, part in parts.items() if part is not None}
            if len(self.results.suites) > 1 and len(there) == len(self.results.suites):
                there[ALL_SUITES] = mean_interval(list(there.values()))
            found += [
                Difference(name, shots, None, row.label, reference.label, part, part.p)
                for name, part in there.items()
            ]
        return found

    def by_task(self, row: Row, reference: Row, shots: int | None) -> list[Difference]:
        weights = self._weights(row, reference, shots)
        found = []
        for suite in self.results.suites:
            if len(suite.tasks) == 1:
                continue
            for t, task in enumerate(suite.tasks):
                if suite.name not in self.tests or np.isnan(self.tests[suite.name].scores[:, t]).all():
                    continue
                part = self.tests[suite.name].contrast(weights, [t])
                if part is not None:
                    found.append(
                        Difference(suite.name, shots, task.name, row.label, reference.label, part, part.p)
                    )
        return found

    def _weights(self, row: Row, reference: Row, shots: int | None) -> dict[int, float]:
        at = self.results.shots if shots is None else [shots]
        weights: dict[int, float] = {}
        for s in at:
            weights[self.column[row.label, s]] = 1 / len(at)
            weights[self.column[reference.label, s]] = -1 / len(at)
        return weights


def _tests(results: Results, suite: str, columns: Sequence[tuple[Row, int]]) -> SuiteTests | None:
    """All columns on the same images; None where the suite has no result at all."""
    stands = np.array(results.linked[suite])
    by_seed: dict[int, list[TaskTests]] = {}
    for seed in results.seeds:
        cells = [results.cell(suite, row, shots, seed) for row, shots in columns]
        first = next((cell for cell in cells if cell is not None), None)
        if first is None:
            continue
        tasks = []
        for t, task in enumerate(first["tasks"]):
            images = np.array(task["images"], dtype=np.int64)
            right = np.full((len(images), len(columns)), np.nan)
            for q, cell in enumerate(cells):
                # The same seed has the same split, so that every column has the same images.
                if cell is not None and cell["tasks"][t]["images"] == task["images"]:
                    right[:, q] = [sign == "1" for sign in cell["tasks"][t]["right"]]
            tasks.append(
                TaskTests(stands[images], np.array(task["labels"], dtype=np.int64), right, task["metric"])
            )
        by_seed[seed] = tasks
    return SuiteTests(by_seed, stream("bootstrap", suite)) if by_seed else None


def _corrected(differences: list[Difference]) -> list[Difference]:
    adjusted = holm([d.interval.p for d in differences])
    return [
        Difference(d.suite, d.shots, d.task, d.row, d.reference, d.interval, p)
        for d, p in zip(differences, adjusted, strict=True)
    ]
