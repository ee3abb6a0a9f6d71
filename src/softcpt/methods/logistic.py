"""Logistic regression beside text. Ours.

    logits = gamma s f T^t + x W^t + b          gamma 1 or 0
    min over W, b   sum_i cross-entropy(logits_i, y_i) + |W|^2 / (2 C)          W [C, D], b [C]

x is an image's feature as it is, f the same normalised, T [C, D] normalised text, s the backbone's logit
scale. With gamma = 1 the regression learns only what the text has wrong: C = 0 is the text alone, a large one
takes what images can give. With gamma = 0 it is LP-CLIP's regression. The minimum over W is unique;
L-BFGS goes from each C to the next larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
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
    templates_field,
)
from softcpt.methods.loss import unit
from softcpt.methods.zero_shot import Templates

STRENGTHS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0, 100.0)
"""C, the least that images may say first."""

GAMMAS = (1.0, 0.0)
"""Share of the text."""

ITERATIONS = 200
"""Most steps of L-BFGS for one C."""


class LogisticConfig(TunedConfig):
    """Options of the regression."""

    templates: Templates = templates_field()


def fit_beside(
    fixed: np.ndarray, images: np.ndarray, labels: np.ndarray, strength: float, start: np.ndarray
) -> np.ndarray:
    """The minimum for one C: W, and b as its last column [C, D + 1].

    Args:
        fixed: logits that are there already [n, C].
        images: features [n, D].
        labels: of the images [n].
        strength: C; at 0 nothing is learned.
        start: of the search [C, D + 1].
    """
    from scipy.optimize import minimize

    if strength == 0:
        return np.zeros_like(start)
    columns = np.concatenate([images, np.ones_like(images[:, :1])], 1)
    one_hot = np.eye(fixed.shape[1])[labels]
    # W is of the size sqrt(C): in these units its penalty is that of an ordinary ridge.
    size = strength**0.5

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        w = point.reshape(start.shape)
        logits = fixed + size * columns @ w.T
        logits = logits - logits.max(1, keepdims=True)
        total = np.exp(logits).sum(1, keepdims=True)
        value = (np.log(total[:, 0]) - (logits * one_hot).sum(1)).sum() + (w[:, :-1] ** 2).sum() / 2
        slope = size * (np.exp(logits) / total - one_hot).T @ columns
        slope[:, :-1] += w[:, :-1]
        return value, slope.ravel()

    found = minimize(
        loss, (start / size).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
    )
    weights: np.ndarray = size * found.x.reshape(start.shape)
    return weights


class Logistic(Head):
    """A logistic regression that knows what the text says."""

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Weight, bias, and the share of the text."""
        return {"weight": (n_classes, dim), "bias": (n_classes,), "gamma": ()}

    kept = frozenset({"gamma"})

    def grid(self) -> Sequence[Setting]:
        """The text alone first, then the least that images may say."""
        alone = {"gamma": 1.0, "C": 0.0}
        return [alone, *({"gamma": gamma, "C": strength} for gamma in GAMMAS for strength in STRENGTHS)]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """Every setting on val: accuracy first, then likelihood."""
        images = data.support.centres.double()
        text = data.scale * data.centres.double() @ data.text.unit.double().T
        given = images.cpu().numpy(), data.labels.cpu().numpy()
        states: list[State] = []
        rows = []
        found: dict[float, np.ndarray] = {}
        for setting in grid:
            gamma = setting["gamma"]
            start = found.get(gamma, np.zeros((data.n_classes, images.shape[1] + 1)))
            found[gamma] = fit_beside(gamma * text.cpu().numpy(), *given, setting["C"], start)
            learned = torch.from_numpy(found[gamma]).to(images.device, data.dtype)
            states.append(
                {"weight": learned[:, :-1], "bias": learned[:, -1], "gamma": torch.tensor(gamma).to(learned)}
            )
            logits = self.logits(states[-1], data.support.val.to(learned), data.text, data.scale)
            likely = -float(F.cross_entropy(logits, data.val_labels)) if len(logits) else 0.0
            rows.append([float(data.val_accuracy(logits)), likely])
        scored = torch.tensor(rows, dtype=torch.float64, device=images.device)
        val = data.scale * data.val @ data.text.unit.T
        alone = {
            "text_val_accuracy": float(data.val_accuracy(val)),
            "probe_val_accuracy": max(row[0] for row, s in zip(rows, grid, strict=True) if s["gamma"] == 0)
            if any(s["gamma"] == 0 for s in grid)
            else None,
        }
        return Trials(scored, lambda g: states[g], lambda _: dict(alone))

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Of the text and of the regression."""
        learned = features @ state["weight"].T + state["bias"]
        return state["gamma"] * scale * unit(features) @ text.unit.T.to(learned) + learned


def _build(problem: Problem, config: LogisticConfig, streams: Streams) -> HeadClassifier:
    return HeadClassifier(problem, Logistic(), templates=config.templates, tune=config.tune)


LOGISTIC = Method(
    key="logistic",
    label="Logistic beside text",
    summary="logistic regression on top of what the text says, as far as val agrees",
    config=LogisticConfig,
    build=_build,
    trains=False,
    fits=True,
)
