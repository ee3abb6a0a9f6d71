"""Heads: one small classifier per task on cached image features, its settings chosen on val.

    Head             how a kind of head is fitted and scores; plain arithmetic, keeps nothing
    TaskData         what one task's head is made from
    Trials           every setting of a grid, fitted and scored on val
    HeadClassifier   a head for every task of a problem; holds their tensors, chooses their settings

A grid is written in order of preference: the published setting first, then the most regularised ones. The
first of the best on val is taken, so that ties need no further rule.

Letters: B images, n and m training and val images of a task, C its classes, P templates, G settings of a
grid, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from softcpt.methods.base import (
    FittedClassifier,
    MethodConfig,
    Problem,
    Scorer,
    Streams,
    Support,
    Tuned,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates, TemplateTexts, mean_direction

Setting = Mapping[str, float]
State = dict[str, Tensor]

Tune = Literal["suite", "task", "published"]


class TunedConfig(MethodConfig):
    """Whether settings are chosen on val."""

    tune: Tune = Field(
        "suite",
        description="settings chosen on val, once for the suite or for each task; or the published ones",
    )


def templates_field() -> Any:  # noqa: ANN401  pydantic's own type of a field
    """The key that says which hand-written templates a head's text comes from."""
    return Field(
        "task", description="of the text: task: its own; selected, imagenet: averaged with CLIP's 7 or 80"
    )


def views_field() -> Any:  # noqa: ANN401
    """The key that says how many random views of an image a head sees."""
    return Field(16, ge=0, description="random views of an image; 0: the centre only")


def pooled(views: Float[Tensor, "n V D"]) -> Float[Tensor, "n D"]:
    """An image as the mean of its views, normalised."""
    return unit(views.mean(1))


def accuracy(logits: Float[Tensor, "*G m C"], labels: Int[Tensor, " m"]) -> Float[Tensor, "*G"]:
    """Share of right decisions for each setting; the first of equal classes wins."""
    return (logits.argmax(-1) == labels).double().mean(-1)


class TaskText:
    """Text features of a task's classes, encoded when they are first asked for.

    Args:
        encode: gives them, not normalised [P, C, D].
    """

    def __init__(self, encode: Callable[[], Float[Tensor, "P C D"]]) -> None:
        self._encode = encode

    @cached_property
    def raw(self) -> Float[Tensor, "C D"]:
        """Mean over templates of features as they are."""
        return self._encode().mean(0)

    @cached_property
    def unit(self) -> Float[Tensor, "C D"]:
        """Mean over templates of normalised features, normalised."""
        return mean_direction(self._encode())

    @cached_property
    def every(self) -> Float[Tensor, "P C D"]:
        """Of each template, normalised."""
        return unit(self._encode())


@dataclass(frozen=True)
class TaskData:
    """What one task's head is made from.

    Attributes:
        support: image features.
        text: text features.
        scale: the backbone's logit scale.
        n_classes: C.
        dtype: of what is learned.
        streams: random streams of this task alone.
    """

    support: Support
    text: TaskText
    scale: float
    n_classes: int
    dtype: torch.dtype
    streams: Streams

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """Of the training images."""
        return self.support.labels

    @property
    def one_hot(self) -> Float[Tensor, "n C"]:
        """The same, as rows of 0 and 1."""
        return F.one_hot(self.labels, self.n_classes).to(self.dtype)

    @cached_property
    def centres(self) -> Float[Tensor, "n D"]:
        """The whole training images, normalised."""
        return unit(self.support.centres.to(self.dtype))

    def views(self, count: int) -> Float[Tensor, "n V D"]:
        """Random views of them, not normalised."""
        return self.support.views(count).to(self.dtype)

    @cached_property
    def val(self) -> Float[Tensor, "m D"]:
        """The val images, normalised."""
        return unit(self.support.val.to(self.dtype))

    @property
    def val_labels(self) -> Int[Tensor, " m"]:
        """Of the val images."""
        return self.support.val_labels

    def val_accuracy(self, logits: Float[Tensor, "*G m C"]) -> Float[Tensor, "*G"]:
        """Of logits on the val images; 0 without any, so that nothing is preferred."""
        if not len(self.val_labels):
            return torch.zeros(logits.shape[:-2], dtype=torch.float64, device=logits.device)
        return accuracy(logits, self.val_labels)


@dataclass(frozen=True)
class Trials:
    """A task's head under every setting of a grid.

    Attributes:
        scores: higher is better; of further columns, each decides among the best of those before it.
        state: the tensors under one setting.
        record: what to note of one setting beside its values.
        trainings: gradient trainings it took.
        by: the images that scored: of val, or each training image when it was left out.
    """

    scores: Float[Tensor, "G k"]
    state: Callable[[int], State]
    record: Callable[[int], dict[str, Any]] = field(default=lambda _: {})
    trainings: int = 0
    by: Literal["val", "loo"] = "val"


