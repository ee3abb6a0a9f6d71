"""Plans of the fast text encoder on their device: the layouts as tensors, and the tower's constants.

Letters: d width, L layers, N rows, P places in windows of W, C prompts of a chunk, T trunk columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from softcpt.clip.arena import Arena
from softcpt.clip.text_folded import FoldedTower
from softcpt.clip.text_plan import Forest, Layout


@dataclass(frozen=True)
class Chunk:
    """A layout as tensors on the device.

    Attributes:
        layout: the numbers.
        token_rows: rows that are tokens, with ``token_ids`` and ``token_positions``.
        token_table: [U, 3d] layer 0 of all tokens at their positions, or None; ``token_index`` into it.
        context_rows: rows that are context vectors, with ``context_index`` and ``context_positions``.
        attention: of the rows among themselves.
        constants: the table of constants, and ``constant_index``, those that are placed.
        end_rows: [C] rows the features are read from.
        end_band: [C, A'] rows (N + i for constant i) of each end's band, with ``end_mask`` [C, 1 + T + A'].
        prompts: [C] of the forest.
    """

    layout: Layout
    token_rows: Tensor
    token_ids: Tensor
    token_positions: Tensor
    token_table: Tensor | None
    token_index: Tensor
    context_rows: Tensor
    context_index: Tensor
    context_positions: Tensor
    attention: Attention
    constants: Constants | None
    constant_index: Tensor
    end_rows: Tensor
    end_band: Tensor
    end_mask: Tensor
    prompts: Tensor

    @property
    def n_rows(self) -> int:
        """N."""
        return self.layout.n_rows


class Attention(Protocol):
    """How the rows of a chunk attend to each other: in windows, or by lists."""

    @property
    def outlives(self) -> bool:
        """Whether the backward reads the sources again."""

    @property
    def n_bytes(self) -> int:
        """Memory it takes, roughly."""

    def saved_bytes(self, folded: FoldedTower) -> int:
        """What a layer keeps for the backward."""

    def attend(
        self, folded: FoldedTower, start: Start, i: int, sources: Tensor, arena: Arena, scratch: Arena
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """One layer.

        Args:
            folded: the tower.
            start: SOT in it.
            i: the layer.
            sources: [M, 3d] queries without their bias, keys and values of rows, SOT and constants.
            arena: memory that outlives the layer.
            scratch: memory that does not.

        Returns:
            What the backward needs, and what the rows take [N, d].
        """

    def attend_backward(
        self,
        folded: FoldedTower,
        start: Start,
        i: int,
        saved: tuple[Tensor, Tensor],
        rows: Tensor,
        scratch: Arena,
    ) -> Tensor:
        """Gradients [N, 3d] of queries, keys and values.

        ``rows`` are those of what the rows took [N + 1, d], the last of them zero.
        """

    def projected(self, saved: tuple[Tensor, Tensor]) -> Tensor:
        """[N, 3d] queries, keys and values of the rows."""


@dataclass(frozen=True)
class Start:
    """What SOT is, which sees only itself.

    Attributes:
        qkv: [L - 1, 1, 3d] of each layer but the last.
        last: [1, d] the normalised input of the last layer.
    """

    qkv: Tensor
    last: Tensor


@dataclass(frozen=True)
class Constants:
    """Rows of names that stand before their context: the same in every step.

    Attributes:
        index: [K, A] row of the tables for each prompt and depth, -1 for others.
        qkv: [L - 1, n, 3d]; the queries are never asked.
        last: [n, d] normalised inputs of the last layer.
    """

    index: np.ndarray
    qkv: Tensor
    last: Tensor


@dataclass(frozen=True)
class Plan:
    """What is computed for some prompts.

    Attributes:
        forest: the different prompts.
        chunks: rows computed together.
        index: [k] the feature of each prompt asked for, among those of the forest.
        sot: id of the start token.
        layers: L.
        width: d.
        embed_dim: D.
        head_width: e.
    """

    forest: Forest
    chunks: tuple[Chunk, ...]
    index: Tensor
    sot: int
    layers: int
    width: int
    embed_dim: int
    head_width: int

    @property
    def n_bytes(self) -> int:
        """Memory of who attends to whom, which is most of it."""
        return sum(chunk.attention.n_bytes for chunk in self.chunks) * 5 // 4

    @property
    def n_rows(self) -> int:
        """Rows computed in each layer but the last."""
        return sum(chunk.n_rows for chunk in self.chunks)

    def multiply_adds(self) -> tuple[int, int]:
        """Multiply-adds of the exact computation on these rows, forward and backward, without padding."""
        d, between, n_classes = self.width, self.layers - 1, len(self.forest.codes)
        rows = self.n_rows
        tokens = sum(len(chunk.token_rows) for chunk in self.chunks)
        seen = sum(chunk.layout.n_seen[0] for chunk in self.chunks)
        seen_last = sum(chunk.layout.n_seen[1] for chunk in self.chunks)
        linear = (rows * 12 * between - tokens * 3 * min(between, 1)) * d * d
        last = n_classes * (12 * d * d + d * self.embed_dim)
        heads_times_width = d * (d // self.head_width)
        forward = linear + 2 * seen * d * between + last + 2 * seen_last * heads_times_width
        backward = linear + 4 * seen * d * between + last + 4 * seen_last * heads_times_width
        return forward, backward


def chunk_of(
    folded: FoldedTower,
    layout: Layout,
    attention: Attention,
    forest: Forest,
    which: np.ndarray,
    constants: Constants | None = None,
    token_table: Tensor | None = None,
    token_index: np.ndarray | None = None,
) -> Chunk:
    """A layout on the device.

    Args:
        folded: the tower.
        layout: rows and places.
        attention: made from them.
        forest: all prompts of the plan.
        which: which prompts of the whole set those of the plan are.
        constants: the table of constants.
        token_table: layer 0 of tokens.
        token_index: rows of that table.
    """
    device, wide = folded.device, folded.wide
    codes, n = layout.codes, layout.n_rows
    is_token = codes < forest.n_tokens
    table = np.zeros(0, dtype=np.int64)
    ends = layout.end_band
    if constants is not None and len(layout.constants):
        table = constants.index[which[forest.prompt[layout.constants[:, 0]]], layout.constants[:, 1]]
        ends = np.where(ends >= n, n + table[np.maximum(ends - n, 0)], ends)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def mask(seen: np.ndarray) -> Tensor:
        open_ = torch.zeros(seen.shape, dtype=wide, device=device)
        return open_.masked_fill_(tensor(~seen), -torch.inf)

    sot = np.ones((len(ends), 1), dtype=bool)
    end_place = layout.row_place[layout.end_row]
    return Chunk(
        layout=layout,
        token_rows=tensor(np.flatnonzero(is_token)),
        token_ids=tensor(codes[is_token]),
        token_positions=tensor(layout.positions[is_token]),
        token_table=token_table,
        token_index=tensor(np.zeros(0, dtype=np.int64) if token_index is None else token_index),
        context_rows=tensor(np.flatnonzero(~is_token)),
        context_index=tensor(codes[~is_token] - forest.n_tokens),
        context_positions=tensor(layout.positions[~is_token]),
        attention=attention,
        constants=constants if len(table) else None,
        constant_index=tensor(table),
        end_rows=tensor(layout.end_row),
        end_band=tensor(np.maximum(ends, 0)),
        end_mask=mask(np.concatenate([sot, layout.trunk_seen[end_place], ends >= 0], axis=1)),
        prompts=tensor(layout.prompts),
    )
