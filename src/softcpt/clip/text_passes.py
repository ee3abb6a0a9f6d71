"""One chunk of prompts forward and backward through the folded tower, written out by hand.

Letters: d width, H heads, e = d / H, L layers, N rows, P places in windows of W, C prompts of a chunk,
T trunk columns, S columns of scores (SOT, trunk and window, or the window alone), D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from softcpt.clip.arena import Arena
from softcpt.clip.text_chunk import Chunk, Start
from softcpt.clip.text_folded import FoldedTower, normalise, normalise_backward
from softcpt.clip.text_plan import Segment


@dataclass
class LayerState:
    """What the backward needs of a layer."""

    x: Tensor
    qkv: Tensor
    prob: Tensor
    y: Tensor
    u: Tensor
    norm_1: tuple[Tensor, Tensor] | None
    norm_2: tuple[Tensor, Tensor]


@dataclass
class ChunkState:
    """A chunk between forward and backward.

    Attributes:
        x: [N, d] input of the last layer, a leaf where gradients are wanted.
        features: [C, D] made from it.
    """

    chunk: Chunk
    layers: list[LayerState]
    x: Tensor
    features: Tensor


def forward(
    folded: FoldedTower,
    start: Start,
    chunk: Chunk,
    context: Tensor,
    arena: Arena,
    scratch: Arena,
    *,
    save: bool,
) -> ChunkState:
    """One chunk through the tower. Without ``save`` every layer uses the same memory."""
    d, wide, narrow = folded.width, folded.wide, folded.narrow
    n, width_up = chunk.n_rows, folded.layers[0].w_up.shape[0]
    states: list[LayerState] = []

    x = arena.take(n, d, dtype=wide)
    x.index_copy_(
        0, chunk.token_rows,
        folded.embedding[chunk.token_ids].to(wide) + folded.positions[chunk.token_positions],
    )  # fmt: skip
    x.index_copy_(
        0, chunk.context_rows, context[chunk.context_index] + folded.positions[chunk.context_positions]
    )
    spare = None if save else arena.take(n, d, dtype=wide)
    mark = arena.mark()
    for i, layer in enumerate(folded.layers[:-1]):
        if not save:
            arena.rewind(mark)
        scratch.reset()
        qkv = arena.take(3, folded.heads, chunk.layout.n_places, d // folded.heads, dtype=narrow)
        norm_1 = _project(folded, start, i, chunk, x, qkv, scratch)
        prob, o = _attend(folded, start, i, chunk, qkv, arena, scratch)
        y = arena.take(n, d, dtype=wide)
        torch.add(x, layer.b_out, out=y)
        _add_product(y, o, layer.w_out.t())
        h, *norm_2 = normalise(y, layer.eps_2)
        u = arena.take(n, width_up, dtype=narrow)
        torch.addmm(layer.b_up, h.to(narrow), layer.w_up.t(), out=u)
        a = folded.activate(u, out=scratch.take(n, width_up, dtype=narrow))
        last = i == len(folded.layers) - 2
        # The last input is a leaf of autograd, which must own its memory.
        z = torch.empty_like(y) if last else (arena.take(n, d, dtype=wide) if save else spare)
        assert z is not None
        torch.add(y, layer.b_down, out=z)
        _add_product(z, a, layer.w_down.t())
        if save:
            states.append(LayerState(x, qkv, prob, y, u, norm_1, (norm_2[0], norm_2[1])))
        x, spare = z, x
    if len(folded.layers) == 1:
        x = x.clone()
    if save and torch.is_grad_enabled():
        x.requires_grad_()
    return ChunkState(chunk, states, x, _finish(folded, start, chunk, x))


def _add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """Into += a b, in the dtype of ``into``."""
    if into.dtype == a.dtype:
        into.addmm_(a, b)
    else:
        into.add_(a @ b)


def _project(
    folded: FoldedTower, start: Start, i: int, chunk: Chunk, x: Tensor, qkv: Tensor, scratch: Arena
) -> tuple[Tensor, Tensor] | None:
    """Write queries, keys and values [3, H, P, e] of all places; returns what the norm's backward needs."""
    layer = folded.layers[i]
    d, narrow, n = folded.width, folded.narrow, chunk.n_rows
    sources = scratch.take(n + 1 + len(chunk.constant_index), 3 * d, dtype=narrow)
    norm: tuple[Tensor, Tensor] | None = None
    if i == 0:
        # Token rows of layer 0 depend on nothing but the token.
        if chunk.token_table is None:
            tokens = first_layer(folded, chunk.token_ids, chunk.token_positions)
        else:
            tokens = chunk.token_table.index_select(0, chunk.token_index)
        sources.index_copy_(0, chunk.token_rows, tokens)
        if len(chunk.context_rows):
            h = normalise(x.index_select(0, chunk.context_rows), layer.eps_1)[0].to(narrow)
            sources.index_copy_(0, chunk.context_rows, h @ layer.w_qkv.t())
    else:
        h, mean, rstd = normalise(x, layer.eps_1)
        norm = (mean, rstd)
        torch.mm(h.to(narrow), layer.w_qkv.t(), out=sources[:n])
    sources[n] = start.qkv[i, 0]
    if chunk.constants is not None:
        sources[n + 1 :] = chunk.constants.qkv[i].index_select(0, chunk.constant_index)
    placed = scratch.take(len(chunk.holds), 3 * d, dtype=narrow)
    torch.index_select(sources, 0, chunk.holds, out=placed)
    by_head = _by_head(placed, 3, folded.heads)
    torch.add(by_head[0], layer.b_q.view(folded.heads, 1, -1), out=qkv[0])
    qkv[1:] = by_head[1:]
    return norm


