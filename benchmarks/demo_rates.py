"""Claim: which learning rate each method of the demo does best with, on pictures that are not the demo's.

    python benchmarks/demo_rates.py --output RUNS [--backbone mini] [--seed 101] [--shots 4]

Draws the demo's tasks with another seed, trains each method at 1, 3, 10, 30 and 100 times the published rate
for as long as the demo does, and prints a Markdown table: percent on all validation pictures, mean over
tasks. Nothing is tested, and the demo's own pictures are not made. Ties go to the published rate, then to the
smaller. Run again when backbone, tasks or epochs of the demo change.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from softcpt.app.demo import PLAN
from softcpt.builtin.make import make_suite
from softcpt.clip.backbone import load_backbone
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.adapter import restore_classifier
from softcpt.engine.cache_place import open_cache
from softcpt.engine.features import ImageFeatures
from softcpt.engine.train import suite_score, train

PUBLISHED = 0.002
FACTORS = (1, 3, 10, 30, 100)


def main() -> int:
    """Train the grid and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backbone", default=PLAN.backbone)
    parser.add_argument("--seed", type=int, default=101, help="of the pictures and the trainings")
    parser.add_argument("--shots", type=int, default=max(PLAN.shots))
    asked = parser.parse_args()
    folder = asked.output / f"scenes-{asked.seed}"
    if not folder.exists():
        make_suite(
            "scenes", folder, seed=asked.seed, tasks=PLAN.tasks, images_per_class=PLAN.images_per_class
        )
    # A name of its own, so that draws are not the demo's either.
    suite = replace(load_suite(folder, check_images=False), name=f"scenes-{asked.seed}")
    parts = split_suite(suite, seed=0).parts
    val = [record for record, part in zip(suite.records, parts, strict=True) if part == "val"]
    backbone = load_backbone(asked.backbone)
    cache = asked.output / "cache"
    with open_cache(cache) as store:
        centres = ImageFeatures(backbone, cache=store).centres(val)
    print("| method | " + " | ".join(f"{factor * PUBLISHED:g}" for factor in FACTORS) + " | chosen |")
    print("|---" * (len(FACTORS) + 2) + "|")
    for method in PLAN.rates:
        scores = {}
        for factor in FACTORS:
            run = train(
                suite, backbone, asked.output / f"{method}-{factor}",
                method=method, shots=asked.shots, seed=asked.seed, epochs=PLAN.epochs, views=PLAN.views,
                lr=factor * PUBLISHED, cache=cache, overwrite=True,
            )  # fmt: skip
            scores[factor] = suite_score(restore_classifier(run.adapter, backbone), suite, val, centres)
        best = max(scores, key=lambda factor: scores[factor])  # the first of equals is the smallest
        cells = " | ".join(f"{100 * score:.1f}" for score in scores.values())
        print(f"| {method} | {cells} | {best * PUBLISHED:g} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
