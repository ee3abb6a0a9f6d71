"""MVLPT's text part: one prompt learned on all tasks, then adapted to each.

Shen et al., "Multitask Vision-Language Prompt Tuning", 2022, arXiv:2211.11720. The paper's text was not
available; this follows the text part of its published code (sIncerass/MVLPT) on the tasks at hand: the source
tasks are the target tasks, with the same images.

    stage 1   one context for all classes of all tasks         [n, W]      CoOp-MT
    stage 2   a context per task, each started from it         [T, n, W]   CoOp-CA, each task alone

In stage 1 the softmax is over the image's own task; ``softmax=joint`` is the released default, over the
classes of all tasks. (Its flag for the former multiplies foreign logits by 0, which leaves them in the sum.)
The epochs are divided between the stages, each with a warm-up and a cosine of its own; in both the best epoch
on val is kept. Published: 200 epochs for each, and the mean of three seeds' prompts to start from
(``source_runs=3``; ours differ in start and order, not in images).

Letters: B images, T tasks, n context tokens, W text width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.clip.tokens import Position
from softcpt.methods.base import Classifier, Method, Problem, SeparateClassifiers, Stage, Streams
from softcpt.methods.coop import ContextConfig, CoOp, Sharing


class MVLPTConfig(ContextConfig):
    """Options of MVLPT."""

    position: Position = Field("middle", description="where the name stands")
    shared_epochs: float = Field(
        0.5, ge=0, le=1, description="share of the epochs for the prompt of all tasks; the rest adapts it"
    )
    softmax: Literal["task", "joint"] = Field(
        "task", description="of the shared prompt: over the image's own task, or over all classes of all"
    )
    source_runs: int = Field(
        1, ge=1, description="shared prompts, from different starts, whose mean is adapted"
    )

    def is_shared(self) -> bool:
        """Without epochs of its own, the prompt of all tasks learns nothing."""
        return self.shared_epochs > 0


class SharedPrompt(CoOp):
    """Stage 1: CoOp-MT, if need be with a softmax over all tasks."""

    def __init__(self, problem: Problem, config: MVLPTConfig, streams: Streams) -> None:
        super().__init__(problem, config, Sharing.ALL, streams)
        self.joint = config.softmax == "joint"

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy inside each image's own task, or over all columns."""
        if not self.joint:
            return super().loss(features, columns, rng=rng, weights=weights)
        terms = F.cross_entropy(self.logits(features), columns, reduction="none")
        return (terms if weights is None else terms * weights).mean()


class MVLPT(SeparateClassifiers):
    """A prompt per task, adapted from one that all tasks made."""

    def __init__(self, problem: Problem, config: MVLPTConfig, streams: Streams) -> None:
        own = [CoOp(problem.only(t), config, Sharing.ALL, streams) for t in range(len(problem.tasks))]
        super().__init__(problem, own)
        self.shared = SharedPrompt(problem, config, streams)
        others = [_numbered(streams, run) for run in range(2, config.source_runs + 1)]
        # In a tuple: only their mean is kept, in place of the first.
        self._sources = (self.shared, *(SharedPrompt(problem, config, other) for other in others))
        self._share = config.shared_epochs
        self._is_started = False

    def stages(self) -> Iterator[Stage]:
        """The shared prompt, then each task's."""
        for run, source in enumerate(self._sources, start=1):
            note = "" if run == 1 else f", run {run}"
            yield Stage(source, note=note, epochs=self._epochs_shared)
        for t in range(len(self.tasks)):
            yield Stage(self.part(t), task=t, epochs=self._epochs_own, begin=partial(self._start, t))

    def for_tasks(self, problem: Problem) -> Classifier:
        """New tasks take the shared prompt, as it was before it was adapted."""
        return self.shared.for_tasks(problem)

    def _epochs_shared(self, n: int) -> int:
        return round(self._share * n)

    def _epochs_own(self, n: int) -> int:
        return n - self._epochs_shared(n)

    @torch.no_grad()
    def _start(self, task: int) -> None:
        """Let a task's context begin as the shared one."""
        if not self._is_started:
            self.shared.context.copy_(torch.stack([source.context for source in self._sources]).mean(0))
            self._is_started = True
        part = self.part(task)
        assert isinstance(part, CoOp)  # what the constructor made
        part.context.copy_(self.shared.context)


def _numbered(streams: Streams, run: int) -> Streams:
    return lambda purpose: streams(f"{purpose} {run}")


def _build(problem: Problem, config: MVLPTConfig, streams: Streams) -> MVLPT:
    return MVLPT(problem, config, streams)


MVLPT_TEXT = Method(
    key="mvlpt",
    label="MVLPT (text)",
    summary="one learned context for all tasks, then adapted to each task",
    config=MVLPTConfig,
    build=_build,
    shares=True,
    defaults={"keep": "best"},
)
