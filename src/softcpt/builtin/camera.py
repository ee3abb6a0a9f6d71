"""Between the things and the picture: weather, light, and what the camera makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from softcpt.builtin.canvas import blurred, points, smooth_noise
from softcpt.builtin.chance import Array, bell, between, whole
from softcpt.builtin.scene import Scene


def light_up(canvas: Array, rng: np.random.Generator) -> Array:
    """Light from some side, a little warmer or colder."""
    x, y = points(canvas.shape[0])
    angle, slope = between(rng, 0, 2 * math.pi), between(rng, 0, 0.35)
    gain = between(rng, 0.85, 1.08) + slope * ((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle))
    tint = 1 + 0.08 * (rng.random(3) - 0.5)
    return canvas * gain[..., None] * tint


def add_weather(canvas: Array, scene: Scene, rng: np.random.Generator) -> Array:
    """The picture in the scene's weather."""
    return _WEATHER[scene.weather](canvas, rng)


def _clear(canvas: Array, rng: np.random.Generator) -> Array:
    return canvas


def _rain(canvas: Array, rng: np.random.Generator) -> Array:
    """Slanted streaks, bright and dull, on a greyer picture."""
    size_px = canvas.shape[0]
    x, y = points(size_px)
    grey = 0.72 * canvas + 0.28 * 0.42
    lean, n = between(rng, -0.35, 0.35), whole(rng, 35, 55)
    across = x + lean * y
    for _ in range(n):
        at, start, length = between(rng, -0.3, 1.3), between(rng, -0.1, 0.95), between(rng, 0.1, 0.24)
        rows = slice(max(int(start * size_px), 0), max(int((start + length) * size_px), 0))
        line = np.clip(1.2 - np.abs(across[rows] - at) * 110, 0, 1)
        grey[rows] += 0.5 * line[..., None] * (0.92 - grey[rows])
    return grey


def _snow(canvas: Array, rng: np.random.Generator) -> Array:
    """Round flakes of several sizes, whiter on the whole."""
    size_px = canvas.shape[0]
    white = 0.86 * canvas + 0.14 * 0.93
    x, y = points(size_px)
    for _ in range(whole(rng, 35, 60)):
        at_x, at_y, radius = rng.random(), rng.random(), between(rng, 0.007, 0.02)
        reach = radius + 1 / size_px
        rows = slice(max(int((at_y - reach) * size_px), 0), int((at_y + reach) * size_px) + 1)
        columns = slice(max(int((at_x - reach) * size_px), 0), int((at_x + reach) * size_px) + 1)
        far = np.hypot(x[rows, columns] - at_x, y[rows, columns] - at_y)
        flake = np.clip(0.5 - (far - radius) * size_px, 0, 1)[..., None]
        white[rows, columns] += flake * (0.97 - white[rows, columns])
    return white


def _fog(canvas: Array, rng: np.random.Generator) -> Array:
    """Grey-white veils, thicker at some heights."""
    size_px = canvas.shape[0]
    veil = between(rng, 0.5, 0.62) + 0.3 * (smooth_noise(rng, 2, 3, size_px) - 0.5)
    return canvas + veil[..., None] * (between(rng, 0.74, 0.84) - canvas)


def _sunset(canvas: Array, rng: np.random.Generator) -> Array:
    """Orange light from one height, dusk at the other."""
    _, y = points(canvas.shape[0])
    low = np.clip(between(rng, 0.5, 0.9) * y + between(rng, 0.1, 0.3), 0, 1)[..., None]
    glow = np.array([1.12, 0.62, 0.30]) * low + np.array([0.62, 0.36, 0.50]) * (1 - low)
    return canvas * glow + 0.22 * low * (1.0, 0.45, 0.1)


_WEATHER: Final[dict[str, Callable[[Array, np.random.Generator], Array]]] = {
    "clear": _clear,
    "rain": _rain,
    "snow": _snow,
    "fog": _fog,
    "sunset": _sunset,
}


def take(canvas: Array, scene: Scene, rng: np.random.Generator) -> Array:
    """What the camera makes of it: focus, exposure, noise. Values from 0 to 1."""
    size_px = canvas.shape[0]
    grain = between(rng, 0.005, 0.035)
    canvas = np.clip(canvas, 0, 1)
    match scene.quality:
        case "blurred":
            canvas = blurred(canvas, between(rng, 0.03, 0.045))
        case "grainy":
            grain = between(rng, 0.1, 0.15)
        case "pixelated":
            canvas = _mosaic(canvas, whole(rng, 13, 18))
            grain = 0.0
        case "overexposed":
            canvas = between(rng, 1.4, 1.6) * canvas + between(rng, 0.1, 0.2)
        case "dark":
            canvas = between(rng, 0.26, 0.4) * canvas
        case _:
            canvas = blurred(canvas, between(rng, 0.002, 0.009))
    noise = grain * bell(rng, (size_px, size_px, 1)) + 0.5 * grain * bell(rng, canvas.shape)
    return np.clip(canvas + noise, 0, 1)


def _mosaic(canvas: Array, n: int) -> Array:
    """The picture in ``n`` by ``n`` even squares."""
    square = np.arange(canvas.shape[0]) * n // canvas.shape[0]
    first = np.searchsorted(square, np.arange(n))
    sums = np.add.reduceat(np.add.reduceat(canvas, first, axis=0), first, axis=1)
    sizes = np.bincount(square)
    means = sums / (sizes[:, None, None] * sizes[None, :, None])
    return np.asarray(means[square][:, square])
