"""Gradient training of a head's tensor, under all settings of a grid at once.

Every rule below moves each number by its own gradient alone, so that a tensor with a leading axis of settings
[G, ...] trains as G separate runs would: their losses are simply added.

Published schedules, as read in the methods' code: a warm-up epoch at 1e-5 and a cosine per epoch (CLAP,
TaskRes), a cosine per step (Tip-Adapter-F), 50 warm-up steps and a cosine (cross-modal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.methods.loss import unit

Batch = tuple[Float[Tensor, "B D"], Int[Tensor, " B"]]
Rate = float | Tensor
Logits = Callable[[Tensor, Tensor], Tensor]
"""A tensor [G, ...] and normalised features [B, D] -> logits [G, B, C]."""

BATCH_SIZE = 256
"""Of the heads' published code; a few-shot task usually fits into one batch."""

WARMUP_LR = 1e-5


def view_batches(
    views: Float[Tensor, "n V D"],
    labels: Int[Tensor, " n"],
    n_epochs: int,
    rng: torch.Generator,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Batch]:
    """Normalised features and labels, one view of each image an epoch, reshuffled every epoch.

    The run's seed permutes which view an epoch shows, image by image. A last partial batch is dropped unless
    it is the only one.
    """
    n, n_views = views.shape[:2]
    order = torch.stack([torch.randperm(n_views, generator=rng) for _ in range(n)]).to(views.device)
    normalised = unit(views)
    every = torch.arange(n, device=views.device)
    for epoch in range(n_epochs):
        shown = normalised[every, order[:, epoch % n_views]]
        rows = torch.randperm(n, generator=rng).to(views.device)
        for i in range(batches_per_epoch(n, batch_size)):
            batch = rows[i * batch_size : (i + 1) * batch_size]
            yield shown[batch], labels[batch]


def batches_per_epoch(n: int, batch_size: int = BATCH_SIZE) -> int:
    """How many batches :func:`view_batches` makes of ``n`` images."""
    return max(1, n // batch_size)


def epoch_cosine(lr: float, epoch: int, n_epochs: int) -> float:
    """The rate of an epoch: one at the warm-up's, then a cosine whose period is the whole training."""
    if epoch == 0:
        return WARMUP_LR
    return lr * (1 + math.cos(math.pi * (epoch - 1) / n_epochs)) / 2


def step_cosine(lr: Rate, step: int, n_steps: int) -> Rate:
    """The rate of a step: a cosine from ``lr`` to 0."""
    return lr * ((1 + math.cos(math.pi * step / n_steps)) / 2)


@dataclass
class Sgd:
    """Momentum without dampening, no weight decay."""

    momentum: float = 0.9
    velocity: Tensor | None = None

    def step(self, values: Tensor, gradient: Tensor, lr: Rate) -> None:
        """Move in place."""
        self.velocity = gradient if self.velocity is None else self.momentum * self.velocity + gradient
        values -= lr * self.velocity


@dataclass
class Adam:
    """Adam (arXiv:1412.6980), or AdamW (arXiv:1711.05101) where decay is decoupled from the gradient.

    Attributes:
        weight_decay: a number, or one per setting.
        decoupled: AdamW.
        eps: beside the root of the second moment.
    """

    weight_decay: Rate = 0.0
    decoupled: bool = False
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    n_steps: int = 0
    first: Tensor | None = None
    second: Tensor | None = None

    def step(self, values: Tensor, gradient: Tensor, lr: Rate) -> None:
        """Move in place."""
        if self.decoupled:
            values *= 1 - lr * self.weight_decay
        else:
            gradient = gradient + self.weight_decay * values
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)
        self.n_steps += 1
        self.first.lerp_(gradient, 1 - self.betas[0])
        self.second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        root = (self.second / (1 - self.betas[1] ** self.n_steps)).sqrt_().add_(self.eps)
        values -= lr / (1 - self.betas[0] ** self.n_steps) * self.first / root


def cross_entropies(logits: Float[Tensor, "G B C"], labels: Int[Tensor, " B"]) -> Float[Tensor, " G"]:
    """Mean over a batch, for each setting."""
    every = labels.expand(logits.shape[0], -1)
    return F.cross_entropy(logits.transpose(1, 2), every, reduction="none").mean(1)


def descend(
    start: Float[Tensor, G * n],
    loss: Callable[[Tensor, Batch], Float[Tensor, " G"]],
    batches: Iterator[Batch],
    rule: Sgd | Adam,
    rate: Callable[[int], Rate],
    watch: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, G * n]:
    """Train by autograd.

    Args:
        start: left as it is.
        loss: of each setting on a batch.
        batches: a step each.
        rule: how a gradient moves the tensor.
        rate: step (from 0) -> learning rate.
        watch: shown the tensor after every step.

    Returns:
        The tensor after the last step.
    """
    values = start.detach().clone().requires_grad_()
    for i, batch in enumerate(batches):
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(values, batch).sum(), values)
        with torch.no_grad():
            rule.step(values, gradient, rate(i))
            if watch is not None:
                watch(i, values)
    return values.detach()


class BestOnVal:
    """Keeps each setting's tensor at its best step on val.

    Of equal steps the first is kept, that is the one nearest to the start; with ``prefer_last`` the last,
    where the published code does so.
    """

    def __init__(
        self, accuracy: Callable[[Tensor], Float[Tensor, " G"]], *, prefer_last: bool = False
    ) -> None:
        self._accuracy, self._prefer_last = accuracy, prefer_last
        self.best: Float[Tensor, " G"] | None = None
        self.values: Tensor = torch.zeros(0)
        self.steps: Int[Tensor, " G"] = torch.zeros(0, dtype=torch.int64)

    def look(self, step: int, values: Float[Tensor, G * n]) -> None:
        """Compare the tensor after a step with the best so far."""
        own = self._accuracy(values)
        if self.best is None:
            self.best, self.values = own.clone(), values.detach().clone()
            self.steps = torch.full_like(own, step, dtype=torch.int64)
            return
        better = own >= self.best if self._prefer_last else own > self.best
        self.best = torch.where(better, own, self.best)
        self.steps = torch.where(better, step, self.steps)
        self.values[better] = values.detach()[better]
