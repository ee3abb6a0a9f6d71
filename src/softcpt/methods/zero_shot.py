"""Zero-shot CLIP: hand-written prompts, nothing learned. Radford et al. 2021, arXiv:2103.00020."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from softcpt.methods.base import Method, MethodConfig, Problem, PromptClassifier, Streams
from softcpt.methods.written import encode_written, written_prompts


class ZeroShotConfig(MethodConfig):
    """Zero-shot has no options: the template is the task's."""


class ZeroShot(PromptClassifier):
    """Text features of each task's template with the class names put in."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.prompts = written_prompts(problem, [task.template for task in problem.tasks])

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of all templates, or of the selected columns'."""
        return encode_written(self.problem, self.prompts, selected)


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
