"""Claim: prompts for tasks that a training never saw, made of their names alone, beside zero-shot's.

    python benchmarks/left_out.py SUITE --backbone mini --methods softcpt-nata,softcpt-dual --output DIR

Tasks are left out in turn: of F folds, fold f trains on all tasks but f, f + F, f + 2 F, ..., and scores the
test images of these by contexts made of their texts. Prints a Markdown table over all tasks, each left out
once: accuracy on the tasks of the training (each under F - 1 folds), on the left-out ones, and there the
differences to zero-shot and to the first method, with 95 % intervals as in ``softcpt compare``. Results are
kept in DIR one by one; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch

import softcpt
from softcpt.clip.backbone import Backbone
from softcpt.compare.rows import Row, overrides_for, parse_rows
from softcpt.compare.statistics import Interval, SuiteTests, TaskTests
from softcpt.core.files import write_whole
from softcpt.data.record import Suite
from softcpt.data.split import linked_units, split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.adapter import problem_of, restore_classifier
from softcpt.engine.cache_place import open_cache
from softcpt.engine.config import parse_pairs
from softcpt.engine.evaluate import class_probabilities, evaluate
from softcpt.engine.features import ImageFeatures
from softcpt.methods.zero_shot import ZeroShot


def only(suite: Suite, tasks: list[int]) -> Suite:
    """Some of its tasks."""
    own = tuple(replace(r, task=tasks.index(r.task)) for r in suite.records if r.task in tasks)
    return replace(suite, tasks=tuple(suite.tasks[t] for t in tasks), records=own)


def run_fold(
    suite: Suite, backbone: Backbone, settings: Mapping[str, str], left: list[int], cache: str | None
) -> dict[str, Any]:
    """Train without some tasks; score them and the others on test images."""
    split = split_suite(suite, seed=int(settings["seed"]))
    placed = [replace(r, part=part) for r, part in zip(suite.records, split.parts, strict=True)]
    whole = replace(suite, records=tuple(placed))
    kept = [t for t in range(len(suite.tasks)) if t not in left]
    rest, unseen = only(whole, kept), only(whole, left)
    with tempfile.TemporaryDirectory() as folder:
        run = softcpt.train(rest, backbone, Path(folder) / "run", cache=cache, overrides=dict(settings))
        found = evaluate(run, backbone=backbone, cache=cache)
    trained = restore_classifier(run.adapter, backbone)
    problem = problem_of(unseen.tasks, backbone)
    scorers = {"own": trained.for_tasks(problem).scorer(), "zero_shot": ZeroShot(problem).scorer()}
    tests = [r for r in unseen.records if r.part == "test"]
    with open_cache(cache) as store, torch.no_grad():
        features = ImageFeatures(backbone, cache=store).centres(tests)
    tasks = []
    for i, t in enumerate(left):
        rows = [n for n, record in enumerate(tests) if record.task == i]
        labels = [tests[n].label for n in rows]
        guessed = {
            name: class_probabilities(score, features[rows], i).argmax(1) for name, score in scorers.items()
        }
        right = {
            name: "".join("01"[int(g == y)] for g, y in zip(guesses, labels, strict=True))
            for name, guesses in guessed.items()
        }
        images = [tests[n].relative for n in rows]
        tasks.append({"task": t, "images": images, "labels": labels, "right": right})
    seen = {task.name: task.score for task in found.tasks}
    return {"n_learned": run.result["n_parameters"], "seen": seen, "left_out": tasks}


def table(suite: Suite, rows: list[Row], found: Mapping[tuple[str, int, int], dict[str, Any]]) -> list[str]:
    """The Markdown table."""
    seeds = sorted({seed for _, seed, _ in found})
    folds = sorted({fold for _, _, fold in found})
    place = {record.relative: i for i, record in enumerate(suite.records)}
    for unit in linked_units(suite.records):
        for i in unit:
            place[suite.records[i].relative] = unit[0]
    tests = {seed: _tests(suite, rows, found, seed, folds, place) for seed in seeds}
    drawn = SuiteTests(tests, np.random.default_rng(0))
    n_rows = len(rows)
    lines = [
        "| method | parameters | tasks trained on | left-out tasks | beside zero-shot "
        f"| beside {rows[0].label} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    zero = 100 * np.nanmean(drawn.scores[:, :, n_rows], axis=1)
    lines.append(f"| Zero-shot | | | {zero.mean():.1f} ± {zero.std():.1f} | | |")
    for q, row in enumerate(rows):
        of_seed = [
            100 * fmean(s for fold in folds for s in found[row.label, seed, fold]["seen"].values())
            for seed in seeds
        ]
        own = 100 * np.nanmean(drawn.scores[:, :, q], axis=1)
        beside = [drawn.contrast({q: 1.0, n_rows: -1.0}), drawn.contrast({q: 1.0, 0: -1.0}) if q else None]
        n_learned = max(found[row.label, seeds[0], fold]["n_learned"] for fold in folds)
        lines.append(
            f"| {row.label} | {n_learned:,} | {fmean(of_seed):.1f} ± {pstdev(of_seed):.1f} "
            f"| {own.mean():.1f} ± {own.std():.1f} | {_said(beside[0])} | {_said(beside[1])} |"
        )
    return lines


def _tests(
    suite: Suite,
    rows: list[Row],
    found: Mapping[tuple[str, int, int], dict[str, Any]],
    seed: int,
    folds: list[int],
    place: Mapping[str, int],
) -> list[TaskTests]:
    """One for each task; its columns are the rows, and zero-shot."""
    tests: dict[int, TaskTests] = {}
    for fold in folds:
        for i, task in enumerate(found[rows[0].label, seed, fold]["left_out"]):
            own = [found[row.label, seed, fold]["left_out"][i]["right"]["own"] for row in rows]
            right = [[sign == "1" for sign in signs] for signs in (*own, task["right"]["zero_shot"])]
            tests[task["task"]] = TaskTests(
                np.array([place[image] for image in task["images"]], dtype=np.int64),
                np.array(task["labels"], dtype=np.int64),
                np.array(right, dtype=np.float64).T,
                suite.tasks[task["task"]].metric,
            )
    return [tests[t] for t in sorted(tests)]


def _said(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--methods", required=True, help="rows as softcpt compare takes them")
    parser.add_argument("--shots", default="4")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", help="folder of image features")
    asked = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    suite, backbone = load_suite(asked.suite), softcpt.load_backbone(asked.backbone)
    rows = parse_rows(asked.methods.split(","))
    asked.output.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed in map(int, asked.seeds.split(",")):
        for fold in range(asked.folds):
            for row in rows:
                settings = overrides_for(row, parse_pairs(asked.settings))
                settings |= {"shots": asked.shots, "seed": str(seed)}
                words = [f"{key}={value}" for key, value in sorted(settings.items())]
                file = asked.output / ("-".join([*words, f"{fold}of{asked.folds}"]) + ".json")
                if not file.exists():
                    left = list(range(fold, len(suite.tasks), asked.folds))
                    result = run_fold(suite, backbone, settings, left, asked.cache)
                    write_whole(file, json.dumps(result))
                found[row.label, seed, fold] = json.loads(file.read_text())
    print("\n".join(table(suite, rows, found)))


if __name__ == "__main__":
    main()
