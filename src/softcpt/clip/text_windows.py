"""Attention in windows, with PyTorch's products: on every device and in every precision.

A row's trunk is one product for its whole segment, its band one in its window of W places (``text_plan``).
``text_lists`` computes the same without padding, where it can.

Letters: d width, H heads, e = d / H, N rows, M sources (rows, SOT and constants), P places in windows of W,
T trunk columns, S columns of scores (SOT, trunk and window, or the window alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softcpt.clip.arena import Arena
from softcpt.clip.text_chunk import Start
from softcpt.clip.text_folded import FoldedTower
from softcpt.clip.text_plan import Layout, Segment


@dataclass(frozen=True)
class Windows:
    """A layout's places on the device.

    Attributes:
        layout: the numbers.
        holds: [P] the source of each place.
        row_place: [N] the place of each row, and ``row_of_place`` [P] the reverse, N where there is none.
        trunk_mask: [P, 1 + T] added to the scores of SOT and trunk.
        band_mask: [P, W] added to those of the window.
    """

    layout: Layout
    holds: Tensor
    row_place: Tensor
    row_of_place: Tensor
    trunk_mask: Tensor
    band_mask: Tensor

    outlives = False
    """The sources are copied to their places and not asked for again."""

    @classmethod
    def of(cls, folded: FoldedTower, layout: Layout) -> Windows:
        """Those of a layout."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(folded.device)

        def mask(seen: np.ndarray) -> Tensor:
            open_ = torch.zeros(seen.shape, dtype=folded.wide, device=folded.device)
            return open_.masked_fill_(tensor(~seen), -torch.inf)

        n, holds = layout.n_rows, layout.holds
        sot = np.ones((layout.n_places, 1), dtype=bool)
        return cls(
            layout=layout,
            holds=tensor(layout.sources),
            row_place=tensor(layout.row_place),
            row_of_place=tensor(np.where((holds < 0) | (holds >= n), n, holds)),
            trunk_mask=mask(np.concatenate([sot, layout.trunk_seen], axis=1)),
            band_mask=mask(layout.band_seen),
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the masks, which are most of it."""
        return self.trunk_mask.nbytes + self.band_mask.nbytes

    def saved_bytes(self, folded: FoldedTower) -> int:
        """What a layer keeps for the backward."""
        scores = folded.heads * (self._n_trunk + self.layout.window)
        return self.layout.n_places * (scores + 3 * folded.width) * folded.narrow.itemsize

    @property
    def _n_trunk(self) -> int:
        """Columns of scores before the window's: SOT and T, or none."""
        return 1 + self.layout.n_trunk if self.layout.has_trunk else 0

    @property
    def _segments(self) -> tuple[Segment, ...]:
        """Those whose rows are compared with SOT and a trunk."""
        return self.layout.segments if self.layout.has_trunk else ()

    def attend(
        self, folded: FoldedTower, start: Start, i: int, sources: Tensor, arena: Arena, scratch: Arena
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What the backward needs ([3, H, P, e] and [H, P, S]), and what the rows take [N, d]."""
        layout, wide, narrow = self.layout, folded.wide, folded.narrow
        heads, n_places, window = folded.heads, layout.n_places, layout.window
        n_trunk, size = self._n_trunk, folded.width // folded.heads
        q, k, v = qkv = self._place(folded, i, sources, arena, scratch)
        prob = (arena if narrow == wide else scratch).take(heads, n_places, n_trunk + window, dtype=wide)
        alone = not n_trunk and narrow == wide  # then the product can go where it belongs
        scores = prob if alone else scratch.take(heads, n_places, window, dtype=narrow)
        torch.bmm(_windows(q, window), _windows(k, window).mT, out=scores.view(-1, window, window))
        torch.add(scores, self.band_mask, out=prob[:, :, n_trunk:])
        for segment in self._segments:
            at, columns = slice(segment.start, segment.end), 1 + segment.trunk
            keys = _with_start(start, i, 1, k, segment, scratch)
            scores = scratch.take(heads, segment.end - segment.start, columns, dtype=narrow)
            torch.bmm(q[:, at], keys.mT, out=scores)
            torch.add(scores, self.trunk_mask[at, :columns], out=prob[:, at, :columns])
            if columns < n_trunk:
                prob[:, at, columns:n_trunk] = -torch.inf
        torch.ops.aten._softmax.out(prob, -1, False, out=prob)
        if narrow != wide:
            prob = arena.take(*prob.shape, dtype=narrow).copy_(prob)

        taken = scratch.take(heads, n_places, size, dtype=narrow)
        for segment in self._segments:
            at, columns = slice(segment.start, segment.end), 1 + segment.trunk
            values = _with_start(start, i, 2, v, segment, scratch)
            _bmm_into(taken[:, at], prob[:, at, :columns], values, scratch)
        self._add_band(taken, self._band(prob), v)
        by_place = scratch.take(n_places, folded.width, dtype=narrow)
        _by_head(by_place, 1, heads)[0].copy_(taken)
        out = scratch.take(layout.n_rows, folded.width, dtype=narrow)
        torch.index_select(by_place, 0, self.row_place, out=out)
        return (qkv, prob), out

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
        layout, wide, narrow = self.layout, folded.wide, folded.narrow
        heads, n_places, window, n_trunk = folded.heads, layout.n_places, layout.window, self._n_trunk
        (q, k, v), prob = saved
        grad = self._spread(rows, heads, scratch)

        dscore = scratch.take(heads, n_places, n_trunk + window, dtype=wide)
        alone = not n_trunk and narrow == wide
        banded = dscore if alone else scratch.take(heads, n_places, window, dtype=narrow)
        torch.bmm(_windows(grad, window), _windows(v, window).mT, out=banded.view(-1, window, window))
        if not alone:
            dscore[:, :, n_trunk:] = banded
        for segment in self._segments:
            at, columns = slice(segment.start, segment.end), 1 + segment.trunk
            values = _with_start(start, i, 2, v, segment, scratch)
            _bmm_into(dscore[:, at, :columns], grad[:, at], values.mT, scratch)
            if columns < n_trunk:
                dscore[:, at, columns:n_trunk].zero_()
        torch.ops.aten._softmax_backward_data.out(dscore, prob.to(wide), -1, wide, grad_input=dscore)
        if narrow != wide:
            dscore = dscore.to(narrow)

        grads = scratch.take(3, *q.shape, dtype=narrow)
        dq, dk, dv = grads
        for segment in self._segments:
            at, columns = slice(segment.start, segment.end), 1 + segment.trunk
            keys = _with_start(start, i, 1, k, segment, scratch)
            _bmm_into(dq[:, at], dscore[:, at, :columns], keys, scratch)
        weights = self._band(dscore)
        self._add_band(dq, weights, k)
        torch.bmm(weights.mT, _windows(q, window), out=_windows(dk, window))
        torch.bmm(self._band(prob).mT, _windows(grad, window), out=_windows(dv, window))
        for segment in self._segments:
            if segment.trunk:
                at, in_trunk = slice(segment.start, segment.end), slice(1, 1 + segment.trunk)
                trunk = slice(segment.start, segment.start + segment.trunk)
                dk[:, trunk] += torch.bmm(dscore[:, at, in_trunk].mT, q[:, at])
                dv[:, trunk] += torch.bmm(prob[:, at, in_trunk].mT, grad[:, at])
        by_place = scratch.take(n_places, 3 * folded.width, dtype=narrow)
        _by_head(by_place, 3, heads).copy_(grads)
        out = scratch.take(layout.n_rows, 3 * folded.width, dtype=narrow)
        return torch.index_select(by_place, 0, self.row_place, out=out)

    def projected(self, saved: tuple[Tensor, Tensor]) -> Tensor:
        """[N, 3d] queries, keys and values of the rows."""
        return saved[0].permute(2, 0, 1, 3).reshape(self.layout.n_places, -1)[self.row_place]

    def _place(self, folded: FoldedTower, i: int, sources: Tensor, arena: Arena, scratch: Arena) -> Tensor:
        """Queries (with their bias), keys and values [3, H, P, e] of all places."""
        heads, n_places, d, narrow = folded.heads, self.layout.n_places, folded.width, folded.narrow
        qkv = arena.take(3, heads, n_places, d // heads, dtype=narrow)
        placed = scratch.take(n_places, 3 * d, dtype=narrow)
        torch.index_select(sources, 0, self.holds, out=placed)
        by_head = _by_head(placed, 3, heads)
        torch.add(by_head[0], folded.layers[i].b_q.view(heads, 1, -1), out=qkv[0])
        qkv[1:] = by_head[1:]
        return qkv

    def _spread(self, rows: Tensor, heads: int, scratch: Arena) -> Tensor:
        """[H, P, e] gradients at the places of the rows; zero, the last row, where there is no row."""
        width = rows.shape[1]
        by_place = scratch.take(self.layout.n_places, width, dtype=rows.dtype)
        torch.index_select(rows, 0, self.row_of_place, out=by_place)
        spread = scratch.take(heads, self.layout.n_places, width // heads, dtype=rows.dtype)
        return spread.copy_(_by_head(by_place, 1, heads)[0])

    def _band(self, scores: Tensor) -> Tensor:
        """[H P / W, W, W] the windows' columns of [H, P, S]."""
        return scores.view(-1, self.layout.window, scores.shape[2])[:, :, self._n_trunk :]

    def _add_band(self, into: Tensor, weights: Tensor, values: Tensor) -> None:
        """What windows take from themselves, added to what came from the trunk if there is one."""
        own, values = _windows(into, self.layout.window), _windows(values, self.layout.window)
        if self._n_trunk:
            torch.baddbmm(own, weights, values, out=own)
        else:
            torch.bmm(weights, values, out=own)


def _by_head(rows: Tensor, parts: int, heads: int) -> Tensor:
    """[parts, H, P, e] view of [P, parts * d]."""
    return rows.view(len(rows), parts, heads, -1).permute(1, 2, 0, 3)


def _windows(places: Tensor, window: int) -> Tensor:
    """[H P / W, W, e] of [H, P, e]."""
    return places.view(-1, window, places.shape[2])


def _with_start(start: Start, i: int, part: int, places: Tensor, segment: Segment, scratch: Arena) -> Tensor:
    """[H, 1 + T, e] keys (part 1) or values (part 2) of SOT and of a segment's trunk."""
    heads, _, size = places.shape
    both = scratch.take(heads, 1 + segment.trunk, size, dtype=places.dtype)
    both[:, 0] = start.qkv[i, 0].view(3, heads, size)[part]
    both[:, 1:] = places[:, segment.start : segment.start + segment.trunk]
    return both


def _bmm_into(out: Tensor, a: Tensor, b: Tensor, scratch: Arena) -> None:
    """Out = a b; a product written straight into a strided place would leave the fast path."""
    if out.is_contiguous() and out.dtype == a.dtype:
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b, out=scratch.take(*out.shape, dtype=a.dtype)))
