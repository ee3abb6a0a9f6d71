"""Class prompts with one context per task, wherever the contexts come from.

    contexts = source()                                   [T, n, W]
    w_j      = g([SOT, contexts[task of j], name_j, ., EOT])

A source is all that such a method has to bring: it holds what is learned, and turns it into contexts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softcpt.clip.tokens import Position
from softcpt.methods.base import Classifier, Problem, PromptClassifier
from softcpt.methods.fixed import FixedPrompts
from softcpt.methods.objective import build_objective
from softcpt.methods.prompts import PromptConfig, class_prompts, encode_prompts


class ContextSource(nn.Module, ABC):
    """What contexts come from; its parameters are what is learned."""

    @abstractmethod
    def forward(self) -> Float[Tensor, "T n W"]:
        """The contexts of all tasks, differentiable."""

    @abstractmethod
    def unseen(self, problem: Problem) -> Float[Tensor, "t n W"]:
        """Contexts of tasks that nothing was learned on, from their texts.

        Raises:
            ConfigError: the source has none for them.
        """

    def penalty(self) -> Float[Tensor, ""] | None:
        """A term of the loss that does not depend on the batch."""
        return None

    def task_gram(self, losses: Float[Tensor, " p"], tasks: Int[Tensor, " p"]) -> Tensor | None:
        """Inner products of the tasks' gradients, where there is a shorter way than one pass for each."""
        return None

    def step_factors(self) -> Float[Tensor, " T"] | None:
        """What the rate is multiplied with in a step on each task's own context."""
        return None

    def regenerated(self) -> dict[str, str]:
        """Digests of what is made again from the seed."""
        return {}

    def report(self) -> dict[str, Any]:
        """What a run's result should say."""
        return {}


class TaskPrompts(PromptClassifier):
    """Class prompts with the contexts of a source."""

    def __init__(self, problem: Problem, config: PromptConfig, source: ContextSource) -> None:
        super().__init__(problem)
        self.source = source
        self.position: Position = config.position
        self.prompts = class_prompts(problem, config.context_length, config.position)
        self.objective = build_objective(problem, config)

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the class prompts: all K, or the selected columns."""
        of_class = self.problem.task_of_class
        owner = of_class if selected is None else of_class[selected]
        return encode_prompts(self.problem, self.prompts, self.source(), owner, selected)

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy inside each image's own task, and the source's penalty."""
        loss = super().loss(features, columns, rng=rng, weights=weights)
        penalty = self.source.penalty()
        return loss if penalty is None else loss + penalty

    def task_gram(self, losses: Float[Tensor, " p"], tasks: Int[Tensor, " p"]) -> Float[Tensor, "p p"]:
        """Inner products of the gradients of some tasks' losses."""
        short = self.source.task_gram(losses, tasks)
        return super().task_gram(losses, tasks) if short is None else short

    def for_tasks(self, problem: Problem) -> Classifier:
        """The same knowledge on other tasks."""
        return FixedPrompts(problem, self.source.unseen(problem), self.position)

    def step_factors(self) -> Float[Tensor, " T"] | None:
        """The source's."""
        return self.source.step_factors()

    def regenerated(self) -> dict[str, str]:
        """The source's."""
        return self.source.regenerated()

    def report(self) -> dict[str, Any]:
        """Of the objective and the source."""
        return super().report() | self.source.report()
