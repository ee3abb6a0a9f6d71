"""Facts and words as plain labels of pictures: a second, cheap task that teaches the image side.

The text tower costs half of a step. A label costs nothing, so each picture is also classified by its frequent
facts and by the words in them, and only a part of the pictures of a batch needs a caption.

Source: classification as pre-training, SuperClass (arXiv:2411.03313), with weights by rarity as there.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F  # its usual name
from torch import Tensor, nn

SCALE = 20.0
"""What cosines with label vectors are multiplied with."""

_WORD = re.compile(r"[a-z]{3,}")
_COMMON = 0.1  # words in more than this share of the pictures say nothing


@lru_cache(maxsize=1 << 18)
def labels_of(fact: str) -> tuple[str, ...]:
    """A fact and its words.

    Example:
        >>> labels_of("two dogs")
        ('two dogs', 'word two', 'word dogs')
    """
    return (fact, *(f"word {word}" for word in dict.fromkeys(_WORD.findall(fact))))


def frequent_labels(pictures: Iterable[Iterable[str]], *, least: int = 20) -> dict[str, float]:
    """Labels of at least so many pictures, with the logarithm of their rarity."""
    counts: Counter[str] = Counter()
    total = 0
    for facts in pictures:
        total += 1
        counts.update({label for fact in facts for label in labels_of(fact)})
    return {
        label: math.log(total / n) for label, n in sorted(counts.items()) if least <= n <= _COMMON * total
    }


class LabelHead(nn.Module):
    """A vector of the joint embedding for each label; not part of the exported model."""

    def __init__(self, labels: Sequence[str], weights: Sequence[float], embed_dim: int) -> None:
        super().__init__()
        self.labels = list(labels)
        self._index = {label: k for k, label in enumerate(labels)}
        self.vectors = nn.Parameter(torch.randn(len(labels), embed_dim) / math.sqrt(embed_dim))
        self.register_buffer("rarity", torch.tensor(weights))

    def targets(self, has: Sequence[Iterable[str]]) -> Tensor:
        """[B, K]: the share of each label in what a picture has; zero rows where it has none."""
        target = torch.zeros(len(has), len(self.labels))
        for row, facts in enumerate(has):
            found = {
                self._index[label] for fact in facts for label in labels_of(fact) if label in self._index
            }
            target[row, sorted(found)] = 1
        target *= self.get_buffer("rarity")
        return target / target.sum(1, keepdim=True).clamp(min=1e-6)

    def loss(self, images: Tensor, has: Sequence[Iterable[str]]) -> Tensor:
        """Cross-entropy of images [B, D] of length 1 towards their labels."""
        logits = SCALE * images @ F.normalize(self.vectors, dim=1).T
        return F.cross_entropy(logits, self.targets(has))
