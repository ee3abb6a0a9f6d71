"""What a page is made of. Values only: :mod:`softcpt.report.page` turns them into HTML and escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what it shows, above it.
        columns: headings.
        rows: a text for each column.
        note: how to read it, below it.
        strong: indices of rows to stress.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing of :mod:`softcpt.report.figures`.

    Attributes:
        svg: its markup, which is trusted; the only value on a page that is.
        caption: what it shows, and what its error bars are.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str


@dataclass(frozen=True)
class Sample:
    """An image and what was made of it.

    Attributes:
        image: as a ``data:`` URI.
        task: name of the task.
        label: the true class.
        predicted: the class it was taken for.
        likeliest: classes and probabilities, the likeliest first.
    """

    image: str
    task: str
    label: str
    predicted: str
    likeliest: Sequence[tuple[str, float]]

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the true class."""
        return self.label == self.predicted


@dataclass(frozen=True)
class Gallery:
    """Samples side by side."""

    kind: ClassVar[str] = "gallery"
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where there is room."""

    kind: ClassVar[str] = "columns"
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Details:
    """Blocks that a reader opens."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Text | Facts | Table | Figure | Gallery | Commands | Columns | Details


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: also the window's.
        lead: the paragraph a hurried reader reads.
        sections: in order.
    """

    title: str
    lead: str
    sections: Sequence[Section]
