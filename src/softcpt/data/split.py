"""Which images train, which select, which test: drawn once for a suite by its own seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from softcpt.core.seeds import stream
from softcpt.data.identical import identical_files
from softcpt.data.record import Part, Record, Suite

PARTS: Final[tuple[Part, ...]] = ("train", "val", "test")
SMALL_CLASS: Final = 10  # with fewer images, 20 percent for val would often be one image or none

Counts = NDArray[np.int64]  # [3] images per part, in the order of PARTS


@dataclass(frozen=True)
class Split:
    """The part of every image.

    Attributes:
        parts: aligned with ``Suite.records``.
        notes: classes that have no test images.
    """

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = field(default=())


def split_suite(suite: Suite, *, seed: int = 0, mode: Literal["auto", "all"] = "auto") -> Split:
    """The part of every image: as given, else 50/20/30 per class drawn by ``seed``.

    A class is drawn from its own stream over its sorted relative paths, so another task or class changes
    nothing. Images that belong together (the same bytes in several tasks or classes, or one group) are
    placed first, whole, where their classes lack most.

    Args:
        suite: its ``name`` is part of the streams.
        seed: of the split, apart from a run's seed.
        mode: ``"all"`` trains on everything, a given split included.
    """
    if mode == "all":
        everything = tuple[Part, ...]("train" for _ in suite.records)
        return Split(everything, ("split=all: every image trains, none is left to test",))
    parts: list[Part | None] = [record.part for record in suite.records]
    free = [i for i, part in enumerate(parts) if part is None]
    if free:
        _draw(suite, seed, parts, free)
    whole = tuple(part or "train" for part in parts)
    return Split(whole, tuple(_notes(suite, whole)))


def part_sizes(n: int) -> tuple[int, int, int]:
    """Images of a class for train, val and test.

    Example:
        >>> part_sizes(54), part_sizes(5), part_sizes(1)
        ((27, 11, 16), (2, 1, 2), (1, 0, 0))
    """
    if n >= SMALL_CLASS:
        train, val = round(0.5 * n), round(0.2 * n)
        return train, val, n - train - val
    train = min(n, max(1, round(n / 2)))
    test = math.ceil((n - train) / 2)
    return train, n - train - test, test


def _draw(suite: Suite, seed: int, parts: list[Part | None], free: Sequence[int]) -> None:
    """Fill ``parts`` at the free places."""
    by_class: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in free:
        by_class[suite.records[i].task, suite.records[i].label].append(i)
    lacking: dict[tuple[int, int], Counts] = {
        place: np.array(part_sizes(len(indices))) for place, indices in by_class.items()
    }
    _place_units(suite, seed, parts, lacking)
    for (task, label), indices in by_class.items():
        names = suite.tasks[task].name, suite.tasks[task].classes[label]
        left = sorted((i for i in indices if parts[i] is None), key=lambda i: suite.records[i].relative)
        order = stream("split", seed, suite.name, *names).permutation(len(left))
        sizes = _fitted(lacking[task, label], len(left))
        shares = (part for part, size in zip(PARTS, sizes, strict=True) for _ in range(size))
        for position, part in zip(order, shares, strict=True):
            parts[left[position]] = part


def _place_units(
    suite: Suite, seed: int, parts: list[Part | None], lacking: dict[tuple[int, int], Counts]
) -> None:
    """Give every unit of linked images one part, and take its images off what their classes lack."""
    units = [unit for unit in linked_units(suite.records) if any(parts[i] is None for i in unit)]
    units.sort(key=lambda unit: _canonical(suite, unit))
    shuffled = stream("split", seed, suite.name, "linked").permutation(len(units))
    # Large units first: small ones can still even out what these leave.
    for u in sorted(shuffled, key=lambda u: -len(units[u])):
        unit = units[u]
        given = sorted({part for i in unit if (part := parts[i]) is not None}, key=PARTS.index)
        places = [(suite.records[i].task, suite.records[i].label) for i in unit if parts[i] is None]
        chosen = PARTS.index(given[0]) if given else int(np.argmax(sum(lacking[place] for place in places)))
        for place in places:
            lacking[place][chosen] -= 1
        for i in unit:
            if parts[i] is None:
                parts[i] = PARTS[chosen]


def linked_units(records: Sequence[Record]) -> list[list[int]]:
    """Indices of images that must share a part: the same bytes, or one group; two or more in each list."""
    leader = list(range(len(records)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    by_group: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if record.group is not None:
            by_group[record.group].append(i)
    for linked in (*by_group.values(), *identical_files(records)):
        for i in linked[1:]:
            leader[find(i)] = find(linked[0])
    units: dict[int, list[int]] = defaultdict(list)
    for i in range(len(records)):
        units[find(i)].append(i)
    return [unit for unit in units.values() if len(unit) > 1]


def _canonical(suite: Suite, unit: Sequence[int]) -> list[tuple[str, str, str]]:
    """A sort key that does not depend on the order of tasks and classes."""
    return sorted(
        (suite.tasks[r.task].name, suite.tasks[r.task].classes[r.label], r.relative)
        for r in (suite.records[i] for i in unit)
    )


def _fitted(lacking: Counts, n: int) -> Counts:
    """What each part lacks, cut down to ``n`` images where linked ones have overfilled another part."""
    sizes: Counts = np.maximum(lacking, 0)
    while sizes.sum() > n:
        sizes[int(np.argmax(sizes))] -= 1
    return sizes


def _notes(suite: Suite, parts: Sequence[Part]) -> Iterable[str]:
    tested = {(r.task, r.label) for r, part in zip(suite.records, parts, strict=True) if part == "test"}
    trained = {(r.task, r.label) for r, part in zip(suite.records, parts, strict=True) if part == "train"}
    for t, task in enumerate(suite.tasks):
        for label, name in enumerate(task.classes):
            if (t, label) not in tested:
                yield f"{task.name}: class {name!r} has no test images; scores leave it out"
            if (t, label) not in trained:
                yield f"{task.name}: class {name!r} has no training images"
