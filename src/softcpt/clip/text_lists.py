"""Attention over lists of rows, compiled: on one thread of a CPU, in fp32 and fp64, where numba is installed.

Does what ``text_windows`` does with PyTorch's products, without their padding and copies: each row is
compared with the rows that it attends to and with nothing else, where the projection wrote them. The
exponential between the two forward loops is PyTorch's. Threads of our own would find the other cores taken
by PyTorch's, which keep them busy while they wait for its next product: with several, windows are as fast.

Letters: d width, H heads, e = d / H, N rows, M sources (rows, SOT and constants), V pairs of a row and a
source it attends to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from softcpt.clip.arena import Arena
from softcpt.clip.attention_loops import Kernel, kernels
from softcpt.clip.text_chunk import Start
from softcpt.clip.text_folded import FoldedTower
from softcpt.clip.text_plan import Layout

_U64 = np.uint64


def _run(kernel: Kernel, heads: int, *tensors: Tensor | np.ndarray) -> None:
    kernel(*(x.reshape(-1).numpy() if isinstance(x, Tensor) else x for x in tensors), heads)


@dataclass(frozen=True)
class Lists:
    """Whom each row of a chunk attends to, itself included.

    Attributes:
        first: [N + 1] where the rows' lists begin.
        seen: [V] the sources in them.
        first_reader: [N + 1] where the lists of those who attend to a row begin.
        reader: [V'] the rows in them, and ``pair`` [V'] their place in ``seen``.
    """

    first: np.ndarray
    seen: np.ndarray
    first_reader: np.ndarray
    reader: np.ndarray
    pair: np.ndarray

    outlives = True
    """The backward reads keys and values where they are."""

    @classmethod
    def of(cls, folded: FoldedTower, layout: Layout) -> Lists:
        """Those of a layout."""
        first, seen = layout.lists()
        n = layout.n_rows
        pair = np.argsort(seen, kind="stable")
        pair = pair[seen[pair] < n]  # SOT and constants want no gradients
        first_reader = np.concatenate([[0], np.cumsum(np.bincount(seen[pair], minlength=n))])
        reader = np.repeat(np.arange(n), np.diff(first))[pair]
        return cls(first, seen.astype(_U64), first_reader, reader.astype(_U64), pair.astype(_U64))

    @property
    def n_bytes(self) -> int:
        """Memory of the lists."""
        return self.seen.nbytes + self.reader.nbytes + self.pair.nbytes

    def saved_bytes(self, folded: FoldedTower) -> int:
        """What a layer keeps for the backward; the constants' sources not counted."""
        per_row = 3 * folded.width * (len(self.first) - 1)
        return (per_row + folded.heads * len(self.seen)) * folded.narrow.itemsize

    def attend(
        self, folded: FoldedTower, start: Start, i: int, sources: Tensor, arena: Arena, scratch: Arena
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The sources, with the queries' bias, and probabilities [H, V]; and what the rows take [N, d]."""
        heads, width, dtype = folded.heads, folded.width, folded.narrow
        compare, take, *_ = kernels(width // heads)
        prob = arena.take(heads, len(self.seen), dtype=dtype)
        _run(compare, heads, sources, folded.layers[i].b_q, self.first, self.seen, prob)
        prob.exp_()
        out = scratch.take(len(self.first) - 1, width, dtype=dtype)
        _run(take, heads, sources, self.first, self.seen, prob, out)
        return (sources, prob), out

    def attend_backward(
        self,
        folded: FoldedTower,
        start: Start,
        i: int,
        saved: tuple[Tensor, Tensor],
        rows: Tensor,
        scratch: Arena,
    ) -> Tensor:
        """Gradients [N, 3d] of queries, keys and values, of those of what the rows took [N + 1, d]."""
        heads, width, dtype = folded.heads, folded.width, folded.narrow
        *_, back_to_queries, back_to_keys = kernels(width // heads)
        sources, prob = saved
        slopes = scratch.take(*prob.shape, dtype=dtype)
        into = scratch.take(len(self.first) - 1, 3 * width, dtype=dtype)
        _run(back_to_queries, heads, sources, self.first, self.seen, prob, rows, slopes, into)
        _run(
            back_to_keys, heads, sources, self.first_reader, self.reader, self.pair, prob, rows, slopes, into
        )
        return into

    def projected(self, saved: tuple[Tensor, Tensor]) -> Tensor:
        """[N, 3d] queries (with their bias), keys and values of the rows."""
        return saved[0][: len(self.first) - 1].clone()
