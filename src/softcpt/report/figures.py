"""Figures as SVG to stand inside a page, the same bytes for the same numbers.

matplotlib draws, without pyplot and its global state. Colours are stand-ins that become the page's CSS
variables, so that figures follow light and dark; text stays text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

from softcpt.report.results import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN: Final = 3.8
"""Narrow enough for a phone, where a wide figure's words would shrink until nobody can read them."""

_TEXT_PT: Final = 10
_LEGEND_IN: Final = 0.21
"""A line of a legend."""
_LEGEND_ROWS: Final = 2
"""What every figure has room for."""
_INK, _FAINT, _PAPER, _FILL = "#010101", "#010102", "#010103", "#010104"
_SERIES = tuple(f"#01020{i}" for i in range(1, 9))
_MARKERS = "osD^vPX*"
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _PAPER: "var(--card)",
    _FILL: "var(--fill)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES, 1)},
}

_STYLE: Final[dict[Any, Any]] = {  # whose keys newer versions of matplotlib type one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "softcpt",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": _TEXT_PT,
    "axes.labelsize": _TEXT_PT,
    "xtick.labelsize": _TEXT_PT,
    "ytick.labelsize": _TEXT_PT,
    "legend.fontsize": _TEXT_PT,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    # Texts come from data: "$" is a dollar in it, not mathematics.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Line:
    """A method over shots.

    Attributes:
        label: in the legend.
        points: shots -> score, as a fraction.
        level: drawn as a level line across all shots instead: what trains nothing.
    """

    label: str
    points: Mapping[int, Spread]
    level: Spread | None = None


def accuracy_figure(lines: Sequence[Line], *, key: str, alt: str) -> str:
    """Accuracy over shots, error bars one population deviation up and down.

    Args:
        lines: one a method; its place in the list is its colour.
        key: starts the names inside the drawing; another one for each figure of a page.
        alt: the figure in words.
    """
    shots = sorted({s for line in lines for s in line.points})
    place = {s: i for i, s in enumerate(shots)}
    with _styled(height_in=3.1) as drawing:
        axes = drawing.axes
        for i, line in enumerate(lines):
            if line.level is not None:
                axes.axhline(
                    100 * line.level.mean, color=_SERIES[i % len(_SERIES)], ls="--", lw=1.6, label=line.label
                )
                continue
            aside = 0.07 * (i - (len(lines) - 1) / 2)  # so that error bars do not hide one another
            known = [s for s in shots if s in line.points]
            axes.errorbar(
                [place[s] + aside for s in known],
                [100 * line.points[s].mean for s in known],
                yerr=[100 * line.points[s].deviation for s in known],
                color=_SERIES[i % len(_SERIES)],
                marker=_MARKERS[i % len(_MARKERS)],
                ms=6,
                lw=1.8,
                capsize=3.5,
                label=line.label,
            )
        axes.set_xticks(range(len(shots)), [str(s) for s in shots])
        axes.set_xlim(-0.35, len(shots) - 0.65)
        axes.set_xlabel("training images per class")
        axes.set_ylabel("accuracy on test images (%)")
        axes.grid(axis="y")
        _legend(drawing.figure, axes)
    return _inline(drawing.svg, key, alt)


def bars_figure(bars: Mapping[str, Sequence[Spread]], tasks: Sequence[str], *, key: str, alt: str) -> str:
    """Accuracy of each task, a bar a method, error bars one population deviation up and down.

    Args:
        bars: label -> the tasks' scores as fractions, in their order.
        tasks: names, from top to bottom.
        key: starts the names inside the drawing.
        alt: the figure in words.
    """
    thick = 0.8 / max(len(bars), 1)
    with _styled(height_in=1.0 + len(tasks) * (0.18 + 0.115 * len(bars))) as drawing:
        axes = drawing.axes
        for i, (label, scores) in enumerate(bars.items()):
            axes.barh(
                [t - 0.4 + (i + 0.5) * thick for t in range(len(tasks))],
                [100 * score.mean if score.n else 0.0 for score in scores],
                height=0.92 * thick,
                xerr=[100 * score.deviation if score.n > 1 else 0.0 for score in scores],
                color=_SERIES[i % len(_SERIES)],
                error_kw={"ecolor": _INK, "elinewidth": 0.9},
                label=label,
            )
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_ylim(len(tasks) - 0.45, -0.55)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy on test images (%)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        _legend(drawing.figure, axes)
    return _inline(drawing.svg, key, alt)


def confusion_figure(counts: Sequence[Sequence[int]], classes: Sequence[str], *, key: str, alt: str) -> str:
    """A confusion matrix: rows are true classes, columns predicted ones, numbers percent of the row.

    Args:
        counts: rows of counts.
        classes: names of both.
        key: starts the names inside the drawing.
        alt: the figure in words.
    """
    from matplotlib.patches import Rectangle

    n = len(classes)
    with _styled(height_in=max(2.6, 0.9 + 0.3 * n)) as drawing:
        axes = drawing.axes
        for i, row in enumerate(counts):
            total = sum(row)
            for j, count in enumerate(row):
                share = count / total if total else 0.0
                axes.add_patch(
                    Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_FILL, alpha=share, edgecolor="none")
                )
                if count:
                    axes.text(
                        j, i, f"{100 * share:.0f}", ha="center", va="center",
                        color=_PAPER if share > 0.55 else _INK,
                    )  # fmt: skip
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(n - 0.5, -0.5)
        names = [_short(name) for name in classes]
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
        axes.set_xticks([i - 0.5 for i in range(1, n)], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, n)], minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="both", length=0)
        axes.spines[["top", "right"]].set_visible(True)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
    return _inline(drawing.svg, key, alt)


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    names = [fill(label, 34) for label in labels]
    columns = 2 if max(map(len, names), default=0) <= 18 else 1  # as many as the width has room for
    n_lines = sum(name.count("\n") + 1 for name in names)
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.6)
    # What a long legend takes is added, so that the axes keep room for their own words.
    figure.set_figheight(figure.get_figheight() + _LEGEND_IN * max(0, -(-n_lines // columns) - _LEGEND_ROWS))


class _styled:
    """A figure with one pair of axes, in our style while the block runs; its SVG afterwards."""

    def __init__(self, *, height_in: float) -> None:
        self._height_in = height_in
        self.svg = ""

    def __enter__(self) -> _styled:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._style = rc_context(_STYLE)
        self._style.__enter__()
        self.figure = Figure(figsize=(WIDTH_IN, self._height_in), layout="constrained")
        self.axes = self.figure.add_subplot()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                held = io.StringIO()
                self.figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
                self.svg = held.getvalue()
        finally:
            self._style.__exit__(None, None, None)


def _inline(svg: str, key: str, alt: str) -> str:
    """An SVG file as an element of a page."""
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    inner = svg[svg.index(">", size.end()) + 1 :]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    # Its only rule is for "*", which would reach the whole page; the page has it for figures.
    inner = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inner, flags=re.DOTALL)
    # Names of several drawings would meet on one page.
    inner = re.sub(r'\bid="', f'id="{key}-', inner)
    inner = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', inner).replace("url(#", f"url(#{key}-")
    inner = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", inner)
    for colour, variable in _VARIABLES.items():
        inner = inner.replace(colour, variable)
    label = html.escape(alt, quote=True)
    return f'<svg role="img" aria-label="{label}" {size.group()}>{inner.rstrip()}\n'
