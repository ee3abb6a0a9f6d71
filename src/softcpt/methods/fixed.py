"""Class prompts whose contexts are given: what a trained method makes of tasks it was not trained on."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from softcpt.clip.tokens import Position
from softcpt.core.errors import ConfigError, Fault
from softcpt.methods.base import Problem, PromptClassifier
from softcpt.methods.prompts import class_prompts, encode_prompts


class FixedPrompts(PromptClassifier):
    """One given context per task; nothing is learned."""

    contexts: Tensor

    def __init__(self, problem: Problem, contexts: Float[Tensor, "T n W"], position: Position) -> None:
        super().__init__(problem)
        self.register_buffer("contexts", contexts.detach().clone())
        self.prompts = class_prompts(problem, contexts.shape[1], position)

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the class prompts: all K, or the selected columns."""
        of_class = self.problem.task_of_class
        owner = of_class if selected is None else of_class[selected]
        return encode_prompts(self.problem, self.prompts, self.contexts, owner, selected)


def no_unseen(what: str, why: str, fix: str) -> ConfigError:
    """The refusal of a method that has no context for tasks it was not trained on."""
    return ConfigError(Fault(what, f"{why}, so it has no context for an unseen task", fix), about="new tasks")
