"""SoftCPT: prompt contexts of all tasks made by one meta network from the tasks' names.

Ding et al., "Prompt Tuning with Soft Context Sharing for Vision-Language Models", arXiv:2208.13474. The
body of the paper was not available: what follows is what the published code computes, with one optimizer
step a batch unless a recipe says otherwise.

    f_t = g([SOT, task context, task text, ., EOT])              feature of task t          [D]
    c_j = g([SOT, class context, class name, ., EOT])            feature of class j         [D]  (CA and CS)
    context = meta(f_t)  or  meta([c_j ; f_t])                   prompt context             [n, W]
    w_j = g([SOT, context, class name, ., EOT])                  weight of class j          [D]
    logit_j = scale * cos(z, w_j)                                softmax inside the image's task

g is the frozen text encoder; features are not normalised before the meta network. Six variants, class
part then task part: NA no class features, CA one class context for all, CS a class context per class;
TA one task context for all, TS one per task. SoftCPT* learns a feature per task instead of f_t.

Letters: T tasks, K classes of the suite, D embedding, W text width, n context tokens.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from softcpt.clip.tokens import NamePrompts, Position
from softcpt.core.names import task_text
from softcpt.methods.base import Classifier, Method, Problem, PromptClassifier, Streams
from softcpt.methods.class_sampling import sample_classes
from softcpt.methods.meta import LinearMeta, MeanContext, MetaKind, build_meta, join_features
from softcpt.methods.objective import build_objective
from softcpt.methods.prompt_heads import with_head
from softcpt.methods.prompts import (
    PromptConfig,
    class_prompts,
    context_size,
    encode_prompts,
    normal,
    start_context,
    task_prompts,
)
from softcpt.methods.task_features import TaskTextConfig, has_own_texts, start_features, start_prompts


class Share(Enum):
    """Whose a context is."""

    NONE = "N"
    AGNOSTIC = "A"
    SPECIFIC = "S"


class Variant(NamedTuple):
    """Which contexts feed the meta network, written as in the paper: class part, then task part."""

    classes: Share
    tasks: Share

    @property
    def name(self) -> str:
        """``NATA``, ``CSTS``, ..."""
        return {"N": "NA", "A": "CA", "S": "CS"}[self.classes.value] + "T" + self.tasks.value

    @property
    def class_aware(self) -> bool:
        """Whether class features go into the meta network."""
        return self.classes is not Share.NONE


class GeneratorConfig(PromptConfig):
    """Options of every method that makes contexts by a meta network."""

    meta: MetaKind = Field("lin", description="meta network: lin, lowrank or mlp")
    rank: int | None = Field(None, ge=1, description="rank of meta=lowrank, 8 unless given")
    freeze_down: bool = Field(False, description="meta=lowrank: keep the first matrix a random projection")
    hidden: int | None = Field(None, ge=1, description="hidden units of meta=mlp, 32 unless given")
    mean_context: MeanContext = Field(
        "none", description="a context added to all: none, zeros, or words (a photo of a; the network from 0)"
    )

    @model_validator(mode="after")
    def _meta_fits(self) -> GeneratorConfig:
        if self.meta in ("linmean", "lincls") and not isinstance(self, ClassAwareConfig):
            raise ValueError(
                f"meta={self.meta} mixes class features in, which only the class-aware variants have"
            )
        needs = {"rank": "lowrank", "freeze_down": "lowrank", "hidden": "mlp"}
        for key, kind in needs.items():
            if getattr(self, key) not in (None, False) and self.meta != kind:
                raise ValueError(
                    f"{key} has no effect with meta={self.meta}; set meta={kind} or leave {key} out"
                )
        if self.mean_context == "words" and self.init_scale != 1:
            raise ValueError("init_scale has no effect with mean_context=words; leave one of them out")
        return self


class SoftCPTConfig(TaskTextConfig, GeneratorConfig):
    """Options of the variants without class features (NATA, NATS)."""

    freeze_task_context: bool = Field(False, description="keep the task context at its start")


class ClassAwareConfig(SoftCPTConfig):
    """Options of the class-aware variants (CATA, CATS, CSTA, CSTS)."""

    meta: MetaKind = Field("lin", description="meta network: lin, linmean, lincls, lowrank or mlp")
    class_context_length: int = Field(
        4, ge=0, description="learned tokens of the auxiliary class prompt; 0 for none"
    )
    class_position: Position = Field("end", description="where the name stands in the auxiliary class prompt")
    class_init_words: str | None = Field(None, description="words the class context starts from")
    class_sampling: float = Field(
        0.0, ge=0, le=1, description="share of absent classes encoded per batch; 0 encodes all"
    )
    class_sampling_offset: float = Field(
        0.0, ge=0, description="added to sampled features; the published code adds 1e-6"
    )
    freeze_class_context: bool = Field(False, description="keep the class context at its random start")


class SoftCPT(PromptClassifier):
    """Class prompts whose contexts come from a meta network shared by all tasks."""

    def __init__(self, problem: Problem, config: SoftCPTConfig, variant: Variant, streams: Streams) -> None:
        super().__init__(problem)
        self.variant = variant
        self.kind: MetaKind = config.meta
        self.sampling = config.class_sampling if isinstance(config, ClassAwareConfig) else 0.0
        self.sampling_offset = config.class_sampling_offset if isinstance(config, ClassAwareConfig) else 0.0
        self.prompts = class_prompts(problem, config.context_length, config.position)

        copies = len(problem.tasks) if variant.tasks is Share.SPECIFIC else None
        self.task_prompts, start = start_prompts(problem, config, streams, copies=copies)
        self.random_tasks: tuple[Tensor, ...] = ()
        if config.task_text == "vectors":
            self.random_tasks, start = (start_features(problem, config, streams),), start[..., :0, :]
        if config.freeze_task_context or self.random_tasks:
            self.register_buffer("task_context", start)
        else:
            self.task_context = _learned_unless_empty(start)
        if isinstance(config, ClassAwareConfig):
            self._add_class_context(config, streams)
        self.meta = build_meta(
            problem,
            config.meta,
            class_aware=variant.class_aware,
            n_context=config.context_length,
            rank=config.rank or 8,
            streams=streams,
            hidden=config.hidden or 32,
            scale=config.init_scale,
            learn_down=not config.freeze_down,
            mean=config.mean_context,
        )
        self.position = config.position
        self.config = config
        self.objective = build_objective(problem, config)

    def _add_class_context(self, config: ClassAwareConfig, streams: Streams) -> None:
        problem = self.problem
        n_class = context_size(
            problem,
            config.class_init_words,
            config.class_context_length,
            key="class_context_length",
            words_key="class_init_words",
            is_set="class_context_length" in config.model_fields_set,
        )
        self.aux_prompts = class_prompts(problem, n_class, config.class_position)
        self.class_context = _learned_unless_empty(
            start_context(
                problem,
                n_context=n_class,
                words=config.class_init_words,
                copies=len(problem.class_names) if self.variant.classes is Share.SPECIFIC else None,
                streams=streams,
                purpose="class_context",
            )
        )
        if config.freeze_class_context:
            # Kept as a buffer: it is not learned, yet the adapter cannot do without it.
            start = self.class_context.detach().clone()
            del self.class_context
            self.register_buffer("class_context", start)

    def task_features(self, tasks: Int[Tensor, " t"] | None = None) -> Float[Tensor, "t D"]:
        """Text features of the tasks' prompts: all T, or the given ones."""
        if self.random_tasks:
            return self.random_tasks[0] if tasks is None else self.random_tasks[0][tasks]
        return _with_own_context(self.problem, self.task_prompts, self.task_context, tasks)

    def name_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the auxiliary class prompts (class-aware variants)."""
        return _with_own_context(self.problem, self.aux_prompts, self.class_context, selected)

    def contexts(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "g n W"]:
        """Contexts of the class prompts: one per task, or per class where class-aware.

        Args:
            selected: columns, ascending; only their tasks' contexts are made, in ascending order too.
        """
        tasks, of_class = self._tasks_of(selected)
        task_features = self.task_features(tasks)
        if not self.variant.class_aware:
            made: Tensor = self.meta(task_features)
            return made
        made = self.meta(join_features(self.kind, self.name_features(selected), task_features[of_class]))
        return made

    def _tasks_of(self, selected: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The tasks of some columns, ascending (None for all), and which of them each column has."""
        of_class = self.problem.task_of_class
        if selected is None:
            return None, of_class
        tasks, which = torch.unique(of_class[selected], return_inverse=True)
        return tasks, which

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the class prompts: all K, or the selected columns."""
        contexts = self.contexts(selected)
        owner = None if self.variant.class_aware else self._tasks_of(selected)[1]
        return encode_prompts(self.problem, self.prompts, contexts, owner, selected)

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy inside each image's own task, over the sampled classes where sampling is on."""
        if self.sampling == 0:
            return super().loss(features, columns, rng=rng, weights=weights)
        of_class = self.problem.task_of_class
        selected = sample_classes(columns, of_class, self.sampling, rng).sort().values
        in_play = self.problem.columns_in_play(columns)
        if in_play is not None:
            selected = selected[torch.isin(selected, in_play)]
        return self.loss_among(selected, features, columns, weights, rng)

    def trained_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Class features as training sees them.

        The published code adds 1e-6 to every coordinate of a selected feature (``sampling_offset``), since
        it adds features to an array filled with it; the other columns never reach the loss.
        """
        return self.class_features(selected) + (self.sampling_offset if self.sampling else 0.0)

    def step_factors(self) -> Float[Tensor, " T"] | None:
        """|x|^2 of what one matrix sees of a task, or the mean over its classes."""
        if not isinstance(self.meta, LinearMeta):
            return None
        with torch.no_grad():
            seen = self.task_features()
            if self.variant.class_aware:
                of_class = self.problem.task_of_class
                seen = join_features(self.kind, self.name_features(), seen[of_class])
                every = range(len(self.problem.tasks))
                return torch.stack([seen[of_class == t].square().sum(1).mean() for t in every])
            return seen.square().sum(1)

    def for_tasks(self, problem: Problem) -> Classifier:
        """The same network on new tasks' names; contexts of their own cannot come along."""
        variant = self.variant
        if variant.tasks is Share.SPECIFIC or variant.classes is Share.SPECIFIC:
            return super().for_tasks(problem)
        if not has_own_texts(self.config):
            return super().for_tasks(problem)
        made = SoftCPT(problem, self.config, variant, lambda _: torch.Generator().manual_seed(0))
        known = {k: v for k, v in self.state_dict().items() if not k.startswith("objective.")}
        made.load_state_dict(known, strict=False)
        return made


