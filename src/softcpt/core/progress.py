"""What long work tells whoever draws its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one stage of some work has come.

    Attributes:
        stage: what is being done, for people.
        done: steps done.
        total: steps in all.
        loss: of the last batch.
        learning_rate: in force at it.
        images_per_s: since the stage began.
        time_left_s: at that pace.
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    learning_rate: float | None = None
    images_per_s: float | None = None
    time_left_s: float | None = None


OnProgress = Callable[[Progress], None]
