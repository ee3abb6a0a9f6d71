"""One optimizer and one schedule: SGD, or AdamW, whose rate follows a cosine after a warm-up.

The published code registers one optimizer under several names and steps it once for each, per batch, and
its schedule likewise per epoch. ``repeated_steps`` is that number (the protocol's K), 1 where nothing is
repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

Losses = TypeVar("Losses", torch.Tensor, tuple[torch.Tensor, ...])


@dataclass(frozen=True, slots=True)
class OptimSpec:
    """What the loop needs to know of the optimiser.

    Attributes:
        lr: the cosine's start.
        epochs: the cosine's period, and the length of training.
        optimizer: ``sgd``, or ``adam``: AdamW (arXiv:1711.05101), whose steps are as large as the rate says
            whatever the size of the gradient.
        momentum: of SGD, without dampening or Nesterov; Adam's first decay. Adam's second is 0.999.
        weight_decay: on everything learned (CoOp's inherited default); Adam's is apart from the gradient.
        warmup: ``constant`` at ``warmup_lr``; ``linear`` from it to ``lr``; ``none``.
        warmup_steps: scheduler steps of the warm-up (epochs, where nothing is repeated).
        recount: whether the cosine counts from 0 after the warm-up.
        repeated_steps: optimizer steps a batch and scheduler steps an epoch.
    """

    lr: float = 0.002
    epochs: int = 50
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: Literal["constant", "linear", "none"] = "constant"
    warmup_steps: int = 1
    warmup_lr: float = 1e-5
    recount: bool = True
    repeated_steps: int = 1


def learning_rate(spec: OptimSpec, epoch: int) -> float:
    """The rate in force during an epoch (from 0).

    Beyond its period the cosine rises again, as torch's does; the published repeated steps run into that.
    """
    step = spec.repeated_steps * epoch
    warmup = 0 if spec.warmup == "none" else spec.warmup_steps
    if step < warmup:
        if spec.warmup == "constant" or step == 0:
            return spec.warmup_lr
        return spec.lr * step / warmup
    if spec.recount:
        return _cosine(spec, step - warmup)
    # torch's recursion, started late: it multiplies by (1 + cos(pi (s+1) / E)) / (1 + cos(pi s / E)), which
    # telescopes until the rate reaches 0 at s = E; from there on torch restarts at the closed form.
    if step > spec.epochs:
        return _cosine(spec, step)
    return _cosine(spec, step) / ((1 + math.cos(math.pi * warmup / spec.epochs)) / 2)


def _cosine(spec: OptimSpec, step: int) -> float:
    return spec.lr * (1 + math.cos(math.pi * step / spec.epochs)) / 2


def build_optimizer(parameters: Iterable[nn.Parameter], spec: OptimSpec) -> torch.optim.Optimizer:
    """The optimiser of everything learned."""
    learned = [p for p in parameters if p.requires_grad]
    if spec.optimizer == "adam":
        betas = (spec.momentum, 0.999)
        return torch.optim.AdamW(learned, lr=spec.lr, betas=betas, weight_decay=spec.weight_decay)
    return torch.optim.SGD(learned, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put a rate in force."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def take_step(
    optimizer: torch.optim.Optimizer,
    loss: Losses,
    spec: OptimSpec,
    scaler: torch.amp.GradScaler | None = None,
    backward: Callable[[Losses], object] = torch.autograd.backward,
) -> None:
    """Clear gradients, go back through the loss once, and step ``repeated_steps`` times.

    ``backward`` turns the loss, or losses, into the gradients that are stepped along.

    A parameter the loss does not depend on (the task context under ``lincls``) gets a gradient of zero, not
    none: momentum and weight decay still move it, as in the published code. With a gradient scaler (fp16)
    the published code steps its optimizer once, and so do we.
    """
    optimizer.zero_grad(set_to_none=True)
    backward(loss if scaler is None else scaler.scale(loss))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
        return
    for _ in range(spec.repeated_steps):
        optimizer.step()
