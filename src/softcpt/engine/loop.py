"""The training loop: mixed-task batches of views, one optimizer, one schedule."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.core.errors import ConfigError, Fault, RunError, nearest
from softcpt.core.progress import OnProgress, Progress
from softcpt.core.seeds import seed_for_torch, stream
from softcpt.data.order import epoch_batches
from softcpt.data.record import Record
from softcpt.engine.config import TrainConfig
from softcpt.engine.epoch_features import EpochFeatures, ViewOrder
from softcpt.engine.features import ImageFeatures, autocast
from softcpt.engine.optim import OptimSpec, build_optimizer, learning_rate, set_learning_rate, take_step
from softcpt.methods.base import Classifier

PATIENCE_EPOCHS = 10
"""``epochs=auto`` stops after this many epochs without a better val score."""

STEPS_READ_AT_ONCE = {"cuda": 32, "mps": 32}
"""Losses read back together, by type of device; on the CPU there is nothing to wait for."""


@dataclass(frozen=True)
class Step:
    """One line of a run's metrics."""

    part: str
    epoch: int
    step: int
    loss: float
    learning_rate: float
    images: int
    seconds: float


@dataclass(frozen=True)
class ValScore:
    """A line of a run's metrics where val chooses the epoch."""

    part: str
    epoch: int
    val_score: float


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        epochs: trained.
        kept: the epoch (from 0) whose parameters were kept.
    """

    epochs: int
    kept: int


OnStep = Callable[[Step | ValScore], None]


@dataclass(frozen=True)
class Pool:
    """Training images of one run, all tasks together.

    Attributes:
        records: in a fixed order.
        columns: label of each as a column over all tasks of the classifier.
        tasks: index of each one's task.
    """

    records: Sequence[Record]
    columns: Int[Tensor, " n"]
    tasks: Sequence[int]


def fit(
    classifier: Classifier,
    pool: Pool,
    features: ImageFeatures,
    settings: TrainConfig,
    *,
    shots: int | None,
    seed: int,
    part: str,
    epochs: int | None = None,
    validate: Callable[[], float] | None = None,
    on_step: OnStep | None = None,
    on_progress: OnProgress | None = None,
) -> Trained:
    """Train a classifier in place.

    Args:
        classifier: whose parameters are learned.
        pool: what it learns from.
        features: where image features come from.
        settings: how.
        shots: images per class, for ``epochs=coop``.
        seed: draws order, views and class sampling.
        part: name of this training in its random streams and metrics: a task's, or ``all tasks``.
        epochs: length of this training, None for that of the settings.
        validate: score on the val samples; asked after every epoch where the best one is kept.
        on_step: told after every step, and every val score.
        on_progress: told while image features are made, and after every step.

    Returns:
        How many epochs, and which one was kept.

    Raises:
        RunError: the loss is no longer a number.
        SuiteError: every image that cannot be read.
    """
    spec = settings.optim(shots)
    spec = spec if epochs is None else replace(spec, epochs=epochs)
    optimizer = build_optimizer(classifier.parameters(), spec)
    device = features.backbone.device
    scaler = torch.amp.GradScaler(device.type) if features.precision == "fp16" else None
    columns = pool.columns.to(device)
    weights = task_weights(classifier, pool, settings)
    weights = None if weights is None else weights.to(device)
    shown = EpochFeatures(
        pool.records,
        features,
        ViewOrder(pool.records, settings.views, seed),
        spec.epochs,
        on_progress and (lambda done, total: on_progress(Progress("image features", done, total))),
    )
    sampling = torch.Generator().manual_seed(seed_for_torch("class sampling", seed, part))
    order = stream("order", seed, part)
    chooser = BestOnVal(validate) if settings.keeps_best and validate is not None else None
    balanced, power = settings.balance == "tasks", settings.task_power
    total = n_steps(spec, len(pool.records), settings.batch_size)
    steps = StepReader(part, total, device, on_step, on_progress)
    for epoch in range(spec.epochs):
        rate = learning_rate(spec, epoch)
        set_learning_rate(optimizer, rate)
        # Everything an epoch's steps need goes to the device here: a step itself only points into it.
        batches = epoch_batches(pool.tasks, settings.batch_size, order, balanced, power)
        sizes = [len(batch) for batch in batches]
        rows = torch.from_numpy(np.concatenate(batches)).to(device)
        parts = zip(
            torch.split(rows, sizes),
            torch.split(columns[rows], sizes),
            [None] * len(sizes) if weights is None else torch.split(weights[rows], sizes),
            strict=True,
        )
        images = shown.at(epoch)
        for of_batch, columns_of_batch, weights_of_batch in parts:
            with matrix_products(settings.matmul):
                with autocast(device, features.precision):
                    losses = classifier.losses(
                        images[of_batch], columns_of_batch, rng=sampling, weights=weights_of_batch
                    )
                take_step(optimizer, losses, spec, scaler, classifier.backward)
            steps.took(epoch, rate, losses[0], len(of_batch))
        steps.read()
        if chooser is not None:
            score = chooser.look(classifier, epoch)
            if on_step:
                on_step(ValScore(part, epoch, score))
            if settings.epochs == "auto" and chooser.is_tired(epoch):
                break
    if chooser is None:
        return Trained(spec.epochs, spec.epochs - 1)
    classifier.load_state_dict(chooser.kept)
    return Trained(epoch + 1, chooser.epoch)


@contextmanager
def matrix_products(kind: Literal["full", "fast"]) -> Iterator[None]:
    """Where products of fp32 matrices may be taken in fewer bits, by hardware that is faster so.

    For steps alone: features and scores do not depend on it.
    """
    if kind == "full":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class StepReader:
    """Tells of the steps taken.

    Losses are read back in blocks: each reading makes the host wait for the device, which is then idle
    until the next step has been prepared.

    Args:
        part: name of the training.
        total: steps in all.
        device: where losses are.
        on_step: told of every step.
        on_progress: told of every step.
    """

    def __init__(
        self,
        part: str,
        total: int,
        device: torch.device,
        on_step: OnStep | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.part, self.total, self.on_step, self.on_progress = part, total, on_step, on_progress
        self._at_once = STEPS_READ_AT_ONCE.get(device.type, 1)
        self._began = time.perf_counter()
        self._waiting: list[tuple[Tensor, int, float, int, float]] = []
        self._step = self._seen = 0

    def took(self, epoch: int, rate: float, loss: Float[Tensor, ""], images: int) -> None:
        """A step was taken.

        Raises:
            RunError: the loss of it, or of one before, is no number.
        """
        self._waiting.append((loss.detach(), epoch, rate, images, time.perf_counter() - self._began))
        if len(self._waiting) >= self._at_once:
            self.read()

    def read(self) -> None:
        """Tell of all steps taken so far.

        Raises:
            RunError: the loss of one is no number.
        """
        if not self._waiting:
            return
        values = torch.stack([loss for loss, *_ in self._waiting]).tolist()
        waiting, self._waiting = self._waiting, []
        for value, (_, epoch, rate, images, seconds) in zip(values, waiting, strict=True):
            if not math.isfinite(value):
                raise RunError(
                    Fault(
                        f"{self.part}, epoch {epoch}",
                        f"the loss is {value}",
                        "lower lr, or use precision=fp32",
                    ),
                    about="the training",
                )
            self._step, self._seen = self._step + 1, self._seen + images
            if self.on_step:
                self.on_step(Step(self.part, epoch, self._step, value, rate, images, round(seconds, 3)))
            if self.on_progress:
                left = seconds / self._step * (self.total - self._step)
                speed = self._seen / seconds
                self.on_progress(Progress(self.part, self._step, self.total, value, rate, speed, left))


class BestOnVal:
    """Keeps the parameters of the best epoch on val; the first of equals stays."""

    def __init__(self, validate: Callable[[], float]) -> None:
        self.validate = validate
        self.best = -math.inf
        self.epoch = 0
        self.kept: Mapping[str, Tensor] = {}

    def look(self, classifier: Classifier, epoch: int) -> float:
        """The val score after an epoch; the parameters are kept if it is the best so far."""
        score = self.validate()
        if score > self.best:
            self.best, self.epoch = score, epoch
            self.kept = copy.deepcopy(classifier.state_dict())
        return score

    def is_tired(self, epoch: int) -> bool:
        """Whether the score has not improved for long."""
        return epoch - self.epoch >= PATIENCE_EPOCHS


def task_weights(classifier: Classifier, pool: Pool, settings: TrainConfig) -> Float[Tensor, " n"] | None:
    """Factor of each image's loss term, or None for 1 each; the mean over the pool is 1.

    Raises:
        ConfigError: a weight for a task there is not.
    """
    rule = settings.loss_weights
    if rule == "none":
        return None
    tasks = classifier.problem.tasks
    counts = torch.bincount(torch.tensor(pool.tasks), minlength=len(tasks)).double()
    if rule == "tasks":
        of_task = 1 / counts
    elif rule == "log-classes":
        of_task = 1 / torch.tensor([math.log(max(2, len(t.classes))) for t in tasks]).double()
    else:
        of_task = torch.tensor([rule.get(task.name, 1.0) for task in tasks]).double()
    of_image = of_task[torch.tensor(pool.tasks)]
    return (of_image / of_image.mean()).float()


def check_weights(settings: TrainConfig, task_names: Sequence[str]) -> None:
    """Refuse weights for tasks the suite does not have.

    Raises:
        ConfigError: all of them.
    """
    if isinstance(settings.loss_weights, str):
        return
    unknown = [name for name in settings.loss_weights if name not in task_names]
    if unknown:
        faults = [Fault("loss_weights", f"there is no task {n!r}", nearest(n, task_names)) for n in unknown]
        raise ConfigError(faults, about="the options")


def n_steps(spec: OptimSpec, n_images: int, batch_size: int) -> int:
    """Steps of a whole training; the last partial batch is dropped unless it is the only one."""
    return spec.epochs * max(1, n_images // batch_size)
