"""Figures of a comparison, beside those of :mod:`softcpt.report.figures` and in their style."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softcpt.report.figures import _INK, _MARKERS, _SERIES, _inline, _legend, _styled

_LIGHT = {
    "ink": "#1c2430",
    "faint": "#d8dde5",
    "card": "#ffffff",
    "fill": "#1f5fa8",
    "series-1": "#7a8291",
    "series-2": "#c4761b",
    "series-3": "#23875f",
    "series-4": "#1f5fa8",
    "series-5": "#a63d87",
    "series-6": "#8a6d00",
    "series-7": "#2f9bb5",
    "series-8": "#b5443c",
}
"""What the page's variables are by day, for figures that stand alone."""


def gains_figure(
    gains: Mapping[str, Sequence[float | None]],
    tasks: Sequence[str],
    *,
    places: Mapping[str, int],
    key: str,
    alt: str,
) -> str:
    """Gain over zero-shot in points, a bar a method, to both sides of nothing.

    Args:
        gains: label -> the tasks' gains as fractions, in their order.
        tasks: names, from top to bottom.
        places: label -> its place among all methods of the page, which is its colour.
        key: starts the names inside the drawing.
        alt: the figure in words.
    """
    thick = 0.8 / max(len(gains), 1)
    with _styled(height_in=1.0 + len(tasks) * (0.18 + 0.115 * len(gains))) as drawing:
        axes = drawing.axes
        for i, (label, values) in enumerate(gains.items()):
            axes.barh(
                [t - 0.4 + (i + 0.5) * thick for t in range(len(tasks))],
                [0.0 if value is None else 100 * value for value in values],
                height=0.92 * thick,
                color=_SERIES[places[label] % len(_SERIES)],
                label=label,
            )
        axes.axvline(0, color=_INK, lw=0.8)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_ylim(len(tasks) - 0.45, -0.55)
        axes.set_xlabel("gain over zero-shot (points)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        _legend(drawing.figure, axes)
    return _inline(drawing.svg, key, alt)


@dataclass(frozen=True)
class Point:
    """A method: what it takes, and what it scores as a fraction."""

    label: str
    cost: float
    score: float


def cost_figure(points: Sequence[Point], *, what: str, key: str, alt: str) -> str:
    """Accuracy against what it takes, on a logarithmic scale; what takes nothing stands at the left edge.

    Args:
        points: one a method; its place in the list is its colour.
        what: along the axis, such as ``numbers learned``.
        key: starts the names inside the drawing.
        alt: the figure in words.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    paid = [point.cost for point in points if point.cost > 0]
    edge = min(paid) / 10 if paid else 1.0
    with _styled(height_in=3.1) as drawing:
        axes = drawing.axes
        for i, point in enumerate(points):
            axes.plot(
                [point.cost if point.cost > 0 else edge],
                [100 * point.score],
                color=_SERIES[i % len(_SERIES)],
                marker=_MARKERS[i % len(_MARKERS)],
                ms=8,
                ls="none",
                label=point.label if point.cost > 0 else f"{point.label} (0)",
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(edge / 2, max(paid, default=1.0) * 2)
        axes.set_xlabel(what)
        axes.set_ylabel("accuracy on test images (%)")
        axes.grid(axis="both")
        _legend(drawing.figure, axes)
    return _inline(drawing.svg, key, alt)


def short_number(value: float) -> str:
    """A power of ten in few letters.

    Example:
        >>> [short_number(value) for value in (0.1, 100, 10_000, 1_000_000)]
        ['0.1', '100', '10k', '1M']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def standalone(svg: str) -> str:
    """A figure of a page as a file of its own, in the page's colours by day."""
    opening, _, inner = svg.partition(">")
    size = re.search(r'viewBox="([-\d.]+) ([-\d.]+) ([\d.]+) ([\d.]+)"', opening)
    assert size is not None  # every figure of a page has one
    left, top, width, height = size.groups()
    inner = re.sub(r"var\(--([\w-]+)\)", lambda found: _LIGHT[found[1]], inner)
    paper = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="#ffffff"/>'
    head = (
        f'{opening} xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{height}pt" '
        'font-family="DejaVu Sans, sans-serif">'
    )
    return f"{head}{paper}{inner}"
