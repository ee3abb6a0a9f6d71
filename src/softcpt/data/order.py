"""The order in which a run sees its training samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def epoch_batches(
    task_of_sample: Sequence[int],
    batch_size: int,
    rng: np.random.Generator,
    balance: bool,
    power: float | None = None,
) -> list[np.ndarray]:
    """Index batches of one epoch, tasks mixed.

    The last partial batch is dropped, unless it is the only one.

    Args:
        task_of_sample: the task of every sample of the pool.
        batch_size: B.
        rng: the stream of this epoch.
        balance: False permutes the pool. True gives every batch tasks in equal numbers, up to one image:
            each task goes round its own shuffled samples, so that small tasks are seen more often. The
            number of batches stays the same.
        power: each image's task is drawn with probability in proportion to its number of images to this
            power: 0 for all tasks alike in expectation, 1 for the pool's shares; None draws no tasks.
    """
    n = len(task_of_sample)
    size = min(batch_size, n)
    n_batches = n // size if size else 0
    tasks = np.asarray(task_of_sample)
    if balance:
        order = np.fromiter(_balanced(tasks, rng), dtype=np.int64, count=n_batches * size)
    elif power is not None:
        order = np.fromiter(_drawn(tasks, rng, power), dtype=np.int64, count=n_batches * size)
    else:
        order = rng.permutation(n)
    return [order[i * size : (i + 1) * size] for i in range(n_batches)]


def _balanced(task_of_sample: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Samples without end, tasks in turn."""
    tasks = rng.permutation(np.unique(task_of_sample))
    rounds = [_rounds(np.flatnonzero(task_of_sample == task), rng) for task in tasks]
    while True:
        for samples in rounds:
            yield next(samples)


def _drawn(task_of_sample: np.ndarray, rng: np.random.Generator, power: float) -> Iterator[int]:
    """Samples without end, the task of each drawn by its size."""
    tasks, sizes = np.unique(task_of_sample, return_counts=True)
    rounds = [_rounds(np.flatnonzero(task_of_sample == task), rng) for task in tasks]
    shares = sizes.astype(np.float64) ** power
    while True:
        yield next(rounds[rng.choice(len(tasks), p=shares / shares.sum())])


def _rounds(samples: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Samples of one task without end, shuffled anew each time round."""
    while True:
        yield from rng.permutation(samples)


def batches_in_order(n: int, batch_size: int) -> list[range]:
    """Every sample once, in order; the last batch may be smaller.

    Example:
        >>> [list(batch) for batch in batches_in_order(5, 2)]
        [[0, 1], [2, 3], [4]]
    """
    return [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
