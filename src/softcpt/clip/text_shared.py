"""The fast text encoder: every row of the prompts' forest once, forward and backward by hand.

Computes what :meth:`softcpt.clip.text.TextTower.encode` computes, features and gradients of the contexts, up
to rounding (tests hold the two together). What is different:

    rows        only those of the plan: shared prefixes and names once, no padding, nothing behind EOT
    constants   SOT's keys and values, and layer 0 of token rows, are never computed again
    last layer  for the EOT rows alone, with keys and values absorbed into the query and the output
    weights     folded (``text_folded``) and frozen: no gradients for them
    backward    one autograd node; what it needs is kept in buffers that are used again

Letters: d width, H heads, e = d / H, L layers, N rows, P places in windows of W, C prompts of a chunk,
T trunk columns, S columns of scores (SOT, trunk and window, or the window alone), D embedding.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from softcpt.clip.arena import Arena
from softcpt.clip.text import TextTower
from softcpt.clip.text_chunk import Attention, Constants, Plan, Start, chunk_of
from softcpt.clip.text_constants import constants_of, names_before, start_of
from softcpt.clip.text_folded import FoldedTower, fold, why_not_folded
from softcpt.clip.text_passes import ChunkState, backward, first_layer, forward, saved_bytes
from softcpt.clip.text_plan import Layout, cut_into_chunks, grow_forest, lay_out
from softcpt.clip.text_windows import Windows
from softcpt.clip.tokens import NamePrompts

logger = logging.getLogger("softcpt")

MAX_ROWS = {"cpu": 2048}
"""Rows of a chunk: enough for the products to run at full rate, few enough to stay in the cache."""

MAX_ROWS_ELSEWHERE = 16384

SAVED_GB = 3.0
"""Activations kept between forward and backward (2^30 bytes); what is beyond is computed a second time."""

TABLE_BYTES = 256 << 20
"""Largest table of constants (layer 0 of tokens; names before their context); without it they are rows."""

PLANS_KEPT = 64

PLANS_BYTES = 256 << 20
"""Most that the plans of one set of prompts may take."""

ARENAS_KEPT = 8
"""Idle memories: a step of a class-aware method has five in use at once."""


class SharedTextEncoder:
    """A tower's fast encoder.

    It belongs to one state of the tower's weights, device and precision; :func:`shared_encoder` finds or
    makes the right one.

    Args:
        tower: whose blocks can be folded.
        narrow: dtype of the products; the tower's own, or that of autocast.
        max_rows: of a chunk; None chooses by device.
        compiled: whether attention is a compiled loop over lists of rows (on the CPU, in the tower's own
            precision, with numba); None where that can be and PyTorch works on one thread.
        saved_bytes: kept for the backward, see :data:`SAVED_GB`.
    """

    def __init__(
        self,
        tower: TextTower,
        narrow: torch.dtype | None = None,
        *,
        max_rows: int | None = None,
        compiled: bool | None = None,
        saved_bytes: int = int(SAVED_GB * 2**30),
    ) -> None:
        with torch.inference_mode(False):
            self.folded = fold(tower, narrow)
        self.device = tower.device
        self.max_rows = max_rows or MAX_ROWS.get(self.device.type, MAX_ROWS_ELSEWHERE)
        self.saved_bytes = saved_bytes
        self.attention_of = _attention(self.folded, compiled)
        self._prompts: weakref.WeakKeyDictionary[NamePrompts, _Planned] = weakref.WeakKeyDictionary()
        self._starts: dict[int, Start] = {}
        self._idle: list[Arena] = []
        self._host: Any = WeakTensorKeyDictionary()
        self._lock = threading.RLock()

    def encode(
        self,
        prompts: NamePrompts,
        context: Float[Tensor, "G n d"],
        owner: Int[Tensor, " k"] | None = None,
        selected: Int[Tensor, " k"] | None = None,
        *,
        saved_bytes: int | None = None,
    ) -> Float[Tensor, "k D"]:
        """Text features, not normalised, of prompts with the context put in; differentiable in the context.

        Args:
            prompts: all K of them.
            context: the contexts there are.
            owner: which of them each prompt that is asked for takes; None where there is one for all, or
                one for each in their order.
            selected: which prompts are asked for, None for all.
            saved_bytes: how much may be kept for the backward, None for the encoder's own limit.
        """
        if context.device != self.device:
            raise RuntimeError(f"the context is on {context.device}, the text tower on {self.device}")
        if context.shape[1] != prompts.n_context:
            raise ValueError(
                f"prompts with room for {prompts.n_context} vectors, contexts of {context.shape[1]}"
            )
        plan = self.plan(prompts, owner, selected, n_contexts=len(context))
        wanted = torch.is_grad_enabled() and context.requires_grad
        with torch.autocast(self.device.type, enabled=False):
            features: Tensor = _Encode.apply(
                (context if wanted else context.detach()).to(self.folded.wide),
                self,
                plan,
                self.saved_bytes if saved_bytes is None else saved_bytes,
            )
            return features.index_select(0, plan.index)

    def plan(
        self,
        prompts: NamePrompts,
        owner: Int[Tensor, " k"] | None,
        selected: Int[Tensor, " k"] | None = None,
        *,
        n_contexts: int = 1,
    ) -> Plan:
        """What is computed for these prompts; remembered."""
        chosen = None if selected is None else self._on_host(selected)
        n_asked = len(prompts) if chosen is None else len(chosen)
        if owner is not None:
            owners = self._on_host(owner)
        else:
            owners = np.zeros(n_asked, np.int64) if n_contexts == 1 else np.arange(n_contexts)
        if len(owners) != n_asked:
            raise ValueError(f"{len(owners)} contexts for {n_asked} prompts")
        with self._lock:
            if prompts not in self._prompts:
                self._prompts[prompts] = _Planned(prompts, self)
            return self._prompts[prompts].plan(owners, chosen)

    def _on_host(self, index: Tensor) -> np.ndarray:
        """A tensor's numbers; a GPU, which makes steps wait, is asked once for a tensor that comes again."""
        if index.device.type == "cpu":
            return index.numpy()
        known: tuple[int, np.ndarray] | None = self._host.get(index)
        if known is None or known[0] != index._version:
            known = (index._version, index.cpu().numpy())
            self._host[index] = known
        return known[1]

    def start(self, sot: int) -> Start:
        """SOT's constants."""
        if sot not in self._starts:
            with torch.inference_mode(False), torch.no_grad():
                self._starts[sot] = start_of(self.folded, sot)
        return self._starts[sot]

    @contextmanager
    def arena(self) -> Iterator[Arena]:
        """Memory for the time of a block."""
        borrowed = self.borrow(0)
        try:
            yield borrowed
        finally:
            self.give_back(borrowed)

    def borrow(self, n_bytes: int) -> Arena:
        """Memory of one's own until it is given back: of what is idle, the smallest that is large enough."""
        with self._lock:
            self._idle.sort(key=lambda arena: arena.n_bytes)
            for i, arena in enumerate(self._idle):
                if arena.n_bytes >= n_bytes:
                    return self._idle.pop(i)
            return self._idle.pop() if self._idle else Arena(self.device)

    def give_back(self, arena: Arena) -> None:
        """Let others use an arena's memory."""
        arena.reset()
        with self._lock:
            if len(self._idle) < ARENAS_KEPT:
                self._idle.append(arena)

    def release(self) -> None:
        """Give idle memory back to the system; the next step takes it anew."""
        with self._lock:
            self._idle.clear()

    @property
    def n_bytes(self) -> int:
        """Memory it holds for its steps, while none is under way."""
        return sum(arena.n_bytes for arena in self._idle)

    def poison(self) -> None:
        """Fill all idle memory with NaN: for tests that nothing is read before it is written."""
        for arena in self._idle:
            arena.fill(float("nan"))


