"""What a method is: values to set, one function that builds its classifier, and what the loop must know.

    Problem            names of tasks and classes, and the frozen text side
    Method             the entry of the registry
    Classifier         what a method makes of a problem; the loop trains it, the evaluation asks it for scores
    FittedClassifier   one that is fitted to image features that are there already: instead of the loop
                       (``Method.fits``), or after it (``trains`` and ``fits``: prompts first, then a head)
    Support            those features, of one task

Letters (STYLE): B images, T tasks, K classes of the suite, C classes of a task, D embedding, W text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from softcpt.clip.text_shared import SAVED_GB
from softcpt.methods.loss import cosine_logits, multitask_cross_entropy

if TYPE_CHECKING:
    from softcpt.clip.text import TextTower
    from softcpt.clip.tokens import Tokenizer

Scorer = Callable[[Tensor, int], Tensor]
"""Image features [B, D] and a task's index -> logits [B, C] over that task's classes."""

Streams = Callable[[str], torch.Generator]
"""The name of a purpose -> its own random stream (on the CPU)."""


TextPath = Literal["fast", "plain"]


Tuned = dict[str, dict[str, Any]]
"""Name of a task -> what was chosen for it (``alpha``), on what evidence (``val_accuracy``); JSON values."""


class MethodConfig(BaseModel):
    """Values a method can be given; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class TaskNames:
    """What a method may know of a task: words, no files.

    Attributes:
        name: unique in the suite.
        description: a sentence about the task, or None.
        classes: readable names in label order.
        template: hand-written prompt with one ``{}``.
    """

    name: str
    classes: tuple[str, ...]
    description: str | None = None
    template: str = "a photo of a {}."


@dataclass(frozen=True)
class Problem:
    """Tasks, and the frozen text side that their names go through.

    The classes of all tasks stand in one row of K columns, task after task.

    Attributes:
        tasks: their names.
        text: the text tower.
        tokenizer: its vocabulary.
        logit_scale: what cosines are multiplied with.
        text_path: ``fast`` computes what prompts share once; ``plain`` each prompt by itself.
        text_memory_gb: what ``fast`` may keep of a set of prompts for its gradients.
    """

    tasks: tuple[TaskNames, ...]
    text: TextTower
    tokenizer: Tokenizer
    logit_scale: float
    text_path: TextPath = "fast"
    text_memory_gb: float = SAVED_GB

    @cached_property
    def task_of_class(self) -> Int[Tensor, " K"]:
        """Index of the task each column belongs to."""
        sizes = torch.tensor([len(task.classes) for task in self.tasks])
        return torch.repeat_interleave(torch.arange(len(self.tasks)), sizes).to(self.text.device)

    @cached_property
    def first_column(self) -> tuple[int, ...]:
        """Where each task's block of columns begins; one more entry at the end holds K."""
        starts = [0]
        for task in self.tasks:
            starts.append(starts[-1] + len(task.classes))
        return tuple(starts)

    def columns(self, task: int) -> slice:
        """The block of columns of one task."""
        return slice(self.first_column[task], self.first_column[task + 1])

    @property
    def class_names(self) -> list[str]:
        """Readable names of all K columns."""
        return [name for task in self.tasks for name in task.classes]

    @property
    def class_places(self) -> list[str]:
        """Where each column's name stands, for faults."""
        return [f'task "{t.name}", class "{name}"' for t in self.tasks for name in t.classes]

    @property
    def dtype(self) -> torch.dtype:
        """What learned tensors are: fp32, or fp64 with an fp64 tower."""
        return torch.float64 if self.text.dtype == torch.float64 else torch.float32

    def columns_in_play(self, columns: Int[Tensor, " B"]) -> Int[Tensor, " k"] | None:
        """The columns of the tasks a batch has images of, or None for all.

        The others have no part in its loss. On a GPU the question costs a wait, and shapes that change cost
        more: there it is asked only where the batch cannot hold all tasks.
        """
        if len(self.tasks) == 1 or (columns.device.type != "cpu" and len(self.tasks) <= len(columns)):
            return None
        present = torch.zeros(len(self.tasks), dtype=torch.bool, device=columns.device)
        present[self.task_of_class[columns]] = True
        return None if bool(present.all()) else torch.nonzero(present[self.task_of_class]).flatten()

    def only(self, task: int) -> Problem:
        """The same with one task alone."""
        return replace(self, tasks=(self.tasks[task],))


