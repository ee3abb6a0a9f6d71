"""Names of classes and tasks: one normal form, one way into a prompt."""

from __future__ import annotations

import unicodedata


def normalise_name(name: str) -> str:
    r"""NFC form without surrounding blanks, so that equal-looking names are equal.

    Example:
        >>> normalise_name(" cafe\u0301 ") == "caf\u00e9"
        True
    """
    return unicodedata.normalize("NFC", name).strip()


def prompt_words(name: str) -> str:
    """The name as it stands in a prompt: underscores become blanks, nothing else changes.

    Example:
        >>> prompt_words("great_spotted_woodpecker")
        'great spotted woodpecker'
    """
    return name.replace("_", " ")


def task_text(name: str, description: str | None, which: str) -> str:
    """What a task is called in its prompt.

    Args:
        name: the task's name.
        description: the suite's sentence about the task, if it gives one.
        which: ``"description"`` (the sentence without a trailing full stop, else the name) or ``"name"``.
    """
    if which == "description" and description:
        return normalise_name(description).removesuffix(".").rstrip()
    return name