def _by_head(rows: Tensor, parts: int, heads: int) -> Tensor:
    """[parts, H, P, e] view of [P, parts * d]."""
    return rows.view(len(rows), parts, heads, -1).permute(1, 2, 0, 3)


def first_layer(folded: FoldedTower, ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens, 3d] queries (without their bias), keys and values of layer 0 of tokens at their positions."""
    layer = folded.layers[0]
    x = folded.embedding[ids].to(folded.wide) + folded.positions[positions]
    return normalise(x, layer.eps_1)[0].to(folded.narrow) @ layer.w_qkv.t()


def _attend(
    folded: FoldedTower, start: Start, i: int, chunk: Chunk, qkv: Tensor, arena: Arena, scratch: Arena
) -> tuple[Tensor, Tensor]:
    """Probabilities [H, P, S], for the backward, and what the rows take from it [N, d]."""
    layout, wide, narrow = chunk.layout, folded.wide, folded.narrow
    heads, n_places, window = folded.heads, layout.n_places, layout.window
    n_trunk, size = chunk.n_trunk, folded.width // folded.heads
    q, k, v = qkv
    prob = (arena if narrow == wide else scratch).take(heads, n_places, n_trunk + window, dtype=wide)
    alone = not n_trunk and narrow == wide  # then the product can go where it belongs
    scores = prob if alone else scratch.take(heads, n_places, window, dtype=narrow)
    torch.bmm(_windows(q, window), _windows(k, window).transpose(1, 2), out=scores.view(-1, window, window))
    torch.add(scores, chunk.band_mask, out=prob[:, :, n_trunk:])
    for segment in chunk.segments:
        at, columns = slice(segment.start, segment.end), 1 + segment.trunk
        keys = _with_start(start, i, 1, k, segment, scratch)
        scores = scratch.take(heads, segment.end - segment.start, columns, dtype=narrow)
        torch.bmm(q[:, at], keys.transpose(1, 2), out=scores)
        torch.add(scores, chunk.trunk_mask[at, :columns], out=prob[:, at, :columns])
        if columns < n_trunk:
            prob[:, at, columns:n_trunk] = -torch.inf
    torch.ops.aten._softmax.out(prob, -1, False, out=prob)
    if narrow != wide:
        prob = arena.take(*prob.shape, dtype=narrow).copy_(prob)

    taken = scratch.take(heads, n_places, size, dtype=narrow)
    for segment in chunk.segments:
        at, columns = slice(segment.start, segment.end), 1 + segment.trunk
        values = _with_start(start, i, 2, v, segment, scratch)
        _bmm_into(taken[:, at], prob[:, at, :columns], values, scratch)
    _add_band(taken, _band(prob, chunk), v, chunk)
    by_place = scratch.take(n_places, folded.width, dtype=narrow)
    _by_head(by_place, 1, heads)[0].copy_(taken)
    o = scratch.take(chunk.n_rows, folded.width, dtype=narrow)
    torch.index_select(by_place, 0, chunk.row_place, out=o)
    return prob, o


def _windows(places: Tensor, window: int) -> Tensor:
    """[H P / W, W, e] of [H, P, e]."""
    return places.view(-1, window, places.shape[2])


def _band(scores: Tensor, chunk: Chunk) -> Tensor:
    """[H P / W, W, W] the windows' columns of [H, P, S]."""
    window = chunk.layout.window
    return scores.view(-1, window, scores.shape[2])[:, :, chunk.n_trunk :]


def _add_band(into: Tensor, weights: Tensor, values: Tensor, chunk: Chunk) -> None:
    """What windows take from themselves, added to what came from the trunk if there is one."""
    window = chunk.layout.window
    own = _windows(into, window)
    if chunk.n_trunk:
        torch.baddbmm(own, weights, _windows(values, window), out=own)
    else:
        torch.bmm(weights, _windows(values, window), out=own)


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


