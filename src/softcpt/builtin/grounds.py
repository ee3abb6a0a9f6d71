"""What lies behind the things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from softcpt.builtin.canvas import points, smooth_noise
from softcpt.builtin.chance import Array, between, whole
from softcpt.builtin.scene import GROUNDS, PLAIN_GROUNDS, Scene


def paint_ground(scene: Scene, rng: np.random.Generator, size_px: int) -> Array:
    """The picture without any thing in it."""
    if scene.background == "plain":
        colour = np.array(PLAIN_GROUNDS[scene.background_colour]) + 0.08 * (rng.random(3) - 0.5)
        shade = 0.92 + 0.16 * smooth_noise(rng, 1, 1, size_px)
        return np.asarray(colour * shade[..., None])
    colour = np.array(GROUNDS[scene.background]) + 0.06 * (rng.random(3) - 0.5)
    ground = _GROUNDS[scene.background](colour, rng, size_px)
    return ground + 0.3 * (colour - ground)  # quiet enough not to drown the things


def _grass(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """Upright blades of many greens."""
    blades = smooth_noise(rng, size_px // 2, max(size_px // 9, 2), size_px)
    tufts = smooth_noise(rng, 7, 7, size_px)
    shade = 0.35 + 0.9 * blades + 0.4 * tufts
    return colour * shade[..., None] + 0.12 * (blades * tufts)[..., None] * (1.0, 1.0, 0.0)


def _sand(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """Fine grains and soft ripples."""
    _, y = points(size_px)
    bend = smooth_noise(rng, 3, 3, size_px)
    ripples = np.sin(2 * np.pi * (between(rng, 4, 7) * y + 1.2 * bend))
    grains = rng.random((size_px, size_px))
    sand: Array = colour * (0.82 + 0.06 * ripples + 0.28 * grains)[..., None]
    return sand


def _water(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """Level waves with bright crests."""
    x, y = points(size_px)
    bend = smooth_noise(rng, 4, 3, size_px)
    phase = 2 * np.pi * (between(rng, 6, 9) * y + 0.8 * bend) + 2.5 * np.sin(
        2 * np.pi * (2.2 * x + rng.random())
    )
    wave = 0.5 + 0.5 * np.sin(phase)
    crest = wave**6 * smooth_noise(rng, 9, 9, size_px)
    return colour * (0.72 + 0.5 * wave)[..., None] + 0.75 * crest[..., None]


def _bricks(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """Rows of bricks, each a little different, with bright joints."""
    x, y = points(size_px)
    high = 1 / whole(rng, 6, 8)
    down = y + high * rng.random()
    row = np.floor(down / high).astype(int)
    at = (x + 0.5 * 2.1 * high * np.mod(row, 2)) / (2.1 * high)
    column = np.floor(at).astype(int)
    tones = 0.75 + 0.45 * rng.random((12, 12))
    brick = tones[np.mod(row, 12), np.mod(column, 12)]
    joint = (np.mod(down, high) < 0.16 * high) | (np.mod(at, 1) < 0.08)
    wall: Array = colour * brick[..., None]
    wall[joint] = (0.78, 0.75, 0.70)
    wall *= (0.92 + 0.16 * rng.random((size_px, size_px)))[..., None]
    return wall


def _clouds(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """Blue, paler further down, with white clouds."""
    _, y = points(size_px)
    heap = (
        0.6 * smooth_noise(rng, 3, 4, size_px)
        + 0.3 * smooth_noise(rng, 7, 8, size_px)
        + 0.15 * smooth_noise(rng, 14, 16, size_px)
    )
    white = np.clip(5 * (heap - 0.52), 0, 1)[..., None]
    sky = colour * (0.85 + 0.2 * y)[..., None]
    return sky + white * ((0.97, 0.97, 0.98) - sky)


def _night_sky(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """Dark blue with stars."""
    sky = colour * (0.7 + 0.9 * smooth_noise(rng, 2, 2, size_px))[..., None]
    for _ in range(whole(rng, 25, 60)):
        across, down, bright = rng.random(3)
        i, j = int(across * size_px), int(down * size_px)
        wide = max(round(size_px / 64 * (1.6 if bright > 0.85 else 1)), 1)
        sky[j : j + wide, i : i + wide] += 0.25 + 0.75 * bright
    return sky


def _tiles(colour: Array, rng: np.random.Generator, size_px: int) -> Array:
    """A floor of bright and dark squares."""
    x, y = points(size_px)
    n, start_x, start_y = between(rng, 4, 6), rng.random(), rng.random()
    odd = np.mod(np.floor(n * x + start_x) + np.floor(n * y + start_y), 2)
    floor: Array = colour * (0.72 + 0.5 * odd + 0.06 * smooth_noise(rng, 9, 9, size_px))[..., None]
    return floor


_GROUNDS: Final[dict[str, Callable[[Array, np.random.Generator, int], Array]]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "bricks": _bricks,
    "clouds": _clouds,
    "night sky": _night_sky,
    "tiles": _tiles,
}
