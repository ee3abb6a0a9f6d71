"""Conflicting gradients of several tasks, all from their inner products.

With g_t the gradient of task t's loss on everything that tasks share, G the Gram matrix of the g_t:

    PCGrad    Yu et al. 2020, arXiv:2001.06782: each g_t loses its part against every g_j it conflicts with
    GradNorm  Chen et al. 2018, arXiv:1711.02257: weights that bring the |w_t g_t| to a common norm

Both are weights on the losses: a projected gradient is still a combination of the g_j, so that one
backward pass through the weighted losses gives what the papers describe.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

GRADNORM_RATE = 0.025
"""Rate of the weights' own gradient descent (recalled from the paper's experiments)."""

GRADNORM_POWER = 1.5
"""How strongly tasks that learn slowly are favoured."""


def gram_of(losses: Float[Tensor, " p"], parameters: Sequence[nn.Parameter]) -> Float[Tensor, "p p"]:
    """Inner products of the losses' gradients on the parameters: one backward pass a loss."""
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
        rows.append(torch.cat(parts))
    stacked = torch.stack(rows).double()
    return stacked @ stacked.T


def pcgrad_weights(gram: Float[Tensor, "p p"], rng: torch.Generator) -> Float[Tensor, " p"]:
    """Weights b with sum_j b_j g_j = sum_t (g_t without what conflicts).

    For each t the others come in random order; where <g_t, g_j> < 0, with g_t as it is by then,
    g_t loses <g_t, g_j> / |g_j|^2 g_j.
    """
    inner = gram.double().cpu()
    n = len(inner)
    total = torch.zeros(n, dtype=torch.float64)
    for t in range(n):
        own = torch.zeros(n, dtype=torch.float64)
        own[t] = 1.0
        for j in torch.randperm(n, generator=rng).tolist():
            product = own @ inner[:, j]
            if j != t and product < 0:
                own[j] -= product / inner[j, j]
        total += own
    return total


def cosines(gram: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Cosines of the gradients; 0 where one is zero."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return gram / (norms[:, None] * norms).clamp_min(torch.finfo(gram.dtype).tiny)


class GradNorm:
    """Weights of T tasks with sum T, and their own plain gradient descent.

    They make small sum_t |w_t n_t - mean(w n) r_t^a|, with n_t the norm of task t's gradient and r_t its
    loss over its first one, divided by the mean of these ratios; the right side counts as constant.
    """

    def __init__(self, n_tasks: int) -> None:
        self.weights = torch.ones(n_tasks, dtype=torch.float64)
        self._first = torch.full((n_tasks,), torch.nan, dtype=torch.float64)

    def update(
        self, tasks: Int[Tensor, " p"], norms: Float[Tensor, " p"], losses: Float[Tensor, " p"]
    ) -> None:
        """One step for the tasks of a batch."""
        first = self._first[tasks]
        self._first[tasks] = torch.where(first.isnan(), losses.double(), first)
        ratio = losses / self._first[tasks].clamp_min(1e-12)
        weighted = self.weights[tasks] * norms
        target = weighted.mean() * (ratio / ratio.mean().clamp_min(1e-12)) ** GRADNORM_POWER
        # The gradient is n_t sign(...); divided by the mean norm, the rate means the same on every backbone.
        away = weighted - target
        away = torch.where(away.abs() > 1e-9 * weighted.abs(), away, 0.0)  # no direction in rounding
        slope = norms / norms.mean().clamp_min(1e-12) * away.sign()
        self.weights[tasks] = (self.weights[tasks] - GRADNORM_RATE * slope).clamp_min(1e-3)
        self.weights *= len(self.weights) / self.weights.sum()


class CosineMeter:
    """Mean gradient cosines between tasks over a training, for the report."""

    def __init__(self, n_tasks: int) -> None:
        self._sum = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
        self._seen = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
        self._negative = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)

    def see(self, tasks: Int[Tensor, " p"], gram: Float[Tensor, "p p"]) -> None:
        """Count the gradients of one batch."""
        found = cosines(gram.double().cpu())
        place = (tasks[:, None], tasks[None, :])
        self._sum[place] += found
        self._seen[place] += 1
        self._negative[place] += (found < 0).double()

    def report(self) -> dict[str, object]:
        """``cosines`` [T, T] (None where a pair never met) and ``negative``, the share of pairs below 0."""
        others = ~torch.eye(len(self._sum), dtype=torch.bool)
        met = self._seen[others].sum()
        mean = (self._sum / self._seen).tolist()
        rows = [[None if value != value else round(value, 4) for value in row] for row in mean]
        share = round(float(self._negative[others].sum() / met), 4) if met else None
        return {"cosines": rows, "negative": share}
