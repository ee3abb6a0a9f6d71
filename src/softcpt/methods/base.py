"""What a method is: values to set, one function that builds its classifier, and what the loop must know.

    Problem            names of tasks and classes, and the frozen text side
    Method             the entry of the registry
    Classifier         what a method makes of a problem; the loop trains it, the evaluation asks it for scores
    FittedClassifier   one that is fitted to image features that are there already: instead of the loop
                       (``Method.fits``), or after it (``trains`` and ``fits``: prompts first, then a head)
    Support            those features, of one task
    Stage              one training of a classifier; most need only one

Letters: B images, T tasks, K classes of the suite, C classes of a task, D embedding, W text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from softcpt.clip.text_shared import SAVED_GB
from softcpt.core.errors import ConfigError, Fault
from softcpt.methods.conflicts import gram_of
from softcpt.methods.loss import Encoded, cosine_logits, multitask_cross_entropy

if TYPE_CHECKING:
    from softcpt.clip.text import TextTower
    from softcpt.clip.tokens import Tokenizer
    from softcpt.methods.objective import Objective

Scorer = Callable[[Tensor, int], Tensor]
"""Image features [B, D] and a task's index -> logits [B, C] over that task's classes.

Methods that need ``tokens`` get [B, 1 + r, D]."""

Streams = Callable[[str], torch.Generator]
"""The name of a purpose -> its own random stream (on the CPU)."""


TextPath = Literal["fast", "plain"]

ImageKind = Literal["pooled", "tokens"]
"""What a method sees of an image: its feature [D], or [1 + r, D] with those of r regions behind it."""


Tuned = dict[str, dict[str, Any]]
"""Name of a task -> what was chosen for it (``alpha``), on what evidence (``val_accuracy``); JSON values."""


TRIALS = 12
"""The most trainings that a cell of a comparison may spend on choosing settings, whatever the method."""


@dataclass(frozen=True)
class Pictures:
    """What a fitted classifier asks its :class:`Support` for, of each training image.

    Attributes:
        centres: the whole image.
        mirrors: its mirror image.
        views: how many of its random views.
    """

    centres: bool = False
    mirrors: bool = False
    views: int = 0


class MethodConfig(BaseModel):
    """Values a method can be given; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def is_shared(self) -> bool:
        """Whether a method that shares (``Method.shares``) still does so with these values."""
        return True

    def pictures(self) -> Pictures:
        """What a classifier with these values is fitted to, so that it can be encoded ahead for many runs.

        Its ``views``, or where there are none the whole images. What is not named here is encoded when it is
        asked for.
        """
        views = int(getattr(self, "views", 0) or 0)
        return Pictures(centres=views == 0, views=views)


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


