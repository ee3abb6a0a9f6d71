"""How much better a backbone is than another: ``python -m recipes.pretrain_mini.against NEW OLD SUITE ...``.

Both see the same images of the same splits and draws. Prints, in percent, what each scores zero-shot and by a
linear probe, and the difference with its 95 % interval (over images and, from five seeds on, seeds).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from recipes.pretrain_mini.evaluate import Answers, Bench
from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.compare.statistics import Interval, SuiteTests, TaskTests, mean_interval
from softcpt.data.record import Suite
from softcpt.data.suite import load_suite

Ask = Callable[[Bench, int], list[Answers]]
"""A backbone on a suite, and a seed -> its answers."""


def differences(
    new: Backbone,
    old: Backbone,
    suites: Sequence[Suite],
    *,
    part: Literal["val", "test"],
    seeds: Sequence[int],
    shots: int,
) -> dict[str, dict[str, list[float]]]:
    """Suite (or "mean") -> what was measured -> new, old, difference, and the interval's ends."""
    asked: dict[str, Ask] = {
        "zero-shot": lambda bench, _: bench.zero_shot(),
        f"linear probe {shots}": lambda bench, seed: bench.linear_probe(shots, seed),
    }
    found: dict[str, dict[str, list[Interval]]] = {}
    for suite in suites:
        benches = [Bench(backbone, suite, part) for backbone in (new, old)]
        found[suite.name] = {
            name: _contrasts(suite, {seed: [ask(bench, seed) for bench in benches] for seed in seeds})
            for name, ask in asked.items()
        }
    found["mean"] = {
        name: [mean_interval(parts) for parts in zip(*(own[name] for own in found.values()), strict=True)]
        for name in asked
    }
    return {suite: {name: _percent(three) for name, three in own.items()} for suite, own in found.items()}


def _contrasts(suite: Suite, answers: dict[int, list[list[Answers]]]) -> list[Interval]:
    """Of the first backbone, of the second, and of their difference."""
    place = {id(record): i for i, record in enumerate(suite.records)}
    tests = {
        seed: [
            TaskTests(
                images=np.array([place[id(record)] for record in one.records]),
                labels=one.labels,
                right=np.stack([np.equal(own.logits.argmax(1), own.labels) for own in (one, other)], 1) * 1.0,
                metric=suite.tasks[one.task].metric,
            )
            for one, other in zip(*both, strict=True)
        ]
        for seed, both in answers.items()
    }
    drawn = SuiteTests(tests, np.random.default_rng(0))
    three = [drawn.contrast(weights) for weights in ({0: 1.0}, {1: 1.0}, {0: 1.0, 1: -1.0})]
    return [one for one in three if one is not None]


def _percent(three: Sequence[Interval]) -> list[float]:
    new, old, gain = three
    return [round(100 * v, 1) for v in (new.value, old.value, gain.value, gain.low, gain.high)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("new")
    parser.add_argument("old")
    parser.add_argument("suites", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--test", action="store_true", help="score the test part: once, for final weights")
    args = parser.parse_args()
    found = differences(
        load_backbone(args.new), load_backbone(args.old),
        [load_suite(folder, check_images=False) for folder in args.suites],
        part="test" if args.test else "val", seeds=range(1, args.seeds + 1), shots=args.shots,
    )  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
