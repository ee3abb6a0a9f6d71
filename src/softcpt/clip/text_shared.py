"""The fast text encoder: every row of the prompts' forest once, forward and backward by hand.

Computes what :meth:`softcpt.clip.text.TextTower.encode` computes, features and gradients of the contexts, up
to rounding (tests hold the two together). What is different:

    rows        only those of the plan: shared prefixes and names once, no padding, nothing behind EOT
    constants   SOT's keys and values, and layer 0 of token rows, are never computed again
    last layer  for the EOT rows alone, with keys and values absorbed into the query and the output
    weights     folded (``text_folded``) and frozen: no gradients for them
    backward    one autograd node; what it needs is kept in buffers that are used again

Letters: d width, H heads, e = d / H, L layers, N rows, P places in windows of W, C prompts of a chunk, T trunk
columns, S columns of scores (SOT, trunk and window, or the window alone), D embedding.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own habit
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.clip.text import TextTower
from softcpt.clip.text_folded import FoldedTower, fold, normalise, normalise_backward
from softcpt.clip.text_plan import Forest, Layout, Segment, cut_into_chunks, grow_forest, lay_out
from softcpt.clip.tokens import NamePrompts

MAX_ROWS = {"cpu": 2048}
"""Rows of a chunk: enough for the products to run at full rate, few enough to stay in the cache."""

MAX_ROWS_ELSEWHERE = 16384

SAVED_BYTES = 3 << 30
"""Activations kept between forward and backward; what is beyond is computed a second time."""

TABLE_BYTES = 256 << 20
"""Largest table of constants (layer 0 of tokens; names before their context); without it they are rows."""

PLANS_KEPT = 64


class SharedTextEncoder:
    """A tower's fast encoder.

    It belongs to one state of the tower's weights, device and precision; :func:`shared_encoder` finds or
    makes the right one.

    Args:
        tower: whose blocks can be folded.
        narrow: dtype of the products; the tower's own, or that of autocast.
        max_rows: of a chunk; None chooses by device.
        saved_bytes: see :data:`SAVED_BYTES`.
    """

    def __init__(
        self,
        tower: TextTower,
        narrow: torch.dtype | None = None,
        *,
        max_rows: int | None = None,
        saved_bytes: int = SAVED_BYTES,
    ) -> None:
        with torch.inference_mode(False):
            self.folded = fold(tower, narrow)
            self.embedding = tower.token_embedding.weight.detach()
            self.positions = tower.positional_embedding.detach().to(self.folded.wide)
        self.device = tower.device
        self.max_rows = max_rows or MAX_ROWS.get(self.device.type, MAX_ROWS_ELSEWHERE)
        self.saved_bytes = saved_bytes
        self._prompts: weakref.WeakKeyDictionary[NamePrompts, _Planned] = weakref.WeakKeyDictionary()
        self._starts: dict[int, Start] = {}
        self._idle: list[Arena] = []

    def encode(
        self,
        prompts: NamePrompts,
        context: Float[Tensor, "G n d"],
        owner: Int[Tensor, " K"],
        selected: Int[Tensor, " k"] | None = None,
    ) -> Float[Tensor, "k D"]:
        """Text features, not normalised, of prompts with the context put in; differentiable in the context.

        Args:
            prompts: all K of them.
            context: the contexts there are.
            owner: which of them each prompt takes.
            selected: which prompts, None for all.
        """
        if context.device != self.device:
            raise RuntimeError(f"the context is on {context.device}, the text tower on {self.device}")
        plan = self.plan(prompts, owner, selected)
        with torch.autocast(self.device.type, enabled=False):
            features: Tensor = _Encode.apply(context.to(self.folded.wide), self, plan)
            return features.index_select(0, plan.index)

    def plan(
        self, prompts: NamePrompts, owner: Int[Tensor, " K"], selected: Int[Tensor, " k"] | None = None
    ) -> Plan:
        """What is computed for these prompts; remembered."""
        if prompts not in self._prompts:
            self._prompts[prompts] = _Planned(prompts, self)
        return self._prompts[prompts].plan(owner, selected)

    def start(self, sot: int) -> Start:
        """SOT's constants."""
        if sot not in self._starts:
            with torch.inference_mode(False), torch.no_grad():
                self._starts[sot] = _start(self, sot)
        return self._starts[sot]

    @contextmanager
    def arena(self) -> Iterator[Arena]:
        """Memory for the time of a block."""
        borrowed = self.borrow()
        try:
            yield borrowed
        finally:
            self.give_back(borrowed)

    def borrow(self) -> Arena:
        """Memory of one's own until it is given back."""
        return self._idle.pop() if self._idle else Arena(self.device)

    def give_back(self, arena: Arena) -> None:
        """Let others use an arena's memory."""
        arena.reset()
        if len(self._idle) < 3:
            self._idle.append(arena)

    def poison(self) -> None:
        """Fill all idle memory with NaN: for tests that nothing is read before it is written."""
        for arena in self._idle:
            arena.fill(float("nan"))


