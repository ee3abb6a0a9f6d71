"""Task-kernel prompt tuning: SoftCPT with fixed task features, learned in the contexts themselves.

Ours, on SoftCPT (arXiv:2208.13474). Its matrix P [D, n W] makes contexts C = Z P; with Z fixed, learning P is
learning C with gradients mixed by K = Z Z^T (kernel.py). The same trajectory from T n W numbers instead of
D n W, and the kernel can be chosen. One number more is stored: delta, what momentum and weight decay alone
make of a 1.

A task nobody trained gets, with phi its feature and P_0 the matrix at its start (made again from the seed),

    c = delta phi P_0 + k^T K^+ (C - delta F P_0),    k = factor F phi

which is what the linear network would have made of it. With ``rho`` contexts start equal, k is the share for
every task; ``diagonal``, ``diagonal-top`` and ``learned`` have no k, and refuse.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.fixed import no_unseen
from softcpt.methods.kernel import (
    TYPICAL_NORM,
    KernelKind,
    kernel_features,
    mix_gradients,
    task_kernel,
)
from softcpt.methods.meta import start_projection
from softcpt.methods.prompt_heads import with_head
from softcpt.methods.prompts import HeadTune, PromptConfig, encode_prompts, random_context
from softcpt.methods.task_features import (
    TaskTextConfig,
    check_texts_matter,
    has_own_texts,
    start_features,
    start_prompts,
)
from softcpt.methods.task_prompts import ContextSource, TaskPrompts

SHARED = 0.5
"""rho of the kernels ``rho`` and ``centred``, unless given."""


class DualConfig(TaskTextConfig, PromptConfig):
    """Options of the dual form."""

    kernel: KernelKind = Field(
        "published",
        description="who shares gradients: published, unit, centred, diagonal, diagonal-top, rho, learned",
    )
    kernel_factor: float | None = Field(
        None, gt=0, description="of the kernel; 1, or 100 / logit scale where its norms are not the published"
    )
    share: float | None = Field(
        None, ge=0, le=1, description="rho of kernel=rho and centred, 0.5 unless given"
    )

    @model_validator(mode="after")
    def _share_has_an_effect(self) -> DualConfig:
        if self.share is not None and self.kernel not in ("rho", "centred"):
            raise ValueError(f"share has no effect with kernel={self.kernel}; leave one of them out")
        if self.kernel == "rho":
            check_texts_matter(self, "kernel=rho")
        return self

    def is_shared(self) -> bool:
        """Not where the kernel is diagonal (a centred one is not, whatever the share)."""
        return self.kernel not in ("diagonal", "diagonal-top") and (self.kernel, self.share) != ("rho", 0)


class DualContexts(ContextSource):
    """Contexts [T, n, W] whose gradients are mixed by a kernel of the tasks' texts."""

    no_gradient = frozenset({"decay"})  # momentum and weight decay alone move it
    kernel: Tensor
    raw: Tensor
    features: Tensor | None

    def __init__(self, problem: Problem, config: DualConfig, streams: Streams) -> None:
        super().__init__()
        self._given = (problem, config, streams)
        raw = start_features(problem, config, streams)
        kernel = task_kernel(
            config.kernel,
            raw,
            logit_scale=problem.logit_scale,
            factor=config.kernel_factor,
            share=self.share,
        )
        self.factor = kernel.factor
        self.register_buffer("kernel", kernel.matrix, persistent=False)
        self.register_buffer("raw", raw, persistent=False)
        self.register_buffer("features", kernel.features, persistent=False)
        self.mixed = nn.Parameter(self._start())
        if config.kernel not in ("diagonal", "diagonal-top"):
            self.decay = nn.Parameter(torch.ones((), dtype=problem.dtype, device=problem.text.device))

    @property
    def share(self) -> float:
        """Rho."""
        share = self._given[1].share
        return SHARED if share is None else share

    def _shape(self) -> tuple[int, int, int]:
        problem, config, _ = self._given
        return len(problem.tasks), config.context_length, problem.text.width

    def _start(self) -> Float[Tensor, "T n W"]:
        """Contexts before any training: F P_0, or equal ones."""
        if self.features is None:
            problem, config, streams = self._given
            one = random_context(problem, self._shape()[1:], streams("context"), config.init_scale)
            return one.expand(self._shape()).clone()
        return self._project(self.features)

    def _project(self, features: Float[Tensor, "t E"]) -> Float[Tensor, "t n W"]:
        """F P_0; P_0 is drawn again each time and never kept."""
        _, n, width = self._shape()
        made = features @ self._projection().to(features)
        return made.reshape(len(features), n, width)

    def _projection(self) -> Float[Tensor, "E m"]:
        _, config, streams = self._given
        _, n, width = self._shape()
        inputs = 1 if self.features is None else self.features.shape[1]
        return start_projection(inputs, n * width, streams, config.init_scale)

    def _own(self) -> Float[Tensor, "T E"]:
        assert self.features is not None  # asked only of kernels that are made of them
        return self.features

    def forward(self) -> Float[Tensor, "T n W"]:
        """The contexts."""
        self._made = mix_gradients(self.mixed, self.kernel)
        return self._made

    def task_gram(self, losses: Float[Tensor, " p"], tasks: Int[Tensor, " p"]) -> Float[Tensor, "p p"]:
        """<g_s, g_t> = K_st <G_s, G_t>, all from one backward pass: a task's loss sees its own row alone."""
        (gradient,) = torch.autograd.grad(losses.sum(), self._made, retain_graph=True)
        rows = gradient[tasks].flatten(1).double()
        return self.kernel[tasks][:, tasks].double() * (rows @ rows.T)

    def unseen(self, problem: Problem) -> Float[Tensor, "t n W"]:
        """Contexts of tasks that nothing was learned on."""
        kind = self._given[1].kernel
        if kind in ("diagonal", "diagonal-top"):
            raise no_unseen("kernel", f"kernel={kind} shares nothing between tasks", "use kernel=published")
        with torch.no_grad():
            if kind == "rho":
                start = self._start()
                times = self.factor * TYPICAL_NORM**2 * self.share
                cross = torch.full((len(self.kernel), len(problem.tasks)), times).to(self.kernel)
                start_new = start[:1].expand(len(problem.tasks), -1, -1)
            else:
                new = self._features_of(problem)
                start, start_new = self._start(), self._project(new)
                cross = self.factor * self._own() @ new.T
            moved = (self.mixed - self.decay * start).flatten(1)
            # In fp64, and without directions that rounding alone would hold.
            solved = torch.linalg.pinv(self.kernel.double(), hermitian=True, rtol=1e-7) @ moved.double()
            shared = (cross.double().T @ solved).to(moved)
            made: Tensor = self.decay * start_new + shared.reshape(start_new.shape)
            return made

    def _features_of(self, problem: Problem) -> Float[Tensor, "t E"]:
        """F of new tasks: their texts behind the same task context."""
        _, config, streams = self._given
        if not has_own_texts(config):
            why = f"task_text={config.task_text} gives tasks texts that are not theirs"
            raise no_unseen("task_text", why, "use description or name")
        prompts, context = start_prompts(problem, config, streams)
        raw = encode_prompts(problem, prompts, context[None]).to(self.raw)
        return kernel_features(config.kernel, raw, self.raw.mean(0), self.share)

    def step_factors(self) -> Float[Tensor, " T"]:
        """The kernel's diagonal."""
        return self.kernel.diagonal()

    def regenerated(self) -> dict[str, str]:
        """Digest of the projection's start, of which an unseen task's context is made."""
        if self.features is None:
            return {}
        return {"projection_sha256": sha256(self._projection().numpy().tobytes()).hexdigest()}

    def report(self) -> dict[str, Any]:
        """The kernel."""
        return {"kernel": [[round(float(k), 4) for k in row] for row in self.kernel]}


