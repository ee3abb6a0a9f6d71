"""LP-CLIP: logistic regression on frozen features. Radford et al. 2021, arXiv:2103.00020.

The search of CoOp's script (Zhou et al., arXiv:2109.01134): C is first tried over seven powers of ten, then a
bracket of two powers around the first best is halved eight times on a log scale; the classifier of the better
end in the last round is the result. No text takes part, and features are not normalised.

Differs from the published script: it draws images of its own and exchanges the two metrics' names; here every
method has the same images, and C is chosen by plain accuracy on val.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softcpt.methods.base import Method, MethodConfig, Problem, Streams, Support
from softcpt.methods.heads import Head, Setting, TaskData, TaskStates, TaskText, Trials, accuracy

COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
"""First values of C, the weakest regularisation first."""

ROUNDS = 8

WITHOUT_VAL = 1.0
"""C where there are no val images: scikit-learn's own default."""


class LinearProbeConfig(MethodConfig):
    """Options of LP-CLIP."""

    tune: Literal["task", "suite"] = Field(
        "task", description="C chosen on val for each task, as published, or once for the suite"
    )
    ties: Literal["published", "regularised"] = Field(
        "published", description="of equal coarse C: published: the largest; regularised: the smallest"
    )


class LinearProbeHead(Head):
    """A linear layer on features that are not normalised."""

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Weight and bias."""
        return {"weight": (n_classes, dim), "bias": (n_classes,)}

    def grid(self) -> Sequence[Setting]:
        """None: the search goes where the scores lead it."""
        return ()

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """Not by a grid."""
        raise TypeError("LP-CLIP searches C step by step")

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Those of the regression."""
        return features @ state["weight"].T + state["bias"]


class LinearProbe(TaskStates):
    """A logistic regression per task."""

    def __init__(self, problem: Problem, config: LinearProbeConfig) -> None:
        super().__init__(problem, LinearProbeHead(), None)
        self.config = config

    def fit(self, support: Sequence[Support], streams: Streams) -> None:
        """Search C for each task, or for all of them by their mean accuracy."""
        self._tuned = {}
        probes = [_Probe(data) for data in self.data(support, streams)]
        judges = [probe for probe in probes if probe.has_val]
        if self.config.tune == "task" or not judges:
            chosen = [
                search_c(p.accuracy, self.config.ties)[-1] if p.has_val else WITHOUT_VAL for p in probes
            ]
        else:
            mean = search_c(lambda c: sum(p.accuracy(c) for p in judges) / len(judges), self.config.ties)
            chosen = [mean[-1]] * len(probes)
        for t, (probe, c) in enumerate(zip(probes, chosen, strict=True)):
            record: dict[str, Any] = {"C": c}
            if probe.has_val:
                record["val_accuracy"] = probe.accuracy(c)
            weight, bias = probe.fit(c)
            self.keep(t, {"weight": weight, "bias": bias}, {**record, "fits": probe.n_fits})


class _Probe:
    """One task's regressions, each fitted once: an end of the bracket stays at every halving."""

    def __init__(self, data: TaskData) -> None:
        self._data = data
        self._features, self._labels = data.support.centres, data.labels
        self._known: dict[float, tuple[Tensor, Tensor]] = {}

    @property
    def has_val(self) -> bool:
        return len(self._data.val_labels) > 0

    @property
    def n_fits(self) -> int:
        return len(self._known)

    def fit(self, c: float) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        if c not in self._known:
            weight, bias = fit_logistic(
                self._features.double().cpu().numpy(), self._labels.cpu().numpy(), self._data.n_classes, c
            )
            self._known[c] = (
                torch.from_numpy(weight).to(self._features.device, self._data.dtype),
                torch.from_numpy(bias).to(self._features.device, self._data.dtype),
            )
        return self._known[c]

    def accuracy(self, c: float) -> float:
        weight, bias = self.fit(c)
        logits = self._data.support.val.to(weight) @ weight.T + bias
        return float(accuracy(logits, self._data.val_labels))


def search_c(score: Callable[[float], float], ties: Literal["published", "regularised"]) -> list[float]:
    """The value of C chosen in each round of halving; the last one is the result.

    Args:
        score: accuracy on val of the classifier fitted with a C.
        ties: which of equal coarse values is the peak.
    """
    coarse = COARSE if ties == "published" else COARSE[::-1]
    peak = max(coarse, key=score)  # the first of equals
    left, right = peak / 10, peak * 10
    path = []
    for _ in range(ROUNDS):
        middle = math.sqrt(left * right)
        if score(left) < score(right):
            path.append(right)
            left = middle
        else:
            path.append(left)
            right = middle
    return path


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, n_classes: int, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight [C, D] and bias [C] of scikit-learn's multinomial logistic regression.

    With two classes scikit-learn fits one row, the second class's; the first one's is then 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((n_classes, features.shape[1])), np.zeros(n_classes)
    if n_classes == 1:
        return weight, bias
    model = LogisticRegression(C=c, solver="lbfgs", max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as published, 1000 iterations are enough
        model.fit(features, labels)
    rows = model.classes_ if n_classes > 2 else np.array([1])
    weight[rows], bias[rows] = model.coef_, model.intercept_
    return weight, bias


def _build(problem: Problem, config: LinearProbeConfig, streams: Streams) -> LinearProbe:
    return LinearProbe(problem, config)


LP_CLIP = Method(
    key="lp-clip",
    label="LP-CLIP",
    summary="logistic regression on image features, C searched on val; no text",
    config=LinearProbeConfig,
    build=_build,
    trains=False,
    fits=True,
)

__all__ = ["LP_CLIP", "LinearProbe", "LinearProbeConfig", "fit_logistic", "search_c"]
