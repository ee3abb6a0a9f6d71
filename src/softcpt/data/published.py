"""The published code's rules for splits, draws and batches, as pure functions on lists.

For parity with published numbers only; the product's own rules are in ``split.py``, ``draw.py`` and
``order.py``. These are sequential: what is drawn depends on all that was drawn before.
Source: github.com/kding1225/softcpt at 7cab4b9.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")

MAX_VAL_SHOTS = 4


def draw_one_list(
    train: Sequence[T], val: Sequence[T], shots: int, *, seed: int, class_of: Callable[[T], Hashable]
) -> tuple[list[T], list[T]]:
    """Drawn training and validation items; the generator is seeded once and runs on from one to the other.

    Args:
        train: items of all tasks, in order.
        val: likewise.
        shots: images per class for training; validation takes at most four of them.
        seed: of Python's generator.
        class_of: what makes items one class: (task, class) where tasks share a list.
    """
    rng = random.Random(seed)  # noqa: S311 - the published code's generator
    return (
        _sample(train, shots, rng, class_of),
        _sample(val, min(shots, MAX_VAL_SHOTS), rng, class_of),
    )


def draw_per_task(
    train: Sequence[Sequence[T]],
    val: Sequence[Sequence[T]],
    shots: int,
    *,
    seed: int,
    class_of: Callable[[T], Hashable],
) -> tuple[list[T], list[T]]:
    """As :func:`draw_one_list`, the generator seeded anew before each task; one list a task goes in."""
    drawn: tuple[list[T], list[T]] = ([], [])
    for train_of_task, val_of_task in zip(train, val, strict=True):
        for whole, part in zip(
            drawn, draw_one_list(train_of_task, val_of_task, shots, seed=seed, class_of=class_of), strict=True
        ):
            whole.extend(part)
    return drawn


def _sample(items: Sequence[T], n: int, rng: random.Random, class_of: Callable[[T], Hashable]) -> list[T]:
    """``n`` of each class in order of first appearance; a class with fewer is taken whole, undrawn."""
    drawn: list[T] = []
    for group in _grouped(items, class_of).values():
        drawn.extend(rng.sample(group, n) if len(group) >= n else group)
    return drawn


def _grouped(items: Sequence[T], class_of: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(class_of(item), []).append(item)
    return groups


def folder_sizes(n: int) -> tuple[int, int, int]:
    """Train, val and test images of a class of ``n``: 50/20/30, halves rounded to the even number."""
    train, val = round(0.5 * n), round(0.2 * n)
    return train, val, n - train - val


def trainval_sizes(n: int) -> tuple[int, int]:
    """Train and val images of a class of ``n``: 80/20."""
    val = round(0.2 * n)
    return n - val, val


def split_folders(
    folders: Mapping[str, Sequence[T]], *, seed: int
) -> tuple[list[tuple[T, int]], list[tuple[T, int]], list[tuple[T, int]]]:
    """Train, val and test items with their labels, by the folder rule.

    Args:
        folders: class folder -> its files as listed; labels follow the sorted names.
        seed: of Python's generator, which runs on from class to class.
    """
    rng = random.Random(seed)  # noqa: S311
    split: tuple[list[tuple[T, int]], ...] = ([], [], [])
    for label, name in enumerate(sorted(folders)):
        items = list(folders[name])
        rng.shuffle(items)
        start = 0
        for part, size in zip(split, folder_sizes(len(items)), strict=True):
            part.extend((item, label) for item in items[start : start + size])
            start += size
    return split[0], split[1], split[2]


def split_trainval(
    items: Sequence[T], *, seed: int, class_of: Callable[[T], Hashable]
) -> tuple[list[T], list[T]]:
    """Train and val items of an official training list, by the trainval rule."""
    rng = random.Random(seed)  # noqa: S311
    train: list[T] = []
    val: list[T] = []
    for group in _grouped(items, class_of).values():
        order = list(range(len(group)))
        rng.shuffle(order)
        n_val = trainval_sizes(len(group))[1]
        val.extend(group[i] for i in order[:n_val])
        train.extend(group[i] for i in order[n_val:])
    return train, val


def draw_linear_probe(
    train_labels: Sequence[int], val_labels: Sequence[int], shots: int, *, seed: int
) -> tuple[list[int], list[int]]:
    """Indices that the linear probe is fitted and selected on; NumPy's legacy generator.

    Raises:
        ValueError: a class has fewer images than are asked for.
    """
    rng = np.random.RandomState(seed)
    drawn: list[list[int]] = []
    for labels, n in ((np.asarray(train_labels), shots), (np.asarray(val_labels), min(shots, MAX_VAL_SHOTS))):
        of_classes = [
            rng.choice(np.flatnonzero(labels == label), n, replace=False) for label in np.unique(labels)
        ]
        drawn.append([int(i) for indices in of_classes for i in indices])
    return drawn[0], drawn[1]


def published_batches(n: int, batch_size: int, *, seed: int, epochs: int) -> list[list[list[int]]]:
    """Index batches of each epoch as torch's loader with a random sampler draws them, without workers.

    Depends on torch's generator, so on its version. A last partial batch is dropped unless it is the only
    one.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(epochs):
        # The loader draws a seed for its workers first, then its sampler one for the permutation.
        _seed_for_workers, seed_of_epoch = (
            int(torch.empty((), dtype=torch.int64).random_(generator=generator)) for _ in range(2)
        )
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed_of_epoch)).tolist()
        whole = n - n % batch_size if n >= batch_size else n
        drawn.append([order[i : i + batch_size] for i in range(0, whole, batch_size)])
    return drawn
