"""LP++: a linear probe that mixes text into its weights. Huang et al., CVPR 2024, arXiv:2404.02285.

    logit_k = <f, w_k + alpha_k t_k> + b_k          f, t_k normalised; no temperature, alpha plays its part

    start    w_k = sum of the features of class k
             alpha_k = 250 mean over classes of the mean <f_i, t_k> of a class's images, the same for all
    steps    full batch, mean cross-entropy; w and b by SGD with momentum, alpha by a plain step every tenth
             time, both with rates computed from the features

One random view of an image is used. Val chooses the step; nothing else is tuned.

``steps=released`` takes the released code's rates, ``derived`` those of the bounds lambda_max(F^t F) / (2 n)
and max_k sum_i <f_i, t_k>^2 / (2 n) on the loss's curvature: the released rate of w is twice, that of alpha
an eighth of what they allow. The released code never clears the gradient of alpha
(``alpha_grad=accumulated``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, MethodConfig, Pictures, Problem, Streams
from softcpt.methods.heads import (
    Head,
    HeadClassifier,
    Setting,
    State,
    TaskData,
    TaskText,
    Trials,
    templates_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

ALPHA_FACTOR = 250.0
ALPHA_EVERY = 10


class LpPlusPlusConfig(MethodConfig):
    """Options of LP++."""

    templates: Templates = templates_field()
    iterations: int = Field(300, ge=1, description="full-batch steps")
    steps: Literal["released", "derived"] = Field(
        "released", description="rates of the released code, or derived"
    )
    alpha_grad: Literal["fresh", "accumulated"] = Field(
        "fresh", description="of the text weights: cleared after each step, or never, as in the released code"
    )
    keep: Literal["val", "last"] = Field(
        "val", description="which step is kept: the best on val, or the last"
    )

    def pictures(self) -> Pictures:
        """One random view."""
        return Pictures(views=1)


@dataclass
class Weights:
    """What LP++ learns: w [C, D], b [C], alpha [C]."""

    w: Float[Tensor, "C D"]
    b: Float[Tensor, " C"]
    alpha: Float[Tensor, " C"]

    def logits(self, features: Float[Tensor, "B D"], text: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
        """Of normalised images."""
        return features @ (self.w + self.alpha[:, None] * text).T + self.b

    def copy(self) -> Weights:
        """Of their own."""
        return Weights(self.w.clone(), self.b.clone(), self.alpha.clone())


@dataclass(frozen=True)
class StepSizes:
    """Rates of the two blocks."""

    w: float
    alpha: float


def step_sizes(
    features: Float[Tensor, "n D"], text: Float[Tensor, "C D"], rule: Literal["released", "derived"]
) -> StepSizes:
    """Rates from the largest eigenvalue of F^t F and the largest class sum of squared image-text products."""
    n = len(features)
    largest = float(torch.linalg.matrix_norm(features, 2)) ** 2
    products = float((features @ text.T).square().sum(0).max())
    if rule == "derived":
        return StepSizes(2 * n / largest, 2 * n / products)
    return StepSizes(4 * n / largest, n / (4 * products))


def start_weights(
    features: Float[Tensor, "n D"],
    one_hot: Float[Tensor, "n C"],
    text: Float[Tensor, "C D"],
    rng: torch.Generator,
) -> Weights:
    """Class sums, one weight of the text for all classes, and a linear layer's own random bias."""
    n_classes, dim = text.shape
    own = (one_hot.T @ (features @ text.T)).diagonal() / one_hot.sum(0)
    alpha = (ALPHA_FACTOR * own.mean()).expand(n_classes).clone()
    bias = (2 * torch.rand(n_classes, generator=rng, dtype=torch.float64) - 1) / math.sqrt(dim)
    return Weights(one_hot.T @ features, bias.to(features), alpha)


def descend(
    weights: Weights,
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    text: Float[Tensor, "C D"],
    rates: StepSizes,
    *,
    iterations: int,
    momentum: float = 0.9,
    accumulate: bool = False,
) -> Iterator[Weights]:
    """The weights after each step; they are changed in place.

    The gradient of the mean cross-entropy with respect to the logits is (p - y) / n.
    """
    one_hot = F.one_hot(labels, len(text)).to(features)
    similarity = features @ text.T
    speed_w, speed_b = torch.zeros_like(weights.w), torch.zeros_like(weights.b)
    of_alpha = torch.zeros_like(weights.alpha)
    for step in range(1, iterations + 1):
        p = torch.softmax(weights.logits(features, text), 1)
        residual = (p - one_hot) / len(features)
        fresh = (residual * similarity).sum(0)
        of_alpha = of_alpha + fresh if accumulate else fresh
        speed_w = momentum * speed_w + residual.T @ features
        speed_b = momentum * speed_b + residual.sum(0)
        weights.w -= rates.w * speed_w
        weights.b -= rates.w * speed_b
        if step % ALPHA_EVERY == 0:
            weights.alpha -= rates.alpha * of_alpha
        yield weights


class LpPlusPlus(Head):
    """A linear layer, and a weight of the text for each class."""

    def __init__(self, config: LpPlusPlusConfig) -> None:
        self.config = config

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Weights, bias and text weights."""
        return {"weight": (n_classes, dim), "bias": (n_classes,), "alpha": (n_classes,)}

    def grid(self) -> Sequence[Setting]:
        """Nothing is tuned but the step."""
        return [{}]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """One training; the best step on val is kept, the later of equals."""
        features, text, config = unit(data.views(1)[:, 0]), data.text.unit, self.config
        weights = start_weights(features, data.one_hot, text, data.streams("bias"))
        kept, best, at = weights, -1.0, config.iterations
        choosing = config.keep == "val" and len(data.val_labels) > 0
        path = descend(
            weights,
            features,
            data.labels,
            text,
            step_sizes(features, text, config.steps),
            iterations=config.iterations,
            accumulate=config.alpha_grad == "accumulated",
        )
        for step, present in enumerate(path, 1):
            if choosing and (score := float(data.val_accuracy(present.logits(data.val, text)))) >= best:
                kept, best, at = present.copy(), score, step
        final = data.val_accuracy(kept.logits(data.val, text))

        def state(_: int) -> State:
            return {"weight": kept.w, "bias": kept.b, "alpha": kept.alpha}

        return Trials(final.reshape(1, 1), state, lambda _: {"iteration": at}, trainings=1)

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """The image against its weights and its share of the text."""
        return Weights(state["weight"], state["bias"], state["alpha"]).logits(unit(features), text.unit)


def _build(problem: Problem, config: LpPlusPlusConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, LpPlusPlus(config), templates=config.templates)


LP_PLUS_PLUS = Method(
    key="lp-plus-plus",
    label="LP++",
    summary="a linear probe with a learned share of the text in each class's weights",
    config=LpPlusPlusConfig,
    build=_build,
    trains=False,
    fits=True,
)

__all__ = [
    "LP_PLUS_PLUS",
    "LpPlusPlus",
    "LpPlusPlusConfig",
    "StepSizes",
    "Weights",
    "descend",
    "start_weights",
    "step_sizes",
]
