"""Names -> token ids, and where learned context stands among them.

A class prompt is ``SOT, tokens of "name.", EOT`` with context vectors put in: behind SOT (``end``: the
name is at the end), around the name (``middle``), or behind the name (``front``). The full stop always
stays behind the context. Source: the published SoftCPT code; the paper does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.core.errors import Fault, SuiteError
from softcpt.core.names import prompt_words

Position = Literal["end", "middle", "front"]


@runtime_checkable
class Tokenizer(Protocol):
    """A byte-pair vocabulary. EOT is its largest id, which is how CLIP finds the end of a text."""

    @property
    def sot(self) -> int:
        """Id of the start token."""

    @property
    def eot(self) -> int:
        """Id of the end token."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that plans can be remembered by it
class NamePrompts:
    """Prompts of K names with room for n context vectors each.

    Attributes:
        ids: [K, L] token ids; 0 where context will stand and behind EOT.
        slot: [K, L] which context vector stands there, -1 for none.
        end: [K] position of EOT.
        n_context: context vectors a prompt has.
    """

    ids: Int[Tensor, "K L"]
    slot: Int[Tensor, "K L"]
    end: Int[Tensor, " K"]
    n_context: int

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def rows_of(self, index: Int[Tensor, " k"]) -> NamePrompts:
        """The prompts at ``index``, in that order."""
        return NamePrompts(self.ids[index], self.slot[index], self.end[index], self.n_context)

    def to(self, device: torch.device) -> NamePrompts:
        """The same prompts on another device."""
        return NamePrompts(self.ids.to(device), self.slot.to(device), self.end.to(device), self.n_context)


def name_prompts(
    names: Sequence[str],
    *,
    tokenizer: Tokenizer,
    context_length: int,
    n_context: int,
    position: Position = "end",
    where: Sequence[str] | None = None,
    full_stop: bool = True,
    remedy: str = "shorten the name, or lower context_length",
) -> NamePrompts:
    """The prompts ``context name.`` of several names.

    Args:
        names: their underscores become blanks.
        tokenizer: the backbone's.
        context_length: positions of the text tower.
        n_context: context vectors of each prompt.
        position: where the name stands.
        where: places to name in faults, one per name.
        full_stop: put a full stop behind each name; without, they are whole texts, taken as they are.
        remedy: what to do about a name that is too long.

    Raises:
        SuiteError: every name that is empty or does not fit, in one list.
    """
    faults: list[Fault] = []
    rows: list[tuple[list[int], list[int]]] = []
    for i, name in enumerate(names):
        place = where[i] if where else f"names[{i}]"
        words = prompt_words(name) if full_stop else name
        n_name = len(tokenizer.encode(words))
        tail = [*tokenizer.encode(words + "." if full_stop else words), tokenizer.eot]
        length = 1 + n_context + len(tail)
        if n_name == 0:
            faults.append(Fault(place, f"the name {name!r} has no letters a prompt could use", "rename it"))
        elif length > context_length:
            room = context_length - 1 - n_context - 2
            faults.append(
                Fault(
                    place,
                    f"the name {name[:60]!r} takes {n_name} tokens; with {n_context} context tokens "
                    f"{room} fit into the text encoder's {context_length}",
                    remedy,
                )
            )
        rows.append(place_context(tail, n_name, n_context=n_context, position=position, sot=tokenizer.sot))
    if faults:
        raise SuiteError(faults, about="the names that go into prompts")

    longest = max((len(ids) for ids, _ in rows), default=0)
    ids_KL = torch.zeros(len(rows), longest, dtype=torch.long)
    slot_KL = torch.full((len(rows), longest), -1, dtype=torch.long)
    for i, (ids, slots) in enumerate(rows):
        ids_KL[i, : len(ids)] = torch.tensor(ids)
        slot_KL[i, : len(slots)] = torch.tensor(slots)
    end = torch.tensor([len(ids) - 1 for ids, _ in rows], dtype=torch.long)
    return NamePrompts(ids_KL, slot_KL, end, n_context)


def place_context(
    tail: Sequence[int], n_name: int, *, n_context: int, position: Position, sot: int
) -> tuple[list[int], list[int]]:
    """Token ids and context slots of one prompt.

    Args:
        tail: ids of ``name.`` and EOT.
        n_name: how many of them belong to the name. A name that ends in punctuation may have its full
            stop fused into its last token, which then counts as the name's.
        n_context: context vectors.
        position: ``end`` puts all of them before the name, ``front`` none, ``middle`` the first half
            (for odd numbers the second half is longer).
        sot: id of the start token.

    Example:
        >>> place_context([7, 8, 9], 1, n_context=2, position="middle", sot=1)
        ([1, 0, 7, 0, 8, 9], [-1, 0, -1, 1, -1, -1])
    """
    before = {"end": n_context, "middle": n_context // 2, "front": 0}[position]
    name, rest = list(tail[:n_name]), list(tail[n_name:])
    ids = [sot, *[0] * before, *name, *[0] * (n_context - before), *rest]
    slots = [
        -1,
        *range(before),
        *[-1] * len(name),
        *range(before, n_context),
        *[-1] * len(rest),
    ]
    return ids, slots


def put_context(
    rows: Float[Tensor, "K L W"], slot: Int[Tensor, "K L"], context: Float[Tensor, "#K n W"]
) -> Float[Tensor, "K L W"]:
    """Embedded prompts with the context vectors in their slots.

    Args:
        rows: embedded tokens.
        slot: which context vector stands where, -1 for none.
        context: one context for each prompt, or one for all.
    """
    if context.shape[1] == 0:
        return rows
    everywhere = context.expand(rows.shape[0], -1, -1)
    index = slot.clamp(min=0)[:, :, None].expand(-1, -1, rows.shape[2])
    return torch.where(slot[:, :, None] >= 0, everywhere.gather(1, index), rows)