_encoders: weakref.WeakKeyDictionary[TextTower, tuple[Any, dict[torch.dtype, SharedTextEncoder]]] = (
    weakref.WeakKeyDictionary()
)


def shared_encoder(tower: TextTower) -> SharedTextEncoder:
    """The fast encoder of a tower as it is now, in the precision that is in force now."""
    kind = tower.device.type
    narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tower.dtype
    if tower.dtype == torch.float64:
        narrow = torch.float64  # which autocast leaves alone
    weights = [*tower.parameters(), *tower.buffers()]
    state = tuple((w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights)  # noqa: SLF001
    known = _encoders.get(tower)
    if known is None or known[0] != state:
        known = (state, {})
        _encoders[tower] = known
    if narrow not in known[1]:
        known[1][narrow] = SharedTextEncoder(tower, narrow)
    return known[1][narrow]


# -- memory --------------------------------------------------------------------------------------------


class Arena:
    """Memory that is taken piece by piece and given back at once: fresh pages are dear."""

    PIECE = 1 << 25

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slabs: dict[torch.dtype, list[Tensor]] = {}
        self._at: dict[torch.dtype, tuple[int, int]] = {}

    def take(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor with any content."""
        size = prod(shape)
        slabs = self._slabs.setdefault(dtype, [])
        slab, used = self._at.get(dtype, (0, 0))
        while slab < len(slabs) and used + size > slabs[slab].numel():
            slab, used = slab + 1, 0
        if slab == len(slabs):
            with torch.inference_mode(False):
                slabs.append(torch.empty(max(size, self.PIECE), dtype=dtype, device=self.device))
        # Pieces begin at multiples of 64 bytes.
        self._at[dtype] = (slab, used + -(-size // 16) * 16)
        return slabs[slab][used : used + size].view(shape)

    def mark(self) -> dict[torch.dtype, tuple[int, int]]:
        """Where we are."""
        return dict(self._at)

    def rewind(self, mark: dict[torch.dtype, tuple[int, int]]) -> None:
        """Give back what was taken since the mark."""
        self._at = dict(mark)

    def reset(self) -> None:
        """Give back everything."""
        self._at = {}

    def fill(self, value: float) -> None:
        """Overwrite all memory."""
        for slabs in self._slabs.values():
            for slab in slabs:
                slab.fill_(value)


# -- plans on the device -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """A layout as tensors on the device.

    Attributes:
        layout: the numbers.
        token_rows: rows that are tokens, with ``token_ids`` and ``token_positions``.
        token_table: [U, 3d] layer 0 of all tokens at their positions, or None; ``token_index`` into it.
        context_rows: rows that are context vectors, with ``context_index`` and ``context_positions``.
        holds: [P] the source of each place: a row, N for SOT, N + 1 + i for the i-th constant.
        row_place: [N] the place of each row, and ``row_of_place`` [P] the reverse, N where there is none.
        constants: the table of constants, and ``constant_index``, those that are placed.
        trunk_mask: [P, 1 + T] added to the scores of SOT and trunk.
        band_mask: [P, W] added to those of the window.
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
    holds: Tensor
    row_place: Tensor
    row_of_place: Tensor
    constants: Constants | None
    constant_index: Tensor
    trunk_mask: Tensor
    band_mask: Tensor
    end_rows: Tensor
    end_band: Tensor
    end_mask: Tensor
    prompts: Tensor

    @property
    def n_rows(self) -> int:
        """N."""
        return self.layout.n_rows

    @property
    def n_trunk(self) -> int:
        """Columns of scores before the window's: SOT and T, or none."""
        return 1 + self.layout.n_trunk if self.layout.has_trunk else 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Those whose rows are compared with SOT and a trunk."""
        return self.layout.segments if self.layout.has_trunk else ()


@dataclass(frozen=True)
class Plan:
    """What is computed for some prompts.

    Attributes:
        forest: the different prompts.
        chunks: rows computed together.
        index: [k] the feature of each prompt asked for, among those of the forest.
        sot: id of the start token.
    """

    forest: Forest
    chunks: tuple[Chunk, ...]
    index: Tensor
    sot: int
    layers: int
    width: int
    embed_dim: int

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
        linear = rows * 12 * d * d * between - tokens * 3 * d * d
        last = n_classes * (12 * d * d + d * self.embed_dim)
        heads_times_width = d * (d // self.head_width)
        forward = linear + 2 * seen * d * between + last + 2 * seen_last * heads_times_width
        backward = linear + 4 * seen * d * between + last + 4 * seen_last * heads_times_width
        return forward, backward

    head_width: int = 64


class _Planned:
    """Plans of one set of prompts."""

    def __init__(self, prompts: NamePrompts, encoder: SharedTextEncoder) -> None:
        self._encoder = weakref.ref(encoder)
        self.ids = prompts.ids.cpu().numpy()
        self.slot = prompts.slot.cpu().numpy()
        self.end = prompts.end.cpu().numpy()
        self.n_context = prompts.n_context
        self._plans: OrderedDict[tuple[bytes, bytes | None], Plan] = OrderedDict()
        self._constants: Constants | None = None
        self._constants_known = False
        place = np.arange(self.ids.shape[1])[None, :]
        is_token = (self.slot < 0) & (place > 0) & (place <= self.end[:, None])
        self.tokens = np.unique((self.ids * self.ids.shape[1] + place)[is_token])
        self._table: Tensor | None = None

    def plan(self, owner: Tensor, selected: Tensor | None) -> Plan:
        owners = owner.cpu().numpy()
        chosen = None if selected is None else selected.cpu().numpy()
        key = (owners.tobytes(), None if chosen is None else chosen.tobytes())
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        plan = self._build(owners, chosen)
        self._plans[key] = plan
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return plan

    def _build(self, owner: np.ndarray, chosen: np.ndarray | None) -> Plan:
        encoder = self._encoder()
        assert encoder is not None  # it holds us
        which = np.arange(len(self.ids)) if chosen is None else chosen
        n_tokens = len(encoder.embedding)
        forest = grow_forest(
            self.ids[which], self.slot[which], self.end[which], owner[which], self.n_context, n_tokens
        )
        constants = self.constants(encoder)
        table = self.token_table(encoder)
        chunks = []
        for part in cut_into_chunks(forest, encoder.max_rows, constants=constants is not None):
            layout = lay_out(forest, part, constants=constants is not None)
            is_token = layout.codes < n_tokens
            pairs = layout.codes[is_token] * self.ids.shape[1] + layout.positions[is_token]
            in_table = np.searchsorted(self.tokens, pairs)
            chunks.append(_on_device(encoder, layout, forest, which, constants, table, in_table))
        folded = encoder.folded
        return Plan(
            forest=forest,
            chunks=tuple(chunks),
            index=torch.from_numpy(forest.index).to(encoder.device),
            sot=int(self.ids[0, 0]) if len(self.ids) else 0,
            layers=len(folded.layers),
            width=folded.width,
            embed_dim=int(folded.w_features.shape[0]),
            head_width=folded.width // folded.heads,
        )

    def token_table(self, encoder: SharedTextEncoder) -> Tensor | None:
        """[U, 3d] layer 0 of every token at every position where it stands, or None where that is much."""
        folded = encoder.folded
        if self._table is None and len(self.tokens) * 3 * folded.width * folded.narrow.itemsize <= TABLE_BYTES:
            ids, positions = np.divmod(self.tokens, self.ids.shape[1])
            with torch.inference_mode(False), torch.no_grad():
                self._table = _first_layer(
                    encoder,
                    torch.from_numpy(ids).to(encoder.device),
                    torch.from_numpy(positions).to(encoder.device),
                )
        return self._table

    def constants(self, encoder: SharedTextEncoder) -> Constants | None:
        """Keys and values of names that stand before their context, or None."""
        if not self._constants_known:
            self._constants = _constants(encoder, self.ids, self.slot)
            self._constants_known = True
        return self._constants


def _on_device(
    encoder: SharedTextEncoder,
    layout: Layout,
    forest: Forest,
    which: np.ndarray,
    constants: Constants | None = None,
    token_table: Tensor | None = None,
    token_index: np.ndarray | None = None,
) -> Chunk:
    device, wide = encoder.device, encoder.folded.wide
    codes, n = layout.codes, layout.n_rows
    is_token = codes < forest.n_tokens
    holds = layout.holds
    sources = np.where(holds < 0, n, np.where(holds >= n, holds + 1, holds))
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

    sot = np.ones((layout.n_places, 1), dtype=bool)
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
        holds=tensor(sources),
        row_place=tensor(layout.row_place),
        row_of_place=tensor(np.where((holds < 0) | (holds >= n), n, holds)),
        constants=constants if len(table) else None,
        constant_index=tensor(table),
        trunk_mask=mask(np.concatenate([sot, layout.trunk_seen], axis=1)),
        band_mask=mask(layout.band_seen),
        end_rows=tensor(layout.end_row),
        end_band=tensor(np.maximum(ends, 0)),
        end_mask=mask(np.concatenate([sot[: len(ends)], layout.trunk_seen[end_place], ends >= 0], axis=1)),
        prompts=tensor(layout.prompts),
    )


# -- constants -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """What SOT is, which sees only itself.

    Attributes:
        qkv: [L - 1, 1, 3d] of each layer but the last.
        last: [1, d] the normalised input of the last layer.
    """

    qkv: Tensor
    last: Tensor


def _start(encoder: SharedTextEncoder, sot: int) -> Start:
    folded = encoder.folded
    d = folded.width
    x = (encoder.embedding[sot].to(folded.wide) + encoder.positions[0])[None]
    found = [torch.zeros(0, 1, 3 * d, dtype=folded.narrow, device=encoder.device)]
    for layer in folded.layers[:-1]:
        h = normalise(x, layer.eps_1)[0].to(folded.narrow)
        qkv = h @ layer.w_qkv.t()
        found.append(qkv[None])
        y = x + layer.b_out + (qkv[:, 2 * d :] @ layer.w_out.t())  # it attends to itself alone
        u = torch.addmm(layer.b_up, normalise(y, layer.eps_2)[0].to(folded.narrow), layer.w_up.t())
        x = y + layer.b_down + folded.activate(u, out=torch.empty_like(u)) @ layer.w_down.t()
    last = normalise(x, folded.layers[-1].eps_1)[0].to(folded.narrow)
    return Start(torch.cat(found), last)


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


def _constants(encoder: SharedTextEncoder, ids: np.ndarray, slot: np.ndarray) -> Constants | None:
    has_context = (slot >= 0).any(axis=1)
    before = np.where(has_context, (slot >= 0).argmax(axis=1) - 1, 0)  # depths of the name
    if not (before > 0).any():
        return None
    folded = encoder.folded
    named = np.flatnonzero(before > 0)
    cut = ids[named, : int(before.max()) + 1]
    forest = grow_forest(
        cut, np.full(cut.shape, -1), before[named], np.zeros(len(named), dtype=np.int64), 0, len(encoder.embedding)
    )
    n_rows = int((forest.lengths - forest.shared).sum())
    size = n_rows * (3 * len(folded.layers) - 2) * folded.width * folded.narrow.itemsize
    if size > TABLE_BYTES:
        return None
    qkv, last = [], []
    index = np.full((len(ids), ids.shape[1] - 1), -1, dtype=np.int64)
    done = 0
    none = torch.zeros(0, folded.width, dtype=folded.wide, device=encoder.device)
    with torch.no_grad(), torch.inference_mode(False), encoder.arena() as arena:
        for part in cut_into_chunks(forest, encoder.max_rows):
            layout = lay_out(forest, part, constants=False)
            chunk = _on_device(encoder, layout, forest, named)
            arena.reset()
            with encoder.arena() as scratch:
                kept = _forward(encoder, encoder.start(int(ids[0, 0])), chunk, none, arena, scratch, save=True)
            own = none.new_empty(len(kept.layers), layout.n_rows, 3 * folded.width)
            for state, room in zip(kept.layers, own, strict=True):
                by_place = state.qkv.permute(2, 0, 1, 3).reshape(layout.n_places, -1)
                room.copy_(by_place[chunk.row_place])
            qkv.append(own.to(folded.narrow))
            last.append(normalise(kept.x, folded.layers[-1].eps_1)[0].to(folded.narrow))
            index_of = _paths(layout, forest)
            for prompt, path in index_of.items():
                rows = np.flatnonzero(forest.index == prompt)
                index[named[rows][:, None], np.arange(len(path))[None, :]] = done + path
            done += layout.n_rows
    return Constants(index, torch.cat(qkv, dim=1), torch.cat(last))


def _paths(layout: Layout, forest: Forest) -> dict[int, np.ndarray]:
    """Rows of each prompt of a layout, by depth."""
    found = {}
    for i, prompt in enumerate(layout.prompts):
        end = layout.row_place[layout.end_row[i]]
        segment = next(s for s in layout.segments if s.start <= end < s.end)
        trunk = layout.holds[segment.start + np.flatnonzero(layout.trunk_seen[end])]
        band = layout.end_band[i]
        path = np.concatenate([trunk, band[band >= 0]])
        found[int(prompt)] = path[np.argsort(layout.positions[path])]
    return found


# -- forward -------------------------------------------------------------------------------------------


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


def _forward(
    encoder: SharedTextEncoder,
    start: Start,
    chunk: Chunk,
    context: Tensor,
    arena: Arena,
    scratch: Arena,
    *,
    save: bool,
) -> ChunkState:
    """One chunk through the tower. Without ``save`` every layer uses the same memory."""
    folded = encoder.folded
    d, wide, narrow = folded.width, folded.wide, folded.narrow
    n, width_up = chunk.n_rows, folded.layers[0].w_up.shape[0]
    states: list[LayerState] = []

    x = arena.take(n, d, dtype=wide)
    x.index_copy_(
        0, chunk.token_rows,
        encoder.embedding[chunk.token_ids].to(wide) + encoder.positions[chunk.token_positions],
    )  # fmt: skip
    x.index_copy_(0, chunk.context_rows, context[chunk.context_index] + encoder.positions[chunk.context_positions])
    spare = None if save else arena.take(n, d, dtype=wide)
    mark = arena.mark()
    for i, layer in enumerate(folded.layers[:-1]):
        if not save:
            arena.rewind(mark)
        scratch.reset()
        qkv = arena.take(3, folded.heads, chunk.layout.n_places, d // folded.heads, dtype=narrow)
        norm_1 = _project(encoder, start, i, chunk, x, qkv, scratch)
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
    """into += a b, in the dtype of ``into``."""
    if into.dtype == a.dtype:
        into.addmm_(a, b)
    else:
        into.add_(a @ b)


def _project(
    encoder: SharedTextEncoder, start: Start, i: int, chunk: Chunk, x: Tensor, qkv: Tensor, scratch: Arena
) -> tuple[Tensor, Tensor] | None:
    """Write queries, keys and values [3, H, P, e] of all places; returns what the norm's backward needs."""
    folded, layer = encoder.folded, encoder.folded.layers[i]
    d, narrow, n = folded.width, folded.narrow, chunk.n_rows
    sources = scratch.take(n + 1 + len(chunk.constant_index), 3 * d, dtype=narrow)
    norm: tuple[Tensor, Tensor] | None = None
    if i == 0:
        # Token rows of layer 0 depend on nothing but the token.
        if chunk.token_table is None:
            tokens = _first_layer(encoder, chunk.token_ids, chunk.token_positions)
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


def _first_layer(encoder: SharedTextEncoder, ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens, 3d] queries (without their bias), keys and values of layer 0 of tokens at their positions."""
    layer, folded = encoder.folded.layers[0], encoder.folded
    x = encoder.embedding[ids].to(folded.wide) + encoder.positions[positions]
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
    if not n_trunk and narrow == wide:
        scores = prob
    else:
        scores = scratch.take(heads, n_places, window, dtype=narrow)
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
    torch.ops.aten._softmax.out(prob, -1, False, out=prob)  # noqa: SLF001
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
    """out = a b; a product written straight into a strided place would leave the fast path."""
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b, out=scratch.take(*out.shape, dtype=out.dtype)))


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


# -- backward ------------------------------------------------------------------------------------------


def _backward(
    encoder: SharedTextEncoder, start: Start, state: ChunkState, grad: Tensor, into: Tensor, scratch: Arena
) -> None:
    """Add a chunk's gradients to those of the context vectors [G n, d]."""
    folded, chunk = encoder.folded, state.chunk
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
    if not n_trunk and narrow == wide:
        banded = dscore
    else:
        banded = scratch.take(heads, n_places, window, dtype=narrow)
    torch.bmm(_windows(do, window), _windows(v, window).transpose(1, 2), out=banded.view(-1, window, window))
    if banded is not dscore:
        dscore[:, :, n_trunk:] = banded
    for segment in chunk.segments:
        at, columns = slice(segment.start, segment.end), 1 + segment.trunk
        values = _with_start(start, i, 2, v, segment, scratch)
        _bmm_into(dscore[:, at, :columns], do[:, at], values.transpose(1, 2), scratch)
        if columns < n_trunk:
            dscore[:, at, columns:n_trunk].zero_()
    torch.ops.aten._softmax_backward_data.out(  # noqa: SLF001
        dscore, prob.to(wide), -1, wide, grad_input=dscore
    )
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
            at, columns = slice(segment.start, segment.end), slice(1, 1 + segment.trunk)
            trunk = slice(segment.start, segment.start + segment.trunk)
            dk[:, trunk] += torch.bmm(dscore[:, at, columns].transpose(1, 2), q[:, at])
            dv[:, trunk] += torch.bmm(prob[:, at, columns].transpose(1, 2), do[:, at])
    by_place = scratch.take(n_places, 3 * folded.width, dtype=narrow)
    _by_head(by_place, 3, heads).copy_(grads)
    rows = scratch.take(chunk.n_rows, 3 * folded.width, dtype=narrow)
    return torch.index_select(by_place, 0, chunk.row_place, out=rows)


class _Encode(torch.autograd.Function):
    """Features [C, D] of a plan's prompts from the contexts."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, encoder: SharedTextEncoder, plan: Plan) -> Tensor:  # noqa: ANN401
        wanted = context.requires_grad
        vectors = context.detach().reshape(-1, context.shape[2])
        features = context.new_empty(len(plan.forest.codes), plan.embed_dim)
        states: list[ChunkState | None] = []
        kept = encoder.borrow()
        used = 0
        with encoder.arena() as scratch, encoder.arena() as spare, torch.set_grad_enabled(wanted):
            for chunk in plan.chunks:
                size = _saved_bytes(encoder.folded, chunk)
                save = wanted and len(chunk.context_rows) > 0 and used + size <= encoder.saved_bytes
                used += size if save else 0
                spare.reset()
                with torch.set_grad_enabled(save):
                    state = _forward_quietly(
                        encoder, plan, chunk, vectors, kept if save else spare, scratch, save=save
                    )
                features[chunk.prompts] = state.features.detach()
                states.append(state if save else None)
        if not wanted:
            encoder.give_back(kept)
        ctx.encoder, ctx.plan, ctx.states, ctx.kept = encoder, plan, states, kept
        ctx.shape = context.shape
        if wanted:
            ctx.save_for_backward(context)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        encoder, plan = ctx.encoder, ctx.plan
        (context,) = ctx.saved_tensors
        vectors = context.detach().reshape(-1, context.shape[2])
        into = torch.zeros_like(vectors)
        start = encoder.start(plan.sot)
        with (
            torch.autocast(encoder.device.type, enabled=False),
            encoder.arena() as scratch,
            encoder.arena() as spare,
        ):
            for i, chunk in enumerate(plan.chunks):
                if len(chunk.context_rows) == 0:
                    continue
                state = ctx.states[i]
                if state is None:  # it was not kept, or is used a second time
                    spare.reset()
                    with torch.enable_grad():
                        state = _forward_quietly(encoder, plan, chunk, vectors, spare, scratch, save=True)
                _backward(encoder, start, state, grad[chunk.prompts], into, scratch)
                ctx.states[i] = None
        if ctx.kept is not None:
            encoder.give_back(ctx.kept)
            ctx.kept = None
        return into.reshape(ctx.shape), None, None


def _forward_quietly(
    encoder: SharedTextEncoder,
    plan: Plan,
    chunk: Chunk,
    vectors: Tensor,
    arena: Arena,
    scratch: Arena,
    *,
    save: bool,
) -> ChunkState:
    return _forward(encoder, encoder.start(plan.sot), chunk, vectors, arena, scratch, save=save)


def _saved_bytes(folded: FoldedTower, chunk: Chunk) -> int:
    """What a chunk keeps for the backward, roughly."""
    d, up = folded.width, folded.layers[0].w_up.shape[0]
    narrow, wide = folded.narrow.itemsize, folded.wide.itemsize
    scores = folded.heads * chunk.layout.n_places * (chunk.n_trunk + chunk.layout.window) * narrow
    slots = 3 * d * chunk.layout.n_places * narrow
    rows = chunk.n_rows * (2 * d * wide + up * narrow)
    return (len(folded.layers) - 1) * (scores + slots + rows)


__all__ = ["Chunk", "Plan", "SharedTextEncoder", "shared_encoder"]
