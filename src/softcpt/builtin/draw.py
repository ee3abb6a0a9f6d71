"""A scene -> its picture."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from softcpt.builtin.camera import add_weather, light_up, take
from softcpt.builtin.canvas import covered, lay, points
from softcpt.builtin.chance import Array, between, happens, pick, whole
from softcpt.builtin.grounds import paint_ground
from softcpt.builtin.layout import Spot, spots
from softcpt.builtin.letters import letter_distance, sample_font
from softcpt.builtin.scene import Scene
from softcpt.builtin.shapes import SHAPES
from softcpt.builtin.surfaces import paint, sample_look

_MARGIN = 1.35
"""How far a thing, its outline included, reaches from its centre at most, in radii."""


def draw(scene: Scene, rng: np.random.Generator, size_px: int = 64) -> Image.Image:
    """An RGB picture of a scene.

    Everything that the scene does not say is left to chance: clutter, light, grain, what half hides a thing.
    The same scene, generator and size give the same pixels on every machine.

    Args:
        scene: what is to be seen.
        rng: where the rest comes from.
        size_px: height and width, at least 32.
    """
    canvas = paint_ground(scene, rng, size_px)
    _scatter_clutter(canvas, rng)
    places = spots(scene, rng)
    _paint_things(canvas, scene, places, rng)
    if scene.size in ("medium", "large") and happens(rng, 0.2):
        _lay_stick(canvas, places[0], rng)
    canvas = take(add_weather(light_up(canvas, rng), scene, rng), scene, rng)
    return Image.fromarray(np.rint(255 * canvas).astype(np.uint8))


def _paint_things(canvas: Array, scene: Scene, places: list[Spot], rng: np.random.Generator) -> None:
    look, font = sample_look(scene, rng), sample_font(rng)
    for spot in places:
        piece, x, y = _piece(canvas, spot)
        distance = letter_distance(scene.letter, font, x, y) if scene.letter else SHAPES[scene.shape](x, y)
        paint(piece, scene, look, distance, x, y, rng)


def _piece(canvas: Array, spot: Spot) -> tuple[Array, Array, Array]:
    """The part of the canvas around a spot, and the spot's own coordinates there."""
    size_px = canvas.shape[0]
    reach = _MARGIN * spot.radius
    rows, columns = (
        slice(max(int((at - reach) * size_px), 0), min(int((at + reach) * size_px) + 2, size_px))
        for at in (spot.y, spot.x)
    )
    all_x, all_y = points(size_px)
    x, y = (all_x[rows, columns] - spot.x) / spot.radius, (all_y[rows, columns] - spot.y) / spot.radius
    cos, sin = math.cos(spot.turn), math.sin(spot.turn)
    return canvas[rows, columns], x * cos + y * sin, y * cos - x * sin


def _scatter_clutter(canvas: Array, rng: np.random.Generator) -> None:
    """Pebbles and small dull shapes that have nothing to do with the scene."""
    for _ in range(whole(rng, 0, 4)):
        spot = Spot(rng.random(), rng.random(), between(rng, 0.02, 0.05), between(rng, 0, 6.3))
        piece, x, y = _piece(canvas, spot)
        if min(piece.shape[:2]) < 2:
            continue
        distance = SHAPES[pick(rng, ("circle", "square", "triangle", "cross"))](x, y)
        grey = np.full(3, between(rng, 0.25, 0.75)) + 0.12 * (rng.random(3) - 0.5)
        lay(piece, 0.5 * piece + 0.5 * grey, covered(distance, 1 / (spot.radius * canvas.shape[0])))


def _lay_stick(canvas: Array, spot: Spot, rng: np.random.Generator) -> None:
    """A dull stick across the picture that hides a part of a thing."""
    x, y = points(canvas.shape[0])
    turn, off = between(rng, 0, math.pi), pick(rng, (-1, 1)) * between(rng, 0.2, 0.7) * spot.radius
    aside = (x - spot.x) * math.cos(turn) + (y - spot.y) * math.sin(turn) - off
    half = between(rng, 0.012, 0.035)
    grey = np.full(3, between(rng, 0.15, 0.8)) + 0.1 * (rng.random(3) - 0.5)
    lay(canvas, grey, covered(np.abs(aside) - half, 1 / canvas.shape[0]))
