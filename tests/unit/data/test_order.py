from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from softcpt.data.order import batches_in_order, epoch_batches
from softcpt.data.published import published_batches

POOL = [0] * 50 + [1] * 10 + [2] * 4


def batches(pool, size, balance, seed=0):
    return [batch.tolist() for batch in epoch_batches(pool, size, np.random.default_rng(seed), balance)]


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(64, 32, [32, 32]), (63, 32, [32]), (5, 32, [5]), (0, 32, [])]
)
def test_last_partial_batch_is_dropped_unless_it_is_the_only_one(balance, n, size, sizes):
    assert [len(batch) for batch in batches(POOL[:n], size, balance)] == sizes


def test_plain_epoch_takes_no_sample_twice_and_leaves_the_rest_to_chance():
    first, second = ([i for batch in batches([0] * 70, 32, False, seed) for i in batch] for seed in (0, 1))
    assert len(set(first)) == len(first) == 64
    assert set(first) != set(second)


def test_balanced_batches_hold_tasks_in_equal_numbers():
    seen = Counter()
    for batch in batches(POOL, 16, True):
        counts = Counter(POOL[i] for i in batch)
        assert set(counts) == {0, 1, 2}
        assert max(counts.values()) - min(counts.values()) <= 1
        seen.update(batch)
    # four images of task 2 fill a third of 64 places, each as often as the others
    assert {seen[i] for i in range(60, 64)} <= {5, 6}
    assert max(seen[i] for i in range(50)) == 1


def test_same_stream_gives_the_same_epoch():
    assert batches(POOL, 16, True, 3) == batches(POOL, 16, True, 3)
    assert batches(POOL, 16, False, 3) != batches(POOL, 16, False, 4)


def test_batches_in_order_cover_everything_once():
    assert [list(batch) for batch in batches_in_order(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches_in_order(0, 3) == []


@pytest.mark.parametrize("n", [5, 16, 23])
def test_published_batches_equal_the_loader_of_this_torch(n):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        loader = DataLoader(list(range(n)), batch_size=8, shuffle=True, drop_last=n >= 8)
        expected = [[batch.tolist() for batch in loader] for _ in range(3)]
    assert published_batches(n, 8, seed=7, epochs=3) == expected


def test_with_more_tasks_than_places_no_task_is_preferred():
    first = Counter(batches(list(range(10)), 4, True, seed)[0][0] for seed in range(60))
    assert len(first) >= 8
