"""Prompts of a problem's names, encoded, and the contexts they start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from softcpt.clip.text import TextTower
from softcpt.clip.text_shared import shared_encoder
from softcpt.clip.tokens import NamePrompts, Position, name_prompts, put_context
from softcpt.core.errors import ConfigError, Fault
from softcpt.core.names import prompt_words
from softcpt.methods.base import MethodConfig, Pictures, Problem, Streams

CONTEXT_STD = 0.02
"""Standard deviation of a random context's start (CoOp's, and the published code's)."""

PROMPTS_AT_ONCE = 256
"""Without gradients, the plain encoder takes pieces of this many, so that memory stays bounded."""


Weighting = Literal["none", "watch", "pcgrad", "gradnorm", "uncertainty"]
HeadTune = Literal["suite", "task", "published"]
HeadKind = Literal["none", "tip", "ridge", "lp++", "logistic"]


class PromptConfig(MethodConfig):
    """Options of every method that learns the contexts of class prompts."""

    context_length: int = Field(16, ge=1, description="context tokens of a class prompt")
    position: Position = Field("end", description="where the name stands in a class prompt")
    init_scale: float = Field(1.0, gt=0, description="factor of the class prompts' random start")
    text_pull: float = Field(
        0.0, ge=0, description="pull of class features to those of the hand-written prompts (1 - cosine)"
    )
    logit_pull: float = Field(
        0.0, ge=0, description="pull of predictions to those of the hand-written prompts (cross-entropy)"
    )
    weighting: Weighting = Field(
        "none",
        description="of the tasks' losses: none, watch (report gradients), pcgrad, gradnorm or uncertainty",
    )
    head: HeadKind = Field(
        "none",
        description="fitted to trained prompts and images, chosen on val: none, tip, ridge, lp++, logistic",
    )
    head_views: int = Field(16, ge=0, description="views of an image that a head sees; 0: the centre only")
    head_tune: HeadTune = Field(
        "suite", description="a head's settings: one for the suite, for each task, or the published ones"
    )

    @model_validator(mode="after")
    def _head_is_there(self) -> PromptConfig:
        if self.head in ("none", "lp++", "logistic") and self.head_views != 16:
            raise ValueError(f"head_views has no effect with head={self.head}; leave one of them out")
        if self.head == "none" and self.head_tune != "suite":
            raise ValueError("head_tune has no effect with head=none; leave one of them out")
        return self

    def pictures(self) -> Pictures:
        """The head's; none without one."""
        if self.head == "none":
            return Pictures()
        views = {"tip": self.head_views, "ridge": self.head_views, "lp++": 1, "logistic": 0}[self.head]
        return Pictures(centres=views == 0, views=views)


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


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """N(0, 1), the same on every machine and in every version of PyTorch.

    Drawn by NumPy's ``RandomState``, whose numbers are frozen, from the seed of the stream: what is kept as
    a seed alone can be made again anywhere. A stream gives the same numbers each time it is asked.
    """
    seed = rng.initial_seed()
    state = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    return torch.from_numpy(state.standard_normal(tuple(shape)).astype(np.float32))


def random_context(
    problem: Problem, shape: Sequence[int], rng: torch.Generator, scale: float = 1.0
) -> Tensor:
    """Context vectors N(0, (0.02 scale)^2) of the given shape."""
    return (normal(shape, rng) * (CONTEXT_STD * scale)).to(problem.text.device, problem.dtype)


def word_context(problem: Problem, words: str, n_context: int) -> Float[Tensor, "n W"]:
    """Embeddings of words in the last places, zeros before them.

    Raises:
        ConfigError: the words have more tokens than there are places.
    """
    ids = torch.tensor(problem.tokenizer.encode(prompt_words(words)), device=problem.text.device)
    if len(ids) > n_context:
        fault = Fault(
            "context_length", f"{n_context} places, but {words!r} are {len(ids)} tokens", "raise it"
        )
        raise ConfigError(fault, about="the options")
    rows = problem.text.embed(ids[None])[0].to(problem.dtype)
    return torch.cat([rows.new_zeros(n_context - len(ids), rows.shape[1]), rows])


def start_context(
    problem: Problem,
    *,
    n_context: int,
    words: str | None,
    copies: int | None,
    streams: Streams,
    purpose: str,
    scale: float = 1.0,
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
        scale: factor of a random start.
    """
    shape = (n_context, problem.text.width) if copies is None else (copies, n_context, problem.text.width)
    if words is None:
        return random_context(problem, shape, streams(purpose), scale)
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
