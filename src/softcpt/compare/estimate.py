"""What a comparison will take, before it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softcpt.compare.grid import Cell
from softcpt.engine.prepare import plan_run

STARTING_S = 2.0
"""Seconds of a cell beside its steps: reading, drawing, building, writing, testing."""

logger = logging.getLogger("softcpt")

Method = tuple[str, str, int | None]
"""Digest of a suite, key of a method, tasks together: what a measurement stands for."""


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        cells: trainings with a test that are not there yet, those with chosen settings among them.
        trials: trainings that only help to choose.
        found: of both, there already.
        views: of images, to be encoded first.
        core_hours: expected, of all.
        wall_hours: at as many jobs at a time as asked for.
        jobs: at a time.
    """

    cells: int
    trials: int
    found: int
    views: int
    core_hours: float
    wall_hours: float
    jobs: int


def kind_of(cell: Cell) -> Method:
    """What its time is measured with."""
    return cell.place.digest, cell.row.method, cell.row.together


def to_measure(cells: Sequence[Cell]) -> list[Cell]:
    """One cell of each kind: that with the most shots, whose batches are full."""
    largest: dict[Method, Cell] = {}
    for cell in cells:
        kind = kind_of(cell)
        if kind not in largest or cell.shots > largest[kind].shots:
            largest[kind] = cell
    return list(largest.values())


def seconds_of(cells: Sequence[Cell], measured: Mapping[Method, tuple[Cell, Mapping[str, Any]]]) -> float:
    """Expected seconds of cells, from one measured cell of each kind: steps go with images and epochs."""
    units: dict[tuple[object, ...], int] = {}
    return sum(_seconds(cell, measured, units) for cell in cells)


def _seconds(
    cell: Cell,
    measured: Mapping[Method, tuple[Cell, Mapping[str, Any]]],
    units: dict[tuple[object, ...], int],
) -> float:
    if kind_of(cell) not in measured:
        return STARTING_S
    of, cost = measured[kind_of(cell)]
    there = _work(of, units)
    share = _work(cell, units) / there if there else 1.0
    return STARTING_S + float(cost["train_s"]) * share


def _work(cell: Cell, known: dict[tuple[object, ...], int]) -> int:
    settings = cell.resolved
    key = (cell.place.digest, settings.run.shots, settings.data.split)
    if key not in known:
        known[key] = len(plan_run(cell.place.suite, settings).samples.train)
    epochs = settings.train.n_epochs(settings.run.shots) if settings.train else 1
    return known[key] * epochs
