"""A context for each class, all in a small span that the tasks share.

Ours, in the place of SoftCPT's matrix (arXiv:2208.13474), which gives all classes of a task one context.

    context_j = V_0 + sum_k a_jk V_k,  k = 1 ... r              V_0 [n, W],  V [r, n, W],  a [K, r]

for class j of K, of whatever task: n W (1 + r) + K r numbers, where a context of its own for each class
(CoOp-CS) takes K n W. Tasks lend one another the directions V in which a context is worth moving; how far a
class moves in each is its own. V_0 and V start N(0, 0.02^2), or V_0 from words, a starts N(0, 1): classes
start in different places of the span, so that directions and places both have a gradient. With ``span=own``
every task has directions and a V_0 of its own: the control that says what the sharing is worth.

A class nobody trained stands where the trained ones stand on average.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from softcpt.methods.base import Classifier, Method, Problem, PromptClassifier, Streams
from softcpt.methods.fixed import FixedPrompts, no_unseen
from softcpt.methods.objective import build_objective
from softcpt.methods.prompt_heads import with_head
from softcpt.methods.prompts import PromptConfig, class_prompts, encode_prompts, normal, random_context


class SpanConfig(PromptConfig):
    """Options of the span."""

    span_size: int = Field(8, ge=1, description="shared directions (r)")
    span: Literal["shared", "own"] = Field(
        "shared", description="one span for all tasks, or own: one for each"
    )

    def is_shared(self) -> bool:
        """Not where each task has a span of its own."""
        return self.span == "shared"


class SpanPrompts(PromptClassifier):
    """Class prompts whose contexts lie in a span of few directions."""

    def __init__(self, problem: Problem, config: SpanConfig, streams: Streams) -> None:
        super().__init__(problem)
        self.config = config
        copies = 1 if config.span == "shared" else len(problem.tasks)
        shape = (config.context_length, problem.text.width)
        self.start = nn.Parameter(
            random_context(problem, (copies, *shape), streams("context"), config.init_scale)
        )
        self.directions = nn.Parameter(
            random_context(problem, (copies, config.span_size, *shape), streams("span"), config.init_scale)
        )
        places = normal((len(problem.class_names), config.span_size), streams("places"))
        self.places = nn.Parameter(places.to(problem.text.device, problem.dtype))
        self.prompts = class_prompts(problem, config.context_length, config.position)
        self.objective = build_objective(problem, config)

    def contexts(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k n W"]:
        """Contexts of all classes, or of the selected columns."""
        places = self.places if selected is None else self.places[selected]
        if len(self.directions) == 1:
            return self.start + torch.einsum("kr,rnw->knw", places, self.directions[0])
        of_class = self.problem.task_of_class
        tasks = of_class if selected is None else of_class[selected]
        return self.start[tasks] + torch.einsum("kr,krnw->knw", places, self.directions[tasks])

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the class prompts: all K, or the selected columns."""
        return encode_prompts(self.problem, self.prompts, self.contexts(selected), None, selected)

    def for_tasks(self, problem: Problem) -> Classifier:
        """Every class of a new task takes the mean of the trained classes' contexts."""
        if self.config.span == "own":
            raise no_unseen("span", "span=own gives each task directions of its own", "use span=shared")
        with torch.no_grad():
            mean = self.contexts().mean(0)
        return FixedPrompts(problem, mean.expand(len(problem.tasks), -1, -1), self.config.position)


def _build(problem: Problem, config: SpanConfig, streams: Streams) -> SpanPrompts:
    return SpanPrompts(problem, config, streams)


SPAN = Method(
    key="softcpt-span",
    label="SoftCPT-span",
    summary="a context per class, mixed from a few directions that all tasks share",
    config=SpanConfig,
    build=with_head(_build),
    shares=True,
    defaults={"optimizer": "adam"},
    tunes={"span_size": ("4", "8", "16"), "lr": ("0.001", "0.002", "0.004")},
)
