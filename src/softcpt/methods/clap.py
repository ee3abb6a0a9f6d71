"""ZS-LP and CLAP: class weights that start at the text. Silva-Rodriguez et al., CVPR 2024, arXiv:2312.12730.

    logits = s f w_c / |w_c|                    w_c starts at the class's text feature t_c
    ZS-LP    cross-entropy
    CLAP     cross-entropy + mean over classes of lambda_c |w_c - t_c|^2
             lambda_c = mean zero-shot probability of c over the views of its training images, fixed

Nothing is chosen on val: that is the method's claim. The norm of t_c matters (``text_norm``): the gradient
goes with 1 / |w_c| and the penalty with the square of the norm, so that unit vectors make another, wilder
method at the same rate.

Differs from the published code: an epoch shows each image in one view, where it draws batches of 256 from all
views of all images, on average one of each image. Its outer update of lambda, off there by default, is not
offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, MethodConfig, Problem, Streams
from softcpt.methods.head_training import (
    Batch,
    Sgd,
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
    templates_field,
    views_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

TextNorm = Literal["raw", "unit"]
Constraint = Literal["l2", "corrected", "constant", "balanced"]


class ZsLpConfig(MethodConfig):
    """Options of ZS-LP."""

    views: int = views_field()
    templates: Templates = templates_field()
    text_norm: TextNorm = Field(
        "raw", description="length of the text features: raw: as encoded, as published; unit: 1"
    )
    epochs: int = Field(300, ge=1, description="of the weights' training")
    lr: float = Field(0.1, gt=0, description="of the weights, at the cosine's start")


class ClapConfig(ZsLpConfig):
    """Options of CLAP."""

    constraint: Constraint = Field(
        "l2",
        description="weight of a class's pull: l2: its zero-shot probability; corrected: of mean 1; "
        "constant: the mean for all; balanced: 1",
    )


def base_text(text: TaskText, norm: TextNorm) -> Float[Tensor, "C D"]:
    """Text features that weights start from, or are added to."""
    return text.raw if norm == "raw" else text.unit


def pulls(data: TaskData, views: Float[Tensor, "n V D"], constraint: Constraint) -> Float[Tensor, " C"]:
    """lambda_c: how far zero-shot is to be trusted on each class."""
    if constraint == "balanced":
        return torch.ones(data.n_classes).to(views)
    probabilities = torch.softmax(data.scale * unit(views) @ data.text.unit.T, -1).mean(1)
    own = (data.one_hot * probabilities).sum(0) / data.one_hot.sum(0)
    if constraint == "corrected":
        return own / own.mean()
    return own if constraint == "l2" else own.mean().expand(data.n_classes)


def normalised_logits(
    weights: Float[Tensor, "*G C D"], features: Float[Tensor, "B D"], scale: float
) -> Float[Tensor, "*G B C"]:
    """Scaled cosines; the weights are normalised here, not where they are learned."""
    return scale * features @ unit(weights).mT


class TextProbe(Head):
    """Class weights, pulled towards the text or not.

    Args:
        config: options.
        constraint: of the pull, or None for none.
    """

    def __init__(self, config: ZsLpConfig, constraint: Constraint | None) -> None:
        self.config, self.constraint = config, constraint

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The weights."""
        return {"weight": (n_classes, dim)}

    def grid(self) -> Sequence[Setting]:
        """Nothing is tuned."""
        return [{}]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """One training; its last epoch is the result."""
        views = data.views(self.config.views)
        pull = None if self.constraint is None else pulls(data, views, self.constraint)
        weights = train_weights(data, views, pull, self.config)

        def state(_: int) -> State:
            return {"weight": weights}

        scores = data.val_accuracy(normalised_logits(weights, data.val, data.scale))
        return Trials(scores.reshape(1, 1), state, trainings=1)

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Scaled cosines."""
        return normalised_logits(state["weight"], unit(features), scale)


def train_weights(
    data: TaskData,
    views: Float[Tensor, "n V D"],
    pull: Float[Tensor, " C"] | None,
    config: ZsLpConfig,
) -> Float[Tensor, "C D"]:
    """Weights after the last epoch.

    Args:
        data: the task's.
        views: of its training images, not normalised.
        pull: lambda of each class, or None for no penalty.
        config: how.
    """
    base = base_text(data.text, config.text_norm)
    per_epoch = batches_per_epoch(len(views))

    def loss(weights: Float[Tensor, "G C D"], batch: Batch) -> Float[Tensor, " G"]:
        fit = cross_entropies(normalised_logits(weights, batch[0], data.scale), batch[1])
        if pull is None:
            return fit
        return fit + (pull * (weights - base).square().sum(-1)).mean(-1)

    return descend(
        base[None],
        loss,
        view_batches(views, data.labels, config.epochs, data.streams("batches")),
        Sgd(momentum=0.9),
        lambda step: epoch_cosine(config.lr, step // per_epoch, config.epochs),
    )[0]


def _build_zs_lp(problem: Problem, config: ZsLpConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, TextProbe(config, None), templates=config.templates)


def _build_clap(problem: Problem, config: ClapConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, TextProbe(config, config.constraint), templates=config.templates)


ZS_LP = Method(
    key="zs-lp",
    label="ZS-LP",
    summary="a linear probe that starts at the text features; nothing chosen on val",
    config=ZsLpConfig,
    build=_build_zs_lp,
    trains=False,
    fits=True,
)

CLAP = Method(
    key="clap",
    label="CLAP",
    summary="ZS-LP with each class pulled to its text as far as zero-shot is right on it",
    config=ClapConfig,
    build=_build_clap,
    trains=False,
    fits=True,
)

__all__ = ["CLAP", "ZS_LP", "ClapConfig", "TextProbe", "ZsLpConfig", "base_text", "pulls", "train_weights"]