class Classifier(nn.Module, ABC):
    """What a method makes of a problem.

    Its parameters are what is learned, all of it and nothing else.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = (problem,)  # in a tuple, so that the frozen tower is not registered as ours

    @property
    def problem(self) -> Problem:
        """The tasks this was built for."""
        return self._problem[0]

    @abstractmethod
    def scorer(self) -> Scorer:
        """Scores with the present parameters; the text side is computed once, here."""

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """What training makes small, for one batch.

        Args:
            features: image features, not normalised.
            columns: labels as columns over all tasks.
            rng: for methods that draw anything per batch.
            weights: factor of each image's term, or None for 1.
        """
        raise TypeError(f"{type(self).__name__} trains nothing")

    def learned(self) -> dict[str, Tensor]:
        """Everything an adapter needs, by name: what was learned, and random starts kept frozen."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items() if tensor.numel()}


class PromptClassifier(Classifier):
    """A classifier whose weights are the text features of prompts: CLIP's cosine logits."""

    _known: tuple[object, Tensor] | None = None

    @abstractmethod
    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features, not normalised, differentiable: of all K classes, or of the selected columns."""

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Scaled cosines to all classes of all tasks."""
        return cosine_logits(features, self.class_features(), self.problem.logit_scale)

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy inside each image's own task."""
        selected = self.problem.columns_in_play(columns)
        if selected is None:
            return multitask_cross_entropy(
                self.logits(features), columns, self.problem.task_of_class, weights=weights
            )
        return self.loss_among(selected, features, columns, weights)

    def loss_among(
        self,
        selected: Int[Tensor, " k"],
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        weights: Float[Tensor, " B"] | None,
    ) -> Float[Tensor, ""]:
        """The cross-entropy with only some columns encoded, in ascending order."""
        return multitask_cross_entropy(
            self.logits_among(selected, features),
            torch.searchsorted(selected, columns),
            self.problem.task_of_class[selected],
            weights=weights,
        )

    def logits_among(
        self, selected: Int[Tensor, " k"], features: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B k"]:
        """Scaled cosines to the selected columns."""
        return cosine_logits(features, self.class_features(selected), self.problem.logit_scale)

    def scorer(self) -> Scorer:
        """Cosine logits over one task's classes."""
        weights = self._known_features()
        problem = self.problem

        def score(features: Tensor, task: int) -> Tensor:
            return cosine_logits(features.to(weights), weights[problem.columns(task)], problem.logit_scale)

        return score

    def _known_features(self) -> Tensor:
        """Text features of all K classes [K, D], computed again only after something was learned."""
        text = self.problem.text
        tensors = [*self.parameters(), *self.buffers(), *text.parameters(), *text.buffers()]
        versions = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        state = (torch.is_autocast_enabled(text.device.type), versions)
        if self._known is None or self._known[0] != state:
            with torch.no_grad():
                self._known = (state, self.class_features().to(self.problem.dtype))
        return self._known[1]


class Support(ABC):
    """What a fitted classifier may see of one task: features of its drawn images, none of them normalised.

    They are made when they are asked for: a method pays only for what it reads. The order of the images is
    that of the run's samples, the same for all methods.
    """

    @property
    @abstractmethod
    def labels(self) -> Int[Tensor, " n"]:
        """Class of each training image in its task."""

    @property
    @abstractmethod
    def centres(self) -> Float[Tensor, "n D"]:
        """The whole training images."""

    @property
    @abstractmethod
    def mirrors(self) -> Float[Tensor, "n D"]:
        """Their mirror images."""

    @abstractmethod
    def views(self, count: int) -> Float[Tensor, "n V D"]:
        """The first ``count`` random views, the same ones for every method, shot count and seed.

        With a count of 0 the centre is the only view.
        """

    @property
    @abstractmethod
    def val_labels(self) -> Int[Tensor, " m"]:
        """Class of each val image: min(shots, 4) a class, none where the suite has no val part."""

    @property
    @abstractmethod
    def val(self) -> Float[Tensor, "m D"]:
        """The whole val images; nothing else may choose a setting."""


class FittedClassifier(Classifier):
    """A classifier that is fitted to features, with tensors whose sizes depend on the training images.

    It scores like any other once it was fitted, or once :meth:`allocate` made room and an adapter filled it.
    """

    @abstractmethod
    def allocate(self, n_images: Sequence[int]) -> None:
        """Make room for everything :meth:`learned` will hold.

        Tells a loader which tensors to expect, so that it need not trust a file for their shapes.

        Args:
            n_images: training images of each task.
        """

    @abstractmethod
    def fit(self, support: Sequence[Support], streams: Streams) -> None:
        """Learn from the support of each task, and choose on its val images.

        Args:
            support: one per task, in the problem's order.
            streams: whatever is drawn; name them by task, so that another task changes nothing.
        """

    @abstractmethod
    def tuned(self) -> Tuned:
        """What the last :meth:`fit` chose; for the record, not needed to score."""


class SeparateClassifiers(Classifier):
    """One independent classifier per task, as if each had been trained in a run of its own."""

    def __init__(self, problem: Problem, parts: Sequence[Classifier]) -> None:
        super().__init__(problem)
        self.tasks = nn.ModuleList(parts)

    def part(self, task: int) -> Classifier:
        """The classifier of one task; to it, the task has index 0."""
        part = self.tasks[task]
        assert isinstance(part, Classifier)  # what the constructor was given
        return part

    def scorer(self) -> Scorer:
        """Each task by its own classifier."""
        scorers = [self.part(t).scorer() for t in range(len(self.tasks))]
        return lambda features, task: scorers[task](features, 0)


def fitted_parts(classifier: Classifier) -> list[tuple[FittedClassifier, list[int]]]:
    """Everything in a classifier that is to be fitted, each with the tasks it knows."""
    if isinstance(classifier, FittedClassifier):
        return [(classifier, list(range(len(classifier.problem.tasks))))]
    if isinstance(classifier, SeparateClassifiers):
        parts = [(classifier.part(t), [t]) for t in range(len(classifier.tasks))]
        return [(part, tasks) for part, tasks in parts if isinstance(part, FittedClassifier)]
    return []


def n_parameters(classifier: Classifier) -> int:
    """How many numbers were learned; features that are merely kept do not count."""
    return sum(p.numel() for p in classifier.parameters())


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        key: name on the command line.
        label: name as printed in papers.
        summary: one line for people.
        config: its own options.
        build: makes the classifier; random starts come from named streams.
        trains: whether the loop trains its classifier.
        fits: whether its classifier is a :class:`FittedClassifier`, fitted after the loop or without one.
        separate: one independent training per task instead of one over all.
        published_steps: optimizer steps a batch, and scheduler steps an epoch, of the published code
            (its ``K``); None where no code of this kind was published.
    """

    key: str
    label: str
    summary: str
    config: type[MethodConfig]
    build: Callable[[Problem, Any, Streams], Classifier]
    trains: bool = True
    separate: bool = False
    published_steps: int | None = None
    fits: bool = False

    @property
    def uses_images(self) -> bool:
        """Whether it needs training images at all."""
        return self.trains or self.fits
