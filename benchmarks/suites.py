"""Claim: what each method scores on folders of real photographs, few-shot, on the same samples.

    python benchmarks/suites.py --data DIR --backbone B --output RUNS [--shots 4] [--seeds 1,2,3] [--jobs 2]

``DIR`` holds one folder per suite. Trains every method on every suite and seed through the command line,
goes on where an earlier call was stopped, and prints a Markdown table: percent, the suites' own metrics, mean
over seeds and population deviation over seeds. Test images are read once per run.
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
from typing import NamedTuple


class Row(NamedTuple):
    """A method with settings of its own."""

    label: str
    method: str
    settings: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """For names of folders."""
        return "-".join([self.method, *self.settings]).replace("=", "-")


ROWS = (
    Row("Zero-shot", "zero-shot"),
    Row("CoOp-CA, each task alone", "coop-ca"),
    Row("CoOp-CA, joint", "coop-ca-joint"),
    Row("CoOp-MT", "coop-mt"),
    Row("SoftCPT-NATA, task descriptions", "softcpt-nata", ("task_text=description",)),
    Row("SoftCPT-NATA, task names", "softcpt-nata", ("task_text=name",)),
    Row("SoftCPT-CATA, task descriptions", "softcpt-cata", ("task_text=description",)),
    Row("SoftCPT-CATA, task names", "softcpt-cata", ("task_text=name",)),
)

Cell = tuple[Row, str, str]


def main() -> int:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shots", default="4")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("settings", nargs="*", help="key=value for every method that trains")
    asked = parser.parse_args()
    suites = sorted(path.name for path in asked.data.iterdir() if path.is_dir())
    seeds = asked.seeds.split(",")
    asked.output.mkdir(parents=True, exist_ok=True)
    cells: list[Cell] = list(product(ROWS, suites, seeds))
    with ThreadPoolExecutor(asked.jobs) as pool:
        scores = dict(zip(cells, pool.map(lambda cell: score(asked, *cell), cells), strict=True))
    for line in table(suites, seeds, scores):
        print(line)
    return 0


def score(asked: argparse.Namespace, row: Row, suite: str, seed: str) -> float:
    """Percent on the test part, of a run that is trained unless it is there."""
    run = asked.output / f"{suite}-{row.slug}-{asked.shots}-{seed}"
    result = run.with_name(f"{run.name}.json")
    if not result.is_file():
        if not (run / "result.json").is_file():
            options = {
                "--method": row.method,
                "--shots": asked.shots,
                "--seed": seed,
                "--backbone": asked.backbone,
                "--output": str(run),
            }
            words = [word for option in options.items() for word in option]
            extra = asked.settings if row.method != "zero-shot" else []
            train = ["train", str(asked.data / suite), *words, "--overwrite", "--quiet"]
            call([*train, *row.settings, *extra])
        result.write_text(call(["evaluate", str(run), "--json"]))
        print(run.name, json.loads(result.read_text())["score"], file=sys.stderr, flush=True)
    return float(json.loads(result.read_text())["score"])


def call(words: list[str]) -> str:
    """What ``softcpt`` prints; one core each, since several run side by side."""
    command = [sys.executable, "-m", "softcpt", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout


def table(suites: list[str], seeds: list[str], scores: dict[Cell, float]) -> list[str]:
    """Markdown: a row per method, a column per suite, their mean last."""
    lines = ["| | " + " | ".join([*suites, "mean"]) + " |", "|---" * (len(suites) + 2) + "|"]
    for row in ROWS:
        cells = [spread([scores[row, suite, seed] for seed in seeds]) for suite in suites]
        means = [statistics.fmean(scores[row, suite, seed] for suite in suites) for seed in seeds]
        lines.append("| " + " | ".join([row.label, *cells, spread(means)]) + " |")
    return lines


def spread(values: list[float]) -> str:
    """Mean and population deviation; the mean alone where nothing varies."""
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    return f"{mean:.1f}" if deviation == 0 else f"{mean:.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    sys.exit(main())
