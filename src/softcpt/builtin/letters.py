"""Capital letters in several hands, as signed distances like those of ``shapes.py``.

A letter is a few strokes; a font says how a stroke is thickened. No font file is read, so that a letter looks
the same with every version of every library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from softcpt.builtin.chance import Array, between, happens, pick

Stroke = Sequence[tuple[float, float]]


def _arc(
    x: float, y: float, wide: float, high: float, start: float, end: float, n: int = 8
) -> list[tuple[float, float]]:
    """Points on an ellipse, from one angle to another in degrees: 0 right, 90 down."""
    angles = [math.radians(start + (end - start) * k / n) for k in range(n + 1)]
    return [(x + wide * math.cos(a), y + high * math.sin(a)) for a in angles]


_STROKES: Final[dict[str, Sequence[Stroke]]] = {
    "A": [[(-0.72, 1), (0, -1), (0.72, 1)], [(-0.46, 0.3), (0.46, 0.3)]],
    "B": [
        [(-0.55, 0), *_arc(0.1, -0.5, 0.48, 0.5, 90, -90), (-0.55, -1), (-0.55, 1),
         *_arc(0.1, 0.5, 0.55, 0.5, 90, -90)],
    ],
    "E": [[(0.55, -1), (-0.55, -1), (-0.55, 1), (0.55, 1)], [(-0.55, 0), (0.4, 0)]],
    "H": [[(-0.62, -1), (-0.62, 1)], [(0.62, -1), (0.62, 1)], [(-0.62, 0), (0.62, 0)]],
    "K": [[(-0.55, -1), (-0.55, 1)], [(0.6, -1), (-0.5, 0.2)], [(-0.12, -0.2), (0.65, 1)]],
    "M": [[(-0.78, 1), (-0.78, -1), (0, 0.5), (0.78, -1), (0.78, 1)]],
    "O": [_arc(0, 0, 0.75, 1, 0, 360, 20)],
    "S": [[*_arc(0, -0.5, 0.6, 0.5, -20, -270, 10), *_arc(0, 0.5, 0.64, 0.5, -90, 160, 10)[1:]]],
    "T": [[(-0.7, -1), (0.7, -1)], [(0, -1), (0, 1)]],
    "X": [[(-0.65, -1), (0.65, 1)], [(0.65, -1), (-0.65, 1)]],
}  # fmt: skip

FONTS: Final = ("round", "block", "serif", "hand")


@dataclass(frozen=True, slots=True)
class Font:
    """How strokes are written.

    Attributes:
        name: one of ``FONTS``.
        weight: half the width of a stroke.
        width: of a letter, against its usual one.
        slant: how far the top leans to the right.
        tremble: how much each point of a hand-written stroke is moved, in both directions.
    """

    name: str
    weight: float
    width: float
    slant: float
    tremble: Array


def sample_font(rng: np.random.Generator) -> Font:
    """A font left to chance."""
    name = pick(rng, FONTS)
    weight = between(rng, 0.12, 0.27) if name != "hand" else between(rng, 0.09, 0.15)
    slant = between(rng, 0.1, 0.3) if happens(rng, 0.3) else 0.0
    tremble = 0.14 * (rng.random((64, 2)) - 0.5) if name == "hand" else np.zeros((64, 2))
    return Font(name, weight, between(rng, 0.75, 1.15), slant, tremble)


def letter_distance(letter: str, font: Font, x: Array, y: Array) -> Array:
    """Signed distance to a letter of about the height 2 around the origin."""
    strokes = [_written(stroke, font) for stroke in _STROKES[letter]]
    ends = np.concatenate([np.stack([stroke[:-1], stroke[1:]], axis=1) for stroke in strokes])
    # An upright stroke of a serif font is thicker than a level one.
    delta = ends[:, 1] - ends[:, 0]
    steep = np.abs(delta[:, 1]) / np.hypot(delta[:, 0], delta[:, 1])
    weight = font.weight * (0.55 + 0.45 * steep if font.name == "serif" else np.ones(len(ends)))
    distance = _thickened(ends, weight, x, y, is_round=font.name in ("round", "hand"))
    if font.name == "serif" and letter not in "OSB":
        feet = _feet(strokes, 0.2 * font.width)
        distance = np.minimum(distance, _thickened(feet, np.full(len(feet), 0.09), x, y, is_round=False))
    return distance


def _written(stroke: Stroke, font: Font) -> Array:
    # Strokes stay inside the height whatever their weight.
    points = 0.86 * np.array(stroke) * (font.width, 1.0)
    points[:, 0] -= font.slant * points[:, 1]
    return points + font.tremble[: len(points)]


def _feet(strokes: Sequence[Array], reach: float) -> Array:
    """Short level strokes at the ends of the strokes that reach the top or the bottom."""
    ends = np.array([end for stroke in strokes for end in (stroke[0], stroke[-1]) if abs(end[1]) > 0.8])
    aside = np.array([reach, 0.0])
    return np.stack([ends - aside, ends + aside], axis=1)


def _thickened(ends: Array, weight: Array, x: Array, y: Array, *, is_round: bool) -> Array:
    """Distance to the nearest of several segments, each of a half width, with round or square ends."""
    start = ends[:, 0, :, None, None]
    delta = (ends[:, 1] - ends[:, 0])[:, :, None, None]
    length = np.hypot(delta[:, 0], delta[:, 1])
    along_x, along_y = delta[:, 0] / length, delta[:, 1] / length
    from_x, from_y = x - start[:, 0], y - start[:, 1]
    beyond = np.abs(from_x * along_x + from_y * along_y - length / 2) - length / 2
    aside = np.abs(from_y * along_x - from_x * along_y)
    half = weight[:, None, None]
    each = np.hypot(np.maximum(beyond, 0), aside) if is_round else np.maximum(beyond, aside)
    nearest: Array = (each - half).min(axis=0)
    return nearest
