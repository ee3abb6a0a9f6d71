"""A few contexts shared by all tasks, mixed for each.

Ours, in the place of SoftCPT's matrix (arXiv:2208.13474).

    context_t = sum_k a_tk V_k                                      V [b, n, W]
    a_t = softmax(z_t Q / tau)   or   1/b + z_t Q   or   free       Q [D, b];  free: a [T, b]

z_t is the task feature, centred over the tasks and of norm 1. Every V_k starts at the embeddings of "a photo
of a" (in the last places, zeros before them; with few places, of its last words) with noise N(0, 0.02^2),
Q at 0: a uniform mixture. One context is CoOp-MT.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.fixed import no_unseen
from softcpt.methods.meta import FIRST_WORDS
from softcpt.methods.prompt_heads import with_head
from softcpt.methods.prompts import PromptConfig, encode_prompts, random_context, word_context
from softcpt.methods.task_features import (
    TaskTextConfig,
    check_texts_matter,
    start_features,
    start_prompts,
)
from softcpt.methods.task_prompts import ContextSource, TaskPrompts

Mixture = Literal["softmax", "linear", "free"]


class BasisConfig(TaskTextConfig, PromptConfig):
    """Options of the shared basis."""

    basis_size: int = Field(4, ge=1, description="shared contexts")
    mixture: Mixture = Field("softmax", description="how tasks mix them: softmax or linear in the text; free")
    mixture_temperature: float = Field(0.5, gt=0, description="tau of mixture=softmax")
    basis_balance: float = Field(0.0, ge=0, description="reward for using all shared contexts (entropy)")

    @model_validator(mode="after")
    def _mixture_has_these(self) -> BasisConfig:
        if self.mixture != "softmax" and self.mixture_temperature != 0.5:
            raise ValueError(f"mixture_temperature has no effect with mixture={self.mixture}; leave it out")
        if self.mixture == "linear" and self.basis_balance:
            raise ValueError("basis_balance has no effect with mixture=linear; leave one of them out")
        if self.mixture == "free":
            check_texts_matter(self, "mixture=free")
        return self


class BasisContexts(ContextSource):
    """b contexts and what mixes them: b n W + D b numbers (free: b n W + T b)."""

    centre: Tensor
    tasks: Tensor

    def __init__(
        self, problem: Problem, config: BasisConfig, streams: Streams, raw: Float[Tensor, "T D"]
    ) -> None:
        super().__init__()
        self._given = (config, streams)
        size, n = config.basis_size, config.context_length
        words = word_context(problem, FIRST_WORDS, max(n, 8))[-n:]
        noise = random_context(problem, (size, n, problem.text.width), streams("basis"), config.init_scale)
        self.basis = nn.Parameter(words + noise)
        self.register_buffer("centre", raw.mean(0), persistent=False)
        self.register_buffer("tasks", _towards(raw, raw.mean(0)), persistent=False)
        free = config.mixture == "free"
        start = torch.zeros(len(raw) if free else raw.shape[1], size).to(words)
        self.mixer = nn.Parameter(start)

    def weights(self, tasks: Float[Tensor, "t D"] | None = None) -> Float[Tensor, "t b"]:
        """a: of the tasks trained on, or of others by their features."""
        config = self._given[0]
        logits = (
            self.mixer if config.mixture == "free" else (self.tasks if tasks is None else tasks) @ self.mixer
        )
        if config.mixture == "linear":
            return logits + 1 / config.basis_size
        temperature = config.mixture_temperature if config.mixture == "softmax" else 1.0
        return torch.softmax(logits / temperature, dim=1)

    def _mix(self, weights: Float[Tensor, "t b"]) -> Float[Tensor, "t n W"]:
        return torch.einsum("tb,bnw->tnw", weights, self.basis)

    def forward(self) -> Float[Tensor, "T n W"]:
        """The contexts."""
        return self._mix(self.weights())

    def penalty(self) -> Float[Tensor, ""] | None:
        """-balance * entropy of the mean mixture."""
        config = self._given[0]
        if config.basis_balance == 0 or config.mixture == "linear":
            return None
        mean = self.weights().mean(0)
        return config.basis_balance * (mean * mean.clamp_min(1e-12).log()).sum()

    def unseen(self, problem: Problem) -> Float[Tensor, "t n W"]:
        """The mixture that a new task's text asks for."""
        config, streams = self._given
        if config.mixture == "free":
            raise no_unseen("mixture", "mixture=free learns a mixture for each of its tasks", "use softmax")
        with torch.no_grad():
            prompts, context = start_prompts(problem, config, streams)
            raw = encode_prompts(problem, prompts, context[None]).to(self.centre)
            return self._mix(self.weights(_towards(raw, self.centre)))

    def step_factors(self) -> Float[Tensor, " T"]:
        """|a_t|^2: the part of the shared contexts."""
        return self.weights().detach().square().sum(1)

    def report(self) -> dict[str, Any]:
        """The mixtures."""
        return {"mixture": [[round(float(a), 4) for a in row] for row in self.weights().detach()]}


def _towards(raw: Float[Tensor, "t D"], centre: Float[Tensor, " D"]) -> Float[Tensor, "t D"]:
    """Directions from the centre; 0 for a task that lies there."""
    away = raw - centre
    unit: Tensor = away / away.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return unit


def _build(problem: Problem, config: BasisConfig, streams: Streams) -> TaskPrompts:
    raw = start_features(problem, config, streams)
    return TaskPrompts(problem, config, BasisContexts(problem, config, streams, raw))


BASIS = Method(
    key="softcpt-basis",
    label="SoftCPT-basis",
    summary="a few shared contexts, mixed for each task by its text",
    config=BasisConfig,
    build=with_head(_build),
    shares=True,
)
