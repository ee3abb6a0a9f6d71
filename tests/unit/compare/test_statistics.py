"""Intervals: worked by hand, against SciPy, and against simulated data whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from softcpt.compare.statistics import SuiteTests, TaskTests, mean_interval, weighted_score
from softcpt.compare.student import holm, two_sided_p, two_sided_quantile


def images_of(right, images=None, labels=None, metric="overall_acc"):
    right = np.array(right, dtype=float)
    images = np.arange(len(right)) if images is None else np.array(images)
    labels = np.zeros(len(right), dtype=int) if labels is None else np.array(labels)
    return TaskTests(images, labels, right, metric)


def rng():
    """Draws data."""
    return np.random.default_rng(0)


def again():
    """Draws data again: from another stream, since the same one would meet its own numbers."""
    return np.random.default_rng(99)


def test_a_difference_is_the_mean_over_seeds_of_the_mean_over_tasks():
    # seed 1: 2/2 - 1/2 and 0/2 - 1/2; seed 2: 1/2 - 0/2 and 1/2 - 1/2
    one = [images_of([[1, 1], [1, 0]]), images_of([[0, 1], [0, 0]], [2, 3])]
    two = [images_of([[1, 0], [0, 0]]), images_of([[0, 1], [1, 0]], [2, 3])]
    found = SuiteTests({1: one, 2: two}, again()).contrast({0: 1, 1: -1})
    assert found.value == pytest.approx((0.5 - 0.5 + 0.5 + 0) / 4)
    assert found.over == "images"
    assert found.n_seeds == 2


def test_mean_per_class_counts_classes_alike_and_leaves_out_those_not_drawn():
    tests = images_of([[1], [1], [0]], labels=[0, 0, 1], metric="mean_acc")
    weights = np.array([[1, 1, 1], [2, 1, 0], [1, 0, 3]])
    assert weighted_score(weights, tests)[:, 0].tolist() == [0.5, 1.0, 0.5]


def test_with_one_seed_the_interval_is_the_binomial_one():
    n, right = 400, 300
    tests = {1: [images_of([[i < right] for i in range(n)])]}
    found = SuiteTests(tests, again(), 4000).contrast({0: 1})
    deviation = math.sqrt(right / n * (1 - right / n) / n)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deviation, rel=0.05)


def test_without_anything_in_common_the_variance_is_that_of_the_seeds_means():
    # Every seed tests images of its own: nothing is known but how the seeds scatter.
    draw = rng()
    tests = {s: [images_of(draw.random((60, 1)) < 0.6, np.arange(60) + 60 * s)] for s in range(40)}
    found = SuiteTests(tests, again()).contrast({0: 1})
    means = [t[0].right.mean() for t in tests.values()]
    assert found.variance == pytest.approx(np.var(means, ddof=1) / 40, rel=0.15)
    assert found.over == "images and seeds"


def test_the_same_images_under_many_seeds_do_not_count_as_many_images():
    right = (rng().random((50, 1)) < 0.5).astype(float)
    once = SuiteTests({1: [images_of(right)]}, again(), 4000).contrast({0: 1})
    often = SuiteTests({s: [images_of(right)] for s in range(10)}, again(), 4000).contrast({0: 1})
    assert often.variance == pytest.approx(once.variance, rel=0.1)


def test_an_image_of_two_tasks_is_drawn_as_one():
    right = (rng().random((50, 1)) < 0.5).astype(float)
    same = {1: [images_of(right), images_of(right)]}
    other = {1: [images_of(right), images_of(right, np.arange(50) + 50)]}
    together = SuiteTests(same, again(), 4000).contrast({0: 1})
    apart = SuiteTests(other, again(), 4000).contrast({0: 1})
    assert together.variance == pytest.approx(2 * apart.variance, rel=0.1)


def test_swapping_two_rows_flips_the_sign():
    right = (rng().random((80, 2)) < 0.5).astype(float)
    tests = SuiteTests({s: [images_of(right)] for s in range(5)}, again())
    one, other = tests.contrast({0: 1, 1: -1}), tests.contrast({1: 1, 0: -1})
    assert (one.value, one.low) == pytest.approx((-other.value, -other.high))
    assert one.p == pytest.approx(other.p)


def test_equal_rows_differ_by_nothing():
    right = np.repeat((rng().random((30, 1)) < 0.5).astype(float), 2, axis=1)
    found = SuiteTests({s: [images_of(right)] for s in range(6)}, again()).contrast({0: 1, 1: -1})
    assert (found.value, found.p) == (0, 1)
    # thirty alike leave open what one in thirty would be
    assert found.high == -found.low == pytest.approx(1.96 / 31, rel=1e-3)


@pytest.mark.parametrize("metric", ["overall_acc", "mean_acc"])
@pytest.mark.parametrize("n_seeds", [3, 10])
def test_few_test_images_for_each_seed_leave_no_hole(n_seeds, metric):
    """A draw may hold none of a seed's two images; its tasks and seeds stay those of the estimate."""
    data = rng()

    def tests(n_tasks):
        found = {}
        for s in range(n_seeds):
            own = [data.choice(6, size=2, replace=False) + 6 * t for t in range(n_tasks)]
            found[s] = [images_of((data.random((2, 2)) < 0.5).astype(float), i, [0, 1], metric) for i in own]
        return SuiteTests(found, again())

    for suite in (tests(1), tests(4)):
        assert np.isnan(suite._shared).any()
        found = suite.contrast({0: 1, 1: -1})
        assert np.isfinite([found.low, found.high, found.p, found.df or 1.0]).all() or found.df == math.inf
        assert found.low < found.value < found.high


