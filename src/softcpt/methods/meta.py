"""Meta networks: one matrix that turns text features of names into contexts.

No bias, no activation, no normalisation of input or output. ``x P`` is read as [n, W], context token 0
first. Letters: D embedding, n context tokens, W text width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softcpt.methods.base import Problem, Streams
from softcpt.methods.prompts import CONTEXT_STD

MetaKind = Literal["lin", "linmean", "lincls", "lowrank"]


def join_features(
    kind: MetaKind, class_features: Float[Tensor, "K D"], task_features: Float[Tensor, "K D"]
) -> Float[Tensor, "K E"]:
    """What the meta network sees of a class: its own feature and its task's.

    ``lin`` and ``lowrank`` put them side by side, class first (E = 2 D); ``linmean`` takes their mean;
    ``lincls`` the class's alone (E = D), so that the task context gets a gradient of exactly zero.
    """
    if kind == "linmean":
        return (class_features + task_features) / 2
    if kind == "lincls":
        return class_features
    return torch.cat([class_features, task_features], dim=1)


def input_size(kind: MetaKind, embed_dim: int, *, class_aware: bool) -> int:
    """E, the size of the meta network's input."""
    return 2 * embed_dim if class_aware and kind in ("lin", "lowrank") else embed_dim


class LinearMeta(nn.Module):
    """The published meta network: one matrix P [E, n W], started N(0, 0.02^2)."""

    def __init__(self, problem: Problem, inputs: int, n_context: int, streams: Streams) -> None:
        super().__init__()
        self.n_context = n_context
        size = n_context * problem.text.width
        start = torch.randn(inputs, size, generator=streams("meta.proj")) * CONTEXT_STD
        self.proj = nn.Parameter(start.to(problem.text.device, problem.dtype))

    def forward(self, x: Float[Tensor, "k E"]) -> Float[Tensor, "k n W"]:
        """Contexts of k tasks or classes."""
        return (x.to(self.proj.dtype) @ self.proj).reshape(len(x), self.n_context, -1)


class LowRankMeta(nn.Module):
    """P = A B with A [E, r] ~ N(0, 1/r) and B [r, n W] ~ N(0, 0.02^2): r (E + n W) numbers.

    A's variance keeps the start of the contexts at the scale of the full matrix. With r >= T every
    solution of the full matrix for fixed task features is within reach.
    """

    def __init__(self, problem: Problem, inputs: int, n_context: int, rank: int, streams: Streams) -> None:
        super().__init__()
        self.n_context = n_context
        size = n_context * problem.text.width
        down = torch.randn(inputs, rank, generator=streams("meta.down")) * rank**-0.5
        up = torch.randn(rank, size, generator=streams("meta.up")) * CONTEXT_STD
        self.down = nn.Parameter(down.to(problem.text.device, problem.dtype))
        self.up = nn.Parameter(up.to(problem.text.device, problem.dtype))

    def forward(self, x: Float[Tensor, "k E"]) -> Float[Tensor, "k n W"]:
        """Contexts of k tasks or classes."""
        return (x.to(self.down.dtype) @ self.down @ self.up).reshape(len(x), self.n_context, -1)


def build_meta(
    problem: Problem,
    kind: MetaKind,
    *,
    class_aware: bool,
    n_context: int,
    rank: int,
    streams: Streams,
) -> LinearMeta | LowRankMeta:
    """The meta network of a kind."""
    inputs = input_size(kind, problem.text.embed_dim, class_aware=class_aware)
    if kind == "lowrank":
        return LowRankMeta(problem, inputs, n_context, rank, streams)
    return LinearMeta(problem, inputs, n_context, streams)