def _finish(folded: FoldedTower, start: Start, chunk: Chunk, x: Tensor) -> Tensor:
    """The last layer at the EOT rows, and the features [C, D]; ordinary autograd.

    With h the normalised rows, a query's score against row j is (W_k' q) h_j, and what it takes is
    W_v (sum_j p_j h_j): two products a prompt in place of two a row.
    """
    layer, layout = folded.layers[-1], chunk.layout
    d, heads, narrow = folded.width, folded.heads, folded.narrow
    w_q, w_k, w_v = layer.w_qkv.view(3, heads, d // heads, d)
    n_prompts, n_trunk = len(chunk.end_rows), 1 + layout.n_trunk
    h = F.layer_norm(x, (d,), eps=layer.eps_1).to(narrow)
    every = h if chunk.constants is None else torch.cat([h, chunk.constants.last])
    q = h.index_select(0, chunk.end_rows) @ w_q.reshape(d, d).t() + layer.b_q
    q = torch.bmm(q.view(n_prompts, heads, -1).transpose(0, 1), w_k)  # [H, C, d]
    band = every.index_select(0, chunk.end_band.flatten()).view(n_prompts, -1, d)  # [C, A', d]
    firsts = [int(layout.holds[s.start]) for s in layout.segments]  # a trunk's rows stand together too
    trunks = [
        torch.cat([start.last, h[first : first + s.trunk]])
        for s, first in zip(layout.segments, firsts, strict=True)
    ]
    scores = [
        F.pad(q[:, s.first_prompt : s.end_prompt] @ keys.t(), (0, n_trunk - len(keys)))
        for s, keys in zip(layout.segments, trunks, strict=True)
    ]
    of_trunk = torch.cat(scores, dim=1).transpose(0, 1)
    of_band = torch.bmm(q.transpose(0, 1), band.transpose(1, 2))
    both = torch.cat([of_trunk, of_band], dim=2).to(folded.wide) + chunk.end_mask[:, None]
    prob = both.softmax(dim=2).to(narrow)
    from_trunk = [
        prob[s.first_prompt : s.end_prompt, :, : len(keys)] @ keys
        for s, keys in zip(layout.segments, trunks, strict=True)
    ]
    taken = torch.cat(from_trunk) + torch.bmm(prob[:, :, n_trunk:], band)  # [C, H, d]
    o = torch.bmm(taken.transpose(0, 1), w_v.transpose(1, 2)).transpose(0, 1).reshape(n_prompts, d)
    y = x.index_select(0, chunk.end_rows) + o @ layer.w_out.t() + layer.b_out
    u = F.layer_norm(y, (d,), eps=layer.eps_2).to(narrow) @ layer.w_up.t() + layer.b_up
    if folded.activation == "silu":
        a = F.silu(u)
    else:
        a = F.gelu(u, approximate="tanh" if folded.activation == "gelu_tanh" else "none")
    z = y + a @ layer.w_down.t() + layer.b_down
    final = F.layer_norm(z, (d,), eps=folded.eps_features).to(narrow)
    return (final @ folded.w_features.t() + folded.b_features).to(folded.wide)


def backward(
    folded: FoldedTower, start: Start, state: ChunkState, grad: Tensor, into: Tensor, scratch: Arena
) -> None:
    """Add a chunk's gradients to those of the context vectors [G n, d]."""
    chunk = state.chunk
    d, narrow = folded.width, folded.narrow
    with torch.enable_grad():
        (g,) = torch.autograd.grad(state.features, state.x, grad)
    for i in range(len(state.layers) - 1, -1, -1):
        scratch.reset()
        layer, kept = folded.layers[i], state.layers[i]
        da = torch.mm(g.to(narrow), layer.w_down, out=scratch.take(len(g), kept.u.shape[1], dtype=narrow))
        du = folded.activate_backward(da, kept.u)
        dh = torch.mm(du, layer.w_up, out=scratch.take(len(g), d, dtype=narrow))
        g += normalise_backward(dh.to(folded.wide), kept.y, *kept.norm_2)
        rows = scratch.take(len(g) + 1, d, dtype=narrow)
        torch.mm(g.to(narrow), layer.w_out, out=rows[:-1])
        do = _spread(rows, chunk, folded.heads, scratch)
        dqkv = _attend_backward(folded, start, i, chunk, kept, do, scratch)
        if i > 0:
            dh = torch.mm(dqkv, layer.w_qkv, out=dh)
            assert kept.norm_1 is not None
            g += normalise_backward(dh.to(folded.wide), kept.x, *kept.norm_1)
            continue
        # Of layer 0 only the context's rows are asked for.
        rows = chunk.context_rows
        x = kept.x.index_select(0, rows)
        _, mean, rstd = normalise(x, layer.eps_1)
        dh = dqkv.index_select(0, rows) @ layer.w_qkv
        g = g.index_select(0, rows) + normalise_backward(dh.to(folded.wide), x, mean, rstd)
        into.index_add_(0, chunk.context_index, g)
    if not state.layers:
        into.index_add_(0, chunk.context_index, g.index_select(0, chunk.context_rows))


def _spread(rows: Tensor, chunk: Chunk, heads: int, scratch: Arena) -> Tensor:
    """[H, P, e] gradients at the places of the rows [N + 1, d]; zero, the last row, where there is no row."""
    rows[-1] = 0
    n_places, width = chunk.layout.n_places, rows.shape[1]
    by_place = scratch.take(n_places, width, dtype=rows.dtype)
    torch.index_select(rows, 0, chunk.row_of_place, out=by_place)
    spread = scratch.take(heads, n_places, width // heads, dtype=rows.dtype)
    return spread.copy_(_by_head(by_place, 1, heads)[0])


def _attend_backward(
    folded: FoldedTower, start: Start, i: int, chunk: Chunk, kept: LayerState, do: Tensor, scratch: Arena
) -> Tensor:
    """Gradients [N, 3d] of queries, keys and values, of ``do`` [H, P, e]."""
    layout, wide, narrow = chunk.layout, folded.wide, folded.narrow
    heads, n_places, window = folded.heads, layout.n_places, layout.window
    n_trunk, prob = chunk.n_trunk, kept.prob
    q, k, v = kept.qkv

    dscore = scratch.take(heads, n_places, n_trunk + window, dtype=wide)
    alone = not n_trunk and narrow == wide
    banded = dscore if alone else scratch.take(heads, n_places, window, dtype=narrow)
    torch.bmm(_windows(do, window), _windows(v, window).transpose(1, 2), out=banded.view(-1, window, window))
    if not alone:
        dscore[:, :, n_trunk:] = banded
    for segment in chunk.segments:
        at, columns = slice(segment.start, segment.end), 1 + segment.trunk
        values = _with_start(start, i, 2, v, segment, scratch)
        _bmm_into(dscore[:, at, :columns], do[:, at], values.transpose(1, 2), scratch)
        if columns < n_trunk:
            dscore[:, at, columns:n_trunk].zero_()
    torch.ops.aten._softmax_backward_data.out(dscore, prob.to(wide), -1, wide, grad_input=dscore)
    if narrow != wide:
        dscore = dscore.to(narrow)

    grads = scratch.take(3, *q.shape, dtype=narrow)
    dq, dk, dv = grads
    for segment in chunk.segments:
        at, columns = slice(segment.start, segment.end), 1 + segment.trunk
        keys = _with_start(start, i, 1, k, segment, scratch)
        _bmm_into(dq[:, at], dscore[:, at, :columns], keys, scratch)
    weights = _band(dscore, chunk)
    _add_band(dq, weights, k, chunk)
    torch.bmm(weights.transpose(1, 2), _windows(q, window), out=_windows(dk, window))
    torch.bmm(_band(prob, chunk).transpose(1, 2), _windows(do, window), out=_windows(dv, window))
    for segment in chunk.segments:
        if segment.trunk:
            at, in_trunk = slice(segment.start, segment.end), slice(1, 1 + segment.trunk)
            trunk = slice(segment.start, segment.start + segment.trunk)
            dk[:, trunk] += torch.bmm(dscore[:, at, in_trunk].transpose(1, 2), q[:, at])
            dv[:, trunk] += torch.bmm(prob[:, at, in_trunk].transpose(1, 2), do[:, at])
    by_place = scratch.take(n_places, 3 * folded.width, dtype=narrow)
    _by_head(by_place, 3, heads).copy_(grads)
    rows = scratch.take(chunk.n_rows, 3 * folded.width, dtype=narrow)
    return torch.index_select(by_place, 0, chunk.row_place, out=rows)


def saved_bytes(folded: FoldedTower, chunk: Chunk) -> int:
    """What a chunk keeps for the backward, roughly."""
    d, up = folded.width, folded.layers[0].w_up.shape[0]
    narrow, wide = folded.narrow.itemsize, folded.wide.itemsize
    scores = folded.heads * chunk.layout.n_places * (chunk.n_trunk + chunk.layout.window) * narrow
    places = 3 * d * chunk.layout.n_places * narrow
    rows = chunk.n_rows * (2 * d * wide + up * narrow)
    return (len(folded.layers) - 1) * (scores + places + rows)
