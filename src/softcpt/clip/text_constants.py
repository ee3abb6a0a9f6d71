"""What never changes in a tower: SOT, and names that stand before their context.

Nothing learned stands before them, so their keys and values are computed once, not in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from softcpt.clip.arena import Arena
from softcpt.clip.text_chunk import Attention, Constants, Start, chunk_of
from softcpt.clip.text_folded import FoldedTower, normalise
from softcpt.clip.text_passes import forward
from softcpt.clip.text_plan import Forest, Ints, Layout, cut_into_chunks, grow_forest, lay_out


def start_of(folded: FoldedTower, sot: int) -> Start:
    """SOT in every layer: it attends to itself alone."""
    d = folded.width
    x = (folded.embedding[sot].to(folded.wide) + folded.positions[0])[None]
    found = [torch.zeros(0, 1, 3 * d, dtype=folded.narrow, device=folded.device)]
    for layer in folded.layers[:-1]:
        h = normalise(x, layer.eps_1)[0].to(folded.narrow)
        qkv = h @ layer.w_qkv.t()
        found.append(qkv[None])
        y = x + layer.b_out + (qkv[:, 2 * d :] @ layer.w_out.t())
        u = torch.addmm(layer.b_up, normalise(y, layer.eps_2)[0].to(folded.narrow), layer.w_up.t())
        x = y + layer.b_down + folded.activate(u, out=torch.empty_like(u)) @ layer.w_down.t()
    last = normalise(x, folded.layers[-1].eps_1)[0].to(folded.narrow)
    return Start(torch.cat(found), last)


def names_before(slot: Ints) -> Ints:
    """[K] how many tokens stand before the first context vector, SOT not counted; 0 without any."""
    is_context = slot >= 0
    return np.where(is_context.any(axis=1), is_context.argmax(axis=1) - 1, 0)


def constants_of(
    folded: FoldedTower,
    start: Start,
    attention_of: Callable[[FoldedTower, Layout], Attention],
    ids: Ints,
    slot: Ints,
    arena: Arena,
    scratch: Arena,
    *,
    max_rows: int,
    most: int,
) -> Constants | None:
    """The names before their contexts, through all layers.

    Args:
        folded: the tower.
        start: SOT in it.
        attention_of: makes the attention of a layout.
        ids: [K, L] the prompts' tokens.
        slot: [K, L] where their context stands.
        arena: memory.
        scratch: more of it.
        max_rows: of a chunk.
        most: bytes the table may take.

    Returns:
        The table, or None where it would be larger.
    """
    before = names_before(slot)
    named = np.flatnonzero(before > 0)
    cut = ids[named, : int(before.max()) + 1]
    alone = np.zeros(len(named), dtype=np.int64)
    forest = grow_forest(cut, np.full(cut.shape, -1), before[named], alone, 0, len(folded.embedding))
    n_rows = int((forest.lengths - forest.shared).sum())
    if n_rows * (3 * len(folded.layers) - 2) * folded.width * folded.narrow.itemsize > most:
        return None
    nothing = torch.zeros(0, folded.width, dtype=folded.wide, device=folded.device)
    qkv, last = [], []
    rows = np.full(forest.codes.shape, -1, dtype=np.int64)
    done = 0
    for part in cut_into_chunks(forest, max_rows):
        layout = lay_out(forest, part, constants=False)
        chunk = chunk_of(folded, layout, attention_of(folded, layout), forest, named)
        arena.reset()
        kept = forward(folded, start, chunk, nothing, arena, scratch, save=True)
        own = [chunk.attention.projected(state.attended) for state in kept.layers]
        none = torch.zeros(0, layout.n_rows, 3 * folded.width, dtype=folded.narrow, device=folded.device)
        qkv.append(torch.stack(own) if own else none)
        last.append(normalise(kept.x, folded.layers[-1].eps_1)[0].to(folded.narrow))
        _number_rows(rows, layout, forest, done)
        done += layout.n_rows
    index = np.full((len(ids), ids.shape[1] - 1), -1, dtype=np.int64)
    index[named, : forest.codes.shape[1]] = rows[forest.index]
    return Constants(index, torch.cat(qkv, dim=1), torch.cat(last))


def _number_rows(rows: Ints, layout: Layout, forest: Forest, done: int) -> None:
    """Write the rows of a layout's prompts, by depth, into [C, A]; ``done`` rows come before."""
    for segment in layout.segments:
        for i in range(segment.first_prompt, segment.end_prompt):
            end = layout.row_place[layout.end_row[i]]
            trunk = layout.holds[segment.start + np.flatnonzero(layout.trunk_seen[end])]
            band = layout.end_band[i]
            own = np.concatenate([trunk, band[band >= 0]])
            rows[layout.prompts[i], layout.positions[own] - 1] = done + own