def _attention(folded: FoldedTower, compiled: bool | None) -> Callable[[FoldedTower, Layout], Attention]:
    """How attention is computed: makes that of a layout."""
    fits = folded.device.type == "cpu" and folded.narrow == folded.wide
    if compiled is None:
        compiled = fits and torch.get_num_threads() == 1 and find_spec("numba") is not None
    if not compiled:
        return Windows.of
    if not fits:
        raise ValueError(f"compiled attention on {folded.device} in {folded.narrow}")
    from softcpt.clip.text_lists import Lists  # numba takes a second to import

    return Lists.of


_encoders: weakref.WeakKeyDictionary[TextTower, tuple[Any, dict[torch.dtype, SharedTextEncoder | None]]] = (
    weakref.WeakKeyDictionary()
)


def shared_encoder(tower: TextTower) -> SharedTextEncoder | None:
    """The fast encoder of a tower as it is now, in the precision that is in force now.

    A tower that was moved, converted, loaded anew or changed in place gets a new one; changes through
    ``.data``, of which torch keeps no count, are not noticed.

    None, and a note in the log, where the tower has parts that cannot be folded: the plain encoder takes all
    towers.
    """
    kind = tower.device.type
    narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tower.dtype
    if tower.dtype == torch.float64:
        narrow = torch.float64  # which autocast leaves alone
    weights = [*tower.parameters(), *tower.buffers()]
    state = tuple((w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights)
    known = _encoders.get(tower)
    if known is None or known[0] != state:
        known = (state, {})
        _encoders[tower] = known
    if narrow not in known[1]:
        reason = why_not_folded(tower)
        if reason is not None:
            logger.warning("texts go through the plain encoder, which is slower: %s", reason)
        known[1][narrow] = SharedTextEncoder(tower, narrow) if reason is None else None
    return known[1][narrow]


def release_memory(tower: TextTower) -> None:
    """Give back what the tower's fast encoders keep for their next step."""
    for encoder in (_encoders[tower][1] if tower in _encoders else {}).values():
        if encoder is not None:
            encoder.release()


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

    def plan(self, owners: np.ndarray, chosen: np.ndarray | None) -> Plan:
        key = (owners.tobytes(), None if chosen is None else chosen.tobytes())
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        with torch.inference_mode(False):
            plan = self._build(owners, chosen)
        self._plans[key] = plan
        while len(self._plans) > 1 and (
            len(self._plans) > PLANS_KEPT or sum(p.n_bytes for p in self._plans.values()) > PLANS_BYTES
        ):
            self._plans.popitem(last=False)
        return plan

    def _build(self, owner: np.ndarray, chosen: np.ndarray | None) -> Plan:
        encoder = self._encoder()
        assert encoder is not None  # it holds us
        which = np.arange(len(self.ids)) if chosen is None else chosen
        n_tokens = len(encoder.folded.embedding)
        forest = grow_forest(
            self.ids[which], self.slot[which], self.end[which], owner, self.n_context, n_tokens
        )
        constants = self.constants(encoder)
        table = self.token_table(encoder)
        chunks = []
        for part in cut_into_chunks(forest, encoder.max_rows, constants=constants is not None):
            layout = lay_out(forest, part, constants=constants is not None)
            is_token = layout.codes < n_tokens
            pairs = layout.codes[is_token] * self.ids.shape[1] + layout.positions[is_token]
            in_table = np.searchsorted(self.tokens, pairs)
            attention = encoder.attention_of(encoder.folded, layout)
            chunks.append(
                chunk_of(encoder.folded, layout, attention, forest, which, constants, table, in_table)
            )
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
        if (
            self._table is None
            and len(self.tokens) * 3 * folded.width * folded.narrow.itemsize <= TABLE_BYTES
        ):
            ids, positions = np.divmod(self.tokens, self.ids.shape[1])
            with torch.inference_mode(False), torch.no_grad():
                self._table = first_layer(
                    encoder.folded,
                    torch.from_numpy(ids).to(encoder.device),
                    torch.from_numpy(positions).to(encoder.device),
                )
        return self._table

    def constants(self, encoder: SharedTextEncoder) -> Constants | None:
        """Keys and values of names that stand before their context, or None."""
        if not self._constants_known:
            self._constants = self._find_constants(encoder)
            self._constants_known = True
        return self._constants

    def _find_constants(self, encoder: SharedTextEncoder) -> Constants | None:
        if not (names_before(self.slot) > 0).any():
            return None
        start = encoder.start(int(self.ids[0, 0]))
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            encoder.arena() as arena,
            encoder.arena() as scratch,
        ):
            return constants_of(
                encoder.folded,
                start,
                encoder.attention_of,
                self.ids,
                self.slot,
                arena,
                scratch,
                max_rows=encoder.max_rows,
                most=TABLE_BYTES,
            )


