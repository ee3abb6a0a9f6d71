"""Splits and draws of a class depend on that class alone, and keep together what belongs together."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from softcpt.data.draw import draw_samples
from softcpt.data.order import epoch_batches
from softcpt.data.record import Record, Suite, Task
from softcpt.data.split import linked_units, part_sizes, split_suite

# task -> class sizes
SIZES = st.lists(st.lists(st.integers(1, 25), min_size=2, max_size=4), min_size=1, max_size=4)


def write(folder: Path, sizes, contents=None, groups=None) -> Suite:
    """A suite of stand-ins for images: nothing here decodes them."""
    records = []
    for t, classes in enumerate(sizes):
        for label, n in enumerate(classes):
            for i in range(n):
                relative = f"t{t}/c{label}/{i:02d}.png"
                path = folder / relative.replace("/", "-")
                content = None if contents is None else contents[len(records) % len(contents)]
                path.write_bytes(relative.encode() if content is None else bytes([content] * 9))
                group = None if groups is None else groups[len(records) % len(groups)]
                records.append(Record(path, relative, t, label, None, group))
    tasks = tuple(Task(f"t{t}", tuple(f"c{k}" for k in range(len(c)))) for t, c in enumerate(sizes))
    return Suite("s", folder, folder, tasks, tuple(records))


def part_by_name(suite, split):
    return dict(zip((r.relative for r in suite.records), split.parts, strict=True))


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 5), st.sampled_from([1, 2, 4, None]))
def test_another_task_leaves_split_and_draw_of_the_others_alone(sizes, seed, shots):
    with tempfile.TemporaryDirectory() as folder:
        whole = write(Path(folder), [*sizes, [3, 12]])
        kept = tuple(r for r in whole.records if r.task < len(sizes))
        fewer = replace(whole, tasks=whole.tasks[:-1], records=kept)
        split, split_of_fewer = split_suite(whole, seed=seed), split_suite(fewer, seed=seed)
        assert split.parts[: len(kept)] == split_of_fewer.parts
        drawn = draw_samples(whole, split, shots=shots, seed=seed)
        drawn_of_fewer = draw_samples(fewer, split_of_fewer, shots=shots, seed=seed)
        assert tuple(r for r in drawn.train if r.task < len(sizes)) == drawn_of_fewer.train
        assert tuple(r for r in drawn.val if r.task < len(sizes)) == drawn_of_fewer.val


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_of_tasks_and_classes_changes_no_part(sizes, seed, rng):
    with tempfile.TemporaryDirectory() as folder:
        suite = write(Path(folder), sizes)
        order = list(range(len(sizes)))
        rng.shuffle(order)
        records = sorted(
            (replace(r, task=order.index(r.task)) for r in suite.records),
            key=lambda r: (r.task, r.label, r.relative),
        )
        moved = replace(suite, tasks=tuple(suite.tasks[t] for t in order), records=tuple(records))
        assert part_by_name(suite, split_suite(suite, seed=seed)) == part_by_name(
            moved, split_suite(moved, seed=seed)
        )


@settings(max_examples=40, deadline=None)
@given(
    SIZES,
    st.integers(0, 3),
    st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=1, max_size=40),
    st.lists(st.one_of(st.none(), st.sampled_from("abcdef")), min_size=1, max_size=30),
)
def test_no_unit_of_linked_images_is_ever_split(sizes, seed, contents, groups):
    with tempfile.TemporaryDirectory() as folder:
        suite = write(Path(folder), sizes, contents, groups)
        split = split_suite(suite, seed=seed)
        assert len(split.parts) == len(suite.records)
        for unit in linked_units(suite.records):
            assert len({split.parts[i] for i in unit}) == 1
        for key in ("group", "digest"):
            parts = {}
            for record, part in zip(suite.records, split.parts, strict=True):
                if (value := getattr(record, key)) is not None:
                    parts.setdefault(value, set()).add(part)
            assert all(len(found) == 1 for found in parts.values())


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 5))
def test_without_links_every_class_has_its_exact_sizes(sizes, seed):
    with tempfile.TemporaryDirectory() as folder:
        suite = write(Path(folder), sizes)
        parts = split_suite(suite, seed=seed).parts
        for t, classes in enumerate(sizes):
            for label, n in enumerate(classes):
                mine = [
                    p for r, p in zip(suite.records, parts, strict=True) if (r.task, r.label) == (t, label)
                ]
                assert tuple(mine.count(part) for part in ("train", "val", "test")) == part_sizes(n)


@given(st.integers(1, 200))
def test_part_sizes_add_up_and_always_train(n):
    train, val, test = part_sizes(n)
    assert train + val + test == n
    assert train >= 1
    assert val >= 0
    assert test >= val


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 40), st.booleans(), st.integers(0, 9)
)
def test_every_epoch_has_whole_batches_of_known_samples(tasks, size, balance, seed):
    batches = epoch_batches(tasks, size, np.random.default_rng(seed), balance)
    expected = max(1, len(tasks) // size)
    assert [len(batch) for batch in batches] == [min(size, len(tasks))] * expected
    flat = np.concatenate(batches)
    assert flat.min() >= 0
    assert flat.max() < len(tasks)
    if not balance:
        assert len(set(flat.tolist())) == len(flat)
    for batch in batches:
        counts = [int((np.asarray(tasks)[batch] == t).sum()) for t in set(tasks)]
        assert not balance or max(counts) - min(counts) <= 1
