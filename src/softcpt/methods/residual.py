"""A shared context and a gated residual per task, so that a task can leave.

Ours, in the place of SoftCPT's matrix (arXiv:2208.13474).

    context_t = U + sigmoid(gamma_t) R_t,    loss + lambda mean_t |R_t|^2

U [n, W] starts random, R at 0, gamma at 0. lambda=inf keeps R at 0: CoOp-MT. lambda=0 is CoOp-CA with a
common direction. n W (1 + T) + T numbers; a gate per token: n W (1 + T) + T n.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.prompt_heads import with_head
from softcpt.methods.prompts import PromptConfig, random_context
from softcpt.methods.task_prompts import ContextSource, TaskPrompts


class ResidualConfig(PromptConfig):
    """Options of the gated residual."""

    residual_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["inf"] = Field(
        1e-3, description="on the residuals' squares; inf for no residuals at all"
    )
    gate: Literal["task", "token"] = Field("task", description="one gate a task, or one a token")
    gate_penalty: float = Field(0.0, ge=0, description="on the sum of the open gates")

    @model_validator(mode="after")
    def _gates_have_an_effect(self) -> ResidualConfig:
        if self.residual_penalty == "inf" and (self.gate != "task" or self.gate_penalty):
            raise ValueError("gate, gate_penalty have no effect with residual_penalty=inf; leave them out")
        return self


class ResidualContexts(ContextSource):
    """U, R and gamma."""

    def __init__(self, problem: Problem, config: ResidualConfig, streams: Streams) -> None:
        super().__init__()
        self.config, self.tasks = config, problem.tasks
        n_tasks, shape = len(problem.tasks), (config.context_length, problem.text.width)
        self.shared = nn.Parameter(random_context(problem, shape, streams("context"), config.init_scale))
        if not self.leaves:
            return
        gates = config.context_length if config.gate == "token" else 1
        self.residual = nn.Parameter(torch.zeros(n_tasks, *shape).to(self.shared))
        self.gates = nn.Parameter(torch.zeros(n_tasks, gates, 1).to(self.shared))

    @property
    def leaves(self) -> bool:
        """Whether tasks have residuals at all."""
        return self.config.residual_penalty != "inf"

    def forward(self) -> Float[Tensor, "T n W"]:
        """The contexts."""
        if not self.leaves:
            return self.shared.expand(len(self.tasks), -1, -1)
        return self.shared + torch.sigmoid(self.gates) * self.residual

    def penalty(self) -> Float[Tensor, ""] | None:
        """Lambda mean_t |R_t|^2, and what open gates cost."""
        weight = self.config.residual_penalty
        if weight == "inf":
            return None
        sizes = self.residual.square().flatten(1).sum(1).mean()
        return weight * sizes + self.config.gate_penalty * torch.sigmoid(self.gates).sum()

    def unseen(self, problem: Problem) -> Float[Tensor, "t n W"]:
        """What all tasks share."""
        return self.shared.detach().expand(len(problem.tasks), -1, -1)

    def report(self) -> dict[str, Any]:
        """How far each task has left."""
        if not self.leaves:
            return {}
        away = (torch.sigmoid(self.gates) * self.residual).detach().flatten(1).norm(dim=1)
        return {"residual_norms": [round(float(size), 4) for size in away]}


def _build(problem: Problem, config: ResidualConfig, streams: Streams) -> TaskPrompts:
    return TaskPrompts(problem, config, ResidualContexts(problem, config, streams))


RESIDUAL = Method(
    key="softcpt-residual",
    label="SoftCPT-residual",
    summary="a shared context and a gated residual for each task",
    config=ResidualConfig,
    build=with_head(_build),
    shares=True,
)
