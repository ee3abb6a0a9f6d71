"""Where the things of a scene lie, and how they are turned."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from softcpt.builtin.chance import between, pick, shuffled
from softcpt.builtin.scene import COUNTS, POINTED, RADIUS, Scene


class Spot(NamedTuple):
    """One thing's place: centre and radius as shares of the picture's side, and its turn in radians."""

    x: float
    y: float
    radius: float
    turn: float


def spots(scene: Scene, rng: np.random.Generator) -> list[Spot]:
    """A spot for each thing; spots of one picture do not overlap."""
    radius = RADIUS[scene.size] * between(rng, 0.9, 1.1)
    centres = [_alone(scene, radius, rng)] if scene.count == "one" else _together(scene, rng)
    turn = _turn(scene, rng)
    return [
        Spot(x, y, radius * between(rng, 0.93, 1.07), turn + between(rng, -0.12, 0.12)) for x, y in centres
    ]


def _turn(scene: Scene, rng: np.random.Generator) -> float:
    if scene.letter:
        return between(rng, -0.2, 0.2)
    if scene.shape not in POINTED:
        return between(rng, -0.25, 0.25)
    degrees = {"up": 0, "diagonally up": 45, "sideways": 90, "diagonally down": 135, "down": 180}
    return math.radians(pick(rng, (-1, 1)) * degrees[scene.orientation]) + between(rng, -0.1, 0.1)


def _alone(scene: Scene, radius: float, rng: np.random.Generator) -> tuple[float, float]:
    if scene.size == "large":
        return between(rng, 0.42, 0.58), between(rng, 0.42, 0.58)
    near = radius + between(rng, 0.0, 0.07)
    near_side = pick(rng, (near, 1 - near))
    middle = between(rng, 0.4, 0.6)
    places = {
        "middle": (between(rng, 0.42, 0.58), between(rng, 0.42, 0.58)),
        "top": (middle, near),
        "bottom": (middle, 1 - near),
        "side": (near_side, middle),
        "corner": (near_side, pick(rng, (near, 1 - near))),
    }
    return places[scene.position]


def _together(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of several things, in the order that the scene says."""
    n = COUNTS[scene.count]
    if n < 4 or scene.arrangement == "scattered":
        return _scattered(n, RADIUS[scene.size], rng)
    if scene.arrangement == "circle":
        start, radius = between(rng, 0, 2 * math.pi), between(rng, 0.26, 0.34)
        angles = [start + 2 * math.pi * k / n for k in range(n)]
        x, y = between(rng, 0.44, 0.56), between(rng, 0.44, 0.56)
        return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    # A line: level or upright within 12 degrees, or at 33 to 57 degrees.
    lean = between(rng, -0.21, 0.21)
    angle = {
        "row": lean,
        "column": lean + math.pi / 2,
        "diagonal": lean + pick(rng, (-1, 1)) * math.pi / 4,
    }[scene.arrangement]
    step = between(rng, 0.165, min(0.2, 0.835 / (n - 1)))
    across, down = step * math.cos(angle), step * math.sin(angle)
    x, y = (
        between(rng, reach, 1 - reach) if reach < 0.5 else 0.5
        for reach in (abs(along) * (n - 1) / 2 + 0.09 for along in (across, down))
    )
    return [(x + (k - (n - 1) / 2) * across, y + (k - (n - 1) / 2) * down) for k in range(n)]


def _scattered(n: int, radius: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Cells of a grid, and a place in each."""
    side = 3 if radius < 0.15 else 2
    slack = 0.5 / side - 1.1 * radius
    return [
        (
            (column + 0.5) / side + between(rng, -slack, slack),
            (row + 0.5) / side + between(rng, -slack, slack),
        )
        for row, column in (divmod(cell, side) for cell in shuffled(rng, range(side * side))[:n])
    ]
