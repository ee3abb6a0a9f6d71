"""What was scored: one row a trained and tested model, and means over rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softcpt.engine.evaluate import Evaluation, Scored
    from softcpt.engine.runs import Run


@dataclass(frozen=True)
class TaskFacts:
    """A task as a reader of its scores should know it.

    Attributes:
        name: of the task.
        classes: in the order of a prediction's probabilities.
        n_images: test images.
        metric: by which it is scored.
    """

    name: str
    classes: tuple[str, ...]
    n_images: int
    metric: str = "overall_acc"


@dataclass(frozen=True)
class Row:
    """One model and its scores on test images, as fractions.

    Attributes:
        method: key.
        label: the method as it is printed.
        suite: name of the suite.
        shots: training images per class; 0 where nothing is trained, None for all.
        seed: of its training.
        score: mean over tasks.
        tasks: task -> score; None without test images.
        n_learned: numbers learned.
        seconds: of training.
        predictions: of each test image; empty where nobody asks for them.
    """

    method: str
    label: str
    suite: str
    shots: int | None
    seed: int
    score: float
    tasks: Mapping[str, float | None]
    n_learned: int = 0
    seconds: float = 0.0
    predictions: tuple[Scored, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """For programs: scores in percent, without the predictions."""
        return {
            "method": self.method,
            "suite": self.suite,
            "shots": "all" if self.shots is None else self.shots,
            "seed": self.seed,
            "score": 100 * self.score,
            "tasks": {name: None if score is None else 100 * score for name, score in self.tasks.items()},
            "n_learned": self.n_learned,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Results:
    """Rows of one or several suites.

    Attributes:
        rows: in the order methods are to be shown.
        tasks: suite -> its tasks in order.
    """

    rows: tuple[Row, ...]
    tasks: Mapping[str, tuple[TaskFacts, ...]]

    @property
    def methods(self) -> dict[str, str]:
        """Key -> label, in the order of their first rows."""
        return {row.method: row.label for row in self.rows}

    @property
    def shots(self) -> list[int | None]:
        """Those that something was trained with, rising; all images last."""
        found = {row.shots for row in self.rows if row.shots != 0}
        return sorted(found, key=lambda shots: math.inf if shots is None else shots)

    @property
    def seeds(self) -> list[int]:
        """Of the trained rows."""
        return sorted({row.seed for row in self.rows if row.shots != 0})

    def of(self, *, suite: str, method: str, shots: int | None) -> list[Row]:
        """One cell's rows, a seed each. What trains nothing scores the same for any ``shots``."""
        return [
            row for row in self.rows if (row.suite, row.method) == (suite, method) and row.shots in (shots, 0)
        ]

    def best(self, *, suite: str, shots: int | None) -> str:
        """The key of the method with the highest mean score; the first of equals."""
        return max(
            self.methods, key=lambda method: _mean_score(self.of(suite=suite, method=method, shots=shots))
        )


def _mean_score(rows: Sequence[Row]) -> float:
    return spread(row.score for row in rows).mean if rows else -math.inf


@dataclass(frozen=True)
class Spread:
    """Mean and population deviation of fractions.

    Attributes:
        mean: NaN without values.
        deviation: 0 of a single value, which says nothing about how it varies.
        n: values.
    """

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        """In percent: ``38.6 ± 0.4``; the mean alone of a single value; a dash of none."""
        if not self.n:
            return "-"
        mean = f"{100 * self.mean:.1f}"
        return mean if self.n == 1 else f"{mean} ± {100 * self.deviation:.1f}"


def spread(values: Iterable[float | None]) -> Spread:
    """Of the values there are.

    Example:
        >>> str(spread([0.5, 0.6, None]))
        '55.0 ± 5.0'
    """
    there = [value for value in values if value is not None]
    if not there:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(there) / len(there)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in there) / len(there)), len(there))


def result_row(run: Run, evaluation: Evaluation) -> Row:
    """The row of a finished run and its evaluation, with the predictions."""
    return Row(
        method=evaluation.method,
        label=run.adapter.settings.method.label,
        suite=evaluation.suite,
        shots=evaluation.shots,
        seed=evaluation.seed,
        score=evaluation.score,
        tasks={task.name: task.score for task in evaluation.tasks},
        n_learned=run.result["n_parameters"],
        seconds=run.result["seconds"],
        predictions=evaluation.predictions,
    )


def task_facts(evaluation: Evaluation) -> tuple[TaskFacts, ...]:
    """The tasks that were scored."""
    return tuple(
        TaskFacts(task.name, tuple(task.recalls), task.n_images, task.metric) for task in evaluation.tasks
    )


def confusion(predictions: Iterable[Scored], task: TaskFacts) -> list[list[int]]:
    """How often each class (row) was taken for each class (column)."""
    index = {name: i for i, name in enumerate(task.classes)}
    counts = [[0] * len(index) for _ in index]
    for scored in predictions:
        if scored.task == task.name:
            counts[index[scored.label]][index[scored.predicted]] += 1
    return counts


@dataclass(frozen=True)
class Mistake:
    """A class that was taken for another one: how often, of how many images."""

    label: str
    predicted: str
    count: int
    of: int

    @property
    def share(self) -> float:
        """Of the class's images."""
        return self.count / self.of


def mistakes(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Mistake]:
    """All that happened, the commonest (by share of the class) first."""
    found = [
        Mistake(classes[i], classes[j], count, sum(row))
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda mistake: -mistake.share)
