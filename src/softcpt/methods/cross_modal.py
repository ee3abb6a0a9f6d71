"""Cross-modal linear probe: class names are training samples too. Lin et al., CVPR 2023, arXiv:2301.06267.

    logits = s x W^t        x a normalised image feature or a normalised text feature, W [C, D] without bias

W starts at the class texts. Every batch is half images (centres and their mirrors) and half class texts in
every template, labelled with their classes. ``wise_ft`` (Wortsman et al., arXiv:2109.01903) then moves W
towards the normalised text by that share; 1 is zero-shot.

``text_half=false`` is the uni-modal probe. The published comparison with it long started it from the text by
mistake, which hides what the text half brings; ``start=random`` is the honest other end.

Differs from the published code, where a batch size is skipped if half a batch would hold more texts than
there are: here the half is then all texts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from softcpt.methods.base import Method, MethodConfig, Pictures, Problem, Streams
from softcpt.methods.head_training import Adam, BestOnVal, step_cosine
from softcpt.methods.heads import (
    Head,
    HeadClassifier,
    Setting,
    State,
    TaskData,
    TaskText,
    Trials,
    templates_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

RATES = (1e-4, 1e-3)
DECAYS = (0.01, 1e-4, 0.0)
BATCH_SIZES = (32, 8)
WARMUP_STEPS, WARMUP_LR = 50, 1e-5
LOOK_EVERY = 100
"""Steps between looks at val; each training keeps its best one."""


class CrossModalConfig(MethodConfig):
    """Options of the cross-modal linear probe."""

    tune: Literal["suite", "task"] = Field(
        "suite", description="rate, decay and batch size chosen on val once for the suite, or for each task"
    )
    templates: Templates = templates_field()
    iterations: int = Field(12800, ge=1, description="steps of each of the 12 trainings")
    text_half: bool = Field(True, description="whether half of every batch is class texts")
    start: Literal["text", "random"] = Field("text", description="where the weights start")
    wise_ft: float = Field(0.0, ge=0, le=1, description="share of the text in the final weights")

    @model_validator(mode="after")
    def _text_takes_part(self) -> CrossModalConfig:
        if not self.text_half and self.start == "random" and self.wise_ft == 0 and self.templates != "task":
            raise ValueError("templates have no effect where no text takes part")
        return self

    def pictures(self) -> Pictures:
        """Images and their mirror images."""
        return Pictures(centres=True, mirrors=True)


class CrossModal(Head):
    """One linear layer for both kinds of features."""

    def __init__(self, config: CrossModalConfig) -> None:
        self.config = config

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The weights."""
        return {"weight": (n_classes, dim)}

    def grid(self) -> Sequence[Setting]:
        """Twelve settings, small rates and strong decay first."""
        every = itertools.product(RATES, DECAYS, BATCH_SIZES)
        return [{"lr": lr, "weight_decay": decay, "batch_size": size} for lr, decay, size in every]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """All settings of a batch size are one training."""
        weights = torch.empty(len(grid), data.n_classes, data.centres.shape[1]).to(data.centres)
        steps = torch.zeros(len(grid), dtype=torch.int64)
        start = self._start(data)
        for size in sorted({int(setting["batch_size"]) for setting in grid}):
            own = [g for g, setting in enumerate(grid) if setting["batch_size"] == size]
            found = train_probe(data, start, [grid[g] for g in own], size, self.config)
            weights[own], steps[own] = found.weights, found.steps.cpu()
        share = self.config.wise_ft
        if share:
            weights = (1 - share) * weights + share * data.text.unit
        scores = data.val_accuracy(data.scale * data.val @ weights.mT)

        def state(g: int) -> State:
            return {"weight": weights[g]}

        return Trials(scores[:, None], state, lambda g: {"iteration": int(steps[g])}, trainings=len(grid))

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Scaled products of normalised images and weights."""
        return scale * unit(features) @ state["weight"].T

    def _start(self, data: TaskData) -> Float[Tensor, "C D"]:
        if self.config.start == "text":
            return unit(data.text.raw)
        # torch's default for a linear layer, drawn on the CPU so that devices agree
        dim = data.centres.shape[1]
        drawn = torch.rand(data.n_classes, dim, generator=data.streams("start"), dtype=torch.float64)
        return ((2 * drawn - 1) / math.sqrt(dim)).to(data.centres)


@dataclass(frozen=True)
class Probes:
    """Trained weights of several settings, each at its best step on val.

    Attributes:
        weights: one row of C classes a setting.
        steps: how many were taken until there.
    """

    weights: Float[Tensor, "G C D"]
    steps: Int[Tensor, " G"]


def train_probe(
    data: TaskData,
    start: Float[Tensor, "C D"],
    settings: Sequence[Setting],
    batch_size: int,
    config: CrossModalConfig,
) -> Probes:
    """Train settings that differ in rate and decay on the same batches.

    The gradient of the mean cross-entropy of a linear layer is (p - y)^t x / B, written out since autograd
    takes longer than the arithmetic of 12,800 steps this small.
    """
    images, labels = torch.cat([data.centres, _mirrors(data)]), data.labels.repeat(2)
    features, targets = images, labels
    halves = [(len(images), batch_size // 2 if config.text_half else batch_size, "images")]
    if config.text_half:
        texts = data.text.every.flatten(0, 1)
        of_text = torch.arange(data.n_classes, device=labels.device).repeat(len(data.text.every))
        features, targets = torch.cat([images, texts]), torch.cat([labels, of_text])
        halves.append((len(texts), batch_size - batch_size // 2, "texts"))
    streams = [endless(n, size, data.streams(f"{kind} {batch_size}")) for n, size, kind in halves]
    offsets = torch.tensor([0, len(images)])
    lr = torch.tensor([s["lr"] for s in settings])[:, None, None].to(start)
    decay = torch.tensor([s["weight_decay"] for s in settings])[:, None, None].to(start)
    weights = start.expand(len(settings), -1, -1).clone()
    rule = Adam(weight_decay=decay, decoupled=True)
    best = BestOnVal(lambda w: data.val_accuracy(data.val @ w.mT))
    choosing = len(data.val_labels) > 0
    one_hot = torch.eye(data.n_classes).to(start)[targets]
    for i in range(config.iterations):
        rows = torch.cat([next(s) + offset for s, offset in zip(streams, offsets, strict=False)])
        rows = rows.to(features.device)
        x = features[rows]
        p = torch.softmax(data.scale * x @ weights.mT, -1)
        rule.step(
            weights, data.scale / len(rows) * (p - one_hot[rows]).mT @ x, _rate(lr, i, config.iterations)
        )
        if choosing and ((i + 1) % LOOK_EVERY == 0 or i + 1 == config.iterations):
            best.look(i + 1, weights)
    if not choosing:
        return Probes(weights, torch.full((len(settings),), config.iterations))
    return Probes(best.values, best.steps)


def _mirrors(data: TaskData) -> Float[Tensor, "n D"]:
    return unit(data.support.mirrors.to(data.dtype))


def _rate(lr: Tensor, step: int, n_steps: int) -> Tensor:
    if step == 0:
        return torch.full_like(lr, WARMUP_LR)
    if step < WARMUP_STEPS:
        return lr * step / WARMUP_STEPS
    rate = step_cosine(lr, step - WARMUP_STEPS, max(1, n_steps - WARMUP_STEPS))
    assert isinstance(rate, Tensor)  # as lr is
    return rate


def endless(n: int, size: int, rng: torch.Generator) -> Iterator[Int[Tensor, " B"]]:
    """Batches of row numbers, reshuffled when no whole one is left; all rows where there are fewer."""
    size = min(size, n)
    while True:
        rows = torch.randperm(n, generator=rng)
        for i in range(n // size):
            yield rows[i * size : (i + 1) * size]


def _build(problem: Problem, config: CrossModalConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, CrossModal(config), templates=config.templates, tune=config.tune)


CROSS_MODAL = Method(
    key="cross-modal",
    label="Cross-modal linear probe",
    summary="a linear layer on image and text features alike",
    config=CrossModalConfig,
    build=_build,
    trains=False,
    fits=True,
)

__all__ = ["CROSS_MODAL", "CrossModal", "CrossModalConfig", "endless", "train_probe"]
