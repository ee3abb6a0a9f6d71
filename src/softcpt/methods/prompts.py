"""Prompts of a problem's names, encoded, and the contexts they start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.clip.text import TextTower
from softcpt.clip.text_shared import shared_encoder
from softcpt.clip.tokens import NamePrompts, Position, name_prompts, put_context
from softcpt.core.errors import ConfigError, Fault
from softcpt.core.names import prompt_words
from softcpt.methods.base import Problem, Streams

CONTEXT_STD = 0.02
"""Standard deviation of a random context's start (CoOp's, and the published code's)."""

PROMPTS_AT_ONCE = 256
"""Without gradients, the plain encoder takes pieces of this many, so that memory stays bounded."""


def class_prompts(problem: Problem, n_context: int, position: Position) -> NamePrompts:
    """Prompts of all K class names."""
    return name_prompts(
        problem.class_names,
        tokenizer=problem.tokenizer,
        context_length=problem.text.context_length,
        n_context=n_context,
        position=position,
        where=problem.class_places,
    ).to(problem.text.device)


def task_prompts(problem: Problem, texts: Sequence[str], n_context: int, position: Position) -> NamePrompts:
    """Prompts of all T task texts."""
    return name_prompts(
        texts,
        tokenizer=problem.tokenizer,
        context_length=problem.text.context_length,
        n_context=n_context,
        position=position,
        where=[f'text of task "{task.name}"' for task in problem.tasks],
        remedy="shorten the description, use task_text=name, or lower task_context_length",
    ).to(problem.text.device)


def encode_prompts(
    problem: Problem,
    prompts: NamePrompts,
    context: Float[Tensor, "G n W"],
    owner: Int[Tensor, " k"] | None = None,
    selected: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, "k D"]:
    """Text features of prompts with the context put in, not normalised.

    Args:
        problem: whose text side.
        prompts: all there are.
        context: the different contexts.
        owner: which of them each prompt that is asked for takes, so that what they share is computed once;
            None where there is one for all, or one for each in their order.
        selected: which prompts; None for all.
    """
    fast = shared_encoder(problem.text) if problem.text_path == "fast" else None
    if fast is not None:
        return fast.encode(prompts, context, owner, selected, saved_bytes=int(problem.text_memory_gb * 2**30))
    chosen = prompts if selected is None else prompts.rows_of(selected)
    if owner is None:
        every = torch.arange(len(chosen), device=context.device)
        owner = torch.zeros_like(every) if len(context) == 1 else every
    return encode_plainly(problem.text, chosen, context, owner)


def encode_plainly(
    tower: TextTower, prompts: NamePrompts, context: Float[Tensor, "G n W"], owner: Int[Tensor, " k"]
) -> Float[Tensor, "k D"]:
    """The same, each prompt by itself: the reference of the fast encoder."""
    if torch.is_grad_enabled() or len(prompts) <= PROMPTS_AT_ONCE:
        rows = put_context(tower.embed(prompts.ids), prompts.slot, context[owner])
        return tower.encode(rows, prompts.end)
    pieces = [
        encode_plainly(tower, prompts.rows_of(index), context, owner[index])
        for index in torch.split(torch.arange(len(prompts), device=prompts.end.device), PROMPTS_AT_ONCE)
    ]
    return torch.cat(pieces)


def random_context(problem: Problem, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Context vectors N(0, 0.02^2) of the given shape, drawn on the CPU so that devices agree."""
    drawn = torch.randn(*shape, generator=rng, dtype=torch.float32) * CONTEXT_STD
    return drawn.to(problem.text.device, problem.dtype)


def start_context(
    problem: Problem,
    *,
    n_context: int,
    words: str | None,
    copies: int | None,
    streams: Streams,
    purpose: str,
) -> Tensor:
    """A context at its start: random, or the frozen embeddings of words.

    Args:
        problem: whose text side it is for.
        n_context: context vectors; with ``words``, the number of their tokens.
        words: initial words, or None.
        copies: None for one context [n, W], a number for as many of their own [copies, n, W]. Unlike the
            published code, words start each copy instead of making all of them one.
        streams: where a random start comes from.
        purpose: name of its stream.
    """
    shape = (n_context, problem.text.width) if copies is None else (copies, n_context, problem.text.width)
    if words is None:
        return random_context(problem, shape, streams(purpose))
    ids = torch.tensor(problem.tokenizer.encode(prompt_words(words)), device=problem.text.device)
    rows = problem.text.embed(ids[None])[0].to(problem.dtype)
    return rows.expand(shape).clone()


def context_size(
    problem: Problem, words: str | None, n_context: int, *, key: str, words_key: str, is_set: bool
) -> int:
    """Number of context vectors: that of the words' tokens where there are words.

    Raises:
        ConfigError: the words are empty, or a length was asked for that is not theirs.
    """
    if words is None:
        return n_context
    n_tokens = len(problem.tokenizer.encode(prompt_words(words)))
    if n_tokens == 0:
        raise ConfigError(
            Fault(words_key, f"{words!r} has no tokens", "give words, or leave it out"), about="the options"
        )
    if is_set and n_tokens != n_context:
        raise ConfigError(
            Fault(key, f"{n_context} asked, but {words!r} are {n_tokens} tokens", f"leave {key} out"),
            about="the options",
        )
    return n_tokens
