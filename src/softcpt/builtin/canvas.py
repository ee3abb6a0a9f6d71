"""Pictures as arrays of light, from 0 to 1: their points, smooth noise, blur, one colour laid on another."""

from __future__ import annotations

import math
from functools import lru_cache, reduce

import numpy as np

from softcpt.builtin.chance import Array


@lru_cache(maxsize=8)
def points(size_px: int) -> tuple[Array, Array]:
    """``x`` and ``y`` of the centres of all pixels, as shares of the picture's side."""
    line = (np.arange(size_px) + 0.5) / size_px
    x, y = np.meshgrid(line, line)
    return x, y


def covered(distance: Array, pixel: float) -> Array:
    """How much of each pixel lies inside a border, given signed distances and the size of a pixel."""
    share: Array = np.clip(0.5 - distance / pixel, 0.0, 1.0)
    return share


def lay(canvas: Array, colour: Array | tuple[float, ...], share: Array) -> None:
    """Cover the canvas with a colour (one, or one a pixel), as much as ``share`` says."""
    canvas += share[..., None] * (np.asarray(colour) - canvas)


def smooth_noise(rng: np.random.Generator, cells_x: int, cells_y: int, size_px: int) -> Array:
    """Numbers from 0 to 1 that change smoothly, about so many bumps across and down the picture."""
    grid = rng.random((cells_y + 1, cells_x + 1))
    noise: Array = _spread(cells_y, size_px) @ grid @ _spread(cells_x, size_px).T
    return noise


@lru_cache(maxsize=64)
def _spread(cells: int, size_px: int) -> Array:
    """Weights that take values on ``cells + 1`` knots to pixels, with level tangents at the knots."""
    at = (np.arange(size_px) + 0.5) / size_px * cells
    left = np.floor(at).astype(int)
    share = at - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((size_px, cells + 1))
    rows = np.arange(size_px)
    weights[rows, left] = 1 - share
    weights[rows, left + 1] += share
    return weights


def blurred(canvas: Array, sigma: float) -> Array:
    """The picture out of focus; ``sigma`` as a share of its side."""
    size_px = canvas.shape[0]
    sigma_px = sigma * size_px
    reach = math.ceil(2.5 * sigma_px)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        border = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(canvas, border, mode="edge").swapaxes(0, axis)
        shifted = (weight * padded[k : k + size_px] for k, weight in enumerate(weights))
        canvas = reduce(np.add, shifted).swapaxes(0, axis)
    return canvas