class Head(ABC):
    """A kind of head."""

    kept: ClassVar[frozenset[str]] = frozenset()
    """Tensors that are kept but not learned: stored images, choices made on val."""

    @abstractmethod
    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """What a fitted head stores, in the order of ``state``."""

    def dtypes(self) -> dict[str, torch.dtype]:
        """Of tensors that are not of the learned kind."""
        return {}

    @abstractmethod
    def grid(self) -> Sequence[Setting]:
        """All settings, in order of preference; the first is taken where nothing is tuned."""

    @abstractmethod
    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """Fit under every setting of ``grid``, and score on val."""

    @abstractmethod
    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Scores of images, whose features are not normalised."""


class TaskStates(FittedClassifier):
    """Tensors for every task; the base of what has one head per task."""

    def __init__(self, problem: Problem, head: Head, templates: Templates | None) -> None:
        super().__init__(problem)
        self.head = head
        self.tasks = nn.ModuleList(nn.Module() for _ in problem.tasks)
        self._texts = TemplateTexts(problem, templates or "task")
        self._tuned: Tuned = {}

    def text(self, task: int) -> Float[Tensor, "P C D"]:
        """Text features of one task's classes, not normalised; a subclass may have learned ones."""
        return self._texts.of_task(task)

    def allocate(self, n_images: Sequence[int]) -> None:
        """Make room for the tensors of every task's head."""
        for t, (task, n) in enumerate(zip(self.problem.tasks, n_images, strict=True)):
            shapes = self.head.shapes(n, len(task.classes), self.problem.text.embed_dim)
            dtypes = self.head.dtypes()
            self._put(
                t,
                {
                    name: torch.zeros(shape, dtype=dtypes.get(name, self.problem.dtype))
                    for name, shape in shapes.items()
                },
            )

    def tuned(self) -> Tuned:
        """What was chosen, by task."""
        return self._tuned

    def scorer(self) -> Scorer:
        """Each task by its own head."""
        head, scale, dtype = self.head, self.problem.logit_scale, self.problem.dtype
        texts = [self._task_text(t) for t in range(len(self.problem.tasks))]
        states = [self._state(t) for t in range(len(self.problem.tasks))]

        def score(features: Tensor, task: int) -> Tensor:
            return head.logits(states[task], features.to(dtype), texts[task], scale)

        return score

    def data(self, support: Sequence[Support], streams: Streams) -> list[TaskData]:
        """What each task's head is made from."""
        return [
            TaskData(
                own,
                self._task_text(t),
                self.problem.logit_scale,
                len(task.classes),
                self.problem.dtype,
                _streams_of(task.name, streams),
            )
            for t, (task, own) in enumerate(zip(self.problem.tasks, support, strict=True))
        ]

    def keep(self, task: int, state: State, record: dict[str, Any]) -> None:
        """Take a fitted head's tensors, and note what was chosen for it."""
        self._put(task, state)
        self._tuned[self.problem.tasks[task].name] = record

    def _task_text(self, task: int) -> TaskText:
        return TaskText(lambda: self.text(task))

    def _put(self, task: int, state: State) -> None:
        place, device = self.tasks[task], self.problem.text.device
        for name, tensor in state.items():
            value = tensor.detach().to(device, copy=True).contiguous()
            if name in self.head.kept:
                place.register_buffer(name, value)
            else:
                place.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def _state(self, task: int) -> Mapping[str, Tensor]:
        place = self.tasks[task]
        return {**dict(place.named_parameters()), **dict(place.named_buffers())}


def _streams_of(task: str, streams: Streams) -> Streams:
    return lambda purpose: streams(f"{task}/{purpose}")


class HeadClassifier(TaskStates):
    """A head for every task, its settings chosen from a grid on val.

    Args:
        problem: the tasks.
        head: which kind.
        templates: of the hand-written text.
        tune: for whom settings are chosen: one for all tasks, one for each, or the published ones for all.
    """

    def __init__(
        self, problem: Problem, head: Head, *, templates: Templates | None = None, tune: Tune = "suite"
    ) -> None:
        super().__init__(problem, head, templates)
        self.tune = tune

    def fit(self, support: Sequence[Support], streams: Streams) -> None:
        """Fit every task's head under every setting, and keep the chosen one."""
        self._tuned = {}
        grid = list(self.head.grid())
        if self.tune == "published":
            grid = grid[:1]
        trials = [self.head.explore(data, grid) for data in self.data(support, streams)]
        judges = [
            t
            for t, (own, trial) in enumerate(zip(support, trials, strict=True))
            if trial.by == "loo" or len(own.val_labels)
        ]
        for t, chosen in enumerate(choose([trial.scores for trial in trials], judges, self.tune)):
            record: dict[str, Any] = {**grid[chosen], **trials[t].record(chosen)}
            if t in judges:
                record[f"{trials[t].by}_accuracy"] = float(trials[t].scores[chosen, 0])
            if trials[t].trainings:
                record["trainings"] = trials[t].trainings
            self.keep(t, trials[t].state(chosen), record)


def choose(scores: Sequence[Float[Tensor, "G k"]], judges: Sequence[int], tune: Tune) -> list[int]:
    """The setting of each task.

    Args:
        scores: of every setting on the images that choose for each task.
        judges: tasks that have images to choose by; another takes what it is given, or the first setting.
        tune: for whom is chosen.
    """
    if tune == "task":
        return [first_best(own) if t in judges else 0 for t, own in enumerate(scores)]
    if not judges:
        return [0] * len(scores)
    return [first_best(torch.stack([scores[t] for t in judges]).mean(0))] * len(scores)


def first_best(scores: Float[Tensor, "G k"]) -> int:
    """The first row that is best by its first column, then by its second among those, and so on.

    Means over tasks of equal numbers may differ in their last bits; that is no difference.
    """
    left = torch.arange(len(scores), device=scores.device)
    for column in scores.T:
        own = column[left]
        left = left[own >= own.max() - 1e-9]
    return int(left[0])
