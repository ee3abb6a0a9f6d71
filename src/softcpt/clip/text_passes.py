"""One chunk of prompts forward and backward through the folded tower, written out by hand.

Letters: d width, H heads, e = d / H, L layers, N rows, M sources (rows, SOT and constants), C prompts of a
chunk, T trunk columns, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from softcpt.clip.arena import Arena
from softcpt.clip.text_chunk import Chunk, Start
from softcpt.clip.text_folded import FoldedTower, normalise, normalise_backward


@dataclass
class LayerState:
    """What the backward needs of a layer."""

    x: Tensor
    attended: tuple[Tensor, Tensor]
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
    attention = chunk.attention
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
        n_sources = n + 1 + len(chunk.constant_index)
        sources = (arena if attention.outlives else scratch).take(n_sources, 3 * d, dtype=narrow)
        norm_1 = _project(folded, start, i, chunk, x, sources)
        attended, o = attention.attend(folded, start, i, sources, arena, scratch)
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
            states.append(LayerState(x, attended, y, u, norm_1, (norm_2[0], norm_2[1])))
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
    folded: FoldedTower, start: Start, i: int, chunk: Chunk, x: Tensor, sources: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Write queries (without their bias), keys and values [M, 3d]; returns what the norm's backward needs."""
    layer, narrow, n = folded.layers[i], folded.narrow, chunk.n_rows
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
    return norm


def first_layer(folded: FoldedTower, ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens, 3d] queries (without their bias), keys and values of layer 0 of tokens at their positions."""
    layer = folded.layers[0]
    x = folded.embedding[ids].to(folded.wide) + folded.positions[positions]
    return normalise(x, layer.eps_1)[0].to(folded.narrow) @ layer.w_qkv.t()


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
        rows[-1] = 0
        dqkv = chunk.attention.attend_backward(folded, start, i, kept.attended, rows, scratch)
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


def saved_bytes(folded: FoldedTower, chunk: Chunk) -> int:
    """What a chunk keeps for the backward, roughly."""
    d, up = folded.width, folded.layers[0].w_up.shape[0]
    narrow, wide = folded.narrow.itemsize, folded.wide.itemsize
    rows = chunk.n_rows * (2 * d * wide + up * narrow)
    return (len(folded.layers) - 1) * (chunk.attention.saved_bytes(folded) + rows)