def test_a_seed_without_drawn_images_moves_no_other_task():
    """Tasks whose differences are 1 and -1 in every image: no draw may say anything but their mean."""
    tasks = {
        s: [images_of([[1, 0]] * 2, [s, s + 1]), images_of([[0, 1]] * 2, [s + 9, s + 10])] for s in range(4)
    }
    suite = SuiteTests(tasks, again())
    assert np.isnan(suite._shared).any()
    found = suite.contrast({0: 1, 1: -1})
    assert found.value == 0
    assert found.variance == pytest.approx(2 / (5 + 1) ** 2 / 4)  # one image more a task, and nothing else


@pytest.mark.parametrize("n_seeds", [1, 6])
def test_a_few_images_that_all_flip_are_no_sure_gain(n_seeds):
    def found(n):
        return SuiteTests({s: [images_of([[1, 0]] * n)] for s in range(n_seeds)}, again()).contrast(
            {0: 1, 1: -1}
        )

    assert found(3).p == pytest.approx(1 / 8)  # the mid-p of a sign test, whatever the seeds
    assert found(3).low < 0 < found(3).high
    assert found(1).p == pytest.approx(1 / 2)
    assert found(5).p == pytest.approx(1 / 32)
    # of many that all flip, the next may still be another: about one in as many
    many = found(40)
    assert many.value == 1
    assert 0.9 < many.low < 0.97
    assert many.p < 1e-6


def test_a_task_of_few_images_adds_its_own_uncertainty():
    tasks = [images_of([[1, 0]] * 3), images_of([[1, 1]] * 40, np.arange(40) + 3)]
    found = SuiteTests({1: tasks}, again()).contrast({0: 1, 1: -1})
    assert found.value == pytest.approx(0.5)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("metric", ["overall_acc", "mean_acc"])
@pytest.mark.parametrize("gain", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("n_seeds", [1, 5])
def test_with_dozens_of_images_a_task_the_bootstrap_alone_decides(metric, gain, n_seeds, monkeypatch):
    draw = rng()
    tests = {}
    for seed in range(n_seeds):
        tests[seed] = []
        for t in range(3):
            own = draw.permutation(60)[:30]
            right = np.column_stack([draw.random(30) < 0.2 + gain, draw.random(30) < 0.2])
            tests[seed].append(images_of(right, own + 60 * t, own % 3, metric))
    found = SuiteTests(tests, again()).contrast({0: 1, 1: -1})
    monkeypatch.setattr(SuiteTests, "_told", lambda *_: (10**6, 0.0))
    plain = SuiteTests(tests, again()).contrast({0: 1, 1: -1})
    assert (found.low, found.high) == (plain.low, plain.high)
    assert found.p == pytest.approx(plain.p, abs=1e-12)


def test_seeds_that_lack_a_row_are_left_out_of_its_differences():
    whole, half = images_of([[1, 0], [1, 1]]), images_of([[0, np.nan], [0, np.nan]])
    tests = SuiteTests({1: [whole], 2: [half]}, again())
    found = tests.contrast({0: 1, 1: -1})
    assert (found.n_seeds, found.value) == (1, 0.5)
    assert tests.contrast({0: 1}).n_seeds == 2


def test_means_over_suites_have_the_variance_of_independent_parts():
    right = (rng().random((90, 1)) < 0.5).astype(float)
    part = SuiteTests({1: [images_of(right)]}, again()).contrast({0: 1})
    both = mean_interval([part, part])
    assert both.variance == pytest.approx(part.variance / 2)
    assert both.value == pytest.approx(part.value)


@pytest.mark.parametrize("df", [1.5, 4, 9.3, 200])
@pytest.mark.parametrize("t", [0.1, 1.0, 3.0, 8.0])
def test_t_distribution_is_scipys(t, df):
    assert two_sided_p(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-4)
    assert two_sided_quantile(0.95, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-4)


def test_t_distribution_of_infinite_freedom_is_the_normal_one():
    assert two_sided_quantile(0.95, math.inf) == pytest.approx(stats.norm.ppf(0.975))


def test_holm_is_worked_by_hand():
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2 -> not below the one before, 0.5 * 1
    assert holm([0.5, 0.02, 0.01, 0.03]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def world(draw, n_seeds, of_seed, of_image, of_both):
    """Two rows of equal merit; what makes them differ belongs to seeds, to images, or to neither."""
    task = np.arange(150) % 3
    image, seed = draw.normal(0, of_image, 150), draw.normal(0, of_seed, n_seeds)
    tests = {}
    for r in range(n_seeds):
        tasks = []
        for t in range(3):
            own = draw.permutation(np.flatnonzero(task == t))[:15]  # 30 percent: its own split
            hard = draw.normal(0, 1, 15)
            sign = np.array([1, -1]) * (image[own] + seed[r])[:, None] / 2
            right = hard[:, None] + sign + draw.normal(0, of_both, (15, 2)) > 0
            tasks.append(images_of(right, own))
        tests[r] = tasks
    return tests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_seeds", "spread"),
    [
        (5, (0.0, 0.0, 0.5)),
        (5, (0.0, 1.0, 0.3)),
        (5, (0.3, 0.0, 0.3)),
        (5, (0.2, 0.5, 0.5)),
        (10, (0.2, 0.5, 0.5)),
    ],
    ids=str,
)
def test_intervals_hold_the_truth_as_often_as_they_say(n_seeds, spread):
    draw = rng()
    trials = 300
    found = [
        SuiteTests(world(draw, n_seeds, *spread), draw, 100).contrast({0: 1, 1: -1}) for _ in range(trials)
    ]
    covered = sum(interval.low <= 0 <= interval.high for interval in found) / trials
    # Two standard errors of a share of 95 percent among 300 are 2.5; a little too wide is no harm.
    assert 0.92 <= covered <= 1.0
