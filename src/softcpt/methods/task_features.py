"""What tasks are called in their prompts, and the text features of these: SoftCPT's, arXiv:2208.13474."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softcpt.clip.tokens import NamePrompts, Position
from softcpt.core.names import task_text
from softcpt.methods.base import MethodConfig, Problem, Streams
from softcpt.methods.prompts import context_size, encode_prompts, normal, start_context, task_prompts

TaskText = Literal["description", "name", "shuffled", "identical", "words", "vectors"]

SAME_TEXT = "a recognition task"
"""What every task is called under ``identical``."""

_WORDS = (
    "anchor apron attic bagel banner barrel basket beacon bishop blanket bonus bottle bracket bridge "
    "bucket butter cabin candle canyon carbon carpet castle cellar chapel cherry circus clever clinic "
    "coffee column copper cotton cousin cradle cricket dagger dancer desert dinner dragon drawer engine "
    "fabric falcon feather fiddle forest fossil garage garden ginger goblet hammer harbor helmet hunter "
    "island jacket jungle kettle kitchen ladder lantern lawyer lemon marble market meadow mirror muscle "
    "napkin needle nickel office orchid oyster paddle palace parcel pepper pillow pirate pocket puzzle "
    "rabbit ribbon saddle salmon shadow silver spider stable summer tailor temple ticket timber tunnel "
    "turtle velvet violin wagon walnut window winter wizard"
)

WORDS = tuple(_WORDS.split())
"""What tasks are called under ``words``: four of them."""


class TaskTextConfig(MethodConfig):
    """Options of methods that encode the tasks' texts."""

    task_context_length: int = Field(4, ge=0, description="learned tokens before a task's text; 0 for none")
    task_text: TaskText = Field(
        "description",
        description="what a task's prompt says: the suite's description, else its name; controls: shuffled, "
        "identical, words, vectors",
    )
    task_position: Position = Field("end", description="where the text stands in a task prompt")
    init_words: str | None = Field(
        None, description="words the task context starts from; its length is then theirs"
    )


def check_texts_matter(config: TaskTextConfig, why: str) -> None:
    """Refuse options of task texts where no task text is read; for the models' own checks."""
    for key, known in TaskTextConfig.model_fields.items():
        if getattr(config, key) != known.default:
            raise ValueError(f"{key} has no effect with {why}; leave one of them out")


def has_own_texts(config: TaskTextConfig) -> bool:
    """Whether tasks are called what they are, so that an unseen task's text says something."""
    return config.task_text in ("description", "name", "identical")


def task_texts(problem: Problem, which: TaskText, streams: Streams) -> list[str]:
    """What each task is called.

    Args:
        problem: whose tasks.
        which: ``description`` or ``name``; the controls: ``shuffled`` gives every task another one's
            description, ``identical`` all the same, ``words`` four random words each. ``vectors`` uses no
            text: its features are :func:`random_features`, at the norms of the descriptions' own.
        streams: draw the shuffle and the words.
    """
    own = [
        task_text(t.name, t.description, "name" if which == "name" else "description") for t in problem.tasks
    ]
    if which == "shuffled":
        order = torch.argsort(normal((len(own),), streams("task_text"))).tolist()
        # Along one round trip through all tasks, so that no task keeps its own.
        given = dict(zip(order, order[1:] + order[:1], strict=True))
        return [own[given[t]] for t in range(len(own))]
    if which == "identical":
        return [SAME_TEXT] * len(own)
    if which == "words":
        places = torch.argsort(normal((len(own), len(WORDS)), streams("task_text")), dim=1)[:, :4]
        return [" ".join(WORDS[i] for i in row) for row in places.tolist()]
    return own


def start_prompts(
    problem: Problem, config: TaskTextConfig, streams: Streams, *, copies: int | None = None
) -> tuple[NamePrompts, Tensor]:
    """The tasks' prompts, and the context before their texts at its start [n, W] (or [copies, n, W])."""
    n_context = context_size(
        problem,
        config.init_words,
        config.task_context_length,
        key="task_context_length",
        words_key="init_words",
        is_set="task_context_length" in config.model_fields_set,
    )
    prompts = task_prompts(
        problem, task_texts(problem, config.task_text, streams), n_context, config.task_position
    )
    context = start_context(
        problem,
        n_context=n_context,
        words=config.init_words,
        copies=copies,
        streams=streams,
        purpose="task_context",
    )
    return prompts, context


def start_features(problem: Problem, config: TaskTextConfig, streams: Streams) -> Float[Tensor, "T D"]:
    """Features of the tasks' prompts with the context at its start; no gradient."""
    prompts, context = start_prompts(problem, config, streams)
    with torch.no_grad():
        features = encode_prompts(problem, prompts, context[None]).to(problem.dtype)
    return random_features(features, streams) if config.task_text == "vectors" else features


def random_features(like: Float[Tensor, "T D"], streams: Streams) -> Float[Tensor, "T D"]:
    """Random directions at the norms of given features: everything about them but what they mean."""
    drawn = normal(like.shape, streams("task_vectors")).to(like)
    scaled: Tensor = drawn / drawn.norm(dim=1, keepdim=True) * like.norm(dim=1, keepdim=True)
    return scaled
