"""KgCoOp: CoOp whose class features are pulled towards those of the hand-written prompt.

Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023,
arXiv:2303.13283. The paper's text was not available; this follows its published code (htyao89/KgCoOp),
without the learnable leftovers in it that nothing uses.

    loss = cross-entropy + pull * mean over the task's classes of (1 - cos(w_c, w_c of the template))

The paper is said to have the squared distance of unit features, which is twice that (``distance=l2``).
A context per task, each task in a run of its own, four tokens that start as "a photo of a". The reference
is the task's own template. Published: 100 epochs, batches of 128 (32 for few shots), pull 8 everywhere.

Letters: B images, K classes of the suite, D embedding.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.coop import CoOp, Sharing, WordsConfig
from softcpt.methods.loss import cosine_logits, multitask_cross_entropy
from softcpt.methods.written import reference_features


class KgCoOpConfig(WordsConfig):
    """Options of KgCoOp."""

    pull: float = Field(8.0, ge=0, description="weight of the distance to the hand-written prompt's features")
    distance: Literal["cos", "l2"] = Field(
        "cos", description="cos: 1 - cosine; l2: squared distance of unit features, twice as much"
    )


class KgCoOp(CoOp):
    """CoOp with a context per task and a pull towards the template."""

    def __init__(self, problem: Problem, config: KgCoOpConfig, streams: Streams) -> None:
        super().__init__(problem, config, Sharing.TASK, streams)
        self.pull = config.pull if config.distance == "cos" else 2 * config.pull

    @cached_property
    def reference(self) -> Float[Tensor, "K D"]:
        """Unit features of the hand-written prompts."""
        return reference_features(self.problem, [task.template for task in self.problem.tasks])

    def loss(
        self,
        features: Float[Tensor, "B *r D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """The cross-entropy, and what the classes of the images' tasks have moved away."""
        task_of_class = self.problem.task_of_class
        selected = self.problem.columns_in_play(columns)
        if selected is None:
            selected = torch.arange(len(task_of_class), device=columns.device)
        made = self.class_features(selected)
        loss = multitask_cross_entropy(
            cosine_logits(features, made, self.problem.logit_scale),
            torch.searchsorted(selected, columns),
            task_of_class[selected],
            weights=weights,
        )
        moved = 1 - torch.cosine_similarity(made.to(self.reference), self.reference[selected])
        # Of several tasks each counts by its images, as in the cross-entropy.
        own = (task_of_class[columns][:, None] == task_of_class[selected][None, :]).to(moved)
        return loss + self.pull * (own @ moved / own.sum(1)).mean()


def _build(problem: Problem, config: KgCoOpConfig, streams: Streams) -> KgCoOp:
    return KgCoOp(problem, config, streams)


KGCOOP = Method(
    key="kgcoop",
    label="KgCoOp",
    summary="a learned context per task, pulled towards the hand-written prompt's features",
    config=KgCoOpConfig,
    build=_build,
    separate=True,
    tunes={"pull": ("10", "8", "4", "2", "1"), "lr": ("0.002", "0.02")},
)
