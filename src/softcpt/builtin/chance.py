"""Random choices, made of the generator's plain uniform numbers alone.

NumPy may change how its other distributions use a stream from one version to the next, and a built-in suite
has to look the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")
Array = NDArray[np.float64]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * rng.random()


def happens(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return rng.random() < probability


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int((high - low + 1) * rng.random())


def pick(rng: np.random.Generator, values: Sequence[Value]) -> Value:
    """One of the values, each as likely."""
    return values[int(len(values) * rng.random())]


def weighted(rng: np.random.Generator, weights: Mapping[Value, float]) -> Value:
    """One of the keys, as likely as its weight says."""
    left = sum(weights.values()) * rng.random()
    for value, weight in weights.items():
        left -= weight
        if left < 0:
            return value
    return value


def shuffled(rng: np.random.Generator, values: Sequence[Value]) -> list[Value]:
    """The values in random order."""
    return [values[i] for i in np.argsort(rng.random(len(values)), kind="stable")]


def bell(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of mean 0 and deviation 1, nearly normal: sums of three uniform ones."""
    total: Array = rng.random((3, *shape)).sum(axis=0)
    return (total - 1.5) * 2.0