class StarSoftCPT(PromptClassifier):
    """SoftCPT*: a learned feature per task in place of the text encoder's.

    T D + D n W numbers. Nothing published says what the paper's row of this name is; this is ours. The
    features start N(0, 1), scaled to the mean norm of the task texts' own features. It cannot make a context
    for an unseen task: a task it was not trained on has no learned feature.
    """

    def __init__(self, problem: Problem, config: GeneratorConfig, streams: Streams) -> None:
        super().__init__(problem)
        self.prompts = class_prompts(problem, config.context_length, config.position)
        texts = [task_text(t.name, t.description, "description") for t in problem.tasks]
        prompts = task_prompts(problem, texts, 0, "end")
        with torch.no_grad():
            nothing = torch.zeros(1, 0, problem.text.width, device=problem.text.device, dtype=problem.dtype)
            norm = encode_prompts(problem, prompts, nothing).norm(dim=1).mean()
        start = normal((len(problem.tasks), problem.text.embed_dim), streams("task_features"))
        start = start / start.norm(dim=1).mean()
        self.features = nn.Parameter(start.to(problem.text.device, problem.dtype) * norm)
        self.meta = build_meta(
            problem,
            config.meta,
            class_aware=False,
            n_context=config.context_length,
            rank=config.rank or 8,
            streams=streams,
            hidden=config.hidden or 32,
            scale=config.init_scale,
            learn_down=not config.freeze_down,
            mean=config.mean_context,
        )
        self.objective = build_objective(problem, config)

    def task_features(self) -> Float[Tensor, "T D"]:
        """The learned features."""
        return self.features

    def step_factors(self) -> Float[Tensor, " T"] | None:
        """|f|^2 of each task, where the network is one matrix."""
        return self.features.detach().square().sum(1) if isinstance(self.meta, LinearMeta) else None

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """Text features of the class prompts: all K, or the selected columns."""
        of_class = self.problem.task_of_class
        owner = of_class if selected is None else of_class[selected]
        return encode_prompts(self.problem, self.prompts, self.meta(self.features), owner, selected)


