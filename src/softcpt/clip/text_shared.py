"""The fast text encoder: every row of the prompts' forest once, forward and backward by hand.

Computes what :meth:`softcpt.clip.text.TextTower.encode` computes, features and gradients of the contexts, up
to rounding (tests hold the two together). What is different:

    rows        only those of the plan: shared prefixes and names once, no padding, nothing behind EOT
    constants   SOT's keys and values, and layer 0 of token rows, are never computed again
    last layer  for the EOT rows alone, with keys and values absorbed into the query and the output
    weights     folded (``text_folded``) and frozen: no gradients for them
    backward    one autograd node; what it needs is kept in buffers that are used again

Letters: d width, H heads, e = d / H, L layers, N rows, M slots, C prompts of a chunk, B windows of W rows,
T trunk columns, R reach, S = 1 + T + R + W columns of scores (SOT first), P places of a head (slots with room
before and behind), D embedding.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
from softcpt.clip.text_folded import FoldedLayer, FoldedTower, fold, normalise, normalise_backward
from softcpt.clip.text_plan import Forest, Layout, Segment, cut_into_chunks, grow_forest, lay_out
from softcpt.clip.tokens import NamePrompts

MAX_ROWS = {"cpu": 1024}
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
        token_rows: rows that are tokens, with ``token_ids`` and ``token_positions``; ``token_slots``.
        token_table: [U, 3d] layer 0 of all tokens at their positions, or None; ``token_index`` into it.
        context_rows: rows that are context vectors, with ``context_index`` and ``context_positions``.
        row_slot: the slot of each row; None where slots and rows are the same.
        constant_slot: slots of constants, and ``constant_index`` into their table.
        trunk_mask: [M, 1 + T] added to the scores of SOT and trunk.
        band_mask: [M, R + W] added to those of the band.
        end_rows: [C] rows the features are read from.
        end_band: [C, A'] rows (N + i for constant i) of each end's band, with ``end_mask`` [C, 1 + T + A'].
        prompts: [C] of the forest.
    """

    layout: Layout
    token_rows: Tensor
    token_ids: Tensor
    token_positions: Tensor
    token_slots: Tensor
    context_rows: Tensor
    context_slots: Tensor
    context_index: Tensor
    context_positions: Tensor
    row_slot: Tensor | None
    constant_slot: Tensor
    constant_index: Tensor
    trunk_mask: Tensor
    band_mask: Tensor
    end_rows: Tensor
    end_band: Tensor
    end_mask: Tensor
    prompts: Tensor
    constants: Constants | None
    token_table: Tensor | None
    token_index: Tensor

    @property
    def n_rows(self) -> int:
        """N."""
        return self.layout.n_rows

    @property
    def lead(self) -> int:
        """Places before a head's slots, which windows look back upon: the reach in whole windows."""
        return -(-self.layout.reach // self.layout.window) * self.layout.window

    @property
    def n_places(self) -> int:
        """P, a head's lead and its slots in whole windows."""
        return self.lead + -(-self.layout.n_slots // self.layout.window) * self.layout.window

    @property
    def n_block(self) -> int:
        """R + W, the keys of a window."""
        return self.layout.reach + self.layout.window

    def n_windows(self, heads: int) -> int:
        """Windows of all heads, those of the leads too: so they all lie at one distance from each other."""
        return heads * self.n_places // self.layout.window

    def slots_of(self, segment: Segment) -> slice:
        """Where a segment's slots are among a head's places."""
        return slice(self.lead + segment.start, self.lead + segment.end)

    @property
    def n_scores(self) -> int:
        """S."""
        return int(self.trunk_mask.shape[1] + self.band_mask.shape[1])


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
        rows, seen, tokens, seen_last = self.n_rows, 0, 0, 0
        for chunk in self.chunks:
            layout = chunk.layout
            constants = layout.constant_of_slot >= 0
            visible = 1 + layout.trunk_seen.sum(1) + layout.band_seen[: layout.n_slots].sum(1)
            seen += int(visible[~constants].sum())
            tokens += len(chunk.token_rows)
            seen_last += int((chunk.end_mask == 0).sum())
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
        for part in cut_into_chunks(forest, encoder.max_rows):
            layout = lay_out(forest, part, constants=constants is not None)
            codes, places = layout.codes[layout.row_slot], layout.positions[layout.row_slot]
            is_token = codes < n_tokens
            pairs = codes[is_token] * self.ids.shape[1] + places[is_token]
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
    codes, positions = layout.codes[layout.row_slot], layout.positions[layout.row_slot]
    is_token = codes < forest.n_tokens
    row_of_slot = np.full(layout.n_slots, -1, dtype=np.int64)
    row_of_slot[layout.row_slot] = np.arange(layout.n_rows)
    is_constant = layout.constant_of_slot >= 0
    table = np.zeros(0, dtype=np.int64)
    if constants is not None and is_constant.any():
        depths = forest.codes.shape[1]
        prompt, depth = np.divmod(layout.constant_of_slot[is_constant], depths)
        table = constants.index[which[forest.prompt[prompt]], depth]
        row_of_slot[is_constant] = layout.n_rows + table

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def mask(seen: np.ndarray) -> Tensor:
        open_ = torch.zeros(seen.shape, dtype=wide, device=device)
        return open_.masked_fill_(tensor(~seen), -torch.inf)

    sot = np.ones((layout.n_slots, 1), dtype=bool)
    ends = layout.end_band
    seen_at_end = np.concatenate(
        [sot[: len(ends)], layout.trunk_seen[layout.end_slot], ends >= 0], axis=1
    )
    token_ids, token_positions = tensor(codes[is_token]), tensor(positions[is_token])
    return Chunk(
        layout=layout,
        token_rows=tensor(np.flatnonzero(is_token)),
        token_ids=token_ids,
        token_positions=token_positions,
        token_slots=tensor(layout.row_slot[is_token]),
        context_rows=tensor(np.flatnonzero(~is_token)),
        context_slots=tensor(layout.row_slot[~is_token]),
        context_index=tensor(codes[~is_token] - forest.n_tokens),
        context_positions=tensor(positions[~is_token]),
        row_slot=tensor(layout.row_slot) if is_constant.any() else None,
        constant_slot=tensor(np.flatnonzero(is_constant)),
        constant_index=tensor(table),
        trunk_mask=mask(np.concatenate([sot, layout.trunk_seen], axis=1)),
        band_mask=mask(layout.band_seen[: layout.n_slots]),
        end_rows=tensor(row_of_slot[layout.end_slot]),
        end_band=tensor(np.where(ends >= 0, row_of_slot[ends], 0)),
        end_mask=mask(seen_at_end),
        prompts=tensor(layout.prompts),
        constants=constants,
        token_table=token_table,
        token_index=tensor(np.zeros(0, dtype=np.int64) if token_index is None else token_index),
    )


# -- constants -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """What SOT is, which sees only itself.

    Attributes:
        keys: [L - 1, H, 1, e] of each layer but the last; ``values`` likewise.
        last: [1, d] the normalised input of the last layer.
    """

    keys: Tensor
    values: Tensor
    last: Tensor


def _start(encoder: SharedTextEncoder, sot: int) -> Start:
    folded = encoder.folded
    d, heads = folded.width, folded.heads
    x = (encoder.embedding[sot].to(folded.wide) + encoder.positions[0])[None]
    keys, values = [], []
    for layer in folded.layers[:-1]:
        h = normalise(x, layer.eps_1)[0].to(folded.narrow)
        qkv = h @ layer.w_qkv.t()
        keys.append(qkv[:, d : 2 * d].view(heads, 1, -1))
        values.append(qkv[:, 2 * d :].view(heads, 1, -1))
        y = x + layer.b_out + (qkv[:, 2 * d :] @ layer.w_out.t())
        u = torch.addmm(layer.b_up, normalise(y, layer.eps_2)[0].to(folded.narrow), layer.w_up.t())
        x = y + layer.b_down + folded.activate(u, out=torch.empty_like(u)) @ layer.w_down.t()
    last = normalise(x, folded.layers[-1].eps_1)[0].to(folded.narrow)
    nothing = torch.zeros(0, heads, 1, d // heads, dtype=folded.narrow, device=encoder.device)
    return Start(torch.stack(keys) if keys else nothing, torch.stack(values) if values else nothing, last)


@dataclass(frozen=True)
class Constants:
    """Rows of names that stand before their context: the same in every step.

    Attributes:
        index: [K, A] row of the tables for each prompt and depth, -1 for others.
        keys_values: [L - 1, n, 2d].
        last: [n, d] normalised inputs of the last layer.
    """

    index: np.ndarray
    keys_values: Tensor
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
    size = n_rows * (2 * len(folded.layers) - 1) * folded.width * folded.narrow.itemsize
    if size > TABLE_BYTES:
        return None
    keys_values, last = [], []
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
            inside = slice(chunk.lead, chunk.lead + layout.n_slots)
            own = none.new_empty(len(kept.layers), layout.n_rows, 2, folded.heads, folded.width // folded.heads)
            for state, room in zip(kept.layers, own, strict=True):
                for part, place in zip(state.qkv[1:], room.unbind(1), strict=True):
                    place.copy_(part[:, inside].transpose(0, 1))
            keys_values.append(own.flatten(2).to(folded.narrow))
            last.append(normalise(kept.x, folded.layers[-1].eps_1)[0].to(folded.narrow))
            index_of = _paths(layout, forest)
            for prompt, path in index_of.items():
                rows = np.flatnonzero(forest.index == prompt)
                index[named[rows][:, None], np.arange(len(path))[None, :]] = done + path
            done += layout.n_rows
    return Constants(index, torch.cat(keys_values, dim=1), torch.cat(last))


def _paths(layout: Layout, forest: Forest) -> dict[int, np.ndarray]:
    """Slots of each prompt of a layout, by depth."""
    found = {}
    for i, prompt in enumerate(layout.prompts):
        end = layout.end_slot[i]
        segment = next(s for s in layout.segments if s.start <= end < s.end)
        trunk = segment.start + np.flatnonzero(layout.trunk_seen[end])
        band = layout.end_band[i]
        path = np.concatenate([trunk, band[band >= 0]])
        found[int(prompt)] = path[np.argsort(layout.positions[path])]
    return found


# -- forward -------------------------------------------------------------------------------------------


@dataclass
class LayerState:
    """What the backward needs of a layer."""

    x: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]
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
        room = [_by_head(arena, chunk, folded.heads, d // folded.heads, narrow) for _ in range(3)]
        qkv = (room[0], room[1], room[2])
        norm_1 = _project(encoder, layer, i, chunk, x, qkv, scratch)
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


def _by_head(arena: Arena, chunk: Chunk, heads: int, size: int, dtype: torch.dtype) -> Tensor:
    """[H, P, e] room for the slots of all heads; what is no slot is zero, so that windows see numbers there."""
    lead = chunk.lead
    rows = arena.take(lead + heads * chunk.n_places, size, dtype=dtype)
    rows[:lead].zero_()
    main = rows[lead:].view(heads, chunk.n_places, size)
    main[:, :lead].zero_()
    main[:, lead + chunk.layout.n_slots :].zero_()
    return main


def _project(
    encoder: SharedTextEncoder,
    layer: FoldedLayer,
    i: int,
    chunk: Chunk,
    x: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    scratch: Arena,
) -> tuple[Tensor, Tensor] | None:
    """Write queries, keys and values of all slots; returns what the norm's backward needs."""
    folded = encoder.folded
    d, narrow, heads = folded.width, folded.narrow, folded.heads
    inside = [part[:, chunk.lead : chunk.lead + chunk.layout.n_slots] for part in qkv]
    norm: tuple[Tensor, Tensor] | None = None
    if i == 0:
        # Token rows of layer 0 depend on nothing but the token.
        if chunk.token_table is None:
            tokens = _first_layer(encoder, chunk.token_ids, chunk.token_positions)
        else:
            tokens = chunk.token_table.index_select(0, chunk.token_index)
        _place(tokens, inside, chunk.token_slots)
        if len(chunk.context_rows):
            h = normalise(x.index_select(0, chunk.context_rows), layer.eps_1)[0].to(narrow)
            own = h @ layer.w_qkv.t()
            own[:, :d] += layer.b_q
            _place(own, inside, chunk.context_slots)
    else:
        h, mean, rstd = normalise(x, layer.eps_1)
        norm = (mean, rstd)
        own = torch.mm(h.to(narrow), layer.w_qkv.t(), out=scratch.take(len(h), 3 * d, dtype=narrow))
        if chunk.row_slot is None:
            q, k, v = own.view(len(h), 3, heads, -1).permute(1, 2, 0, 3)
            torch.add(q, layer.b_q.view(heads, 1, -1), out=inside[0])
            inside[1].copy_(k)
            inside[2].copy_(v)
        else:
            own[:, :d] += layer.b_q
            _place(own, inside, chunk.row_slot)
    if chunk.row_slot is not None:
        assert chunk.constants is not None
        known = chunk.constants.keys_values[i].index_select(0, chunk.constant_index)
        inside[0].index_fill_(1, chunk.constant_slot, 0)
        _place(known, inside[1:], chunk.constant_slot)
    return norm


def _place(rows: Tensor, into: Sequence[Tensor], slots: Tensor) -> None:
    """Rows [n, (2 or 3) d] of queries, keys and values to their slots."""
    heads, _, size = into[0].shape
    for part, place in zip(rows.view(len(rows), len(into), heads, size).permute(1, 2, 0, 3), into, strict=True):
        place.index_copy_(1, slots, part)


def _first_layer(encoder: SharedTextEncoder, ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens, 3d] queries, keys and values of layer 0 of tokens at their positions."""
    layer, folded = encoder.folded.layers[0], encoder.folded
    x = encoder.embedding[ids].to(folded.wide) + encoder.positions[positions]
    qkv = normalise(x, layer.eps_1)[0].to(folded.narrow) @ layer.w_qkv.t()
    qkv[:, : folded.width] += layer.b_q
    return qkv


def _attend(
    folded: FoldedTower,
    start: Start,
    i: int,
    chunk: Chunk,
    qkv: tuple[Tensor, Tensor, Tensor],
    arena: Arena,
    scratch: Arena,
) -> tuple[Tensor, Tensor]:
    """Probabilities [H, P, S], for the backward, and what the rows take from it [N, d]."""
    layout, wide, narrow = chunk.layout, folded.wide, folded.narrow
    heads, size, d = folded.heads, folded.width // folded.heads, folded.width
    n_trunk, places = 1 + layout.n_trunk, chunk.n_places
    inside = slice(chunk.lead, chunk.lead + layout.n_slots)
    windows = chunk.n_windows(heads)
    q, k, v = qkv
    prob = (arena if narrow == wide else scratch).take(heads, places, chunk.n_scores, dtype=wide)
    prob[:, : chunk.lead].zero_()
    prob[:, inside.stop :].zero_()
    scores = scratch.take(windows, layout.window, chunk.n_block, dtype=narrow)
    torch.bmm(_own_rows(q, chunk), _blocks(k, chunk).transpose(1, 2), out=scores)
    scores = scores.view(heads, places, chunk.n_block)
    torch.add(scores[:, inside], chunk.band_mask, out=prob[:, inside, n_trunk:])
    for segment in layout.segments:
        keys = _with_start(start.keys[i], k, chunk, segment, scratch)
        at, columns = chunk.slots_of(segment), 1 + segment.trunk
        scores = scratch.take(heads, segment.end - segment.start, columns, dtype=narrow)
        torch.bmm(q[:, at], keys.transpose(1, 2), out=scores)
        torch.add(scores, chunk.trunk_mask[segment.start : segment.end, :columns], out=prob[:, at, :columns])
        if columns < n_trunk:
            prob[:, at, columns:n_trunk] = -torch.inf
    torch.ops.aten._softmax.out(prob, -1, False, out=prob)  # noqa: SLF001
    if narrow != wide:
        prob = arena.take(*prob.shape, dtype=narrow).copy_(prob)

    taken = scratch.take(heads, places, size, dtype=narrow)
    taken[:, : chunk.lead].zero_()
    taken[:, inside.stop :].zero_()
    for segment in layout.segments:
        values = _with_start(start.values[i], v, chunk, segment, scratch)
        at, columns = chunk.slots_of(segment), 1 + segment.trunk
        _bmm_into(taken[:, at], prob[:, at, :columns], values, scratch)
    own = taken.view(windows, layout.window, size)
    torch.baddbmm(own, _windowed(prob, n_trunk, chunk), _blocks(v, chunk), out=own)
    o = scratch.take(chunk.n_rows, d, dtype=narrow)
    seen = taken[:, inside]
    if chunk.row_slot is not None:
        seen = seen.index_select(1, chunk.row_slot)
    o.view(-1, heads, size).transpose(0, 1).copy_(seen)
    return prob, o


def _own_rows(rows: Tensor, chunk: Chunk) -> Tensor:
    """[windows, W, e] each window's own rows, of [H, P, e]."""
    return rows.view(-1, chunk.layout.window, rows.shape[2])


def _blocks(rows: Tensor, chunk: Chunk) -> Tensor:
    """[windows, R + W, e] each window's keys or values: overlapping views, never to be written through."""
    heads, places, size = rows.shape
    window, reach = chunk.layout.window, chunk.layout.reach
    return rows.as_strided(
        (heads * places // window, chunk.n_block, size),
        (window * size, size, 1),
        rows.storage_offset() - reach * size,
    )


def _windowed(scores: Tensor, column: int, chunk: Chunk) -> Tensor:
    """[windows, W, R + W] the band's columns, of [H, P, S]."""
    heads, places, columns = scores.shape
    window = chunk.layout.window
    return scores.as_strided(
        (heads * places // window, window, chunk.n_block),
        (window * columns, columns, 1),
        scores.storage_offset() + column,
    )


def _with_start(start: Tensor, rows: Tensor, chunk: Chunk, segment: Segment, scratch: Arena) -> Tensor:
    """[H, 1 + T, e] keys (or values) of SOT and of a segment's trunk."""
    heads, _, size = start.shape
    both = scratch.take(heads, 1 + segment.trunk, size, dtype=start.dtype)
    both[:, :1] = start
    first = chunk.lead + segment.start
    both[:, 1:] = rows[:, first : first + segment.trunk]
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
    every = h if chunk.row_slot is None or chunk.constants is None else torch.cat([h, chunk.constants.last])
    q = h.index_select(0, chunk.end_rows) @ w_q.reshape(d, d).t() + layer.b_q
    q = torch.bmm(q.view(n_prompts, heads, -1).transpose(0, 1), w_k)  # [H, C, d]
    band = every.index_select(0, chunk.end_band.flatten()).view(n_prompts, -1, d)  # [C, A', d]
    trunks = [torch.cat([start.last, h[s.start : s.start + s.trunk]]) for s in layout.segments]
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
    folded, chunk, layout = encoder.folded, state.chunk, state.chunk.layout
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
        own = torch.mm(g.to(narrow), layer.w_out, out=scratch.take(len(g), d, dtype=narrow))
        do = _by_head(scratch, chunk, folded.heads, d // folded.heads, narrow)
        inside = do[:, chunk.lead : chunk.lead + layout.n_slots]
        if chunk.row_slot is None:
            inside.copy_(own.view(len(own), folded.heads, -1).transpose(0, 1))
        else:
            inside.index_fill_(1, chunk.constant_slot, 0)
            _place(own, [inside], chunk.row_slot)
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


def _attend_backward(
    folded: FoldedTower, start: Start, i: int, chunk: Chunk, kept: LayerState, do: Tensor, scratch: Arena
) -> Tensor:
    """Gradients [N, 3d] of queries, keys and values, of ``do`` [H, P, e]."""
    layout, wide, narrow = chunk.layout, folded.wide, folded.narrow
    heads, size, d = folded.heads, folded.width // folded.heads, folded.width
    n_trunk, places = 1 + layout.n_trunk, chunk.n_places
    inside = slice(chunk.lead, chunk.lead + layout.n_slots)
    windows = chunk.n_windows(heads)
    prob, (q, k, v) = kept.prob, kept.qkv

    dscore = scratch.take(heads, places, chunk.n_scores, dtype=wide)
    banded = scratch.take(windows, layout.window, chunk.n_block, dtype=narrow)
    torch.bmm(_own_rows(do, chunk), _blocks(v, chunk).transpose(1, 2), out=banded)
    dscore[:, :, n_trunk:] = banded.view(heads, places, chunk.n_block)
    dscore[:, : chunk.lead, :n_trunk].zero_()
    dscore[:, inside.stop :, :n_trunk].zero_()
    for segment in layout.segments:
        at, columns = chunk.slots_of(segment), 1 + segment.trunk
        values = _with_start(start.values[i], v, chunk, segment, scratch)
        _bmm_into(dscore[:, at, :columns], do[:, at], values.transpose(1, 2), scratch)
        if columns < n_trunk:
            dscore[:, at, columns:n_trunk].zero_()
    torch.ops.aten._softmax_backward_data.out(  # noqa: SLF001
        dscore, prob.to(wide), -1, wide, grad_input=dscore
    )
    if narrow != wide:
        dscore = dscore.to(narrow)

    dqkv = scratch.take(layout.n_slots, 3 * d, dtype=narrow)
    by_head = dqkv.view(layout.n_slots, 3, heads, size).permute(1, 2, 0, 3)  # [3, H, M, e]
    dq = scratch.take(heads, places, size, dtype=narrow)
    dq[:, : chunk.lead].zero_()
    dq[:, inside.stop :].zero_()
    for segment in layout.segments:
        at, columns = chunk.slots_of(segment), 1 + segment.trunk
        keys = _with_start(start.keys[i], k, chunk, segment, scratch)
        _bmm_into(dq[:, at], dscore[:, at, :columns], keys, scratch)
    own = dq.view(windows, layout.window, size)
    weights = _windowed(dscore, n_trunk, chunk)
    torch.baddbmm(own, weights, _blocks(k, chunk), out=own)
    by_head[0].copy_(dq[:, inside])
    blocks = scratch.take(windows, chunk.n_block, size, dtype=narrow)
    torch.bmm(weights.transpose(1, 2), _own_rows(q, chunk), out=blocks)
    _fold_windows(blocks, by_head[1], chunk)
    torch.bmm(_windowed(prob, n_trunk, chunk).transpose(1, 2), _own_rows(do, chunk), out=blocks)
    _fold_windows(blocks, by_head[2], chunk)
    for segment in layout.segments:
        if segment.trunk:
            at, columns = chunk.slots_of(segment), slice(1, 1 + segment.trunk)
            trunk = slice(segment.start, segment.start + segment.trunk)
            by_head[1, :, trunk] += torch.bmm(dscore[:, at, columns].transpose(1, 2), q[:, at])
            by_head[2, :, trunk] += torch.bmm(prob[:, at, columns].transpose(1, 2), do[:, at])
    return dqkv if chunk.row_slot is None else dqkv.index_select(0, chunk.row_slot)


def _fold_windows(blocks: Tensor, into: Tensor, chunk: Chunk) -> None:
    """Add up the overlapping blocks [windows, R + W, e] into the slots' rows [H, M, e]."""
    heads, n_slots, size = into.shape
    window, reach = chunk.layout.window, chunk.layout.reach
    blocks = blocks.view(heads, -1, chunk.n_block, size)
    total = blocks[:, :, reach:]  # each window's own rows
    for back in range(1, chunk.lead // window + 1):
        # The columns of the lead that lie ``back`` windows before.
        low, high = max(0, reach - back * window), reach - (back - 1) * window
        total[:, :-back, window - (high - low) if low == 0 else 0 :] += blocks[:, back:, low:high]
    first, whole = chunk.lead // window, n_slots // window
    into[:, : whole * window].unflatten(1, (whole, window)).copy_(total[:, first : first + whole])
    if whole * window < n_slots:
        into[:, whole * window :].copy_(total[:, first + whole, : n_slots - whole * window])


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
    scores = folded.heads * chunk.n_places * chunk.n_scores * narrow
    slots = 3 * d * chunk.n_places * narrow
    rows = chunk.n_rows * (2 * d * wide + up * narrow)
    return (len(folded.layers) - 1) * (scores + slots + rows)


__all__ = ["Chunk", "Plan", "SharedTextEncoder", "shared_encoder"]