@dataclass(frozen=True)
class Stage:
    """One training. A method may need several, one after the other.

    Attributes:
        classifier: what is trained.
        task: index of the only task it is trained on, which it calls 0; None for all.
        note: tells it from another training on the same tasks, in random streams and metrics.
        epochs: how many of a run's epochs are its own; it is left out with 0.
        begin: called before it, and also where it is left out.
    """

    classifier: Classifier
    task: int | None = None
    note: str = ""
    epochs: Callable[[int], int] = int
    begin: Callable[[], None] = lambda: None


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
        features: Float[Tensor, "B *r D"],
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

    def losses(
        self,
        features: Float[Tensor, "B *r D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What :meth:`backward` is given for one batch; the first is the loss that a run tells of."""
        return (self.loss(features, columns, rng=rng, weights=weights),)

    def backward(self, losses: tuple[Tensor, ...]) -> None:
        """Give every parameter its gradient, as the next step will take it.

        Args:
            losses: as :meth:`losses` made them, all times one factor where training is in fp16.
        """
        torch.autograd.backward(losses)

    def stages(self) -> Iterator[Stage]:
        """The trainings this needs, in order."""
        yield Stage(self)

    def facts(self, features: Float[Tensor, "B *r D"]) -> dict[str, float]:
        """What a run should record of the trained classifier, measured on some images of its tasks."""
        return {}

    def report(self) -> dict[str, Any]:
        """What the result of a training should say of it; JSON values."""
        return {}

    def regenerated(self) -> dict[str, str]:
        """Digests of what is not stored but made again from the seed; a loader compares them."""
        return {}

    def for_tasks(self, problem: Problem) -> Classifier:
        """The same knowledge on other tasks, by their names alone.

        Raises:
            ConfigError: nothing that was learned applies to tasks it was not trained on.
        """
        why = f"{type(self).__name__} learned for its own tasks alone"
        fix = "use a method whose contexts come from names"
        raise ConfigError(
            Fault("method", f"{why}: it has nothing for an unseen task", fix), about="new tasks"
        )

    def learned(self) -> dict[str, Tensor]:
        """Everything an adapter needs, by name: what was learned, and random starts kept frozen."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items() if tensor.numel()}


class PromptClassifier(Classifier):
    """A classifier whose weights are the text features of prompts: CLIP's cosine logits."""

    _known: tuple[object, Tensor] | None = None

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.objective: Objective | None = None  # None: the cross-entropy alone

    @abstractmethod
    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features, not normalised, differentiable: of all K classes, or of the selected columns."""

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Scaled cosines to all classes of all tasks."""
        return cosine_logits(features, self.class_features(), self.problem.logit_scale)

    def loss(
        self,
        features: Float[Tensor, "B *r D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy inside each image's own task."""
        every = self.objective is not None and self.objective.wants_all_classes
        selected = None if every else self.problem.columns_in_play(columns)
        return self.loss_among(selected, features, columns, weights, rng)

    def loss_among(
        self,
        selected: Int[Tensor, " k"] | None,
        features: Float[Tensor, "B *r D"],
        columns: Int[Tensor, " B"],
        weights: Float[Tensor, " B"] | None,
        rng: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The loss with all columns encoded, or only some, in ascending order."""
        of_class = self.problem.task_of_class
        if selected is not None:
            columns, of_class = torch.searchsorted(selected, columns), of_class[selected]
        if self.objective is not None:
            made = self.trained_features(selected)
            batch = Encoded(features, columns, made, selected, weights, rng)
            loss: Tensor = self.objective(self, batch)
            return loss
        logits = self.logits(features) if selected is None else self.logits_among(selected, features)
        return multitask_cross_entropy(logits, columns, of_class, weights=weights)

    def trained_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Class features as training sees them."""
        return self.class_features(selected)

    def task_gram(self, losses: Float[Tensor, " p"], tasks: Int[Tensor, " p"]) -> Float[Tensor, "p p"]:
        """Inner products of the gradients of some tasks' losses on everything learned."""
        return gram_of(losses, [p for p in self.parameters() if p.requires_grad])

    def step_factors(self) -> Float[Tensor, " T"] | None:
        """What the rate is multiplied with on each task's own context; None where it has no formula."""
        return None

    def report(self) -> dict[str, Any]:
        """Of the objective, where there is one."""
        found = {} if self.objective is None else self.objective.report()
        return {"task_gradients": found} if found else {}

    def logits_among(
        self, selected: Int[Tensor, " k"], features: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B k"]:
        """Scaled cosines to the selected columns."""
        return cosine_logits(features, self.trained_features(selected), self.problem.logit_scale)

    def scorer(self) -> Scorer:
        """Cosine logits over one task's classes."""
        weights = self.known_features()
        problem = self.problem

        def score(features: Tensor, task: int) -> Tensor:
            return cosine_logits(features.to(weights), weights[problem.columns(task)], problem.logit_scale)

        return score

    def known_features(self) -> Tensor:
        """Text features of all K classes [K, D], computed again only after something was learned."""
        return self._known_texts()

    def _texts(self) -> Tensor:
        """What the scorer needs of the text side."""
        return self.class_features()

    def _known_texts(self) -> Tensor:
        text = self.problem.text
        tensors = [*self.parameters(), *self.buffers(), *text.parameters(), *text.buffers()]
        versions = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        state = (torch.is_autocast_enabled(text.device.type), versions)
        if self._known is None or self._known[0] != state:
            with torch.no_grad():
                self._known = (state, self._texts().to(self.problem.dtype))
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

    def stages(self) -> Iterator[Stage]:
        """One for each task."""
        for t in range(len(self.tasks)):
            yield Stage(self.part(t), task=t)

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
        shares: whether what is learned of one task depends on the other tasks' images; training them in one
            run is not enough. What values take away, the config's ``is_shared`` says.
        published_steps: optimizer steps a batch, and scheduler steps an epoch, of the published code
            (its ``K``); None where no code of this kind was published.
        image_features: what it sees of an image.
        texts_per_image: whether each image has prompts of its own, so that using it costs texts as well.
        defaults: of training keys, where the method's differ from all others'.
        tunes: key -> values that a comparison tries on val, the most regularised first, in all combinations
            (at most :data:`TRIALS`); None for rates of SGD and of AdamW.
    """

    key: str
    label: str
    summary: str
    config: type[MethodConfig]
    build: Callable[[Problem, Any, Streams], Classifier]
    trains: bool = True
    separate: bool = False
    published_steps: int | None = None
    image_features: ImageKind = "pooled"
    texts_per_image: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fits: bool = False
    tunes: Mapping[str, tuple[str, ...]] | None = None
    shares: bool = False

    @property
    def uses_images(self) -> bool:
        """Whether it needs training images at all."""
        return self.trains or self.fits
