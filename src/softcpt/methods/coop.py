"""CoOp: a context that is learned directly. Zhou et al., IJCV 2022, arXiv:2109.01134.

Who shares a context is the only difference between the kinds:

    CoOp-MT   one context for all classes of all tasks      [M, W]       (hard sharing, arXiv:2208.13474)
    CoOp-CA   one context per task, for all its classes     [T, M, W]
    CoOp-CS   one context per class                         [K, M, W]

CA and CS come in two ways: each task in a run of its own (``coop-ca``, as the SoftCPT README describes it),
or all in one run over mixed batches (``coop-ca-joint``, as its code does). They differ: jointly a task's
gradient is scaled by its share of the batch, and momentum and decay move its context in every step.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from softcpt.clip.tokens import Position
from softcpt.methods.base import Classifier, Method, MethodConfig, Problem, PromptClassifier, Streams
from softcpt.methods.fixed import FixedPrompts
from softcpt.methods.objective import build_objective
from softcpt.methods.prompt_heads import with_head
from softcpt.methods.prompts import (
    PromptConfig,
    class_prompts,
    context_size,
    encode_prompts,
    start_context,
)


class Sharing(Enum):
    """Who shares one context."""

    ALL = "all classes of all tasks"
    TASK = "the classes of a task"
    CLASS = "nobody"


class ContextConfig(MethodConfig):
    """What a context is: its length, its place, what it starts from."""

    context_length: int = Field(16, ge=1, description="context tokens of a class prompt")
    position: Position = Field("end", description="where the name stands in a class prompt")
    init_words: str | None = Field(
        None, description="words the context starts from; its length is then theirs"
    )
    init_scale: float = Field(1.0, gt=0, description="factor of the class prompts' random start")

    @model_validator(mode="after")
    def _scale_has_an_effect(self) -> ContextConfig:
        if self.init_words is not None and self.init_scale != 1:
            raise ValueError("init_scale has no effect on words; leave it or init_words out")
        return self


class WordsConfig(ContextConfig):
    """Options of methods that start from the words which CLIP's own prompts begin with."""

    context_length: int = Field(4, ge=1, description="context tokens, where no words are given")
    init_words: Annotated[str | None, BeforeValidator(lambda words: words or None)] = Field(
        "a photo of a", description="words the context starts from; empty: random"
    )


class CoOpConfig(ContextConfig, PromptConfig):
    """Options of CoOp."""


class CoOp(PromptClassifier):
    """Class prompts with a directly learned context."""

    def __init__(self, problem: Problem, config: ContextConfig, sharing: Sharing, streams: Streams) -> None:
        super().__init__(problem)
        n_context = context_size(
            problem,
            config.init_words,
            config.context_length,
            key="context_length",
            words_key="init_words",
            is_set="context_length" in config.model_fields_set,
        )
        copies = {
            Sharing.ALL: None,
            Sharing.TASK: len(problem.tasks),
            Sharing.CLASS: len(problem.class_names),
        }
        self.sharing = sharing
        self.context = nn.Parameter(
            start_context(
                problem,
                n_context=n_context,
                words=config.init_words,
                copies=copies[sharing],
                streams=streams,
                purpose="context",
                scale=config.init_scale,
            )
        )
        self.position = config.position
        if isinstance(config, PromptConfig):
            self.objective = build_objective(problem, config)
        self.prompts = class_prompts(problem, n_context, config.position)

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the class prompts: all K, or the selected columns."""
        if self.sharing is Sharing.CLASS:
            return encode_prompts(self.problem, self.prompts, self.context, selected, selected)
        if self.sharing is Sharing.TASK:
            of_class = self.problem.task_of_class
            owner = of_class if selected is None else of_class[selected]
            return encode_prompts(self.problem, self.prompts, self.context, owner, selected)
        return encode_prompts(self.problem, self.prompts, self.context[None], None, selected)

    def step_factors(self) -> Float[Tensor, " T"]:
        """1: the rate itself is what moves a context."""
        return torch.ones(len(self.problem.tasks))

    def for_tasks(self, problem: Problem) -> Classifier:
        """CoOp-MT takes its one context to new tasks; a context of a task or class belongs to it alone."""
        if self.sharing is not Sharing.ALL:
            return super().for_tasks(problem)
        contexts = self.context.detach().expand(len(problem.tasks), -1, -1)
        return FixedPrompts(problem, contexts, self.position)


def _method(
    key: str, label: str, summary: str, sharing: Sharing, *, separate: bool, published: bool
) -> Method:
    def build(problem: Problem, config: CoOpConfig, streams: Streams) -> CoOp:
        return CoOp(problem, config, sharing, streams)

    return Method(
        key=key,
        label=label,
        summary=summary,
        config=CoOpConfig,
        build=with_head(build),
        separate=separate,
        shares=sharing is Sharing.ALL,
        published_steps=1 if published else None,
    )


COOP_MT = _method(
    "coop-mt", "CoOp-MT", "one learned context for all tasks", Sharing.ALL, separate=False, published=True
)
COOP_CA = _method(
    "coop-ca",
    "CoOp-CA",
    "a learned context per task, each task in a run of its own",
    Sharing.TASK,
    separate=True,
    published=False,
)
COOP_CS = _method(
    "coop-cs",
    "CoOp-CS",
    "a learned context per class, each task in a run of its own",
    Sharing.CLASS,
    separate=True,
    published=False,
)
COOP_CA_JOINT = _method(
    "coop-ca-joint",
    "CoOp-CA (joint)",
    "a learned context per task, all tasks in mixed batches",
    Sharing.TASK,
    separate=False,
    published=True,
)
COOP_CS_JOINT = _method(
    "coop-cs-joint",
    "CoOp-CS (joint)",
    "a learned context per class, all tasks in mixed batches",
    Sharing.CLASS,
    separate=False,
    published=True,
)

__all__ = [
    "COOP_CA",
    "COOP_CA_JOINT",
    "COOP_CS",
    "COOP_CS_JOINT",
    "COOP_MT",
    "CoOp",
    "CoOpConfig",
    "Sharing",
    "WordsConfig",
]
