"""Task kernels: how much a task's gradient moves the context of every other task.

For fixed task features Z [T, D], gradient descent on SoftCPT's matrix P (arXiv:2208.13474) is gradient
descent on the contexts C = Z P with gradients mixed by K = Z Z^T (derived, and held to the linear network by
a test):

    v <- mu v + K G + lambda C,    C <- C - lr v

Every kernel here is K = factor * F F^T for task features F made of Z, so that a task nobody trained has a
row of K too; ``rho``, ``diagonal`` and ``diagonal-top`` are given directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

KernelKind = Literal["published", "unit", "centred", "diagonal", "diagonal-top", "rho", "learned"]

TYPICAL_NORM = 10.0
"""Norm of a released CLIP's text features, roughly; what ``unit`` and ``centred`` features are brought to."""

TYPICAL_SCALE = 100.0
"""Logit scale of the released CLIPs, for which the published rate was set."""


@dataclass(frozen=True)
class TaskKernel:
    """What mixes the tasks' gradients.

    Attributes:
        matrix: K.
        features: F, with which contexts start at F P_0; None where they start equal.
        factor: K over F F^T.
    """

    matrix: Float[Tensor, "T T"]
    features: Float[Tensor, "T E"] | None
    factor: float


def kernel_features(
    kind: KernelKind, given: Float[Tensor, "t D"], centre: Float[Tensor, " D"], share: float
) -> Float[Tensor, "t E"]:
    """F for some tasks, trained on or not.

    ``published`` takes features as they are; ``unit`` gives all the norm 10; ``centred`` first subtracts the
    mean of the tasks trained on, and gives a coordinate that is the same for all the share rho of the square,
    since centred features alone would drive tasks apart: K_tt = 100, K_st = 100 ((1 - rho) cos + rho).

    Args:
        kind: of kernel.
        given: raw text features of the tasks.
        centre: mean of the raw features of the tasks trained on.
        share: rho of ``centred``.
    """
    if kind == "centred":
        away = given - centre
        unit = away / away.norm(dim=1, keepdim=True).clamp_min(torch.finfo(away.dtype).tiny)
        same = torch.full_like(unit[:, :1], share**0.5)
        return torch.cat([unit * (1 - share) ** 0.5, same], dim=1) * TYPICAL_NORM
    if kind in ("unit", "learned"):
        scaled: Tensor = given / given.norm(dim=1, keepdim=True) * TYPICAL_NORM
        return scaled
    return given


def task_kernel(
    kind: KernelKind,
    given: Float[Tensor, "T D"],
    *,
    logit_scale: float,
    factor: float | None = None,
    share: float = 0.5,
) -> TaskKernel:
    """The kernel of a kind.

    ``diagonal`` keeps the published kernel's diagonal alone, ``diagonal-top`` its largest eigenvalue for
    every task: no sharing, at the rates that sharing has. ``rho`` is 100 ((1 - rho) I + rho 11^T).
    ``learned`` starts at ``unit``.

    Args:
        kind: of kernel.
        given: raw text features of the tasks.
        logit_scale: of the backbone.
        factor: of the kernel; None for 1 where norms are the published ones, and else for 100 / logit scale,
            since the published rate was set for 100 and gradients are in proportion.
        share: rho of ``rho`` and ``centred``.
    """
    relative = kind not in ("published", "diagonal", "diagonal-top")
    times = factor if factor is not None else (TYPICAL_SCALE / logit_scale if relative else 1.0)
    n = len(given)
    if kind == "rho":
        one = torch.ones(n, n).to(given)
        mixed = TYPICAL_NORM**2 * ((1 - share) * torch.eye(n).to(given) + share * one)
        return TaskKernel(times * mixed, None, times)
    features = kernel_features(kind, given, given.mean(0), share)
    full = features @ features.T
    if kind == "diagonal":
        full = full.diagonal().diag()
    elif kind == "diagonal-top":
        full = torch.linalg.eigvalsh(full)[-1] * torch.eye(n).to(given)
    return TaskKernel(times * full, features, times)


class _Mix(torch.autograd.Function):
    """Contexts as they are; their gradients mixed across tasks."""

    @staticmethod
    def forward(ctx: Any, contexts: Tensor, kernel: Tensor) -> Tensor:  # noqa: ANN401  torch's own context
        ctx.save_for_backward(kernel)
        return contexts.view_as(contexts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (kernel,) = ctx.saved_tensors
        mixed = kernel.to(gradient) @ gradient.flatten(1)
        return mixed.reshape(gradient.shape), None


def mix_gradients(contexts: Float[Tensor, "T n W"], kernel: Float[Tensor, "T T"]) -> Float[Tensor, "T n W"]:
    """The same contexts, whose gradient G arrives as K G.

    The optimizer knows nothing of it: momentum and weight decay act on the contexts as in the formula.
    """
    made: Tensor = _Mix.apply(contexts, kernel)
    return made
