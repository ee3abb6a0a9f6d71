"""What covers a thing: its pattern, its material and its outline. Coordinates are those of ``shapes.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from softcpt.builtin.canvas import covered, lay
from softcpt.builtin.chance import Array, between, happens
from softcpt.builtin.scene import COLOURS, Scene, ground_colour

_WOOD: Final = np.array([0.58, 0.38, 0.20])
_GREY: Final = np.array([0.55, 0.55, 0.55])


@dataclass(frozen=True, slots=True)
class Look:
    """What all things of one picture share, left to chance within the scene's words.

    Attributes:
        colour: of the things.
        second: of stripes, dots and the like.
        outline: its colour.
        turn: of the pattern, in radians.
        pitch: of the pattern, in radii.
        width: of the outline, in radii.
        light: where the light comes from, in radians.
    """

    colour: Array
    second: Array
    outline: Array
    turn: float
    pitch: float
    width: float
    light: float


def sample_look(scene: Scene, rng: np.random.Generator) -> Look:
    """A look for the scene."""
    colour = np.clip(np.array(COLOURS[scene.colour]) + 0.1 * (rng.random(3) - 0.5), 0.03, 1.0)
    bright = colour.sum() > 1.5 or (colour.sum() > 0.7 and happens(rng, 0.4))
    second = colour * between(rng, 0.15, 0.4) if bright else colour + (1 - colour) * between(rng, 0.65, 0.95)
    outline = {
        "none": colour,
        "dark": np.full(3, between(rng, 0.0, 0.12)),
        "bright": np.full(3, between(rng, 0.9, 1.0)),
        "dashed": np.full(
            3, between(rng, 0.9, 1.0) if sum(ground_colour(scene)) < 1.4 else between(rng, 0.0, 0.12)
        ),
        "hollow": colour,
    }[scene.outline]
    return Look(
        colour,
        second,
        outline,
        turn=between(rng, 0, math.pi),
        pitch=between(rng, 0.4, 0.62),
        width=between(rng, 0.16, 0.26),
        light=between(rng, -0.8, 0.8) - math.pi / 2,
    )


def paint(
    canvas: Array, scene: Scene, look: Look, distance: Array, x: Array, y: Array, rng: np.random.Generator
) -> None:
    """Paint one thing on a piece of the canvas.

    Args:
        canvas: changed in place.
        scene: what is to be seen.
        look: what this picture makes of it.
        distance: to the thing's border.
        x: the thing's own coordinates, turned with it; grows to its right.
        y: likewise; grows downwards.
        rng: of grain and hair.
    """
    pixel = abs(float(x[0, 1] - x[0, 0])) + abs(float(y[0, 1] - y[0, 0]))
    if scene.outline == "hollow":
        lay(canvas, look.colour, covered(np.abs(distance + look.width / 2) - look.width / 2, pixel))
        return
    if scene.material == "fur":
        distance = distance + (0.4 if scene.letter else 0.75) * _hair(x, y, rng)
    share = covered(distance, pixel)
    colours = np.broadcast_to(look.colour, canvas.shape)
    if scene.pattern in _PATTERNS:
        level = _PATTERNS[scene.pattern](x, y, look)
        colours = colours + covered(level, pixel)[..., None] * (look.second - look.colour)
    colours, opaque = _MATERIALS[scene.material](colours, distance, x, y, look, rng)
    lay(canvas, colours, share * opaque)
    if scene.outline != "none":
        # Just outside, so that thin letters keep their colour.
        half = look.width / (4 if scene.letter else 2)
        line = np.abs(distance + 0.04 - half) - half
        if scene.outline == "dashed":
            line = np.maximum(line, _checkered(*_turned(x, y, 0.35), replace(look, turn=0.0, pitch=0.33)))
        lay(canvas, look.outline, covered(line, pixel))


def _wave(at: Array, pitch: float) -> Array:
    """Signed distance to bands as wide as the gaps between them; negative inside a band."""
    bands: Array = np.abs(np.mod(at, pitch) - pitch / 2) - pitch / 4
    return bands


def _turned(x: Array, y: Array, turn: float) -> tuple[Array, Array]:
    return x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)


def _striped(x: Array, y: Array, look: Look) -> Array:
    return _wave(_turned(x, y, look.turn)[0], look.pitch)


def _dotted(x: Array, y: Array, look: Look) -> Array:
    across, down = _turned(x, y, look.turn)
    row = np.floor(down / look.pitch)
    across = np.mod(across + 0.5 * look.pitch * np.mod(row, 2), look.pitch) - look.pitch / 2
    return np.hypot(across, np.mod(down, look.pitch) - look.pitch / 2) - 0.3 * look.pitch


def _checkered(x: Array, y: Array, look: Look) -> Array:
    across, down = _turned(x, y, 0.3 * look.turn)
    pitch = 2 * look.pitch
    a, b = _wave(across, pitch), _wave(down, pitch)
    return np.where(a * b > 0, 1.0, -1.0) * np.minimum(np.abs(a), np.abs(b))


def _latticed(x: Array, y: Array, look: Look) -> Array:
    pitch = 1.15 * look.pitch
    lines = [np.abs(np.mod(at, pitch) - pitch / 2) for at in _turned(x, y, look.turn)]
    return np.minimum(*lines) - 0.13 * pitch


def _ringed(x: Array, y: Array, look: Look) -> Array:
    return _wave(np.hypot(x, y), look.pitch)


def _zigzag(x: Array, y: Array, look: Look) -> Array:
    across, down = _turned(x, y, 0.3 * look.turn)
    pitch = 1.3 * look.pitch
    return _wave(down + np.abs(np.mod(across, pitch) - pitch / 2), pitch) * 0.7


_PATTERNS: Final[dict[str, Callable[[Array, Array, Look], Array]]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "latticed": _latticed,
    "ringed": _ringed,
    "zigzag": _zigzag,
}
"""Pattern -> signed distance to what has the second colour."""

Painted = tuple[Array, Array | float]


def _paper(
    colours: Array, distance: Array, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Painted:
    return colours, 1.0


def _wood(
    colours: Array, distance: Array, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Painted:
    """Grain: long wavy lines, and a brown tone."""
    across, along = _turned(x, y, 0.25 * look.turn)
    bend, knot = between(rng, 0, 6), between(rng, -1.5, 1.5)
    rings = across + 0.12 * np.sin(2.5 * along + bend) + 0.25 / (1 + 8 * (across**2 + (along - knot) ** 2))
    grain = 0.5 + 0.5 * np.sin(14 * rings + 3 * np.sin(4 * rings))
    tone = 0.4 * colours + 0.6 * _WOOD
    return tone * (0.62 + 0.5 * grain)[..., None], 1.0


def _metal(
    colours: Array, distance: Array, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Painted:
    """Bright and dark bands of a reflection, and a bevelled edge."""
    at = x * math.cos(look.light) + y * math.sin(look.light)
    shine = 0.5 + 0.5 * np.cos(4.2 * at + between(rng, -1, 1))
    glare = np.exp(-((at - 0.15 + 0.3 * between(rng, -1, 1)) ** 2) / 0.012)
    tone = 0.6 * colours + 0.4 * _GREY
    edge = np.exp(-((distance + 0.1) ** 2) / 0.006) * np.where(at > 0, 0.45, -0.3)
    lit = tone * (0.45 + 0.95 * shine)[..., None] + (0.8 * glare + edge)[..., None]
    return np.clip(lit, 0, 1), 1.0


def _stone(
    colours: Array, distance: Array, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Painted:
    """Coarse grains, dark at the edge."""
    tone = 0.55 * colours + 0.45 * _GREY
    grains = rng.random(distance.shape)
    specks = np.where(grains > 0.86, 1.35, np.where(grains < 0.2, 0.55, 0.95))
    return np.clip(tone * (specks * (1 - 0.35 * np.exp(4 * distance)))[..., None], 0, 1), 1.0


def _fur(
    colours: Array, distance: Array, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Painted:
    """Strands that run outwards."""
    angle = np.arctan2(y, x)
    strands = np.sin(23 * angle + 5 * np.hypot(x, y) + 6 * rng.random()) * np.sin(
        9 * np.hypot(x, y) + 4 * angle
    )
    shade = 0.85 + 0.28 * strands + 0.25 * (rng.random(distance.shape) - 0.5)
    return np.clip(colours * shade[..., None] + 0.08, 0, 1), 1.0


def _hair(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """How far the border of fur is frayed."""
    angle = np.arctan2(y, x)
    start = 6 * rng.random()
    frayed: Array = 0.08 * np.sin(31 * angle + start) + 0.04 * np.sin(19 * angle - 2 * start) + 0.02
    return frayed


def _glass(
    colours: Array, distance: Array, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Painted:
    """See-through, with a bright rim and a spot of light."""
    rim = np.exp(6 * np.minimum(distance, 0))
    spot_x, spot_y = 0.42 * math.cos(look.light), 0.42 * math.sin(look.light)
    spot = np.exp(-((x - spot_x) ** 2 + 2 * (y - spot_y) ** 2) / 0.03)
    lit = colours + (1 - colours) * np.clip(0.12 + 0.95 * spot, 0, 1)[..., None]
    return np.clip(lit * (1 - 0.25 * rim)[..., None], 0, 1), np.clip(0.38 + 0.5 * rim + 0.6 * spot, 0, 1)


_MATERIALS: Final = {
    "paper": _paper,
    "wood": _wood,
    "metal": _metal,
    "stone": _stone,
    "fur": _fur,
    "glass": _glass,
}
"""Material -> colours, and how much of the background they hide."""
