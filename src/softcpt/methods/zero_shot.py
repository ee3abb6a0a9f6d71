"""Zero-shot CLIP: hand-written prompts, nothing learned. Radford et al. 2021, arXiv:2103.00020.

    single      w_c = g(template(c))                                            one template, the task's
    ensemble    w_c = mean over templates p of  g(p(c)) / |g(p(c))|             more templates beside it

The ensemble's mean is normalised again with the cosine. Averaging features that are not normalised is another
classifier: longer features would count for more.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.clip.templates import IMAGENET_TEMPLATES, SELECTED_TEMPLATES
from softcpt.clip.tokens import name_prompts
from softcpt.core.names import prompt_words
from softcpt.methods.base import Method, MethodConfig, Problem, PromptClassifier, Streams
from softcpt.methods.loss import unit
from softcpt.methods.prompts import encode_prompts


class ZeroShotConfig(MethodConfig):
    """Zero-shot has no options: the template is the task's."""


class ZeroShot(PromptClassifier):
    """Text features of a template with the class names put in.

    Args:
        problem: the tasks.
        template: one for all tasks; None for each task's own.
    """

    def __init__(self, problem: Problem, template: str | None = None) -> None:
        super().__init__(problem)
        # The prompt builder would add a full stop; a template brings its own.
        texts = [
            (template or task.template).replace("{}", prompt_words(name))
            for task in problem.tasks
            for name in task.classes
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

    def known_features(self) -> Float[Tensor, "K D"]:
        """Text features of all K classes, encoded again only after the tower changed."""
        return self._known_features()


Templates = Literal["task", "selected", "imagenet"]
"""The task's own template alone; with CLIP's seven selected ones; with its eighty for ImageNet."""

_MORE: dict[Templates, tuple[str, ...]] = {
    "task": (),
    "selected": SELECTED_TEMPLATES,
    "imagenet": IMAGENET_TEMPLATES,
}


class TemplateTexts:
    """Text features of all classes in several templates.

    Args:
        problem: the tasks.
        templates: which, beside each task's own.
    """

    def __init__(self, problem: Problem, templates: Templates) -> None:
        self._problem = problem
        self.parts = [ZeroShot(problem), *(ZeroShot(problem, template) for template in _MORE[templates])]

    def of_task(self, task: int) -> Float[Tensor, "P C D"]:
        """Those of one task's classes, not normalised; encoded once."""
        columns = self._problem.columns(task)
        return torch.stack([part.known_features()[columns] for part in self.parts])


def mean_direction(text: Float[Tensor, "P C D"]) -> Float[Tensor, "C D"]:
    """Mean over templates of normalised features, normalised again: an ensemble's class weights."""
    return unit(unit(text).mean(0))


class ZeroShotEnsembleConfig(MethodConfig):
    """Options of the ensemble."""

    templates: Literal["selected", "imagenet"] = Field(
        "selected", description="beside the task's own: selected: CLIP's seven; imagenet: its eighty"
    )


class ZeroShotEnsemble(PromptClassifier):
    """Class weights averaged over hand-written templates."""

    def __init__(self, problem: Problem, templates: Templates) -> None:
        super().__init__(problem)
        self.texts = TemplateTexts(problem, templates)

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """The averaged directions of all classes, or of the selected columns'."""
        return mean_direction(torch.stack([part.class_features(selected) for part in self.texts.parts]))


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


def _build_ensemble(problem: Problem, config: ZeroShotEnsembleConfig, streams: Streams) -> ZeroShotEnsemble:
    return ZeroShotEnsemble(problem, config.templates)


ZERO_SHOT_ENSEMBLE = Method(
    key="zero-shot-ensemble",
    label="Zero-shot CLIP (ensemble)",
    summary="the mean of several hand-written templates, nothing learned",
    config=ZeroShotEnsembleConfig,
    build=_build_ensemble,
    trains=False,
)
