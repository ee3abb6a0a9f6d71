"""Optimal transport between two small sets of equal weights, by Sinkhorn's iterations.

As PLOT has them: Chen et al., ICLR 2023, arXiv:2210.01253.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def transport_plan(
    similarity: Float[Tensor, "*p m N"], *, epsilon: float, tolerance: float, most_iterations: int
) -> Float[Tensor, "*p m N"]:
    """How much of each of m things goes to each of N, cheaply; without a gradient, as PLOT has it.

    With the kernel A = exp(-(1 - similarity) / epsilon) and scales r, c that begin at 1:

        r <- (1/m) / (A c),   c <- (1/N) / (A^T r),   until the mean of |r - r before| is below the tolerance

    The plan is diag(r) A diag(c): its columns sum to 1/N, its rows to 1/m up to the tolerance. In logarithms,
    so that no kernel is too small to be divided by.

    # Differs from the published code, which stops when the mean over the whole batch is small enough: there
    # a prediction depends on which other images are asked about. Here each problem stops by itself.

    Args:
        similarity: of unit vectors.
        epsilon: weight of the entropy.
        tolerance: see above.
        most_iterations: however far the scales still move.
    """
    m, n = similarity.shape[-2:]
    log_kernel = (similarity - 1) / epsilon
    log_r = torch.zeros_like(similarity[..., 0])
    log_c = torch.zeros_like(similarity[..., 0, :])
    moving = torch.ones_like(log_r[..., 0], dtype=torch.bool)
    for _ in range(most_iterations):
        next_r = -math.log(m) - torch.logsumexp(log_kernel + log_c[..., None, :], dim=-1)
        next_c = -math.log(n) - torch.logsumexp(log_kernel + next_r[..., :, None], dim=-2)
        change = (next_r.exp() - log_r.exp()).abs().mean(-1)
        log_r = torch.where(moving[..., None], next_r, log_r)
        log_c = torch.where(moving[..., None], next_c, log_c)
        moving &= change >= tolerance
        if not bool(moving.any()):
            break
    return (log_r[..., :, None] + log_kernel + log_c[..., None, :]).exp()
