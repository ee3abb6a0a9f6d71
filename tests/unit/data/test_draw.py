from __future__ import annotations

from itertools import pairwise

import pytest

from softcpt.data.draw import draw_samples
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite


@pytest.fixture
def suite(put, files_of):
    return load_suite(put({**files_of("t/a", "t/b", "u/c", n=20), **files_of("u/d", n=6)}))


def names(records):
    return [record.relative for record in records]


@pytest.mark.parametrize("rule", ["product", "published", "published-per-task"])
def test_each_class_gives_its_shots_from_its_own_parts(suite, rule):
    split = split_suite(suite)
    part_of = dict(zip(names(suite.records), split.parts, strict=True))
    samples = draw_samples(suite, split, shots=8, seed=1, rule=rule)
    per_class = [
        sum((r.task, r.label) == place for r in samples.train) for place in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert per_class == [8, 8, 8, 3]
    assert len(samples.val) == 4 * 3 + 1
    assert {part_of[name] for name in names(samples.train)} == {"train"}
    assert {part_of[name] for name in names(samples.val)} == {"val"}
    assert names(samples.test) == [name for name, part in part_of.items() if part == "test"]
    assert len(set(names(samples.train))) == len(samples.train)


def test_fewer_images_than_shots_are_all_taken_and_said(suite):
    samples = draw_samples(suite, split_suite(suite), shots=8, seed=1)
    assert samples.notes == ("u: class 'd' has 3 training images for 8 shots; all are taken",)


def test_fewer_shots_are_among_more(suite):
    split = split_suite(suite)
    drawn = [set(names(draw_samples(suite, split, shots=n, seed=1).train)) for n in (1, 2, 4, 8, 16)]
    assert all(few < more for few, more in pairwise(drawn))


def test_val_takes_at_most_four_a_class(suite):
    split = split_suite(suite)
    per_class = [len(draw_samples(suite, split, shots=n, seed=1).val) for n in (1, 2, 4, 8)]
    assert per_class == [4, 7, 13, 13]


def test_without_a_number_of_shots_everything_trains(suite):
    split = split_suite(suite)
    samples = draw_samples(suite, split, shots=None, seed=1)
    assert len(samples.train) == split.parts.count("train")
    assert (len(samples.val), samples.notes) == (13, ())


def test_seed_changes_what_is_drawn_but_never_the_test_images(suite):
    split = split_suite(suite)
    one, two = (draw_samples(suite, split, shots=4, seed=seed) for seed in (1, 2))
    assert set(names(one.train)) != set(names(two.train))
    assert one.test == two.test


def test_published_rules_draw_the_first_task_alike_and_the_second_otherwise(suite):
    split = split_suite(suite)
    one = draw_samples(suite, split, shots=4, seed=1, rule="published")
    restarted = draw_samples(suite, split, shots=4, seed=1, rule="published-per-task")
    assert names(one.train)[:8] == names(restarted.train)[:8]
    assert names(one.train)[8:] != names(restarted.train)[8:]


def test_zero_shots_are_refused(suite):
    with pytest.raises(ValueError, match="at least 1"):
        draw_samples(suite, split_suite(suite), shots=0, seed=1)