class LearnedKernel(ContextSource):
    """Contexts L B, both learned: T (T + 1) / 2 + T n W numbers.

    L [T, T] is lower triangular and starts at the Cholesky factor of the kernel, B at L^-1 C_0: the first
    step is that of the fixed kernel, L L^T.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, problem: Problem, config: DualConfig, streams: Streams) -> None:
        super().__init__()
        fixed = DualContexts(problem, config, streams)
        n = len(problem.tasks)
        kernel = fixed.kernel.double()
        # Tasks of one text would make it singular.
        jitter = 1e-4 * kernel.diagonal().mean() * torch.eye(n).to(kernel)
        factor = torch.linalg.cholesky(kernel + jitter)
        start = torch.linalg.solve_triangular(factor, fixed.mixed.detach().flatten(1).double(), upper=False)
        rows, columns = torch.tril_indices(n, n)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.factor = nn.Parameter(factor[rows, columns].to(fixed.mixed))
        self.basis = nn.Parameter(start.reshape(fixed.mixed.shape).to(fixed.mixed))

    def lower(self) -> Float[Tensor, "T T"]:
        """L."""
        n = len(self.basis)
        return self.factor.new_zeros(n, n).index_put((self.rows, self.columns), self.factor)

    def forward(self) -> Float[Tensor, "T n W"]:
        """The contexts."""
        return (self.lower() @ self.basis.flatten(1)).reshape(self.basis.shape)

    def unseen(self, problem: Problem) -> Float[Tensor, "t n W"]:
        """Refuses: the learned kernel has no row for a task that was not there."""
        raise no_unseen("kernel", "kernel=learned has rows for its own tasks alone", "use kernel=unit")

    def step_factors(self) -> Float[Tensor, " T"]:
        """The diagonal of L L^T; L's own steps come to it."""
        return self.lower().detach().square().sum(1)

    def report(self) -> dict[str, Any]:
        """L L^T as learned."""
        lower = self.lower().detach()
        return {"kernel": [[round(float(k), 4) for k in row] for row in lower @ lower.T]}


