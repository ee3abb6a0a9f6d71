"""ProtoNet: the nearest class mean of frozen features. Snell et al. 2017, arXiv:1703.05175.

    mu_c = mean of the normalised features of class c
    cosine       logit_c =  tau <f, mu_c / |mu_c|>
    euclidean    logit_c = -tau |f - mu_c|^2

``mix`` adds the zero-shot logits: s <f, t_c> + gamma * logit_c. An image is the mean of its views.

Differs from the SoftCPT paper's row of this name: that one lies far below a linear probe on the same
features, which nearest means do not; what it computes is not published. Nothing here was tuned to match it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
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
    pooled,
    views_field,
)
from softcpt.methods.loss import unit

TAUS = (100.0, *(2.0**k for k in range(8)))
"""Temperatures, chosen by the likelihood of val labels; 100 is CLIP's own."""

GAMMAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)


class ProtoNetConfig(TunedConfig):
    """Options of ProtoNet."""

    views: int = views_field()
    distance: Literal["cosine", "euclidean"] = Field("cosine", description="of an image from a class mean")
    centred: bool = Field(False, description="whether the mean of the training features is taken off first")
    mix: bool = Field(False, description="whether zero-shot logits are added, with a weight chosen on val")


class ProtoNet(Head):
    """Class means."""

    kept = frozenset({"prototypes", "centre", "tau", "gamma"})

    def __init__(self, config: ProtoNetConfig) -> None:
        self.config = config

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Means, the origin, temperature and weight."""
        return {"prototypes": (n_classes, dim), "centre": (dim,), "tau": (), "gamma": ()}

    def grid(self) -> Sequence[Setting]:
        """Weights, if any, and temperatures."""
        if not self.config.mix:
            return [{"tau": tau} for tau in TAUS]
        return [{"gamma": gamma, "tau": tau} for gamma in GAMMAS for tau in TAUS]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """By accuracy on val, then by likelihood: alone, the temperature changes no decision."""
        features = pooled(data.views(self.config.views))
        origin = features.mean(0) if self.config.centred else torch.zeros_like(features[0])
        means = prototypes(features - origin, data.one_hot)

        def state(g: int) -> State:
            gamma = torch.tensor(grid[g].get("gamma", 1.0)).to(means)
            return {
                "prototypes": means,
                "centre": origin,
                "tau": torch.tensor(grid[g]["tau"]).to(means),
                "gamma": gamma,
            }

        logits = torch.stack(
            [self.logits(state(g), data.val, data.text, data.scale) for g in range(len(grid))]
        )
        likelihood = torch.zeros(len(grid), dtype=torch.float64, device=logits.device)
        if len(data.val_labels):
            rows = torch.arange(len(data.val_labels), device=logits.device)
            likelihood = logits.log_softmax(-1)[:, rows, data.val_labels].mean(1).double()
        return Trials(torch.stack([data.val_accuracy(logits), likelihood], 1), state)

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Nearness to the class means, beside the zero-shot logits where they are mixed in."""
        nearness = self._nearness(unit(features) - state["centre"], state["prototypes"]) * state["tau"]
        if not self.config.mix:
            return nearness
        return scale * unit(features) @ text.unit.T + state["gamma"] * nearness

    def _nearness(self, features: Float[Tensor, "B D"], means: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
        if self.config.distance == "cosine":
            return unit(features) @ unit(means).T
        # |f - mu|^2 by parts; |f|^2 is the same for all classes, but belongs to the distance.
        squared = features.square().sum(1, keepdim=True) + means.square().sum(1) - 2 * features @ means.T
        return -squared


def prototypes(features: Float[Tensor, "n D"], one_hot: Float[Tensor, "n C"]) -> Float[Tensor, "C D"]:
    """Mean feature of each class."""
    return one_hot.T @ features / one_hot.sum(0)[:, None]


def _build(problem: Problem, config: ProtoNetConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, ProtoNet(config), tune=config.tune)


PROTONET = Method(
    key="protonet",
    label="ProtoNet",
    summary="the nearest class mean of image features",
    config=ProtoNetConfig,
    build=_build,
    trains=False,
    fits=True,
)
