"""Claim: in which order methods come here, beside the order of the published table.

    softcpt compare plants fashion --backbone mini --output STUDY ...
    python benchmarks/published_order.py STUDY plants=Plant-6 fashion=Fashion-20

Reads STUDY/results.csv and prints a Markdown table: mean accuracy over the shots of the study, and in
brackets the rank among the methods that both tables have; below it the rank correlation (Spearman's). Other
pictures, another backbone and fewer tasks: orders can be compared, figures cannot.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np

from softcpt.compare.presets import PUBLISHED
from softcpt.compare.published import published_figures


def read_scores(study: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Suite -> method as published -> shots -> percent; of each method the first row that was not tuned."""
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    rows: dict[str, str] = {}
    with (study / "results.csv").open(newline="") as lines:
        for line in csv.DictReader(lines):
            name = PUBLISHED.get(line["method"])
            if name is None or line["tuning"] != "published" or not line["score"]:
                continue
            if rows.setdefault(name, line["row"]) == line["row"]:
                values[line["suite"], name, int(line["shots"])].append(100 * float(line["score"]))
    scores: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for (suite, name, shots), found in values.items():
        scores[suite][name][shots] = fmean(found)
    return scores


def ranks(values: list[float]) -> list[int]:
    """1 for the largest."""
    return [1 + sum(other > value for other in values) for value in values]


def compared(
    ours: dict[str, dict[int, float]], theirs: dict[str, dict[str, list[float]]]
) -> dict[str, tuple[float, float]]:
    """Method -> mean here and published, over the shots of most methods."""
    shots = max((set(of) for of in ours.values()), key=len)
    both = {}
    for name, figures in theirs.items():
        if not set(ours.get(name, {})) >= shots:
            continue
        # Zero-shot has no shots: the published table gives it once.
        published = [figures[str(n)][0] if str(n) in figures else figures["average"][0] for n in shots]
        both[name] = fmean(ours[name][n] for n in shots), fmean(published)
    return both


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of the comparison")
    parser.add_argument("pairs", nargs="+", metavar="SUITE=PUBLISHED")
    asked = parser.parse_args()
    scores = read_scores(asked.study)
    columns = {}
    for pair in asked.pairs:
        suite, _, known = pair.partition("=")
        columns[suite, known] = compared(scores[suite], published_figures()["suites"][known]["methods"])
    print("| method | " + " | ".join(f"{suite} | {known}" for suite, known in columns) + " |")
    print("|---|" + "---:|" * (2 * len(columns)))
    for name in dict.fromkeys(name for both in columns.values() for name in both):
        cells = []
        for both in columns.values():
            for side in (0, 1):
                place = ranks([figures[side] for figures in both.values()])[list(both).index(name)]
                cells.append(f"{both[name][side]:.1f} ({place})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    for (suite, known), both in columns.items():
        sides = [ranks([figures[side] for figures in both.values()]) for side in (0, 1)]
        print(f"\n{suite} and {known}: rank correlation {np.corrcoef(np.array(sides))[0, 1]:+.2f}")


if __name__ == "__main__":
    main()
