"""What a comparison found: its cells in the order of tables, and the mean scores that tables show."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from softcpt.compare.executor import Failure
from softcpt.compare.grid import Cell, Grid
from softcpt.compare.rows import Row, uses_shots
from softcpt.compare.store import Store
from softcpt.data.record import Suite
from softcpt.data.split import linked_units
from softcpt.engine.evaluate import mean_of
from softcpt.methods.registry import get_method

if TYPE_CHECKING:
    from softcpt.clip.backbone import Backbone
    from softcpt.compare.run import Request

Place = tuple[str, str, int, int]
"""Name of a suite, label of a row, shots, seed."""


EQUAL = 1e-9
"""Sums in another order differ by less."""


@dataclass(frozen=True)
class Score:
    """A number of a table, as a fraction.

    Attributes:
        mean: over seeds.
        deviation: population deviation over seeds.
        n_seeds: how many.
    """

    mean: float
    deviation: float
    n_seeds: int


@dataclass(frozen=True)
class Results:
    """What a comparison found.

    Attributes:
        suites: read.
        rows: in the order of tables.
        shots: in order.
        seeds: in order.
        found: the content of each cell that there is.
        settings: of all methods.
        about: facts about the backbone, the machine and the way of comparing.
        failed: label of a cell, or of a training that was to help choose -> why it has no result.
        notes: what a reader should know.
        references: rows that the others are compared with; without any, one is taken.
    """

    suites: Sequence[Suite]
    rows: Sequence[Row]
    shots: Sequence[int]
    seeds: Sequence[int]
    found: Mapping[Place, Mapping[str, Any]]
    settings: Mapping[str, str]
    about: Mapping[str, Any]
    failed: Mapping[str, str]
    notes: Sequence[str]
    references: Sequence[Row] = ()

    def cell(self, suite: str, row: Row, shots: int, seed: int) -> Mapping[str, Any] | None:
        """A cell's content, or None."""
        return self.found.get((suite, row.label, shots, seed))

    def value(self, suite: str, row: Row, shots: int, seed: int) -> float | None:
        """Mean over a cell's tasks of their own metric."""
        cell = self.cell(suite, row, shots, seed)
        return None if cell is None else mean_of([task["score"] for task in cell["tasks"]])

    def score(self, suite: str, row: Row, shots: int | None) -> Score | None:
        """A row's score at some shots, or its average over them; of the seeds that have them all."""
        at = self.shots if shots is None else [shots]
        of_seed = []
        for seed in self.seeds:
            values = [value for s in at if (value := self.value(suite, row, s, seed)) is not None]
            if len(values) == len(at):
                of_seed.append(statistics.fmean(values))
        return spread(of_seed)

    def mean_score(self, row: Row, shots: int | None) -> Score | None:
        """The same, averaged over suites; None where one lacks it."""
        at = self.shots if shots is None else [shots]
        of_seed = []
        for seed in self.seeds:
            values = [
                value
                for suite in self.suites
                for s in at
                if (value := self.value(suite.name, row, s, seed)) is not None
            ]
            if len(values) == len(at) * len(self.suites):
                of_seed.append(statistics.fmean(values))
        return spread(of_seed)

    def n_learned(self, suite: str, row: Row) -> int | None:
        """Numbers learned; the largest where it depends on the shots."""
        counts = [int(cell["n_learned"]) for cell in self._cells(suite, row)]
        return max(counts, default=None)

    def train_s(self, suite: str, row: Row) -> float | None:
        """Seconds of one training, mean over shots and seeds."""
        seconds = [float(cell["train_s"]) for cell in self._cells(suite, row)]
        return statistics.fmean(seconds) if seconds else None

    def harmed(self, row: Row, shots: int) -> tuple[int, int]:
        """Tasks of all suites that score below zero-shot, mean over seeds; and how many there are."""
        gains = [gain for suite in self.suites for gain in self.gains(suite.name, row, shots).values()]
        return sum(gain < -EQUAL for gain in gains), len(gains)

    def gains(self, suite: str, row: Row, shots: int) -> dict[str, float]:
        """Task -> gain over zero-shot, mean over seeds."""
        gained: dict[str, list[float]] = {}
        for seed in self.seeds:
            cell = self.cell(suite, row, shots, seed)
            for task in cell["tasks"] if cell else ():
                if task["score"] is not None:
                    gained.setdefault(task["name"], []).append(task["score"] - task["zero_shot"])
        return {name: statistics.fmean(values) for name, values in gained.items()}

    def cell_notes(self) -> list[tuple[str, int]]:
        """What cells say of themselves, each note with the number of cells that say it; the most first."""
        # Groups of tasks that were trained apart say it once each; a cell without notes may lack the key.
        counts = Counter(
            note for cell in self.found.values() for note in dict.fromkeys(cell.get("notes", ()))
        )
        return counts.most_common()

    def learns(self, row: Row) -> bool:
        """Whether a row depends on training images."""
        return uses_shots(get_method(row.method))

    @cached_property
    def linked(self) -> dict[str, list[int]]:
        """Suite -> what stands for each record's image: the same for all that belong together."""
        found = {}
        for suite in self.suites:
            stands = list(range(len(suite.records)))
            for unit in linked_units(suite.records):
                for i in unit:
                    stands[i] = unit[0]
            found[suite.name] = stands
        return found

    def _cells(self, suite: str, row: Row) -> list[Mapping[str, Any]]:
        cells = (self.cell(suite, row, shots, seed) for shots in self.shots for seed in self.seeds)
        return [cell for cell in cells if cell is not None]


