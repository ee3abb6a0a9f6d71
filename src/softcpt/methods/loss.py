"""Logits and losses over the columns of several tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cosine_logits(
    features: Float[Tensor, "B D"], weights: Float[Tensor, "K D"], logit_scale: float
) -> Float[Tensor, "B K"]:
    """CLIP's logits: scale times the cosine; norms without epsilon, as published."""
    # Under autocast the encoders give half precision; cosines are taken in what is learned.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    weights = weights.to(features.dtype)
    images = features / features.norm(dim=1, keepdim=True)
    classes = weights / weights.norm(dim=1, keepdim=True)
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = logit_scale * images @ classes.T
        return logits


def unit(features: Tensor) -> Tensor:
    """Rows of norm 1; norms without epsilon, as in :func:`cosine_logits`."""
    rows: Tensor = features / features.norm(dim=-1, keepdim=True)
    return rows


def multitask_cross_entropy(
    logits: Float[Tensor, "B K"],
    columns: Int[Tensor, " B"],
    task_of_class: Int[Tensor, " K"],
    *,
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over images of the cross-entropy inside each image's own task (SoftCPT's loss).

    The sum is divided by the whole batch, not by a task's share of it; an image is never contrasted with
    classes of other tasks.

    Args:
        logits: over the classes of all tasks.
        columns: labels as columns.
        task_of_class: the task of each column.
        weights: factor of each image's term.
    """
    foreign = task_of_class[None, :] != task_of_class[columns][:, None]
    terms = F.cross_entropy(logits.masked_fill(foreign, -torch.inf), columns, reduction="none")
    if weights is not None:
        terms = terms * weights
    return terms.mean()
