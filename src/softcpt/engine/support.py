"""What fitted classifiers see: features of the run's samples, task by task, made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.core.progress import OnProgress, Progress
from softcpt.core.seeds import seed_for_torch
from softcpt.data.draw import Samples
from softcpt.data.record import Record
from softcpt.engine.features import CENTRE, MIRROR, ImageFeatures
from softcpt.methods.base import Classifier, Pictures, Support, Tuned, fitted_parts


def views_of(pictures: Pictures) -> list[int]:
    """The numbers of the views that make up what a classifier is fitted to."""
    whole = [CENTRE] if pictures.centres else []
    return [*whole, *([MIRROR] if pictures.mirrors else []), *range(pictures.views)]


class TaskSupport(Support):
    """The support of one task.

    Args:
        train: its training images.
        val: its val images.
        features: where theirs come from.
        on_progress: told while images are encoded.
    """

    def __init__(
        self,
        train: Sequence[Record],
        val: Sequence[Record],
        features: ImageFeatures,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._train, self._val, self._features, self._on_progress = train, val, features, on_progress

    @cached_property
    def labels(self) -> Int[Tensor, " n"]:
        """Class of each training image."""
        return self._labels(self._train)

    @cached_property
    def centres(self) -> Float[Tensor, "n D"]:
        """The whole training images."""
        return self._get(self._train, [CENTRE])[:, 0]

    @cached_property
    def mirrors(self) -> Float[Tensor, "n D"]:
        """Their mirror images."""
        return self._get(self._train, [MIRROR])[:, 0]

    def views(self, count: int) -> Float[Tensor, "n V D"]:
        """The first random views; the centre alone for 0."""
        return self._get(self._train, range(count) if count else [CENTRE])

    @cached_property
    def val_labels(self) -> Int[Tensor, " m"]:
        """Class of each val image."""
        return self._labels(self._val)

    @cached_property
    def val(self) -> Float[Tensor, "m D"]:
        """The whole val images."""
        return self._get(self._val, [CENTRE])[:, 0]

    def _labels(self, records: Sequence[Record]) -> Int[Tensor, " n"]:
        device = self._features.backbone.device
        return torch.tensor([record.label for record in records], dtype=torch.int64, device=device)

    def _get(self, records: Sequence[Record], views: Sequence[int]) -> Float[Tensor, "n V D"]:
        tell, total = self._on_progress, len(records) * len(views)
        on_done = None if tell is None else (lambda n: tell(Progress("image features", n, total)))
        found = self._features.views(
            [record for record in records for _ in views], [*views] * len(records), on_done
        )
        return found.view(len(records), len(views), found.shape[-1])  # a shape without images too


def fit_to_support(
    classifier: Classifier,
    samples: Samples,
    features: ImageFeatures,
    *,
    seed: int,
    on_progress: OnProgress | None = None,
) -> Tuned:
    """Fit whatever in a classifier is fitted to features.

    Args:
        classifier: on its device; what the loop trains in it is trained.
        samples: the run's.
        features: where image features come from.
        seed: of the run's random streams.
        on_progress: told while images are encoded.

    Returns:
        What was chosen on val, by task.

    Raises:
        SuiteError: every image that cannot be read.
    """
    tasks = classifier.problem.tasks
    supports: list[Support] = [
        TaskSupport(
            [record for record in samples.train if record.task == t],
            [record for record in samples.val if record.task == t],
            features,
            on_progress,
        )
        for t in range(len(tasks))
    ]

    def streams(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_for_torch("fit", seed, purpose))

    tuned: Tuned = {}
    for part, own in fitted_parts(classifier):
        part.fit([supports[t] for t in own], streams)
        tuned |= part.tuned()
    return tuned


def allocate(classifier: Classifier, task_of_image: Sequence[int]) -> None:
    """Make room in a classifier for what it learns from images of these tasks."""
    for part, own in fitted_parts(classifier):
        part.allocate([sum(task == t for task in task_of_image) for t in own])
