"""A split and a number of shots -> the images a run may see, by the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from softcpt.core.seeds import stream
from softcpt.data import published
from softcpt.data.record import Part, Record, Suite
from softcpt.data.split import Split

MAX_VAL_SHOTS: Final = 4
DrawRule = Literal["product", "published", "published-per-task"]


@dataclass(frozen=True)
class Samples:
    """The images of one run.

    Attributes:
        train: drawn, at most ``shots`` a class.
        val: drawn, at most min(shots, 4) a class; selection sees nothing else.
        test: every test image, whatever the seed.
        notes: classes with fewer images than shots.
    """

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]
    notes: tuple[str, ...] = field(default=())


def draw_samples(
    suite: Suite, split: Split, *, shots: int | None, seed: int, rule: DrawRule = "product"
) -> Samples:
    """Training and validation images for each class, without replacement, and all test images.

    Under the product rule a class is drawn from its own stream over its sorted relative paths: adding or
    removing other classes and tasks leaves it unchanged, and fewer shots are among more.

    Args:
        suite: what was split.
        split: as :func:`softcpt.data.split.split_suite` gives it.
        shots: training images per class, at least 1; None takes all of them.
        seed: of the run.
        rule: ``"product"``; or the published code's sequential draw over all tasks (``"published"``),
            or that draw restarted for each task (``"published-per-task"``).

    Raises:
        ValueError: shots below 1.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"shots must be at least 1, not {shots}")
    of_part: dict[Part, list[Record]] = {"train": [], "val": [], "test": []}
    for record, part in zip(suite.records, split.parts, strict=True):
        of_part[part].append(record)
    n_train = len(suite.records) if shots is None else shots
    n_val = MAX_VAL_SHOTS if shots is None else min(shots, MAX_VAL_SHOTS)
    train, val = of_part["train"], of_part["val"]
    if rule == "product":
        drawn_train = _product(suite, train, n_train, "shots", seed)
        drawn_val = _product(suite, val, n_val, "val shots", seed)
    elif rule == "published":
        drawn_train, drawn_val = published.draw_one_list(train, val, n_train, seed=seed, class_of=_class_of)
    else:
        drawn_train, drawn_val = published.draw_per_task(
            _by_task(suite, train), _by_task(suite, val), n_train, seed=seed, class_of=_class_of
        )
    notes = [] if shots is None else _short(suite, train, shots)
    return Samples(tuple(drawn_train), tuple(drawn_val), tuple(of_part["test"]), tuple(notes))


def _product(suite: Suite, records: Sequence[Record], n: int, purpose: str, seed: int) -> list[Record]:
    """The first ``n`` of a permutation of each class."""
    of_class: dict[tuple[int, int], list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.task, r.label, r.relative)):
        of_class.setdefault(_class_of(record), []).append(record)
    drawn: list[Record] = []
    for (task, label), group in of_class.items():
        names = suite.tasks[task].name, suite.tasks[task].classes[label]
        order = stream(purpose, seed, suite.name, *names).permutation(len(group))
        drawn.extend(group[i] for i in order[:n])
    return drawn


def _class_of(record: Record) -> tuple[int, int]:
    return record.task, record.label


def _by_task(suite: Suite, records: Sequence[Record]) -> list[list[Record]]:
    return [[record for record in records if record.task == t] for t in range(len(suite.tasks))]


def _short(suite: Suite, train: Sequence[Record], shots: int) -> list[str]:
    counts = dict.fromkeys(
        ((t, label) for t, task in enumerate(suite.tasks) for label in range(len(task.classes))), 0
    )
    for record in train:
        counts[_class_of(record)] += 1
    return [
        f"{suite.tasks[t].name}: class {suite.tasks[t].classes[label]!r} has {n} training "
        f"image{'' if n == 1 else 's'} for {shots} shots; all are taken"
        for (t, label), n in counts.items()
        if n < shots
    ]
