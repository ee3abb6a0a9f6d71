"""Attention over lists of rows as loops that numba compiles, at first use, and keeps beside this file.

Loops run over features inside and over lists outside, four keys at a time, so that the compiler makes vector
instructions of them; indices are unsigned, which spares it the test for negative ones. All arrays are flat.

Letters: d width, H heads, e = d / H, N rows, M sources (rows, SOT and constants), V pairs of a row and a
source it attends to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

# Sums may be taken in any order, and products fused into them; infinities and NaN keep their meaning.
_FAST: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
Kernel = Callable[..., None]
_one, _two, _three, _four = (np.uint64(i) for i in (1, 2, 3, 4))


@numba.njit(inline="always", **_FAST)
def _dot(a, i, b, j, size: int):
    total = a.dtype.type(0)
    for c in range(size):
        total += a[i + np.uint64(c)] * b[j + np.uint64(c)]
    return total


@numba.njit(inline="always", **_FAST)
def _add_one(into, weights, w, a, i, size: int) -> None:
    for c in range(size):
        into[c] += weights[w] * a[i + np.uint64(c)]


@numba.njit(inline="always", **_FAST)
def _add_four(
    into, weights, w, x, y, z, a, i, j, k, m, size: int
) -> None:  # fmt: skip
    """Four weighted vectors at once: the sum is read and written once."""
    p, q, r, s = weights[w], weights[x], weights[y], weights[z]
    for c in range(size):
        u = np.uint64(c)
        into[c] += p * a[i + u] + q * a[j + u] + r * a[k + u] + s * a[m + u]


def _compiled(loop: Kernel) -> Kernel:
    try:
        kernel: Kernel = numba.njit(cache=True, **_FAST)(loop)
    except RuntimeError:  # no place to keep it, neither here nor in the user's cache
        kernel = numba.njit(**_FAST)(loop)
    return kernel


@cache
def kernels(size: int) -> tuple[Kernel, Kernel, Kernel, Kernel]:
    """Loops for heads of ``size`` features, a constant of theirs. All arrays are flat.

    Sources are [M, 3d], scores and probabilities [H, V].
    """

    @_compiled
    def compare(sources, bias, first, seen, scores, heads):
        """Add the queries' bias; scores, less the largest of their row."""
        d, pairs = np.uint64(heads * size), np.uint64(len(seen))
        stride = _three * d
        for row in range(len(first) - 1):
            begin, end = np.uint64(first[row]), np.uint64(first[row + 1])
            for head in range(heads):
                at, to = np.uint64(head * size), np.uint64(head) * pairs
                query = np.uint64(row) * stride + at
                for c in range(size):
                    sources[query + np.uint64(c)] += bias[at + np.uint64(c)]
                largest = scores.dtype.type(-np.inf)
                for j in range(begin, end):
                    score = _dot(sources, query, sources, seen[j] * stride + d + at, size)
                    scores[to + j] = score
                    largest = max(largest, score)
                for j in range(begin, end):
                    scores[to + j] -= largest

    @_compiled
    def take(sources, first, seen, prob, out, heads):
        """Make probabilities of exponentials, and sum the values [N, d]."""
        d, pairs = np.uint64(heads * size), np.uint64(len(seen))
        stride = _three * d
        total = np.empty(size, out.dtype)
        for row in range(len(first) - 1):
            begin, end = np.uint64(first[row]), np.uint64(first[row + 1])
            for head in range(heads):
                at, to = np.uint64(head * size), np.uint64(head) * pairs
                value, mass = _two * d + at, prob.dtype.type(0)
                for j in range(begin, end):
                    mass += prob[to + j]
                scale = prob.dtype.type(1) / mass
                for j in range(begin, end):
                    prob[to + j] *= scale
                total[:] = 0
                j = begin
                while j + _four <= end:
                    _add_four(
                        total, prob, to + j, to + j + _one, to + j + _two, to + j + _three,
                        sources, seen[j] * stride + value, seen[j + _one] * stride + value,
                        seen[j + _two] * stride + value, seen[j + _three] * stride + value, size,
                    )  # fmt: skip
                    j += _four
                while j < end:
                    _add_one(total, prob, to + j, sources, seen[j] * stride + value, size)
                    j += _one
                for c in range(size):
                    out[np.uint64(row) * d + at + np.uint64(c)] = total[c]

    @_compiled
    def back_to_queries(sources, first, seen, prob, grad, into_scores, into, heads):
        """Gradients of the scores, and of the queries, of those [N, d] of what was taken."""
        d, pairs = np.uint64(heads * size), np.uint64(len(seen))
        stride = _three * d
        total = np.empty(size, grad.dtype)
        for row in range(len(first) - 1):
            begin, end = np.uint64(first[row]), np.uint64(first[row + 1])
            for head in range(heads):
                at, to = np.uint64(head * size), np.uint64(head) * pairs
                key, value, own = d + at, _two * d + at, np.uint64(row) * d + at
                mean = prob.dtype.type(0)
                for j in range(begin, end):
                    slope = _dot(grad, own, sources, seen[j] * stride + value, size)
                    into_scores[to + j] = slope
                    mean += slope * prob[to + j]
                for j in range(begin, end):
                    into_scores[to + j] = prob[to + j] * (into_scores[to + j] - mean)
                total[:] = 0
                j = begin
                while j + _four <= end:
                    _add_four(
                        total, into_scores, to + j, to + j + _one, to + j + _two, to + j + _three,
                        sources, seen[j] * stride + key, seen[j + _one] * stride + key,
                        seen[j + _two] * stride + key, seen[j + _three] * stride + key, size,
                    )  # fmt: skip
                    j += _four
                while j < end:
                    _add_one(total, into_scores, to + j, sources, seen[j] * stride + key, size)
                    j += _one
                for c in range(size):
                    into[np.uint64(row) * stride + at + np.uint64(c)] = total[c]

    @_compiled
    def back_to_keys(
        sources,
        first,
        reader,
        pair,
        prob,
        grad,
        into_scores,
        into,
        heads,
    ):
        """Gradients of keys and values, each from the rows that read it.

        Head by head: what a trunk's many readers have in one head stays in the cache from key to key.
        """
        d, pairs = np.uint64(heads * size), np.uint64(len(prob) // heads)
        stride = _three * d
        of_key, of_value = np.empty(size, grad.dtype), np.empty(size, grad.dtype)
        for head in range(heads):
            at, to = np.uint64(head * size), np.uint64(head) * pairs
            for row in range(len(first) - 1):
                end = np.uint64(first[row + 1])
                of_key[:] = 0
                of_value[:] = 0
                j = np.uint64(first[row])
                while j + _four <= end:
                    a, b, c, e = reader[j], reader[j + _one], reader[j + _two], reader[j + _three]
                    w, x = to + pair[j], to + pair[j + _one]
                    y, z = to + pair[j + _two], to + pair[j + _three]
                    _add_four(
                        of_key, into_scores, w, x, y, z, sources,
                        a * stride + at, b * stride + at, c * stride + at, e * stride + at, size,
                    )  # fmt: skip
                    _add_four(
                        of_value, prob, w, x, y, z, grad,
                        a * d + at, b * d + at, c * d + at, e * d + at, size,
                    )  # fmt: skip
                    j += _four
                while j < end:
                    _add_one(of_key, into_scores, to + pair[j], sources, reader[j] * stride + at, size)
                    _add_one(of_value, prob, to + pair[j], grad, reader[j] * d + at, size)
                    j += _one
                own = np.uint64(row) * stride + d + at
                for c in range(size):
                    into[own + np.uint64(c)] = of_key[c]
                    into[own + d + np.uint64(c)] = of_value[c]

    return compare, take, back_to_queries, back_to_keys
