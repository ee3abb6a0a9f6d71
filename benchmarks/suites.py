"""Claim: what each method scores on folders of real photographs, few-shot, on the same samples.

    python benchmarks/suites.py --data DIR --backbone B --output RUNS [--shots 4] [--seeds 1,2,3] [--jobs 2]

``DIR`` holds one folder per suite. Trains every method on every suite and seed through the command line,
skips runs that are already there, and prints a Markdown table: percent, the suites' own metrics, mean over
seeds and population deviation. Test images are read once per run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

METHODS = ("zero-shot", "coop-ca", "coop-ca-joint", "coop-mt", "softcpt-nata", "softcpt-cata")
LABELS = {
    "zero-shot": "Zero-shot",
    "coop-ca": "CoOp-CA (each task alone)",
    "coop-ca-joint": "CoOp-CA (joint)",
    "coop-mt": "CoOp-MT",
    "softcpt-nata": "SoftCPT-NATA",
    "softcpt-cata": "SoftCPT-CATA",
}


def main() -> int:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shots", default="4")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("settings", nargs="*", help="key=value for every method that trains")
    asked = parser.parse_args()
    suites = sorted(path.name for path in asked.data.iterdir() if path.is_dir())
    methods, seeds = asked.methods.split(","), asked.seeds.split(",")
    asked.output.mkdir(parents=True, exist_ok=True)
    cells = list(product(methods, suites, seeds))
    with ThreadPoolExecutor(asked.jobs) as pool:
        scores = dict(zip(cells, pool.map(lambda cell: score(asked, *cell), cells), strict=True))
    for line in table(methods, suites, seeds, scores):
        print(line)
    return 0


def score(asked: argparse.Namespace, method: str, suite: str, seed: str) -> float:
    """Percent on the test part, of a run that is trained unless it is there."""
    cell = asked.output / f"{suite}-{method}-{asked.shots}-{seed}"
    result = asked.output / f"{cell.name}.json"
    if not result.is_file():
        softcpt = [sys.executable, "-m", "softcpt"]
        settings = asked.settings if method != "zero-shot" else []
        if not (cell / "result.json").is_file():
            options = ["--method", method, "--shots", asked.shots, "--seed", seed, "--backbone", asked.backbone]
            call([*softcpt, "train", str(asked.data / suite), *options, "--output", str(cell), "--overwrite", "--quiet", *settings])
        result.write_text(call([*softcpt, "evaluate", str(cell), "--json"]))
        print(cell.name, json.loads(result.read_text())["score"], file=sys.stderr, flush=True)
    return float(json.loads(result.read_text())["score"])


def call(command: list[str]) -> str:
    """What a command prints; one core each, since several run side by side."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout


def table(
    methods: list[str], suites: list[str], seeds: list[str], scores: dict[tuple[str, str, str], float]
) -> list[str]:
    """Markdown: a row per method, a column per suite, their mean last."""
    lines = ["| | " + " | ".join([*suites, "mean"]) + " |", "|---" * (len(suites) + 2) + "|"]
    for method in methods:
        cells = [spread([scores[method, suite, seed] for seed in seeds]) for suite in suites]
        means = [statistics.fmean(scores[method, suite, seed] for suite in suites) for seed in seeds]
        lines.append("| " + " | ".join([LABELS.get(method, method), *cells, spread(means)]) + " |")
    return lines


def spread(values: list[float]) -> str:
    """Mean and population deviation; the mean alone where nothing varies."""
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    return f"{mean:.1f}" if deviation == 0 else f"{mean:.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    sys.exit(main())
