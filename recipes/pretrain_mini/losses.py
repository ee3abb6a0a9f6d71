"""Contrastive loss where several captions may be true of one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # its usual name
from torch import Tensor


def true_pairs(has: Sequence[frozenset[str]], needs: Sequence[frozenset[str]]) -> Tensor:
    """[B, C]: whether picture i has every fact that caption j needs.

    Example:
        >>> has = [frozenset({"dog", "dark"}), frozenset({"dog"})]
        >>> true_pairs(has, [frozenset({"dog"}), frozenset({"dark"})])
        tensor([[ True,  True],
                [ True, False]])
    """
    number = {fact: k for k, fact in enumerate(sorted({fact for facts in needs for fact in facts}))}
    need, have = (torch.zeros(len(sets), len(number)) for sets in (needs, has))
    for matrix, sets in ((need, needs), (have, has)):
        for row, facts in enumerate(sets):
            matrix[row, [number[fact] for fact in facts if fact in number]] = 1
    return have @ need.T >= need.sum(1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, is_true: Tensor) -> Tensor:
    """Cross-entropy in both directions towards all true pairs, each as likely.

    Args:
        images: [B, D], of length 1.
        texts: [C, D], of length 1.
        scale: what cosines are multiplied with.
        is_true: [B, C]; every column has a true pair, and pictures without one only compete for captions.
    """
    logits = scale * images @ texts.T
    target = is_true.float()
    told = is_true.any(1)
    rows = F.cross_entropy(logits[told], target[told] / target[told].sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (rows + columns) / 2
