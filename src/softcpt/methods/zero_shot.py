"""Zero-shot CLIP: hand-written prompts, nothing learned. Radford et al. 2021, arXiv:2103.00020."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.clip.tokens import name_prompts
from softcpt.core.names import prompt_words
from softcpt.methods.base import Method, MethodConfig, Problem, PromptClassifier, Streams
from softcpt.methods.prompts import encode_prompts


class ZeroShotConfig(MethodConfig):
    """Zero-shot has no options: the template is the task's."""


class ZeroShot(PromptClassifier):
    """Text features of each task's template with the class names put in."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        # The prompt builder would add a full stop; a template brings its own.
        texts = [
            task.template.replace("{}", prompt_words(name)) for task in problem.tasks for name in task.classes
        ]
        self.prompts = name_prompts(
            texts,
            tokenizer=problem.tokenizer,
            context_length=problem.text.context_length,
            n_context=0,
            where=problem.class_places,
            full_stop=False,
            remedy="shorten the name, or the task's template",
        ).to(problem.text.device)

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of all templates, or of the selected columns'."""
        text = self.problem.text
        nothing = torch.zeros(1, 0, text.width, device=text.device, dtype=text.dtype)
        return encode_prompts(self.problem, self.prompts, nothing, None, selected)


def _build(problem: Problem, config: ZeroShotConfig, streams: Streams) -> ZeroShot:
    return ZeroShot(problem)


ZERO_SHOT = Method(
    key="zero-shot",
    label="Zero-shot CLIP",
    summary="the task's template with the class names, nothing learned",
    config=ZeroShotConfig,
    build=_build,
    trains=False,
)