def _learned_unless_empty(start: Tensor) -> nn.Parameter:
    return nn.Parameter(start, requires_grad=start.numel() > 0)


def _with_own_context(
    problem: Problem, prompts: NamePrompts, context: Tensor, selected: Tensor | None
) -> Tensor:
    """Features of prompts that take one learned context [n, W] for all, or each its own [K, n, W]."""
    if context.dim() == 2:
        return encode_prompts(problem, prompts, context[None], None, selected)
    return encode_prompts(problem, prompts, context, selected, selected)


def _variant_method(variant: Variant, summary: str) -> Method:
    def build(problem: Problem, config: SoftCPTConfig, streams: Streams) -> SoftCPT:
        return SoftCPT(problem, config, variant, streams)

    return Method(
        key=f"softcpt-{variant.name.lower()}",
        label=f"SoftCPT-{variant.name}",
        summary=summary,
        config=ClassAwareConfig if variant.class_aware else SoftCPTConfig,
        build=with_head(build),
        shares=True,
        published_steps=4 if variant.class_aware else 3,
    )


NATA = _variant_method(Variant(Share.NONE, Share.AGNOSTIC), "contexts from task names; one task context")
NATS = _variant_method(Variant(Share.NONE, Share.SPECIFIC), "contexts from task names; a task context each")
CATA = _variant_method(
    Variant(Share.AGNOSTIC, Share.AGNOSTIC), "contexts from class and task names; one context of each kind"
)
CATS = _variant_method(
    Variant(Share.AGNOSTIC, Share.SPECIFIC), "contexts from class and task names; a task context per task"
)
CSTA = _variant_method(
    Variant(Share.SPECIFIC, Share.AGNOSTIC), "contexts from class and task names; a class context per class"
)
CSTS = _variant_method(
    Variant(Share.SPECIFIC, Share.SPECIFIC),
    "contexts from class and task names; a context per class and task",
)


def _build_star(problem: Problem, config: GeneratorConfig, streams: Streams) -> StarSoftCPT:
    return StarSoftCPT(problem, config, streams)


STAR = Method(
    key="softcpt-star",
    label="SoftCPT*",
    summary="a learned feature per task in place of its name's; knows no unseen tasks",
    config=GeneratorConfig,
    build=with_head(_build_star),
    shares=True,
)

NATA_SEPARATE = replace(
    NATA,
    key="softcpt-nata-separate",
    label="SoftCPT-NATA, separate",
    summary="as softcpt-nata, each task in a run of its own: a control, nothing is shared",
    separate=True,
    shares=False,
    published_steps=None,
)
