"""Settings chosen on val: every method by the same budget, one value for all tasks of a suite.

A method says itself what is tried of it (``Method.tunes``), or gets :data:`RATES`. No test image is looked
at: a trial ends with its val score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from softcpt.compare.rows import Row
from softcpt.core.errors import ConfigError, Fault
from softcpt.engine.config import keys_of
from softcpt.methods.base import TRIALS
from softcpt.methods.registry import get_method

_SAME = 1e-9


@dataclass(frozen=True)
class Grid:
    """What is tried of a method's settings.

    Attributes:
        values: key -> values, the most regularised first; all combinations are tried.
    """

    values: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if self.size > TRIALS:
            raise ValueError(f"{self.size} trainings; a cell may spend {TRIALS}")

    @property
    def size(self) -> int:
        """Trainings that it takes."""
        return len(list(product(*self.values.values())))

    def points(self) -> list[dict[str, str]]:
        """All combinations, the most regularised first."""
        return [dict(zip(self.values, point, strict=True)) for point in product(*self.values.values())]


RATES = Grid({"lr": ("0.002", "0.006", "0.02", "0.06", "0.2")})
"""The published rate of CoOp and SoftCPT times 1, 3, 10, 30 and 100."""

NOTHING = Grid({})
"""For methods that learn nothing, or choose for themselves what they have to choose."""


def grid_of(method: str) -> Grid:
    """What is tried of a method.

    Raises:
        ConfigError: keys that the method does not know, or more points than a cell may try.
    """
    entry = get_method(method)
    keys = keys_of(entry)
    if entry.tunes is None:
        return RATES if entry.trains and "lr" in keys else NOTHING
    strange = [key for key in entry.tunes if key not in keys]
    faults = [Fault(key, f"{method} has no such option, so it cannot be tuned") for key in strange]
    try:
        grid = Grid(entry.tunes)
    except ValueError as error:
        faults.append(Fault("tunes", f"{method} asks for {error}"))
    if faults:
        raise ConfigError(faults, about=f"what {method} tunes")
    return grid


def points_of(row: Row, given: Mapping[str, str]) -> list[dict[str, str]]:
    """What is tried of a row, beside settings that stay as they are; one empty point where nothing is.

    Args:
        row: its settings stay; what it says to try is tried instead of its method's table.
        given: for all rows.
    """
    if row.tries:
        return Grid(dict(row.tries)).points()
    fixed = {*given, *dict(row.settings)}
    if "lr_factor" in fixed:  # a rate, said in another way
        fixed.add("lr")
    values = {key: tried for key, tried in grid_of(row.method).values.items() if key not in fixed}
    return Grid(values).points()


def tries_faults(rows: Sequence[Row], given: Mapping[str, str], *, tune: bool) -> list[Fault]:
    """Why what rows say to try cannot be tried.

    Args:
        rows: of the comparison.
        given: settings of all of them.
        tune: whether settings are chosen on val at all.
    """
    faults: list[Fault] = []
    for row in rows:
        values = dict(row.tries)
        size = prod(len(tried) for tried in values.values())
        if values and not tune:
            faults.append(Fault(row.label, "names values to choose from", "add --tune, or give one of each"))
        if size > TRIALS:
            what = f"asks for {size} trainings, and a cell may spend {TRIALS}"
            faults.append(Fault(row.label, what, "name fewer values"))
        faults += [
            Fault(f"{row.label}, {key}", "has one value twice", "leave one out")
            for key, tried in values.items()
            if len(set(tried)) < len(tried)
        ]
        faults += [
            Fault(f"{row.label}, {key}", "is given for all methods too", "leave one of them out")
            for key in values
            if key in given
        ]
    return faults


def choose(scores: Sequence[float], published: int | None) -> int:
    """The index of the best val score.

    Of equals the published setting, if it is among them, else the first, which is the most regularised.

    Args:
        scores: of the points in their order.
        published: index of the point that says what is published, if there is one.
    """
    best = [i for i, score in enumerate(scores) if score >= max(scores) - _SAME]
    return published if published in best else best[0]


def published_point(points: Sequence[Mapping[str, str]], values: Mapping[str, object]) -> int | None:
    """Which point says the same as settings that were resolved without it.

    Args:
        points: as tried.
        values: key -> value of the settings.
    """
    for i, point in enumerate(points):
        if all(_same(values.get(key), said) for key, said in point.items()):
            return i
    return None


def _same(value: object, said: str) -> bool:
    try:
        return float(str(value)) == float(said)
    except ValueError:
        return str(value) == said
