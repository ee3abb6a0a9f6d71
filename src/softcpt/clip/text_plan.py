"""Which rows of the text tower have to be computed for a set of prompts, and who attends to whom.

The tower is causal, so a row depends on what stands before it and on nothing else: rows with the same
history are the same row. The prompts form a forest (SOT, which all of them share, is a constant and no row),
and each of its nodes is computed once in a chunk:

    SOT - x1 - x2 - ... - x16 -+- apple - . - EOT
                               +- baby -+- carriage - . - EOT
                               |        +- grand - piano - . - EOT
                               +- cat - . - EOT

Nodes that many rows refer to from afar (a task's context, a first word that many names share) are hoisted:
they are the *trunk* of their segment, and every row of the segment is compared with the whole trunk. What is
left of the forest falls apart into small trees, and these are packed into *windows* of W places: a row's
other ancestors, its *band*, stand in the same window, so that attention inside windows is one dense product.

    segment  [ trunk | tree tree . | tree tree tree | tree tree . ]      places, cut into windows

Small tasks have no trunk: their context stands in the window with its names, and SOT stands there too, once a
window. Where a name stands before its context, its rows depend on no context: they are constants of the tower
that take places in a window, but no rows.

Letters: K prompts, C different prompts of a chunk, N rows, P places, A depth (position without SOT), T trunk
columns, W window.
"""

from __future__ import annotations

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


MIN_WINDOW = 16
"""Windows have at least this many places; smaller products waste their time on overhead."""

START, NOTHING = -1, -2
"""What a place can hold that is neither a row nor a constant: SOT, or nothing (it then repeats SOT)."""


class Segment(NamedTuple):
    """Places [start, end) and prompts that share a trunk, which is at the places [start, start + trunk)."""

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


def cut_into_chunks(forest: Forest, max_rows: int, *, constants: bool = False) -> list[Ints]:
    """Prompts of each chunk: whole tasks up to ``max_rows`` rows together, larger ones in even parts.

    Small tasks and large ones do not share a chunk, since they want other bands.
    """
    shared = forest.shared
    if constants:  # constants are no rows, and hold no prompts together
        shared = np.where(shared <= forest.constants, 0, shared)
    rows = forest.lengths - np.maximum(shared, forest.constants if constants else 0)
    heads = np.flatnonzero(shared == 0)  # a new tree, which for a context at the front is a new task
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
    """Rows and places of one chunk, as numbers on the CPU.

    Attributes:
        codes: [N] what each row is.
        positions: [N] where it stands in its prompt (SOT is 0).
        row_place: [N] the place of each row, ascending.
        holds: [P] what each place holds: a row, ``N + i`` for the i-th of ``constants``, or one of START and
            NOTHING.
        constants: [n, 2] prompt of the forest and depth of each constant that is placed.
        segments: all places, in order.
        window: W; P is a multiple of it.
        has_trunk: whether rows are compared with SOT and a trunk; without, SOT stands in each window.
        trunk_seen: [P, T] which columns of its segment's trunk a place attends to.
        band_seen: [P, W] which places of its window a place attends to.
        end_row: [C] where the prompts end.
        end_band: [C, A'] rows and constants (as in ``holds``) of each end's band, itself included; -1 where
            there are fewer.
        prompts: [C] which of the forest's prompts they are.
    """

    codes: Ints
    positions: Ints
    row_place: Ints
    holds: Ints
    constants: Ints
    segments: tuple[Segment, ...]
    window: int
    has_trunk: bool
    trunk_seen: NDArray[np.bool_]
    band_seen: NDArray[np.bool_]
    end_row: Ints
    end_band: Ints
    prompts: Ints

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.row_place)

    @property
    def n_places(self) -> int:
        """P."""
        return len(self.holds)

    @property
    def n_trunk(self) -> int:
        """T."""
        return int(self.trunk_seen.shape[1])

    @property
    def sources(self) -> Ints:
        """[P] what each place holds, as a source: a row, N for SOT, N + 1 + i for the i-th constant."""
        n = self.n_rows
        return np.where(self.holds < 0, n, np.where(self.holds >= n, self.holds + 1, self.holds))

    def lists(self) -> tuple[Ints, Ints]:
        """Whom each row attends to: [N + 1] where its list begins, and [V] the sources of all lists."""
        place, sources = self.row_place, self.sources
        starts = np.zeros(self.n_places, dtype=np.int64)
        for segment in self.segments:
            starts[segment.start : segment.end] = segment.start
        row_of_trunk, column = np.nonzero(self.trunk_seen[place])
        row_of_band, other = np.nonzero(self.band_seen[place])
        sot = np.arange(self.n_rows if self.has_trunk else 0)  # without a trunk it stands in the window
        of_row = np.concatenate([sot, row_of_trunk, row_of_band])
        seen = np.concatenate(
            [
                np.full(len(sot), self.n_rows),
                sources[starts[place[row_of_trunk]] + column],
                sources[place[row_of_band] // self.window * self.window + other],
            ]
        )
        order = np.argsort(of_row, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(of_row, minlength=self.n_rows))])
        return first, seen[order]

    @cached_property
    def n_seen(self) -> tuple[int, int]:
        """Pairs of a row and a key it attends to, SOT among them: of all rows, and of the ends alone."""
        places = self.row_place
        seen = self.trunk_seen[places].sum(axis=1) + self.band_seen[places].sum(axis=1) + self.has_trunk
        return int(seen.sum()), int(seen[self.end_row].sum())


