"""Hand-written prompts: a task's template around each class name, as whole texts without anything learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.clip.tokens import NamePrompts, name_prompts
from softcpt.core.names import prompt_words
from softcpt.methods.base import Problem
from softcpt.methods.prompts import encode_prompts


def written_prompts(problem: Problem, templates: Sequence[str]) -> NamePrompts:
    """Prompts of all K classes.

    Args:
        problem: whose names.
        templates: one per task, each with ``{}`` where the name goes. It brings its own full stop.
    """
    texts = [
        template.replace("{}", prompt_words(name))
        for task, template in zip(problem.tasks, templates, strict=True)
        for name in task.classes
    ]
    return name_prompts(
        texts,
        tokenizer=problem.tokenizer,
        context_length=problem.text.context_length,
        n_context=0,
        where=problem.class_places,
        full_stop=False,
        remedy="shorten the name, or the task's template",
    ).to(problem.text.device)


def encode_written(
    problem: Problem, prompts: NamePrompts, selected: Int[Tensor, " k"] | None = None
) -> Float[Tensor, "k D"]:
    """Their text features, not normalised: all K, or the selected columns'."""
    text = problem.text
    nothing = torch.zeros(1, 0, text.width, device=text.device, dtype=text.dtype)
    return encode_prompts(problem, prompts, nothing, None, selected)


def reference_features(problem: Problem, templates: Sequence[str]) -> Float[Tensor, "K D"]:
    """Unit text features of all classes, for methods that hold on to the hand-written prompt.

    Made once and kept, in full precision whatever a training's is.
    """
    with torch.no_grad(), torch.autocast(problem.text.device.type, enabled=False):
        features = encode_written(problem, written_prompts(problem, templates)).to(problem.dtype)
        unit: Tensor = features / features.norm(dim=1, keepdim=True)
    return unit
