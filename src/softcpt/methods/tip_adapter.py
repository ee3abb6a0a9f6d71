"""Tip-Adapter and Tip-Adapter-F: training images vote. Zhang et al., ECCV 2022, arXiv:2207.09519.

    logits = s f T^t + alpha exp(-beta (1 - f K^t)) Y

f image, T text, K keys [n, D] (normalised means of an image's views), Y their labels as rows of 0 and 1, s
the backbone's logit scale. Tip-Adapter learns nothing; Tip-Adapter-F learns the keys, which are not
normalised again, with alpha and beta at the published values.

Differs from the published code: it searches alpha and beta on the whole val split (on ImageNet on test), over
ranges written by hand for each data set, and keeps the epoch that is best on test. Here one grid serves all
tasks, and whatever is chosen is chosen on the few val images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, Problem, Streams
from softcpt.methods.head_training import (
    Adam,
    BestOnVal,
    batches_per_epoch,
    cross_entropies,
    descend,
    step_cosine,
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
    pooled,
    templates_field,
    views_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

PUBLISHED = {"alpha": 1.0, "beta": 5.5}
STEPS_OF_GRID = 40
LOWEST, HIGHEST = 0.1, 50.0


def log_grid() -> list[float]:
    """Forty values evenly spaced on a log scale above 0.1, up to 50."""
    return [LOWEST * (HIGHEST / LOWEST) ** (j / STEPS_OF_GRID) for j in range(1, STEPS_OF_GRID + 1)]


class TipAdapterConfig(TunedConfig):
    """Options of Tip-Adapter."""

    views: int = views_field()
    templates: Templates = templates_field()


class TipAdapterFConfig(TipAdapterConfig):
    """Options of Tip-Adapter-F."""

    epochs: int = Field(20, ge=1, description="of the keys' training")
    lr: float = Field(1e-3, gt=0, description="of the keys, at the cosine's start")
    keep: Literal["val", "last"] = Field(
        "val", description="which epoch's keys: the best on val, or the last"
    )


def votes(
    features: Float[Tensor, "B D"],
    keys: Float[Tensor, "*G n D"],
    one_hot: Float[Tensor, "n C"],
    beta: float | Tensor,
) -> Float[Tensor, "*G B C"]:
    """What the stored images say of each class; an image that equals a key counts as 1."""
    return torch.exp(-beta * (1 - features @ keys.mT)) @ one_hot


class TipAdapter(Head):
    """Keys that are the training images."""

    kept = frozenset({"keys", "labels", "alpha", "beta"})

    def __init__(self, config: TipAdapterConfig) -> None:
        self.config = config

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Keys with their labels, and two numbers."""
        return {"keys": (n_images, dim), "labels": (n_images,), "alpha": (), "beta": ()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """Labels are integers."""
        return {"labels": torch.int64}

    def grid(self) -> Sequence[Setting]:
        """The paper's values, then all pairs, the weakest votes first."""
        values = log_grid()
        return [PUBLISHED, *({"alpha": alpha, "beta": beta} for alpha in values for beta in values)]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """Every pair on val."""
        return self._search(data, pooled(data.views(self.config.views)), grid)

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Zero-shot logits and votes."""
        one_hot = F.one_hot(state["labels"], len(text.unit)).to(state["keys"])
        known = votes(unit(features), state["keys"], one_hot, state["beta"])
        return scale * unit(features) @ text.unit.T + state["alpha"] * known

    def _search(
        self,
        data: TaskData,
        keys: Float[Tensor, "n D"],
        grid: Sequence[Setting],
        record: dict[str, Any] | None = None,
    ) -> Trials:
        guess = data.scale * data.val @ data.text.unit.T
        scores = torch.zeros(len(grid), dtype=torch.float64, device=keys.device)
        for beta in dict.fromkeys(pair["beta"] for pair in grid):
            own = [g for g, pair in enumerate(grid) if pair["beta"] == beta]
            alphas = torch.tensor([grid[g]["alpha"] for g in own]).to(keys)[:, None, None]
            scores[own] = data.val_accuracy(guess + alphas * votes(data.val, keys, data.one_hot, beta))

        def state(g: int) -> State:
            numbers = {name: torch.tensor(grid[g][name]).to(keys) for name in ("alpha", "beta")}
            return {"keys": keys, "labels": data.labels, **numbers}

        return Trials(scores[:, None], state, lambda _: record or {}, trainings=1 if record else 0)


class TipAdapterF(TipAdapter):
    """Keys that start as the training images and are learned."""

    kept = frozenset({"labels", "alpha", "beta"})

    def __init__(self, config: TipAdapterFConfig) -> None:
        super().__init__(config)
        self.training = config

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """One training, then every pair on val."""
        keys, epoch = train_keys(data, self.training)
        return self._search(data, keys, grid, {"epoch": epoch})


def train_keys(data: TaskData, config: TipAdapterFConfig) -> tuple[Float[Tensor, "n D"], int]:
    """Learned keys, and after how many epochs."""
    views = data.views(config.views)
    start = pooled(views)
    one_hot, text = data.one_hot, data.text.unit
    per_epoch = batches_per_epoch(len(views))
    n_steps = config.epochs * per_epoch

    def logits(keys: Float[Tensor, "G n D"], features: Float[Tensor, "B D"]) -> Float[Tensor, "G B C"]:
        guess = data.scale * features @ text.T
        return guess + PUBLISHED["alpha"] * votes(features, keys, one_hot, PUBLISHED["beta"])

    def loss(keys: Tensor, batch: tuple[Float[Tensor, "B D"], Int[Tensor, " B"]]) -> Float[Tensor, " G"]:
        return cross_entropies(logits(keys, batch[0]), batch[1])

    best = BestOnVal(lambda keys: data.val_accuracy(logits(keys, data.val)))

    def watch(step: int, keys: Tensor) -> None:
        if (step + 1) % per_epoch == 0:
            best.look((step + 1) // per_epoch, keys)

    choosing = config.keep == "val" and len(data.val_labels) > 0
    last = descend(
        start[None],
        loss,
        view_batches(views, data.labels, config.epochs, data.streams("batches")),
        Adam(weight_decay=0.01, decoupled=True, eps=1e-4),
        lambda step: step_cosine(config.lr, step, n_steps),
        watch if choosing else None,
    )
    # The published length stays if no epoch is better.
    if not choosing or best.best is None or best.best[0] <= data.val_accuracy(logits(last, data.val))[0]:
        return last[0], config.epochs
    return best.values[0], int(best.steps[0])


def _build(problem: Problem, config: TipAdapterConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, TipAdapter(config), templates=config.templates, tune=config.tune)


def _build_f(problem: Problem, config: TipAdapterFConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, TipAdapterF(config), templates=config.templates, tune=config.tune)


TIP_ADAPTER = Method(
    key="tip-adapter",
    label="Tip-Adapter",
    summary="training images vote beside the text, nothing learned",
    config=TipAdapterConfig,
    build=_build,
    trains=False,
    fits=True,
)

TIP_ADAPTER_F = Method(
    key="tip-adapter-f",
    label="Tip-Adapter-F",
    summary="training images vote beside the text, their features learned further",
    config=TipAdapterFConfig,
    build=_build_f,
    trains=False,
    fits=True,
)

__all__ = ["TIP_ADAPTER", "TIP_ADAPTER_F", "TipAdapter", "TipAdapterF", "train_keys", "votes"]