def lay_out(forest: Forest, prompts: Ints, *, constants: bool) -> Layout:
    """The rows of a chunk.

    Args:
        forest: all prompts.
        prompts: the chunk's, ascending.
        constants: whether names before their context are constants, not rows.
    """
    codes, lengths = forest.codes[prompts], forest.lengths[prompts]
    before = forest.constants[prompts] if constants else np.zeros(len(prompts), dtype=np.int64)
    depth = np.arange(codes.shape[1])
    shared = _shared_depths(codes)
    # Constants stand beside each prompt anew; what is shared behind them stays shared.
    shared = np.where(shared <= before, 0, shared)
    inside = depth < lengths[:, None]
    laid = inside & (depth >= shared[:, None])
    n_nodes = int(laid.sum())
    own = np.full(codes.shape, -1, dtype=np.int64)
    own[laid] = np.arange(n_nodes)
    path = np.where(
        inside, np.maximum.accumulate(own, axis=0), -1
    )  # [C, A] nodes of each prompt, depth first
    of_prompt, of_depth = np.nonzero(laid)
    is_constant = of_depth < before[of_prompt]
    # Behind constants nothing is hoisted: its band would lie in another window.
    hoisted = _far_nodes(path, n_nodes) & (before[of_prompt] == 0)
    has_trunk = bool(hoisted.any())

    root = path[:, 0]
    key = np.where(hoisted[root], root, -1)
    segment = np.concatenate([[0], np.cumsum(key[1:] != key[:-1])])
    tree = _trees(path, inside, hoisted)
    place, segments, window = _pack(segment, of_prompt, hoisted, tree, with_start=not has_trunk)

    n_places = segments[-1].end
    holds = np.full(n_places, NOTHING, dtype=np.int64)
    if not has_trunk:
        holds[::window] = START
    order = np.argsort(place)
    rows, fixed = order[~is_constant[order]], order[is_constant[order]]
    number = np.empty(n_nodes, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    number[fixed] = len(rows) + np.arange(len(fixed))
    holds[place] = number

    # Ancestors of every node, itself included.
    ancestors = path[of_prompt]
    is_one = depth <= of_depth[:, None]
    is_trunk = is_one & hoisted[ancestors]
    start_of = np.array([s.start for s in segments])[segment[of_prompt]]
    trunk_seen = np.zeros((n_places, max(s.trunk for s in segments)), dtype=bool)
    at, which = np.nonzero(is_trunk)
    trunk_seen[place[at], place[ancestors[at, which]] - start_of[at]] = True
    band_seen = np.zeros((n_places, window), dtype=bool)
    at, which = np.nonzero(is_one & ~is_trunk)
    band_seen[place[at], place[ancestors[at, which]] % window] = True
    band_seen[:, 0] |= not has_trunk
    return Layout(
        codes=codes[of_prompt[rows], of_depth[rows]],
        positions=of_depth[rows] + 1,
        row_place=place[rows],
        holds=holds,
        constants=np.stack([prompts[of_prompt[fixed]], of_depth[fixed]], axis=1),
        segments=segments,
        window=window,
        has_trunk=has_trunk,
        trunk_seen=trunk_seen,
        band_seen=band_seen,
        end_row=number[path[np.arange(len(prompts)), lengths - 1]],
        end_band=_packed(np.where(inside & ~hoisted[path], number[path], -1)),
        prompts=prompts,
    )


def _trees(path: Ints, inside: NDArray[np.bool_], hoisted: NDArray[np.bool_]) -> Ints:
    """[nodes] the root of each node's tree, once the hoisted ones are taken out; -1 for those."""
    tree = np.full(len(hoisted), -1, dtype=np.int64)
    left = inside & ~hoisted[path]
    first = left.argmax(axis=1)
    root = np.broadcast_to(path[np.arange(len(path)), first][:, None], path.shape)
    tree[path[left]] = root[left]
    return tree


def _pack(
    segment: Ints, of_prompt: Ints, hoisted: NDArray[np.bool_], tree: Ints, *, with_start: bool
) -> tuple[Ints, tuple[Segment, ...], int]:
    """A place for each node: trunks first, then whole trees into windows, the largest first.

    Returns:
        The places, the segments, and W.
    """
    reserved = int(with_start)
    place = np.full(len(tree), -1, dtype=np.int64)
    by_tree = np.lexsort((np.arange(len(tree)), tree))
    by_tree = by_tree[np.searchsorted(tree[by_tree], 0) :]  # without the hoisted
    heads = np.flatnonzero(np.diff(tree[by_tree], prepend=-1))
    sizes = np.diff(np.append(heads, len(by_tree)))
    window = max(MIN_WINDOW, int(sizes.max(initial=0))) + reserved
    segment_of_tree = segment[of_prompt[by_tree[heads]]]
    trunk_nodes = np.flatnonzero(hoisted)
    segment_of_trunk = segment[of_prompt[trunk_nodes]]
    segments: list[Segment] = []
    start = 0
    firsts = np.searchsorted(segment, np.arange(int(segment[-1]) + 2))
    for s in range(int(segment[-1]) + 1):
        trunk = trunk_nodes[segment_of_trunk == s]
        place[trunk] = start + np.arange(len(trunk))
        n_windows = -(-len(trunk) // window)
        room: list[list[int]] = [[] for _ in range(window + 1)]  # free room -> first free places
        if len(trunk) % window:
            room[window - len(trunk) % window].append(start + len(trunk))
        own = np.flatnonzero(segment_of_tree == s)
        for t in own[np.argsort(-sizes[own], kind="stable")]:
            size = int(sizes[t])
            free = next((r for r in range(size, window + 1) if room[r]), None)
            if free is None:
                free, at = window - reserved, start + n_windows * window + reserved
                n_windows += 1
            else:
                at = room[free].pop()
            place[by_tree[heads[t] : heads[t] + size]] = at + np.arange(size)
            room[free - size].append(at + size)
        end = start + n_windows * window
        segments.append(Segment(start, len(trunk), end, int(firsts[s]), int(firsts[s + 1])))
        start = end
    return place, tuple(segments), window


def _far_nodes(path: Ints, n_nodes: int) -> NDArray[np.bool_]:
    """[nodes] those that several prompts share and whose last reader is far away."""
    inside = path >= 0
    readers = np.bincount(path[inside], minlength=n_nodes)
    last = np.zeros(n_nodes, dtype=np.int64)
    end = path.max(axis=1)
    for depth in range(path.shape[1]):
        own = inside[:, depth]
        np.maximum.at(last, path[own, depth], end[own])
    far = SMALL_TASK if _largest_tree(path) <= SMALL_TASK else FAR
    return (readers > 1) & (last - np.arange(n_nodes) > far)


def _largest_tree(path: Ints) -> int:
    """Nodes of the largest tree of a chunk."""
    heads = np.flatnonzero(np.diff(path[:, 0], prepend=-1))
    ends = np.append(path[heads[1:], 0], path.max() + 1)
    return int((ends - path[heads, 0]).max(initial=0))


def _packed(rows: Ints) -> Ints:
    """Each row's entries >= 0 to the left, in order; as many columns as the fullest row needs."""
    there = rows >= 0
    packed = np.full((len(rows), int(there.sum(axis=1).max(initial=0))), -1, dtype=np.int64)
    at, which = np.nonzero(there)
    packed[at, (np.cumsum(there, axis=1) - 1)[at, which]] = rows[at, which]
    return packed
