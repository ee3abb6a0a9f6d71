"""Claim: what each method scores on folders of real photographs, few-shot, on the same samples.

    python benchmarks/suites.py --data DIR --backbone B --output RUNS [--shots 4] [--seeds 1,2,3] [--jobs 2]

``DIR`` holds one folder per suite. Trains every method on every suite and seed, as ``softcpt train`` and
``softcpt evaluate`` do, goes on where an earlier call was stopped, and prints a Markdown table: percent, the
suites' own metrics, mean and population deviation over seeds. Test images are read once per run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from softcpt import Suite
    from softcpt.clip.backbone import Backbone


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
    Row("SoftCPT-CATA, task descriptions", "softcpt-cata", ("task_text=description",)),
    Row("SoftCPT-NATA, task names", "softcpt-nata", ("task_text=name",)),
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("settings", nargs="*", help="key=value for every method that trains")
    asked = parser.parse_args()
    suites = sorted(path.name for path in asked.data.iterdir() if path.is_dir())
    seeds = asked.seeds.split(",")
    asked.output.mkdir(parents=True, exist_ok=True)
    cells: list[Cell] = list(product(ROWS, suites, seeds))
    # Threads are a run's own affair and recorded in it; one each, since several runs stand side by side.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {cell: pool.submit(score, asked, *cell) for cell in cells}
        scores = {cell: future.result() for cell, future in waiting.items()}
    for line in table(suites, seeds, scores):
        print(line)
    return 0


def score(asked: argparse.Namespace, row: Row, suite: str, seed: str) -> float:
    """Percent on the test part, of a run that is trained unless it is there."""
    import softcpt

    run = asked.output / f"{suite}-{row.slug}-{asked.shots}-{seed}"
    result = run.with_name(f"{run.name}.json")
    if not result.is_file():
        backbone = backbone_of(asked.backbone)
        if not (run / "result.json").is_file():
            keys = {"method": row.method, "shots": asked.shots, "seed": seed}
            keys |= dict(setting.split("=", 1) for setting in row.settings)
            if row.method != "zero-shot":
                keys |= dict(setting.split("=", 1) for setting in asked.settings)
            softcpt.train(suite_of(asked.data / suite), backbone, run, overwrite=True, overrides=keys)
        evaluation = softcpt.evaluate(run, backbone=backbone).to_json()
        result.write_text(json.dumps(evaluation, indent=1))
        print(f"{run.name} {evaluation['score']:.1f}", file=sys.stderr, flush=True)
    return float(json.loads(result.read_text())["score"])


@cache
def backbone_of(name: str) -> Backbone:
    """Loaded once in each process."""
    import softcpt

    return softcpt.load_backbone(name)


@cache
def suite_of(folder: Path) -> Suite:
    """Read once in each process."""
    import softcpt

    return softcpt.load_suite(folder)


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
