"""Student's t distribution, and Holm's correction: the little that SciPy would be needed for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_POINTS = 4001


def two_sided_p(t: float, df: float) -> float:
    """The chance of a value at least as far from 0.

    With ``t = tan(theta) * sqrt(df)`` the density becomes a power of a cosine, which is integrated from
    ``theta`` to a right angle.

    Args:
        t: the value.
        df: degrees of freedom; infinite for the normal distribution.

    Example:
        >>> round(two_sided_p(2.776, 4), 4), round(two_sided_p(1.96, math.inf), 4)
        (0.05, 0.05)
    """
    if not math.isfinite(t):
        return 0.0 if math.isinf(t) else math.nan
    if df > 1e6:
        return math.erfc(abs(t) / math.sqrt(2))
    # Near a right angle the power is next to nothing over most of the way: the angle is taken from there.
    widest = math.atan2(math.sqrt(df), abs(t))
    angle = np.linspace(0.0, 1.0, _POINTS) ** 2 * widest
    density = np.sin(angle) ** (df - 1)
    area = float(np.sum((density[1:] + density[:-1]) / 2 * np.diff(angle)))
    log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
    return min(1.0, 2 * math.exp(log_constant) * area)


def two_sided_quantile(level: float, df: float) -> float:
    """How far from 0 the middle part of the distribution reaches.

    Example:
        >>> round(two_sided_quantile(0.95, 4), 3)
        2.776
    """
    low, high = 0.0, 1.0
    while two_sided_p(high, df) > 1 - level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if two_sided_p(middle, df) > 1 - level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: the chance of one false alarm among all is bounded.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