def spread(values: Sequence[float]) -> Score | None:
    """Mean and population deviation; None without values."""
    if not values:
        return None
    return Score(statistics.fmean(values), statistics.pstdev(values), len(values))


def gather(
    grid: Grid,
    request: Request,
    backbone: Backbone,
    cells: Sequence[Cell],
    trials: Sequence[Cell],
    blocked: Mapping[str, str],
    store: Store,
    failures: Mapping[str, Failure],
) -> Results:
    """The results of all cells that there are.

    Args:
        grid: what was compared.
        request: as it was asked for.
        backbone: of all cells.
        cells: wanted.
        trials: trainings that were run to choose by.
        blocked: label of a cell whose settings could not be chosen -> why.
        store: where results are.
        failures: key of a cell or trial -> what stood in its way.
    """
    found: dict[Place, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    rows: dict[str, Row] = {}
    for cell in cells:
        rows.setdefault(cell.row.label, cell.row)
        content = store.get("cells", cell.key, cell.identity)
        if content is not None:
            found[cell.place.name, cell.row.label, cell.shots, cell.seed] = {"key": cell.key, **content}
        elif cell.key in failures:
            failed[cell.label] = _why(failures[cell.key])
    for trial in trials:
        # A cell with the chosen settings has the key of the training that they were chosen by.
        if trial.key in failures and store.get("trials", trial.key, trial.identity) is None:
            failed[trial.label] = _why(failures[trial.key])
    failed |= blocked
    notes = [note for place in grid.places for note in _notes(place.suite, grid)]
    computed_by = {(c["versions"].get("torch"), c["versions"].get("platform")) for c in found.values()}
    if len(computed_by) > 1:
        notes.append(
            "cells were computed by different machines or versions of torch; they differ by rounding"
        )
    about = {
        "backbone": {
            "name": grid.backbone,
            "description": backbone.description,
            "digest": grid.weights,
            "logit_scale": round(float(backbone.logit_scale), 4),
            "embed_dim": backbone.embed_dim,
            "size_px": backbone.pixels.size_px,
        },
        "device": grid.device,
        "threads": grid.threads,
        "resplit": grid.resplit,
        "tuned": request.tune,
        "quick": request.quick,
        "trained": {k: v for k, v in grid.trained.items() if k not in grid.settings},
        "preset": request.preset,
        "skip_bad_images": request.skip_bad_images,
        "torch": sorted({str(torch) for torch, _ in computed_by}),
    }
    return Results(
        suites=[place.suite for place in grid.places],
        rows=sorted(rows.values(), key=lambda row: _order(grid.rows, row)),
        shots=sorted(grid.shots),
        seeds=sorted(grid.seeds),
        found=found,
        settings=dict(grid.settings),
        about=about,
        failed=failed,
        notes=notes,
        references=list(request.references),
    )


def _why(failure: Failure) -> str:
    return "; ".join(map(str, failure.faults))


def _order(rows: Sequence[Row], row: Row) -> tuple[int, int]:
    """As asked for, each followed by itself with chosen settings."""
    return list(rows).index(row.tuned("published")), ("published", "tuned", "tuned at 4").index(row.tuning)


def _notes(suite: Suite, grid: Grid) -> list[str]:
    given = sum(record.part is not None for record in suite.records)
    if grid.resplit and given == len(suite.records):
        return [f"{suite.name} gives its own parts: all seeds test the same images"]
    return []