def _build(problem: Problem, config: DualConfig, streams: Streams) -> TaskPrompts:
    kind = LearnedKernel if config.kernel == "learned" else DualContexts
    return TaskPrompts(problem, config, kind(problem, config, streams))


class RhoConfig(DualConfig):
    """Options of the dual form as we chose it: independent tasks that take each other's steps in part."""

    kernel: Literal["rho"] = Field(
        "rho", description="a task's step moves every other context too, by a share"
    )
    share: float = Field(
        0.2, ge=0, le=1, description="how far a task's step moves the others' contexts, beside its own (rho)"
    )


class PlusConfig(RhoConfig):
    """The same, and a head on top."""

    head: Literal["tip", "ridge", "lp++", "logistic"] = Field(
        "logistic", description="fitted to trained prompts and images: tip, ridge, lp++, logistic"
    )
    head_tune: HeadTune = Field(
        "task", description="a head's settings: one for the suite, for each task, or the published ones"
    )


DUAL = Method(
    key="softcpt-dual",
    label="SoftCPT-dual",
    summary="a context per task, gradients shared by a kernel of the tasks' texts",
    config=DualConfig,
    build=with_head(_build),
    shares=True,
)

_SHARES = {"share": ("0.5", "0.2", "0"), "lr": ("0.001", "0.002", "0.004")}

RHO = Method(
    key="softcpt-rho",
    label="SoftCPT-rho",
    summary="our choice, prompts alone: a context per task, moved a fifth as far by the others' steps, AdamW",
    config=RhoConfig,
    build=with_head(_build),
    shares=True,
    defaults={"optimizer": "adam"},
    tunes=_SHARES,
)

PLUS = Method(
    key="softcpt-plus",
    label="SoftCPT+",
    summary="our choice: softcpt-rho, then a logistic regression on top of each task's prompts",
    config=PlusConfig,
    build=with_head(_build),
    shares=True,
    defaults={"optimizer": "adam"},
    tunes=_SHARES,
)