class _Encode(torch.autograd.Function):
    """Features [C, D] of a plan's prompts from the contexts."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        context: Tensor,
        encoder: SharedTextEncoder,
        plan: Plan,
        limit: int,
    ) -> Tensor:
        wanted = context.requires_grad
        vectors = context.detach().reshape(-1, context.shape[2])
        features = context.new_empty(len(plan.forest.codes), plan.embed_dim)
        states: list[ChunkState | None] = []
        sizes = [saved_bytes(encoder.folded, chunk) for chunk in plan.chunks]
        kept = encoder.borrow(min(sum(sizes), limit) if wanted else 0)
        used = 0
        with encoder.arena() as scratch, encoder.arena() as spare, torch.set_grad_enabled(wanted):
            for chunk, size in zip(plan.chunks, sizes, strict=True):
                save = wanted and len(chunk.context_rows) > 0 and used + size <= limit
                used += size if save else 0
                spare.reset()
                with torch.set_grad_enabled(save):
                    state = forward(
                        encoder.folded,
                        encoder.start(plan.sot),
                        chunk,
                        vectors,
                        kept if save else spare,
                        scratch,
                        save=save,
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
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
                        state = forward(
                            encoder.folded, encoder.start(plan.sot), chunk, vectors, spare, scratch, save=True
                        )
                backward(encoder.folded, start, state, grad[chunk.prompts], into, scratch)
                ctx.states[i] = None
        if ctx.kept is not None:
            encoder.give_back(ctx.kept)
            ctx.kept = None
        return into.reshape(ctx.shape), None, None, None
