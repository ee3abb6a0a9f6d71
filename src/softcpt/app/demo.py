"""The demo: a drawn suite, a small CLIP, four methods at two numbers of shots. What it makes and measures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from softcpt.builtin.make import Made, make_suite
from softcpt.clip.backbone import Backbone
from softcpt.core.errors import Fault, RunError
from softcpt.core.files import lock_file
from softcpt.core.progress import OnProgress, Progress
from softcpt.data.suite import load_suite
from softcpt.engine.evaluate import evaluate
from softcpt.engine.train import train
from softcpt.report.results import Results, Row, result_row, task_facts

MARK: Final = ".softcpt-demo"
"""A file that tells a demo's folder from one that must not be replaced; locked while a demo is being made."""

REPORT: Final = "report.html"
_CONTENT: Final = (REPORT, "runs", "cache", "suite")


@dataclass(frozen=True)
class Plan:
    """What is run: as much as two minutes on two cores have room for.

    Attributes:
        backbone: as ``--backbone`` takes it.
        tasks: of ``scenes``: those whose answer stays true in the cropped and mirrored pictures that training
            sees, unlike size, position, number, direction and letters.
        images_per_class: half of them to train on, three tenths to test.
        seed: of the pictures.
        shots: training images per class.
        seeds: of the trainings.
        epochs: of each training; the methods' own number is 50.
        views: random views of a training image; the usual number is 16.
        rates: learning rate of each method that trains, in the order of the table. Chosen from 1, 3, 10, 30
            and 100 times the published 0.002 on validation pictures of another seed, by
            ``benchmarks/demo_rates.py``; the demo's own pictures had no say.
    """

    backbone: str = "mini"
    tasks: tuple[str, ...] = (
        "shape", "colour", "pattern", "background", "outline", "material", "weather", "quality",
    )  # fmt: skip
    images_per_class: int = 30
    seed: int = 0
    shots: tuple[int, ...] = (1, 4)
    seeds: tuple[int, ...] = (1, 2)
    epochs: int = 10
    views: int = 4
    rates: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({"coop-ca": 0.02, "coop-mt": 0.006, "softcpt-nata": 0.002})
    )


PLAN: Final = Plan()


class Cell(NamedTuple):
    """One training; zero-shot has neither shots nor, in effect, a seed."""

    method: str
    shots: int
    seed: int


def cells_of(plan: Plan) -> list[Cell]:
    """What is to be trained, zero-shot first."""
    return [
        Cell("zero-shot", 0, plan.seeds[0]),
        *(Cell(m, shots, seed) for m in plan.rates for shots in plan.shots for seed in plan.seeds),
    ]


@dataclass(frozen=True)
class Demo:
    """What came out.

    Attributes:
        folder: where everything lies.
        plan: what was run.
        made: the suite.
        backbone: as loaded.
        results: a row for each cell, with predictions.
        threads: of the computations.
        seconds: from the first to the last score.
    """

    folder: Path
    plan: Plan
    made: Made
    backbone: Backbone
    results: Results
    threads: int
    seconds: float


def run_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's run lies."""
    name = f"{cell.method}-{cell.shots}-shots-seed-{cell.seed}" if cell.shots else cell.method
    return folder / "runs" / name


def run_demo(
    folder: Path, backbone: Backbone, plan: Plan = PLAN, *, on_progress: OnProgress | None = None
) -> Demo:
    """Draw the suite, train and test everything.

    Args:
        folder: from :func:`open_demo`.
        backbone: the plan's, loaded.
        plan: what to run.
        on_progress: told how far it is.
    """
    began = time.perf_counter()
    made = make_suite(
        "scenes",
        folder / "suite",
        seed=plan.seed,
        tasks=plan.tasks,
        images_per_class=plan.images_per_class,
        on_progress=on_progress,
    )
    suite = load_suite(made.folder, check_images=False)
    cells = cells_of(plan)
    rows: list[Row] = []
    threads, tasks = 1, None
    training_began = time.perf_counter()
    for i, cell in enumerate(cells):
        trains = cell.method in plan.rates
        keys: dict[str, Any] = (
            {"epochs": plan.epochs, "views": plan.views, "lr": plan.rates[cell.method]} if trains else {}
        )
        run = train(
            suite,
            backbone,
            run_folder(folder, cell),
            method=cell.method,
            shots=cell.shots or 1,
            seed=cell.seed,
            cache=folder / "cache",  # all methods and seeds share the images' features
            **keys,
        )
        evaluation = evaluate(run, backbone=backbone, cache=folder / "cache")
        rows.append(result_row(run, evaluation))
        tasks, threads = task_facts(evaluation), run.result["threads"]
        if on_progress:
            left = _time_left_s(cells, i + 1, time.perf_counter() - training_began)
            on_progress(Progress("trainings", i + 1, len(cells), time_left_s=left))
    assert tasks is not None  # there is always zero-shot
    results = Results(tuple(rows), {suite.name: tasks})
    return Demo(folder, plan, made, backbone, results, threads, time.perf_counter() - began)


def _time_left_s(cells: list[Cell], n_done: int, seconds: float) -> float:
    """As if a training took a while, and as long again for each training image of a class."""
    done = sum(1 + cell.shots for cell in cells[:n_done])
    return seconds * sum(1 + cell.shots for cell in cells[n_done:]) / done


@contextmanager
def open_demo(folder: Path) -> Iterator[Path]:
    """An empty folder with our mark, ours alone while the block runs; an earlier demo in it is removed.

    Raises:
        RunError: it holds anything else, or another demo is being made in it.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MARK).open("a", encoding="utf-8") as mark:
        if not lock_file(mark.fileno()):
            raise _refusal(folder, "another demo is being made in it", "wait, or name another folder")
        if (folder / MARK).stat().st_size == 0:
            mark.write("Made by softcpt demo, which replaces what is in this folder when it runs again.\n")
            mark.flush()
        check_folder(folder)
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name != REPORT):  # the report first
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARK:
                entry.unlink()
        yield folder


def check_folder(folder: Path) -> None:
    """Refuse a folder that a demo must not be written to; nothing is changed yet.

    Raises:
        RunError: it holds anything but an earlier demo, or is a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise _refusal(folder, "is a file", "name another folder with --output")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return
    if MARK not in names:
        raise _refusal(folder, "exists and is no earlier demo", "name another folder with --output")
    strange = sorted(name for name in names - {MARK, *_CONTENT} if not _is_part(name))
    if strange:
        named = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise _refusal(folder, f"holds what no demo made: {named}", "move it, or name another folder")


def _is_part(name: str) -> bool:
    """Whether a killed demo was writing it."""
    return name.endswith(".part") and name.startswith(tuple(f".{own}." for own in _CONTENT))


def _refusal(folder: Path, what: str, fix: str) -> RunError:
    return RunError(Fault(str(folder), what, fix), about="the demo's folder")
