"""Claim: how a comparison on scenes comes out on tasks that pre-training spoke of, and on the others.

    softcpt compare SCENES --backbone mini --output STUDY ...
    python benchmarks/known_tasks.py STUDY

Reads STUDY/results.csv and prints a Markdown table: percent on test images, mean over the tasks of each group
and over seeds, at each number of shots. The backbone ``mini`` was trained on scenes whose captions never
mention the tasks held out (``softcpt.builtin``).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from softcpt.builtin.scenes import HELD_OUT_TASKS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of the comparison")
    parser.add_argument("--suite", default="scenes")
    asked = parser.parse_args()
    scores: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    shots = set()
    with (asked.study / "results.csv").open(newline="") as lines:
        for line in csv.DictReader(lines):
            if line["suite"] == asked.suite:
                group = "held out" if line["task"] in HELD_OUT_TASKS else "known"
                scores[line["row"], group, int(line["shots"])].append(float(line["score"]))
                shots.add(int(line["shots"]))
    head = [f"{group}, {n}" for group in ("known", "held out") for n in sorted(shots)]
    print("| method | " + " | ".join(head) + " |")
    print("|---" * (len(head) + 1) + "|")
    for row in dict.fromkeys(row for row, _, _ in scores):
        cells = [
            f"{100 * fmean(scores[row, group, n]):.1f}" if scores[row, group, n] else ""
            for group in ("known", "held out")
            for n in sorted(shots)
        ]
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
