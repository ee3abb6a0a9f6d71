"""Paired differences with intervals: what another draw of seeds and of test images would have changed.

A result is a table of seeds by images: each seed tests some images of each task, and with its own split
other ones, so that an image is met under several seeds. Three parts of the uncertainty are told apart
(crossed clusters; Cameron, Gelbach and Miller 2011):

    V = V_seeds + V_images - V_both

    V_seeds   seeds drawn again                 sample variance over seeds / R
    V_images  images drawn again within tasks, one that several seeds or tasks test as a whole  (bootstrap)
    V_both    every (seed, image) drawn again by itself, which the two others both contain      (bootstrap)

Fewer than five seeds say too little about seeds: V is then V_images, and the interval is over test images.

Images drawn again cannot show what none of them shows: three that all flip would be a sure gain. Therefore
V_images is no less than what one image more for each task would change: one on which the rows are alike, or,
where they are alike on all, one on which they are not. And p is no less than a sign test can reach on the
images that the rows answer otherwise (mid-p, 2^-n; Fagerland, Lydersen and Laake 2013), with an interval to
match where that is no evidence at all. With dozens of images neither changes anything.

Letters: R seeds, T tasks, Q columns (row and shots of a table), U images, N draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from softcpt.compare.student import two_sided_p, two_sided_quantile

FEWEST_SEEDS = 5
DRAWS = 1000
"""Of the bootstrap; a standard error is then within 5 percent of its limit."""
LEVEL = 0.95
_NOTHING = 1e-9
"""Differences of sums of weights that rounding alone leaves."""

Over = Literal["images and seeds", "images"]


@dataclass(frozen=True)
class TaskTests:
    """One task's test images under one seed, and which of them each column got right.

    Attributes:
        images: what stands for an image, the same for the same image everywhere in the suite.
        labels: their classes.
        right: for each column, NaN throughout where it has no result.
        metric: ``overall_acc`` or ``mean_acc``.
    """

    images: Int[ndarray, " n"]
    labels: Int[ndarray, " n"]
    right: Float[ndarray, "n Q"]
    metric: str


@dataclass(frozen=True)
class Interval:
    """A difference, or a score, and what is known of its uncertainty; fractions.

    Attributes:
        value: the estimate.
        low: of the 95 percent interval.
        high: of it.
        p: two-sided, of no difference.
        over: what was drawn again.
        n_seeds: seeds it stands on.
        variance: V.
        df: degrees of freedom.
    """

    value: float
    low: float
    high: float
    p: float
    over: Over
    n_seeds: int
    variance: float
    df: float


class SuiteTests:
    """All test results of a suite, drawn again many times.

    Args:
        tests: seed -> its tasks, in the suite's order.
        rng: draws.
        n_draws: of the bootstrap.
    """

    def __init__(
        self,
        tests: Mapping[int, Sequence[TaskTests]],
        rng: np.random.Generator,
        n_draws: int = DRAWS,
    ) -> None:
        self.seeds = list(tests)
        self._ordered = ordered = [tests[seed] for seed in self.seeds]
        self.scores: Float[ndarray, "R T Q"] = np.array(
            [[weighted_score(np.ones((1, len(t.labels))), t)[0] for t in tasks] for tasks in ordered]
        )
        images, strata = _universe(ordered)
        shared = _draw_within(strata, rng, n_draws)
        place = {image: i for i, image in enumerate(images.tolist())}
        self._shared: Float[ndarray, "R T N Q"] = np.array(
            [
                [weighted_score(shared[:, [place[i] for i in t.images.tolist()]], t) for t in tasks]
                for tasks in ordered
            ]
        )
        both = []
        for tasks in ordered:  # each seed by itself; an image in several of its tasks stays one
            own, own_strata = _universe([tasks])
            drawn = _draw_within(own_strata, rng, n_draws)
            own_place = {image: i for i, image in enumerate(own.tolist())}
            both.append(
                [weighted_score(drawn[:, [own_place[i] for i in t.images.tolist()]], t) for t in tasks]
            )
        self._both: Float[ndarray, "R T N Q"] = np.array(both)

    def contrast(self, weights: Mapping[int, float], tasks: Sequence[int] | None = None) -> Interval | None:
        """A weighted sum of columns, averaged over tasks and over the seeds that all of them have.

        Args:
            weights: column -> weight, such as 1 and -1 for a difference.
            tasks: indices; None for all that have test images.

        Returns:
            None where no seed has all the columns.
        """
        columns = list(weights)
        factor = np.array([weights[q] for q in columns])
        chosen = range(self.scores.shape[1]) if tasks is None else tasks
        values = self.scores[:, list(chosen)][:, :, columns] @ factor  # [R, T]
        seeds = [r for r in range(len(self.seeds)) if not np.isnan(values[r]).all()]
        if not seeds:
            return None
        of_seed = np.nanmean(values[seeds], axis=1)
        n_told, one_more = self._told(seeds, chosen, columns, factor)

        there = ~np.isnan(values[seeds])  # [R, T]

        def drawn_variance(draws: Float[ndarray, "R T N Q"]) -> float:
            # Taken out at once: the whole array is large, and there are hundreds of contrasts.
            drawn = draws[np.ix_(seeds, list(chosen), range(draws.shape[2]), columns)] @ factor  # [R, T, N]
            missing = np.isnan(drawn) & there[:, :, None]
            if missing.any():
                # None of a seed's few images of a task was drawn: other seeds speak for it, as all of an
                # image's seeds do for what it is. Left out, the draw would compare other tasks than the rest.
                n_drawn = (~np.isnan(drawn)).sum(axis=0)
                of_task = np.nansum(drawn, axis=0) / np.where(n_drawn > 0, n_drawn, np.nan)  # [T, N]
                drawn = np.where(missing, of_task, drawn)
            means = np.where(there[:, :, None], drawn, 0.0).sum(axis=1) / there.sum(axis=1)[:, None]
            of_draw = means.mean(axis=0)
            of_draw = of_draw[~np.isnan(of_draw)]  # no seed has an image of some task: no draw at all
            return float(of_draw.var(ddof=1)) if len(of_draw) > 1 else 0.0

        images = max(drawn_variance(self._shared), one_more)
        n = len(seeds)
        if n < FEWEST_SEEDS:
            return interval(float(of_seed.mean()), images, math.inf, "images", n, n_told)
        over_seeds = float(of_seed.var(ddof=1)) / n
        # The sum is an estimate too, and may fall below its largest part.
        variance = max(over_seeds + images - drawn_variance(self._both), over_seeds, images)
        df = math.inf if over_seeds == 0 else (variance / over_seeds) ** 2 * (n - 1)  # Satterthwaite
        return interval(float(of_seed.mean()), variance, df, "images and seeds", n, n_told)

    def _told(
        self,
        seeds: Sequence[int],
        chosen: Sequence[int],
        columns: Sequence[int],
        factor: Float[ndarray, " q"],
    ) -> tuple[int, float]:
        """How many images the columns answer otherwise, and what one more a task would change (squared)."""
        otherwise: set[int] = set()
        changes = []
        for t in chosen:
            met: set[int] = set()
            told: set[int] = set()
            for r in seeds:
                tests = self._ordered[r][t]
                met.update(tests.images.tolist())
                differs = np.abs(np.nan_to_num(tests.right[:, columns]) @ factor) > _NOTHING
                told.update(tests.images[differs].tolist())
            otherwise |= told
            if met:
                scores = self.scores[list(seeds), t][:, columns] @ factor
                # What an image that is alike would take from the difference; where all are, one that is not.
                value = float(np.nan_to_num(scores).mean()) if told else 1.0
                changes.append((value / (len(met) + 1)) ** 2)
        return len(otherwise), sum(changes) / len(changes) ** 2


def interval(
    value: float, variance: float, df: float, over: Over, n_seeds: int, n_told: float = math.inf
) -> Interval:
    """The interval of an estimate with a variance.

    Args:
        value: the estimate.
        variance: of it.
        df: degrees of freedom.
        over: what was drawn again.
        n_seeds: seeds it stands on.
        n_told: images that tell the rows apart.
    """
    least = 0.5**n_told
    if least > 1 - LEVEL and value:
        # 1 - 2^-0 is no quantile: a value that is not 0 was told by one image at least.
        variance = max(variance, (value / two_sided_quantile(1 - min(least, 0.5), df)) ** 2)
    deviation = math.sqrt(variance)
    reach = two_sided_quantile(LEVEL, df) * deviation
    sure = 1.0 if value == 0 else 0.0
    p = max(least, two_sided_p(value / deviation, df) if deviation else sure)
    return Interval(value, value - reach, value + reach, p, over, n_seeds, variance, df)


def mean_interval(parts: Sequence[Interval]) -> Interval:
    """The mean of estimates on different suites, whose images and draws have nothing in common."""
    n = len(parts)
    variance = sum(part.variance for part in parts) / n**2
    spread = sum((part.variance / n**2) ** 2 / part.df for part in parts)
    df = math.inf if spread == 0 else variance**2 / spread
    over: Over = "images" if any(part.over == "images" for part in parts) else "images and seeds"
    value = sum(part.value for part in parts) / n
    return interval(value, variance, df, over, min(part.n_seeds for part in parts))


def weighted_score(weights: Float[ndarray, "N n"], tests: TaskTests) -> Float[ndarray, "N Q"]:
    """The task's metric with images counted by weights; a class without weight is left out of a mean."""
    if not len(tests.labels):
        return np.full((len(weights), tests.right.shape[1]), np.nan)
    if tests.metric != "mean_acc":
        total = weights.sum(axis=1, keepdims=True)
        overall: Float[ndarray, "N Q"] = (weights @ tests.right) / np.where(total > 0, total, np.nan)
        return overall
    recalls = []
    for label in np.unique(tests.labels):
        own = tests.labels == label
        total = weights[:, own].sum(axis=1, keepdims=True)
        recalls.append((weights[:, own] @ tests.right[own]) / np.where(total > 0, total, np.nan))
    stacked = np.stack(recalls)  # [C, N, Q]
    there = ~np.isnan(stacked)
    n_there = np.where(there.any(axis=0), there.sum(axis=0), np.nan)
    mean: Float[ndarray, "N Q"] = np.where(there, stacked, 0).sum(axis=0) / n_there
    return mean


def _universe(
    ordered: Sequence[Sequence[TaskTests]],
) -> tuple[Int[ndarray, " U"], list[Int[ndarray, " u"]]]:
    """All images, and their places grouped by the tasks they belong to."""
    tasks_of: dict[int, set[int]] = {}
    for tasks in ordered:
        for t, tests in enumerate(tasks):
            for image in tests.images.tolist():
                tasks_of.setdefault(image, set()).add(t)
    images = np.array(sorted(tasks_of), dtype=np.int64)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images.tolist()):
        groups.setdefault(tuple(sorted(tasks_of[image])), []).append(i)
    return images, [np.array(group) for group in groups.values()]


def _draw_within(
    strata: Sequence[Int[ndarray, " u"]], rng: np.random.Generator, n_draws: int
) -> Float[ndarray, "N U"]:
    """How often each image is drawn when each group is drawn again with replacement."""
    weights = np.zeros((n_draws, sum(len(group) for group in strata)))
    for group in strata:
        weights[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=n_draws)
    return weights


def has_result(right: Bool[ndarray, " n"] | None, n: int) -> Float[ndarray, " n"]:
    """A column of :class:`TaskTests`; NaN throughout where there is no result."""
    return np.full(n, np.nan) if right is None else right.astype(np.float64)
