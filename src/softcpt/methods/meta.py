"""Meta networks: what turns text features of names into contexts.

That of SoftCPT (Ding et al., arXiv:2208.13474) is, by its published code, a single matrix P, without bias,
activation or normalisation. ``x P`` is read as [n, W], context token 0 first.

Letters: E inputs (D, or 2 D), n context tokens, W text width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softcpt.core.errors import ConfigError, Fault
from softcpt.methods.base import Problem, Streams
from softcpt.methods.prompts import CONTEXT_STD, normal, word_context

MetaKind = Literal["lin", "linmean", "lincls", "lowrank", "mlp"]
MeanContext = Literal["none", "zeros", "words"]

FIRST_WORDS = "a photo of a"
"""What ``mean_context=words`` starts every context from."""


def join_features(
    kind: MetaKind, class_features: Float[Tensor, "K D"], task_features: Float[Tensor, "K D"]
) -> Float[Tensor, "K E"]:
    """What the meta network sees of a class: its own feature and its task's.

    ``lin``, ``lowrank`` and ``mlp`` put them side by side, class first (E = 2 D); ``linmean`` takes their
    mean; ``lincls`` the class's alone (E = D), so that the task context gets a gradient of exactly zero.
    """
    if kind == "linmean":
        return (class_features + task_features) / 2
    if kind == "lincls":
        return class_features
    return torch.cat([class_features, task_features], dim=1)


def input_size(kind: MetaKind, embed_dim: int, *, class_aware: bool) -> int:
    """E, the size of the meta network's input."""
    return 2 * embed_dim if class_aware and kind in ("lin", "lowrank", "mlp") else embed_dim


class LinearMeta(nn.Module):
    """The published meta network: one matrix P [E, n W], started N(0, 0.02^2)."""

    def __init__(
        self, problem: Problem, inputs: int, n_context: int, streams: Streams, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.n_context = n_context
        start = start_projection(inputs, n_context * problem.text.width, streams, scale)
        self.proj = nn.Parameter(start.to(problem.text.device, problem.dtype))

    def forward(self, x: Float[Tensor, "k E"]) -> Float[Tensor, "k n W"]:
        """Contexts of k tasks or classes."""
        return (x.to(self.proj.dtype) @ self.proj).reshape(len(x), self.n_context, -1)


def start_projection(inputs: int, outputs: int, streams: Streams, scale: float = 1.0) -> Tensor:
    """P at its start [E, n W], N(0, (0.02 scale)^2): a function of the stream's seed on every machine."""
    return normal((inputs, outputs), streams("meta.proj")) * (CONTEXT_STD * scale)


class LowRankMeta(nn.Module):
    """P = A B with A [E, r] ~ N(0, 1/r) and B [r, n W] ~ N(0, 0.02^2): r (E + n W) numbers.

    A's variance keeps the start of the contexts at the scale of the full matrix, and their kernel
    x A A^T x^T at x x^T, in expectation. With r >= T every solution of the full matrix for fixed task
    features is within reach. ``learn_down=False`` leaves A a random projection: r n W numbers learned.
    """

    def __init__(
        self,
        problem: Problem,
        inputs: int,
        n_context: int,
        rank: int,
        streams: Streams,
        scale: float = 1.0,
        *,
        learn_down: bool = True,
    ) -> None:
        super().__init__()
        self.n_context = n_context
        size = n_context * problem.text.width
        down = (normal((inputs, rank), streams("meta.down")) * rank**-0.5).to(
            problem.text.device, problem.dtype
        )
        up = normal((rank, size), streams("meta.up")) * (CONTEXT_STD * scale)
        self.up = nn.Parameter(up.to(problem.text.device, problem.dtype))
        if learn_down:
            self.down = nn.Parameter(down)
        else:
            self.register_buffer("down", down)

    def forward(self, x: Float[Tensor, "k E"]) -> Float[Tensor, "k n W"]:
        """Contexts of k tasks or classes."""
        return (x.to(self.up.dtype) @ self.down @ self.up).reshape(len(x), self.n_context, -1)


class HiddenMeta(nn.Module):
    """One hidden layer: relu(x A + b) B, H (E + 1 + n W) numbers.

    A ~ N(0, 2/H), b = 0, B ~ N(0, 0.02^2): relu halves the square, so that contexts start at the scale of
    the single matrix.
    """

    def __init__(
        self, problem: Problem, inputs: int, n_context: int, hidden: int, streams: Streams, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.n_context = n_context
        down = normal((inputs, hidden), streams("meta.down")) * (2 / hidden) ** 0.5
        up = normal((hidden, n_context * problem.text.width), streams("meta.up")) * (CONTEXT_STD * scale)
        where = (problem.text.device, problem.dtype)
        self.down = nn.Parameter(down.to(*where))
        self.bias = nn.Parameter(torch.zeros(hidden).to(*where))
        self.up = nn.Parameter(up.to(*where))

    def forward(self, x: Float[Tensor, "k E"]) -> Float[Tensor, "k n W"]:
        """Contexts of k tasks or classes."""
        inner = torch.relu(x.to(self.up.dtype) @ self.down + self.bias)
        return (inner @ self.up).reshape(len(x), self.n_context, -1)


class WithMean(nn.Module):
    """A meta network beside a learned context that is added to all of its own: n W numbers more.

    Started at ``words``, every context is those words' embeddings, and the network starts at 0.
    """

    def __init__(self, problem: Problem, network: LinearMeta | LowRankMeta | HiddenMeta, words: bool) -> None:
        super().__init__()
        n_context = network.n_context
        self.network = network
        if words:
            start = word_context(problem, FIRST_WORDS, n_context)
            with torch.no_grad():
                (network.proj if isinstance(network, LinearMeta) else network.up).zero_()
        else:
            start = torch.zeros(n_context, problem.text.width)
        self.mean = nn.Parameter(start.to(problem.text.device, problem.dtype))

    def forward(self, x: Float[Tensor, "k E"]) -> Float[Tensor, "k n W"]:
        """Contexts of k tasks or classes."""
        made: Tensor = self.network(x)
        return made + self.mean


Meta = LinearMeta | LowRankMeta | HiddenMeta | WithMean


def build_meta(
    problem: Problem,
    kind: MetaKind,
    *,
    class_aware: bool,
    n_context: int,
    rank: int,
    streams: Streams,
    hidden: int = 32,
    scale: float = 1.0,
    learn_down: bool = True,
    mean: MeanContext = "none",
) -> Meta:
    """The meta network of a kind.

    Raises:
        ConfigError: a rank above that of the full matrix.
    """
    inputs = input_size(kind, problem.text.embed_dim, class_aware=class_aware)
    outputs = n_context * problem.text.width
    network: LinearMeta | LowRankMeta | HiddenMeta
    if kind == "lowrank":
        most = min(inputs, outputs)
        if rank > most:
            what = f"{rank}: the matrix it stands for is {inputs} x {outputs}"
            raise ConfigError(Fault("rank", what, f"use at most {most}"), about="the options")
        network = LowRankMeta(problem, inputs, n_context, rank, streams, scale, learn_down=learn_down)
    elif kind == "mlp":
        network = HiddenMeta(problem, inputs, n_context, hidden, streams, scale)
    else:
        network = LinearMeta(problem, inputs, n_context, streams, scale)
    return network if mean == "none" else WithMean(problem, network, mean == "words")
