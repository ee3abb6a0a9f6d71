"""How far learned prompts steer a backbone: ``python -m recipes.pretrain_mini.steer BACKBONE SUITE ...``.

Trains prompts on the train part and scores them on val (``--test``: on test), to be set beside the prototypes
and the linear probe of ``evaluate``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from softcpt import evaluate, train
from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.data.record import Suite
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite


def with_val_as_test(suite: Suite) -> Suite:
    """The suite without its test part, in whose place stands val."""
    records = [
        replace(record, part="train" if part == "train" else "test")
        for record, part in zip(suite.records, split_suite(suite).parts, strict=True)
        if part != "test"
    ]
    return replace(suite, records=tuple(records))


def steered(
    backbone: Backbone, suite: Suite, *, shots: int, seeds: Sequence[int], options: Mapping[str, Any]
) -> float:
    """Mean score of a method over seeds, on the suite's test part."""
    scores = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = train(suite, backbone, Path(folder) / "run", shots=shots, seed=seed, **options)
            scores.append(evaluate(run, suite, backbone=backbone).score)
    return float(np.mean(scores))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("suites", type=Path, nargs="+")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--method", default="coop-ca-joint")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of the method")
    parser.add_argument("--test", action="store_true", help="score the test part: once, for final weights")
    args = parser.parse_args()
    backbone = load_backbone(args.backbone)
    options = {"method": args.method, **dict(pair.split("=", 1) for pair in args.set)}
    table = {}
    for folder in args.suites:
        suite = load_suite(folder, check_images=False)
        suite = suite if args.test else with_val_as_test(suite)
        for shots in args.shots:
            score = steered(backbone, suite, shots=shots, seeds=range(1, args.seeds + 1), options=options)
            table[f"{suite.name} {shots}"] = round(100 * score, 1)
            print(json.dumps({f"{suite.name} {shots}": table[f"{suite.name} {shots}"]}), flush=True)
    for shots in args.shots:
        mean = np.mean([score for key, score in table.items() if key.endswith(f" {shots}")])
        print(json.dumps({f"mean {shots}": round(float(mean), 1)}))


if __name__ == "__main__":
    main()
