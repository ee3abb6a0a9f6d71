"""TaskRes: a learned residual beside the text features. Yu et al., CVPR 2023, arXiv:2211.10277.

    t'_c = t_c + alpha x_c,   logits = s <f, t'_c / |t'_c|>        x starts at 0; t_c as encoded

alpha is 0.5 as published (1 on Flowers, set by hand there); on val it is chosen among four. With Adam it
mainly rescales the learning rate. The paper's "enhanced base" rests on weights of its own and is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.clap import TextNorm, base_text, normalised_logits
from softcpt.methods.head_training import (
    Adam,
    Batch,
    batches_per_epoch,
    cross_entropies,
    descend,
    epoch_cosine,
    view_batches,
)
from softcpt.methods.heads import (
    Head,
    HeadClassifier,
    Setting,
    State,
    TaskData,
    TaskText,
    Trials,
    TunedConfig,
    templates_field,
    views_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

ALPHAS = (0.5, 0.2, 1.0, 2.0)
"""The published value, then the others, small ones first."""

WEIGHT_DECAY = 5e-4
"""Dassl's default; in Adam's gradient, so that it pulls the residual to 0."""

FEW_SHOTS, FEW_EPOCHS, MANY_EPOCHS = 4, 100, 200


class TaskResConfig(TunedConfig):
    """Options of TaskRes."""

    views: int = views_field()
    templates: Templates = templates_field()
    text_norm: TextNorm = Field(
        "raw", description="length of the text features: raw: as encoded, as published; unit: 1"
    )
    epochs: int | None = Field(
        None, ge=1, description="of the residual's training; 100 for up to 4 images a class, else 200"
    )
    lr: float = Field(2e-3, gt=0, description="of the residual, at the cosine's start")


class TaskRes(Head):
    """A residual per class."""

    kept = frozenset({"alpha"})

    def __init__(self, config: TaskResConfig) -> None:
        self.config = config

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The residuals and their weight."""
        return {"residual": (n_classes, dim), "alpha": ()}

    def grid(self) -> Sequence[Setting]:
        """Weights of the residual."""
        return [{"alpha": alpha} for alpha in ALPHAS]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """All weights in one training."""
        alphas = torch.tensor([setting["alpha"] for setting in grid]).to(data.text.raw)
        residuals = train_residuals(data, alphas, self.config)
        classes = base_text(data.text, self.config.text_norm) + alphas[:, None, None] * residuals

        def state(g: int) -> State:
            return {"residual": residuals[g], "alpha": alphas[g]}

        scores = data.val_accuracy(normalised_logits(classes, data.val, data.scale))
        return Trials(scores[:, None], state, trainings=len(grid))

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Scaled cosines to the moved text features."""
        classes = base_text(text, self.config.text_norm) + state["alpha"] * state["residual"]
        return normalised_logits(classes, unit(features), scale)


def train_residuals(
    data: TaskData, alphas: Float[Tensor, " G"], config: TaskResConfig
) -> Float[Tensor, "G C D"]:
    """The residual under each weight, after the last epoch."""
    views = data.views(config.views)
    base = base_text(data.text, config.text_norm)
    shots = int(torch.bincount(data.labels).max())
    epochs = config.epochs or (FEW_EPOCHS if shots <= FEW_SHOTS else MANY_EPOCHS)
    per_epoch = batches_per_epoch(len(views))

    def loss(residuals: Float[Tensor, "G C D"], batch: Batch) -> Float[Tensor, " G"]:
        classes = base + alphas[:, None, None] * residuals
        return cross_entropies(normalised_logits(classes, batch[0], data.scale), batch[1])

    return descend(
        torch.zeros(len(alphas), *base.shape).to(base),
        loss,
        view_batches(views, data.labels, epochs, data.streams("batches")),
        Adam(weight_decay=WEIGHT_DECAY),
        lambda step: epoch_cosine(config.lr, step // per_epoch, epochs),
    )


def _build(problem: Problem, config: TaskResConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, TaskRes(config), templates=config.templates, tune=config.tune)


TASKRES = Method(
    key="taskres",
    label="TaskRes",
    summary="a learned residual beside each class's text feature",
    config=TaskResConfig,
    build=_build,
    trains=False,
    fits=True,
)

__all__ = ["TASKRES", "TaskRes", "TaskResConfig", "train_residuals"]
