"""How the command line talks: results on stdout, everything else on stderr, faults as an aligned table.

rich is imported when something is shown, not before: help and version answer without it.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from softcpt.core.errors import Fault

# Where no terminal sets a width, lines may be long, so that a log or a pipe gets each row whole.
_PIPE_WIDTH = 1000

MOST_NOTES = 12
"""A suite can have a note for each of hundreds of classes."""


def talk() -> Console:
    """The console for progress, notes and errors."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    from rich.console import Console

    return Console(file=file, highlight=False, width=None if file.isatty() else _PIPE_WIDTH)


def say(text: str, style: str = "") -> None:
    """Sentences on stderr, broken nowhere but at the terminal's edge."""
    talk().print(text, style=style, markup=False, soft_wrap=True)


@contextmanager
def show_warnings() -> Iterator[None]:
    """What the package warns of while it works goes to stderr; its errors come out as faults."""

    class Talk(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"warning: {record.getMessage()}", style="yellow")

    handler = Talk(logging.WARNING)
    handler.addFilter(lambda record: record.levelno == logging.WARNING)
    logger = logging.getLogger("softcpt")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def show_faults(headline: str, faults: Sequence[Fault]) -> None:
    """The headline, then a row for each fault: where, what, what to do."""
    from rich.table import Table
    from rich.text import Text

    console = talk()
    console.print(Text.assemble(("error: ", "bold red"), (headline, "bold")), soft_wrap=True)
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(4):
        table.add_column(overflow="fold")
    for fault in faults:
        table.add_row("", Text(fault.where, "cyan"), Text(fault.what), Text(fault.fix, "green"))
    _print_trimmed(console, table)


def show_notes(notes: Sequence[str], *, all_in: str) -> None:
    """Things a reader of the results should know, one line each, on stderr.

    Args:
        notes: all of them; of many only the first are shown.
        all_in: where the others can be read.
    """
    from rich.text import Text

    console = talk()
    for note in notes[:MOST_NOTES]:
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    if len(notes) > MOST_NOTES:
        say(f"and {len(notes) - MOST_NOTES} more notes, all of them in {all_in}", style="yellow")


def new_table(*columns: str, numbers: Sequence[str] = (), title: str | None = None) -> Table:
    """An empty table; the columns named in ``numbers`` are aligned on the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD
    )
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def show_table(table: Table) -> None:
    """Print a table of results."""
    _print_trimmed(_console(sys.stdout), table)


def _print_trimmed(console: Console, table: Table) -> None:
    # Cells are filled up with blanks, which nobody needs at the end of a line.
    with console.capture() as drawn:
        console.print(table)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    console.file.write("\n".join(line for line in lines if line) + "\n")


def percent(fraction: float | None) -> str:
    """A fraction as it is printed: ``87.5``; a dash where there is none."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"
