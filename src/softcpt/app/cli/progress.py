"""Progress of a run on stderr: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from softcpt.app.cli.show import say, talk

if TYPE_CHECKING:
    from softcpt.core.progress import Progress

_LOG_EVERY_S = 20.0


Listener = Callable[["Progress"], None]


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Listener | None]:
    """A listener to hand to the engine; None when nothing is to be shown."""
    if quiet:
        yield None
    elif talk().is_terminal:
        with _bars() as listener:
            yield listener
    else:
        yield _log_lines()


@contextmanager
def _bars() -> Iterator[Listener]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[figures]}", style="dim"),
    )
    bars: dict[str, progress.TaskID] = {}
    with progress.Progress(*columns, console=talk()) as drawn:

        def listen(event: Progress) -> None:
            if event.stage not in bars:
                bars[event.stage] = drawn.add_task(event.stage, figures="")
            drawn.update(bars[event.stage], completed=event.done, total=event.total, figures=figures(event))

        yield listen


def _log_lines() -> Listener:
    shown_s: dict[str, float] = {}

    def listen(event: Progress) -> None:
        now_s = time.monotonic()
        ended = event.done >= event.total
        if ended or now_s - shown_s.setdefault(event.stage, now_s) >= _LOG_EVERY_S:
            shown_s[event.stage] = now_s
            line = f"{event.stage} {event.done}/{event.total}  {figures(event)}"
            say(line.rstrip())

    return listen


def figures(event: Progress) -> str:
    """Loss, learning rate, speed and time left, as far as they are known.

    Two blanks stand between them: ``loss 0.6931  lr 0.002  120 images/s  1:05 left``.
    """
    parts = []
    if event.loss is not None:
        parts.append(f"loss {event.loss:.4f}")
    if event.learning_rate is not None:
        parts.append(f"lr {event.learning_rate:.3g}")
    if event.images_per_s is not None:
        parts.append(f"{event.images_per_s:.0f} images/s")
    if event.time_left_s is not None and event.done < event.total:
        parts.append(f"{clock(event.time_left_s)} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """A duration as people write it: ``0:05``, ``12:40``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
