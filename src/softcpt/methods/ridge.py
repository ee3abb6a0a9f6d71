"""Ridge regression towards text, in closed form. Ours.

    W = gamma T^t + (F^t F + lambda I)^-1 F^t (Y - gamma F T^t)          [D, C]

F [n, D] normalised means of the training images' views, Y their labels as rows of 0 and 1, T [C, D]
normalised text. It is the minimum of |F W - Y|^2 + lambda |W - gamma T^t|^2: lambda to infinity leaves the
text, few images move few directions. One SVD of F serves every lambda and gamma.

Leaving one image out is closed form too: with H = F (F^t F + lambda I)^-1 F^t, the residual of image i
when it was not fitted is e_i / (1 - H_ii). Where the text has not seen the images, lambda and gamma can be
chosen by it without any val image; prompts that were trained on the same images would be judged too kindly.

Logits are tau F W, with the tau of the least negative log-likelihood on the images that choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.heads import (
    Head,
    HeadClassifier,
    Setting,
    State,
    TaskData,
    TaskText,
    Trials,
    TunedConfig,
    accuracy,
    pooled,
    templates_field,
    views_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

LAMBDAS = tuple(10.0**power for power in range(3, -4, -1))
GAMMAS = (1.0, 0.3, 3.0, 0.1, 10.0)
TAUS = tuple(2.0 ** (power / 2) for power in range(-2, 17))
"""Temperatures 0.5 to 256."""


class RidgeConfig(TunedConfig):
    """Options of the ridge head."""

    views: int = views_field()
    templates: Templates = templates_field()
    choose: Literal["loo", "val"] = Field(
        "loo", description="settings by leaving out each training image in turn, or on val"
    )


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression for every lambda and gamma.

    Attributes:
        u, s, v: SVD of the images, F = u diag(s) v^t.
        images: F.
        labels: Y.
        text: T.
    """

    u: Float[Tensor, "n r"]
    s: Float[Tensor, " r"]
    v: Float[Tensor, "D r"]
    images: Float[Tensor, "n D"]
    labels: Float[Tensor, "n C"]
    text: Float[Tensor, "C D"]

    @classmethod
    def of(
        cls, images: Float[Tensor, "n D"], labels: Float[Tensor, "n C"], text: Float[Tensor, "C D"]
    ) -> RidgeFit:
        """In fp64: small lambdas divide by small squares."""
        images, labels, text = images.double(), labels.double(), text.double()
        u, s, vt = torch.linalg.svd(images, full_matrices=False)
        return cls(u, s, vt.T, images, labels, text)

    def _residual(self, gamma: float) -> Float[Tensor, "n C"]:
        return self.labels - gamma * self.images @ self.text.T

    def weights(self, lam: float, gamma: float) -> Float[Tensor, "D C"]:
        """W."""
        shrunk = self.s / (self.s.square() + lam)
        moved: Tensor = self.v @ (shrunk[:, None] * (self.u.T @ self._residual(gamma)))
        return gamma * self.text.T + moved

    def left_out(self, lam: float, gamma: float) -> Float[Tensor, "n C"]:
        """What the fit without image i says of image i."""
        kept = self.s.square() / (self.s.square() + lam)
        residual = self._residual(gamma)
        error = residual - self.u @ (kept[:, None] * (self.u.T @ residual))
        leverage = (self.u.square() * kept).sum(1)
        # An image no other can stand in for has leverage 1 at lambda 0; rounding must not divide by 0.
        return self.labels - error / (1 - leverage).clamp_min(1e-9)[:, None]


def best_tau(scores: Float[Tensor, "m C"], labels: Int[Tensor, " m"]) -> tuple[float, float]:
    """The temperature of the least mean negative log-likelihood, and that; the softest of equals."""
    losses = [float(F.cross_entropy(tau * scores, labels)) for tau in TAUS]
    best = min(range(len(TAUS)), key=lambda i: losses[i])
    return TAUS[best], losses[best]


class Ridge(Head):
    """Class weights in closed form."""

    kept = frozenset[str]()

    def __init__(self, views: int, by: Literal["loo", "val"]) -> None:
        self.views, self.by = views, by

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The weights."""
        return {"weight": (n_classes, dim)}

    def grid(self) -> Sequence[Setting]:
        """The strongest pull to the text first."""
        return [{"lambda": lam, "gamma": gamma} for lam in LAMBDAS for gamma in GAMMAS]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """Every setting by leave-one-out, or on val: accuracy first, then likelihood.

        Where val is to choose and has no image, nothing does: logits take the backbone's own scale.
        """
        fit = RidgeFit.of(pooled(data.views(self.views)), data.one_hot, data.text.unit)
        by_val = self.by == "val"
        val, labels = data.val.double(), data.val_labels if by_val else data.labels
        rows, taus = [], []
        for setting in grid:
            lam, gamma = setting["lambda"], setting["gamma"]
            scores = val @ fit.weights(lam, gamma) if by_val else fit.left_out(lam, gamma)
            tau, loss = best_tau(scores, labels) if len(labels) else (data.scale, 0.0)
            taus.append(tau)
            rows.append([float(accuracy(scores, labels)) if len(labels) else 0.0, -loss])

        def state(g: int) -> State:
            weight = taus[g] * fit.weights(grid[g]["lambda"], grid[g]["gamma"])
            return {"weight": weight.T.to(data.dtype)}

        scored = torch.tensor(rows, dtype=torch.float64, device=fit.s.device)
        return Trials(scored, state, lambda g: {"tau": taus[g], "chosen_by": self.by}, by=self.by)

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """The image against the weights."""
        return unit(features) @ state["weight"].T


def _build(problem: Problem, config: RidgeConfig, streams: Streams) -> HeadClassifier:
    head = Ridge(config.views, config.choose)
    return HeadClassifier(problem, head, templates=config.templates, tune=config.tune)


RIDGE = Method(
    key="ridge",
    label="Ridge towards text",
    summary="class weights in closed form, pulled to the text; chosen by leave-one-out",
    config=RidgeConfig,
    build=_build,
    trains=False,
    fits=True,
)
