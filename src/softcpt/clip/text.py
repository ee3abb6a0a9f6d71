"""The plain text encoder: padded prompts through one forward of the frozen tower, read at EOT.

Slow and plainly right; every faster way is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Transformer = Callable[[Tensor, Tensor], Tensor]


class TextTower(nn.Module):
    """A frozen causal text transformer that is pooled at EOT.

    Args:
        token_embedding: [vocabulary, W].
        positional_embedding: [context_length, W].
        transformer: maps [K, L, W] and an additive mask [L, L] to [K, L, W].
        ln_final: the norm before pooling.
        projection: [W, D], or None where the width already is the embedding size.
        projection_bias: [D] or None.
    """

    positional_embedding: Tensor
    projection: Tensor | None
    projection_bias: Tensor | None

    def __init__(
        self,
        *,
        token_embedding: nn.Embedding,
        positional_embedding: Tensor,
        transformer: nn.Module,
        ln_final: nn.Module,
        projection: Tensor | None,
        projection_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.token_embedding = token_embedding
        self.transformer = transformer
        self.ln_final = ln_final
        self.register_buffer("positional_embedding", positional_embedding.detach())
        self.register_buffer("projection", None if projection is None else projection.detach())
        self.register_buffer("projection_bias", None if projection_bias is None else projection_bias.detach())
        self.requires_grad_(False)
        self.eval()

    @property
    def context_length(self) -> int:
        """Positions the tower was trained with (77 for the released CLIPs)."""
        return int(self.positional_embedding.shape[0])

    @property
    def width(self) -> int:
        """W, the size of a token's embedding."""
        return int(self.positional_embedding.shape[1])

    @property
    def embed_dim(self) -> int:
        """D, the size of the joint embedding."""
        return self.width if self.projection is None else int(self.projection.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positional_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.positional_embedding.dtype

    def embed(self, ids: Int[Tensor, "K L"]) -> Float[Tensor, "K L W"]:
        """Token embeddings without positions."""
        rows: Tensor = self.token_embedding(ids)
        return rows

    def encode(
        self, rows: Float[Tensor, "K L W"], end: Int[Tensor, " K"], *, full_length: bool = False
    ) -> Float[Tensor, "K D"]:
        """Text features, not normalised, of embedded prompts.

        Args:
            rows: embedded prompts; what stands behind ``end`` has no influence.
            end: zero-based position of EOT in each prompt.
            full_length: run all given positions, as the published code does, instead of stopping at the
                last EOT. The result is the same, since attention is causal.
        """
        length = rows.shape[1] if full_length else int(end.max()) + 1
        x = rows[:, :length] + self.positional_embedding[:length]
        x = self.transformer(x, causal_mask(length, x))
        at_end = x[torch.arange(x.shape[0], device=x.device), end]
        # Only the EOT rows are needed from here on; the norm works row by row.
        features: Tensor = self.ln_final(at_end)
        if self.projection is not None:
            features = features @ self.projection
        if self.projection_bias is not None:
            features = features + self.projection_bias
        return features


def causal_mask(length: int, like: Tensor) -> Float[Tensor, "L L"]:
    """0 on and below the diagonal, minus infinity above."""
    mask = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(1)
