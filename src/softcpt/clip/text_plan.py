"""Which rows of the text tower have to be computed for a set of prompts, and who attends to whom.

The tower is causal, so a row depends on what stands before it and on nothing else: rows with the same
history are the same row. The prompts form a forest (SOT, which all of them share, is a constant and no row),
and each of its nodes is computed once in a chunk:

    SOT - x1 - x2 - ... - x16 -+- apple - . - EOT
                               +- baby -+- carriage - . - EOT
                               |        +- grand - piano - . - EOT
                               +- cat - . - EOT

A chunk lays its rows out depth first, in segments. Nodes that many rows refer to from afar (a task's context,
a first word that many names share) are hoisted: they stand at the head of their segment as its *trunk*, and
every row of the segment is compared with the whole trunk. All other ancestors of a row, its *band*, lie
within ``reach`` rows before it. Rows are cut into windows, and a window's keys are one block of rows:

    segment  [ trunk | branch branch branch ... ]      window  [ reach rows before | W own rows ]

Where the name stands before the context, its rows depend on no context: they are constants of the tower,
which the band holds in *slots* of their own beside the rows that are computed.

Letters: K prompts, C different prompts of a chunk, N rows, M slots (N and the constants), A depth (position
without SOT), T trunk columns, W window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FAR = 24
"""In a large task a shared row is hoisted if the last row that refers to it is further away than this."""

SMALL_TASK = 64
"""A task of up to this many rows has no trunk: its context is an ordinary part of the band."""


class Segment(NamedTuple):
    """A run of slots that share a trunk: [start, start + trunk) is the trunk, [start, end) refer to it."""

    start: int
    trunk: int
    end: int
    first_prompt: int
    end_prompt: int


@dataclass(frozen=True)
class Forest:
    """Different prompts in depth-first order.

    Attributes:
        codes: [C, A] what stands at each depth: a token's id, ``n_tokens`` + the number of a context vector
            (context * length + place), or -1 behind EOT.
        lengths: [C] depths in use.
        constants: [C] how many leading depths are constants (names before their context).
        prompt: [C] one of the prompts given that is this one.
        index: [K] for each prompt given, which of these it is.
        n_tokens: size of the vocabulary.
    """

    codes: Ints
    lengths: Ints
    constants: Ints
    prompt: Ints
    index: Ints
    n_tokens: int

    @cached_property
    def shared(self) -> Ints:
        """[C] leading depths that each prompt shares with the one before it."""
        return _shared_depths(self.codes)


def grow_forest(ids: Ints, slot: Ints, end: Ints, owner: Ints, n_context: int, n_tokens: int) -> Forest:
    """Sort prompts and drop repeated ones.

    Args:
        ids: [K, L] token ids.
        slot: [K, L] which context vector stands there, -1 for none.
        end: [K] position of EOT.
        owner: [K] whose context a prompt takes.
        n_context: vectors of a context.
        n_tokens: size of the vocabulary.
    """
    codes = np.where(slot >= 0, n_tokens + owner[:, None] * n_context + slot, ids)[:, 1:]
    behind = np.arange(1, ids.shape[1])[None, :] > end[:, None]
    codes = np.where(behind, -1, codes)
    is_context = (codes >= n_tokens).any(axis=1)
    before = np.where(is_context, (codes >= n_tokens).argmax(axis=1), 0)
    order = np.lexsort(codes.T[::-1])
    codes = codes[order]
    is_new = np.ones(len(codes), dtype=bool)
    is_new[1:] = (codes[1:] != codes[:-1]).any(axis=1)
    index = np.empty(len(codes), dtype=np.int64)
    index[order] = np.cumsum(is_new) - 1
    prompt = order[is_new]
    return Forest(codes[is_new], end[prompt].astype(np.int64), before[prompt], prompt, index, n_tokens)


def _shared_depths(codes: Ints) -> Ints:
    same = np.zeros(len(codes), dtype=np.int64)
    equal = (codes[1:] == codes[:-1]) & (codes[1:] >= 0)
    same[1:] = np.where(equal.all(axis=1), codes.shape[1], (~equal).argmax(axis=1))
    return same


def cut_into_chunks(forest: Forest, max_rows: int) -> list[Ints]:
    """Prompts of each chunk: whole tasks up to ``max_rows`` rows together, larger ones in even parts.

    Small tasks and large ones do not share a chunk, since they want other bands.
    """
    rows = forest.lengths - forest.shared
    heads = np.flatnonzero(forest.shared == 0)  # a new tree, which for a context at the front is a new task
    trees = np.add.reduceat(rows, heads) if len(heads) else np.zeros(0, dtype=np.int64)
    ends = np.append(heads[1:], len(rows))
    chunks: list[Ints] = []
    for wanted in (trees <= SMALL_TASK, trees > SMALL_TASK):
        open_prompts: list[Ints] = []
        open_rows = 0
        for tree in np.flatnonzero(wanted):
            size = int(trees[tree])
            prompts = np.arange(heads[tree], ends[tree])
            if open_prompts and open_rows + size > max_rows:
                chunks.append(np.concatenate(open_prompts))
                open_prompts, open_rows = [], 0
            if size > max_rows:
                n_parts = -(-size // max_rows)
                done = np.cumsum(rows[prompts])
                cuts = np.searchsorted(done, size * np.arange(1, n_parts) / n_parts)
                chunks += [part for part in np.split(prompts, np.unique(cuts)) if len(part)]
                continue
            open_prompts.append(prompts)
            open_rows += size
        if open_prompts:
            chunks.append(np.concatenate(open_prompts))
    return chunks


@dataclass(frozen=True)
class Layout:
    """Rows and slots of one chunk, as numbers on the CPU.

    Attributes:
        codes: [M] what stands in each slot.
        positions: [M] where it stands in its prompt (SOT is 0).
        constant_of_slot: [M] (prompt of the forest, depth) as one number, -1 for computed rows.
        row_slot: [N] the slot of each computed row.
        segments: all slots, in order.
        reach: how far back the band goes.
        window: W.
        trunk_seen: [M, T] which columns of its segment's trunk a slot attends to.
        band_seen: [B * W, reach + W] which rows of its window's block a slot attends to; nothing behind M.
        end_slot: [C] where the prompts end.
        end_band: [C, A'] slots of each end's band, the end itself included; -1 where there are fewer.
        prompts: [C] which of the forest's prompts they are.
    """

    codes: Ints
    positions: Ints
    constant_of_slot: Ints
    row_slot: Ints
    segments: tuple[Segment, ...]
    reach: int
    window: int
    trunk_seen: NDArray[np.bool_]
    band_seen: NDArray[np.bool_]
    end_slot: Ints
    end_band: Ints
    prompts: Ints

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.row_slot)

    @property
    def n_slots(self) -> int:
        """M."""
        return len(self.codes)

    @property
    def n_trunk(self) -> int:
        """T."""
        return self.trunk_seen.shape[1]


def lay_out(forest: Forest, prompts: Ints, *, constants: bool, window: int | None = None) -> Layout:
    """The rows of a chunk.

    Args:
        forest: all prompts.
        prompts: the chunk's, ascending.
        constants: whether names before their context are slots that hold constants, not rows.
        window: rows of a window; None chooses.
    """
    codes, lengths = forest.codes[prompts], forest.lengths[prompts]
    before = forest.constants[prompts] if constants else np.zeros(len(prompts), dtype=np.int64)
    depth = np.arange(codes.shape[1])
    shared = _shared_depths(codes)
    # Constants stand beside each prompt anew; what is shared behind them stays shared.
    shared = np.where(shared <= before, 0, shared)
    laid = (depth >= shared[:, None]) & (depth < lengths[:, None])
    n_slots = int(laid.sum())
    own = np.full(codes.shape, -1, dtype=np.int64)
    own[laid] = np.arange(n_slots)
    inside = depth < lengths[:, None]
    path = np.where(inside, np.maximum.accumulate(own, axis=0), -1)  # [C, A] slots of each prompt
    of_prompt, of_depth = np.nonzero(laid)

    hoisted = _far_nodes(path, n_slots) & ~(of_depth < before[of_prompt])
    root = path[:, 0]
    key = np.where(hoisted[root], root, -1)
    segment = np.concatenate([[0], np.cumsum(key[1:] != key[:-1])])
    order = np.lexsort((~hoisted, segment[of_prompt]))  # stable: depth first within each kind
    place = np.empty(n_slots, dtype=np.int64)
    place[order] = np.arange(n_slots)

    path = np.where(inside, place[path], -1)
    of_prompt, of_depth, hoisted = of_prompt[order], of_depth[order], hoisted[order]
    segments = _segments(segment, of_prompt, hoisted)
    start_of = np.array([s.start for s in segments])[segment[of_prompt]]

    # Ancestors of every slot, itself included.
    ancestors = path[of_prompt]
    is_one = depth <= of_depth[:, None]
    is_trunk = is_one & hoisted[ancestors]
    is_band = is_one & ~is_trunk
    slots = np.arange(n_slots)
    back = np.where(is_band, slots[:, None] - ancestors, 0)
    reach = int(back.max(initial=0))
    window = window or (16 if reach <= 16 else 24)
    n_windows = -(-n_slots // window)
    trunk_seen = np.zeros((n_slots, max((s.trunk for s in segments), default=0)), dtype=bool)
    at, which = np.nonzero(is_trunk)
    trunk_seen[at, ancestors[at, which] - start_of[at]] = True
    band_seen = np.zeros((n_windows * window, reach + window), dtype=bool)
    at, which = np.nonzero(is_band)
    band_seen[at, ancestors[at, which] - (at // window * window - reach)] = True

    end_slot = path[np.arange(len(prompts)), lengths - 1]
    constant = of_depth < before[of_prompt]
    return Layout(
        codes=codes[of_prompt, of_depth],
        positions=of_depth + 1,
        constant_of_slot=np.where(constant, prompts[of_prompt] * codes.shape[1] + of_depth, -1),
        row_slot=np.flatnonzero(~constant),
        segments=segments,
        reach=reach,
        window=window,
        trunk_seen=trunk_seen,
        band_seen=band_seen,
        end_slot=end_slot,
        end_band=_packed(np.where(inside & ~hoisted[path], path, -1)),
        prompts=prompts,
    )


def _far_nodes(path: Ints, n_slots: int) -> NDArray[np.bool_]:
    """[M] slots that several prompts share and whose last reader is far away."""
    inside = path >= 0
    readers = np.bincount(path[inside], minlength=n_slots)
    last = np.zeros(n_slots, dtype=np.int64)
    end = path.max(axis=1)
    for depth in range(path.shape[1]):
        own = inside[:, depth]
        np.maximum.at(last, path[own, depth], end[own])
    far = SMALL_TASK if n_slots_per_tree(path) <= SMALL_TASK else FAR
    return (readers > 1) & (last - np.arange(n_slots) > far)


def n_slots_per_tree(path: Ints) -> int:
    """Slots of the largest tree of a chunk."""
    heads = np.flatnonzero(np.diff(path[:, 0], prepend=-1))
    ends = np.append(path[heads[1:], 0], path.max() + 1)
    return int((ends - path[heads, 0]).max(initial=0))


def _segments(segment: Ints, of_prompt: Ints, hoisted: NDArray[np.bool_]) -> tuple[Segment, ...]:
    of_slot = segment[of_prompt]
    n = int(segment[-1]) + 1
    starts = np.searchsorted(of_slot, np.arange(n + 1))
    firsts = np.searchsorted(segment, np.arange(n + 1))
    trunks = np.bincount(of_slot[hoisted], minlength=n)
    return tuple(
        Segment(int(starts[s]), int(trunks[s]), int(starts[s + 1]), int(firsts[s]), int(firsts[s + 1]))
        for s in range(n)
    )


def _packed(rows: Ints) -> Ints:
    """Each row's entries >= 0 to the left, in order; as many columns as the fullest row needs."""
    there = rows >= 0
    packed = np.full((len(rows), int(there.sum(axis=1).max(initial=0))), -1, dtype=np.int64)
    at, which = np.nonzero(there)
    packed[at, (np.cumsum(there, axis=1) - 1)[at, which]] = rows[at, which]
    return packed


def count_histories(forest: Forest, prompts: Sequence[int] | Ints | None = None) -> int:
    """Different histories of the prompts: the closed form of the rows an exact computation needs."""
    chosen = range(len(forest.codes)) if prompts is None else prompts
    histories = {
        forest.codes[c, : depth + 1].tobytes() for c in chosen for depth in range(int(forest.lengths[c]))
    }
    return len(histories)
