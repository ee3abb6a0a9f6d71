"""Shapes as signed distances: negative inside, positive outside, in units of the shape's radius.

A distance gives a smooth border at every size of picture, an outline and its dashes alike, and needs no
drawing library whose pixels change from version to version. ``x`` grows to the right, ``y`` downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from softcpt.builtin.chance import Array

Points = Sequence[tuple[float, float]]


def disc(x: Array, y: Array, radius: float = 1.0) -> Array:
    """A filled circle around the origin."""
    return np.hypot(x, y) - radius


def polygon(points: Points, x: Array, y: Array) -> Array:
    """A filled polygon; exact, inside and outside."""
    start = np.array(points, dtype=np.float64)[:, :, None, None]
    end = np.roll(start, -1, axis=0)
    edge_x, edge_y = end[:, 0] - start[:, 0], end[:, 1] - start[:, 1]
    from_x, from_y = x - start[:, 0], y - start[:, 1]
    along = np.clip((from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
    squared = (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2
    # A ray to the right crosses the border an odd number of times from inside. Both comparisons are with the
    # corners themselves: a corner on the ray belongs to one of its edges only.
    spans = (y < start[:, 1]) != (y < end[:, 1])
    to_the_left = (from_x * edge_y < from_y * edge_x) == (edge_y > 0)
    inside = np.logical_xor.reduce(spans & to_the_left, axis=0)
    distance: Array = np.where(inside, -1.0, 1.0) * np.sqrt(squared.min(axis=0))
    return distance


def _around(n: int, radii: Sequence[float], turn: float = 0.0) -> Points:
    """Corners around the origin, the first one on top, with the radii in turn."""
    angles = [turn + 2 * math.pi * k / n for k in range(n)]
    return [
        (radii[k % len(radii)] * math.sin(a), -radii[k % len(radii)] * math.cos(a))
        for k, a in enumerate(angles)
    ]


_SQUARE: Final = _around(4, [1.1], math.pi / 4)
_TRIANGLE: Final[Points] = [(0, -1.08), (0.66, 0.85), (-0.66, 0.85)]
_STAR: Final = _around(10, [1.08, 0.46])
_CROSS: Final[Points] = [
    (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
    (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
]  # fmt: skip
_ARROW: Final[Points] = [
    (0, -1.05), (0.78, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.78, -0.1),
]  # fmt: skip


def _heart(x: Array, y: Array) -> Array:
    # Right half, tip at the origin, upwards: a line at 45 degrees, then a circle that it touches.
    across, up = 0.55 * np.abs(x), 0.58 - 0.55 * y
    hump = np.hypot(across - 0.25, up - 0.75) - math.sqrt(2) / 4
    on_line = np.maximum(across + up, 0) / 2
    line = np.hypot(across - on_line, up - on_line) * np.sign(across - up)
    notch = np.hypot(across, up - 1) * np.sign(across - up)
    straight = np.where(np.abs(notch) < np.abs(line), notch, line)
    distance: Array = np.where(across + up > 1, hump, straight) / 0.55
    return distance


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(disc(x, y), -disc(x - 0.45, y, 0.82))


def _ring(x: Array, y: Array) -> Array:
    return np.abs(disc(x, y, 0.74)) - 0.26


def _drop(x: Array, y: Array) -> Array:
    # The tip's sides touch the disc.
    return np.minimum(disc(x, y - 0.42, 0.6), polygon([(0, -1.1), (0.56, 0.2), (-0.56, 0.2)], x, y))


SHAPES: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "circle": disc,
    "square": lambda x, y: polygon(_SQUARE, x, y),
    "triangle": lambda x, y: polygon(_TRIANGLE, x, y),
    "star": lambda x, y: polygon(_STAR, x, y),
    "heart": _heart,
    "cross": lambda x, y: polygon(_CROSS, x, y),
    "crescent": _crescent,
    "ring": _ring,
    "arrow": lambda x, y: polygon(_ARROW, x, y),
    "drop": _drop,
}
"""Shape -> its distance at points; pointed shapes point upwards."""
