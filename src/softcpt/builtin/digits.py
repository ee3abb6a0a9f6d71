"""``digits``: scikit-learn's handwritten digits, about which several tasks ask.

1,797 pictures of 8 by 8 pixels: the test part of UCI's "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak), which comes with scikit-learn. Each picture stands in one task only, so that none
that trains one task tests another.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softcpt.builtin.chance import Array
from softcpt.builtin.suite import BuiltinSuite, BuiltinTask
from softcpt.core.seeds import stream

_MEANING: Final[dict[str, dict[str, str]]] = {
    "digit": {str(digit): str(digit) for digit in range(10)},
    "parity": {"even": "02468", "odd": "13579"},
    "half": {"low": "01234", "high": "56789"},
    # 4 is written open or closed
    "loop": {"with": "0689", "without": "12357"},
    "prime": {"prime": "2357", "other": "014689"},
    "strokes": {"straight": "147", "curved": "03689", "both": "25"},
    "threes": {"multiple": "0369", "other": "124578"},
}
"""Task -> class -> the digits in it."""

DIGIT_TASKS: Final[dict[str, BuiltinTask]] = {
    "digit": BuiltinTask(
        "a recognition task for handwritten digits.",
        "a handwritten {}.",
        {
            str(n): name
            for n, name in enumerate(
                ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
            )
        },
    ),
    "parity": BuiltinTask(
        "a task about whether a handwritten digit is even or odd.",
        "a handwritten {}.",
        {"even": "even number", "odd": "odd number"},
    ),
    "half": BuiltinTask(
        "a task about whether a handwritten digit is less than five.",
        "a handwritten digit {}.",
        {"low": "less than five", "high": "of five or more"},
    ),
    "loop": BuiltinTask(
        "a task about whether a handwritten digit has a closed loop.",
        "a handwritten digit {}.",
        {"with": "with a closed loop", "without": "without a closed loop"},
    ),
    "prime": BuiltinTask(
        "a task about whether a handwritten digit is a prime number.",
        "a handwritten {}.",
        {"prime": "prime number", "other": "number that is not prime"},
    ),
    "strokes": BuiltinTask(
        "a task about the strokes of a handwritten digit.",
        "a handwritten digit with {}.",
        {
            "straight": "only straight lines",
            "curved": "only curves",
            "both": "both curves and straight lines",
        },
    ),
    "threes": BuiltinTask(
        "a task about whether a handwritten digit is a multiple of three.",
        "a handwritten {}.",
        {"multiple": "multiple of three", "other": "number that three does not divide"},
    ),
}

MOST_IMAGES: Final = 70
"""Of a class: with more there would not be enough twos for all tasks."""


def _pictures(task: str, value: str, seed: int, n: int, size_px: int) -> Iterator[Image.Image]:
    scans, digits = _load()
    for i in share_out(digits, seed, n)[task, value]:
        yield _enlarge(scans[i], size_px)


def share_out(digits: NDArray[np.int64], seed: int, n: int) -> dict[tuple[str, str], list[int]]:
    """Task and class -> ``n`` pictures of its digits, as many of each; no picture twice.

    Args:
        digits: what each picture shows.
        seed: of which pictures go where.
        n: pictures of a class, at most ``MOST_IMAGES``.
    """
    left = {
        digit: list(stream("digits", seed, digit).permutation(np.flatnonzero(digits == int(digit))))
        for digit in "0123456789"
    }
    shares: dict[tuple[str, str], list[int]] = {}
    for task, classes in _MEANING.items():
        for value, members in classes.items():
            shares[task, value] = [
                int(left[digit].pop())
                for k, digit in enumerate(members)
                for _ in range(n // len(members) + (k < n % len(members)))
            ]
    return shares


@lru_cache(maxsize=1)
def _load() -> tuple[Array, NDArray[np.int64]]:
    """Pictures [N, 8, 8] with ink from 0 to 16, and the digit of each."""
    from sklearn.datasets import load_digits  # takes a second to import

    found = load_digits()
    return found.images, found.target


def _enlarge(scan: Array, size_px: int) -> Image.Image:
    """Dark ink on white, with smooth edges."""
    weights = _cubic(10, size_px)
    ink = weights @ np.pad(scan / 16, 1) @ weights.T
    # Half-covered pixels of the scan become the edge of a stroke.
    ink = np.clip((ink - 0.15) / 0.6, 0, 1)
    # Many values lie half-way between two greys; last bits that differ between machines must not decide.
    grey = np.rint(245 - 215 * ink + 1e-6).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


@lru_cache(maxsize=4)
def _cubic(cells: int, size_px: int) -> Array:
    """Weights of cubic (Catmull-Rom) interpolation from cells to pixels."""
    far = np.abs(((np.arange(size_px) + 0.5) / size_px * cells - 0.5)[:, None] - np.arange(cells)[None, :])
    near = 1.5 * far**3 - 2.5 * far**2 + 1
    wide = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    weights = np.where(far < 1, near, np.where(far < 2, wide, 0.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


DIGITS: Final = BuiltinSuite(
    name="digits",
    description="Handwritten digits, and what can be said of them.",
    source="scikit-learn's load_digits: UCI, Optical Recognition of Handwritten Digits",
    tasks=DIGIT_TASKS,
    images_per_class=60,
    most_images=MOST_IMAGES,
    pictures=_pictures,
)
