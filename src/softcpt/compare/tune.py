"""Settings chosen on val: at most :data:`TRIALS` trainings a cell, one value for all tasks of a suite.

A method says itself what is tried of it (``Method.tunes``), or its rate is, with SGD and with AdamW. No test
image is looked at: a trial ends with its val score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

from softcpt.compare.rows import Row
from softcpt.core.errors import ConfigError, Fault
from softcpt.engine.config import keys_of
from softcpt.methods.base import TRIALS
from softcpt.methods.registry import get_method

_SAME = 1e-9


Point = dict[str, str]
"""Key -> value: one training that helps to choose."""


def combinations(values: Mapping[str, Sequence[str]]) -> list[Point]:
    """All of them, the first values first; one empty point of no keys."""
    return [dict(zip(values, point, strict=True)) for point in product(*values.values())]


SGD = combinations({"optimizer": ["sgd"], "lr": ["0.002", "0.006", "0.02", "0.06", "0.2"]})
"""The published rate of CoOp and SoftCPT times 1, 3, 10, 30 and 100."""

ADAM = combinations({"optimizer": ["adam"], "lr": ["0.0002", "0.0006", "0.002", "0.006", "0.02"]})

ADAM_META = combinations({"optimizer": ["adam"], "lr": ["0.00001", "0.00003", "0.0001", "0.0003", "0.001"]})
"""For weights of a meta network: AdamW moves all of them at once, and a context by the sum of their moves."""

NOTHING: list[Point] = [{}]
"""For methods that learn nothing, or choose for themselves what they have to choose."""


def grid_of(method: str) -> list[Point]:
    """What is tried of a method, the most regularised first.

    Raises:
        ConfigError: keys that the method does not know, or more points than a cell may try.
    """
    entry = get_method(method)
    keys = keys_of(entry)
    if entry.tunes is None:
        if not entry.trains:
            return NOTHING
        return [*SGD, *(ADAM_META if "meta" in keys else ADAM)]
    strange = [key for key in entry.tunes if key not in keys]
    faults = [Fault(key, f"{method} has no such option, so it cannot be tuned") for key in strange]
    points = combinations(entry.tunes)
    if len(points) > TRIALS:
        what = f"{method} asks for {len(points)} trainings; a cell may spend {TRIALS}"
        faults.append(Fault("tunes", what, "name fewer values"))
    if faults:
        raise ConfigError(faults, about=f"what {method} tunes")
    return points


def points_of(row: Row, given: Mapping[str, str]) -> list[Point]:
    """What is tried of a row, beside settings that stay as they are; one empty point where nothing is.

    Args:
        row: its settings stay; what it says to try is tried instead of its method's table.
        given: for all rows.
    """
    if row.tries:
        return combinations(dict(row.tries))
    stays = {**given, **dict(row.settings)}
    fixed = set(stays)
    if fixed & {"lr", "lr_factor"}:  # a rate, which is one of the optimizer it was given with
        fixed |= {"lr", "optimizer"}
    tried = [
        tuple((key, value) for key, value in point.items() if key not in fixed)
        for point in grid_of(row.method)
        if point.get("optimizer") in (None, stays.get("optimizer", point.get("optimizer")))
    ]
    return [dict(point) for point in dict.fromkeys(tried)]


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
