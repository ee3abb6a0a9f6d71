"""One piece of work of a comparison, done in whatever process or machine it lands on.

features  encode some views of some images, so that every cell finds them
cost      the faults and the expected seconds of a cell, without training it
trial     train, and score on val; the test images are not looked at
cell      train, and score on the test images, once
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.compare.identity import suite_digest
from softcpt.core.errors import BackboneError, Fault, SuiteError
from softcpt.data.record import Suite
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.cache_place import open_cache
from softcpt.engine.check import check_suite
from softcpt.engine.evaluate import Evaluation, evaluate
from softcpt.engine.features import ImageFeatures, Precision
from softcpt.engine.prepare import resolve_device
from softcpt.engine.runs import Run, versions
from softcpt.engine.train import train
from softcpt.methods.base import ImageKind

What = Literal["features", "cost", "trial", "cell"]


@dataclass(frozen=True)
class Job:
    """A piece of work, all of it plain values.

    Attributes:
        what: kind of work.
        key: of the cell, or a name of its own.
        label: for people.
        source: where the suite is.
        suite: digest of its content.
        backbone: where it is.
        weights: digest of it.
        threads: of the computation.
        device: as the options name it.
        cache: folder of image features.
        work: folder for the run while it is needed; None for the machine's own.
        skip_bad_images: leave out images that cannot be read.
        settings: keys and values of the run.
        identity: what the result is kept with.
        together: tasks in one training, None for all.
        views: for ``features``: index of a record and its views (-1 the centre).
        precision: for ``features``: of the encoder.
        kind: for ``features``: whether regions have some of their own.
    """

    what: What
    key: str
    label: str
    source: str
    suite: str
    backbone: str
    weights: str
    threads: int
    device: str
    cache: str
    work: str | None = None
    skip_bad_images: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    together: int | None = None
    views: tuple[tuple[int, tuple[int, ...]], ...] = ()
    precision: Precision = "fp32"
    kind: ImageKind = "pooled"


def do(job: Job) -> dict[str, Any]:
    """The result of a job: JSON values.

    Raises:
        SoftCPTError: what stands in the way; the suite or the backbone is no longer what it was.
    """
    torch.set_num_threads(job.threads)
    suite, backbone = _suite(job), _backbone(job)
    if job.what == "features":
        return _features(job, suite, backbone)
    if job.what == "cost":
        return _cost(job, suite, backbone)
    began = time.perf_counter()
    result = _trained(job, suite, backbone)
    return {
        "identity": dict(job.identity),
        "settings": dict(job.settings),
        **result,
        "seconds": round(time.perf_counter() - began, 3),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _suite(job: Job) -> Suite:
    suite, digest = _loaded_suite(job.source, job.skip_bad_images)
    if digest != job.suite:
        fault = Fault(
            job.source, "is not what it was when the comparison began", "start again; what is there is kept"
        )
        raise SuiteError(fault, about="the comparison")
    return suite


@lru_cache(maxsize=8)
def _loaded_suite(source: str, skip_bad_images: bool) -> tuple[Suite, str]:
    suite = load_suite(source, skip_bad_images=skip_bad_images)
    return suite, suite_digest(suite)


def _backbone(job: Job) -> Backbone:
    backbone = _loaded_backbone(job.backbone, job.device)
    if backbone.digest != job.weights:
        fault = Fault(job.backbone, "is not what it was when the comparison began", "name the same weights")
        raise BackboneError(fault, about="the comparison")
    return backbone


@lru_cache(maxsize=2)
def _loaded_backbone(name: str, device: str) -> Backbone:
    return load_backbone(name, device=resolve_device(device))


def _features(job: Job, suite: Suite, backbone: Backbone) -> dict[str, Any]:
    with open_cache(job.cache) as cache:
        features = ImageFeatures(backbone, job.precision, cache, job.kind)
        records = [suite.records[i] for i, views in job.views for _ in views]
        features.views(records, [view for _, views in job.views for view in views])
    return {"views": len(records)}


def _cost(job: Job, suite: Suite, backbone: Backbone) -> dict[str, Any]:
    """Seconds of the steps of one training, and of one image."""
    costs = [
        check_suite(part, backbone=backbone, overrides=dict(job.settings)).cost for part in _parts(suite, job)
    ]
    n_test = sum(cost.test_images for cost in costs)
    image_s = sum(cost.evaluate_s for cost in costs) / n_test if n_test else 0.0
    views = sum(cost.views for cost in costs)
    train_s = sum(cost.train_s for cost in costs)
    return {"train_s": max(0.0, train_s - views * image_s), "image_s": image_s}


def _trained(job: Job, suite: Suite, backbone: Backbone) -> dict[str, Any]:
    """Train, each group of tasks in a run of its own, and score."""
    runs: list[Run] = []
    tasks: list[dict[str, Any]] = []
    notes: list[str] = []
    places = {
        (suite.tasks[r.task].name, suite.tasks[r.task].classes[r.label], r.relative): i
        for i, r in enumerate(suite.records)
    }
    with ExitStack() as stack:
        parts = _parts(suite, job)
        overrides = dict(job.settings)
        if len(parts) > 1:
            overrides.pop("split_seed", None)  # the parts come with their groups
        for part in parts:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cell-", dir=job.work))
            run = train(part, backbone, Path(folder) / "run", cache=job.cache, overrides=overrides)
            runs.append(run)
            if job.what == "cell":
                found = evaluate(
                    run,
                    backbone=backbone,
                    device=job.device,
                    skip_bad_images=job.skip_bad_images,
                    cache=job.cache,
                )
                tasks += _tested(found, part, places)
                notes += found.notes
    vals = [(run.result["val_score"], len(run.adapter.tasks)) for run in runs]
    n_tasks = sum(n for _, n in vals)
    result = {
        "val_score": None if any(v is None for v, _ in vals) else sum(v * n for v, n in vals) / n_tasks,
        "train_s": round(sum(run.result["seconds"] for run in runs), 3),
        "n_learned": sum(run.result["n_parameters"] for run in runs),
        "n_train": sum(run.result["n_train"] for run in runs),
        "learning": [_learning(run) for run in runs],
    }
    return result | ({"tasks": tasks, "notes": notes} if job.what == "cell" else {})


def _learning(run: Run) -> dict[str, Any]:
    """What a run says of how it learned."""
    said = {key: run.result[key] for key in ("tuned", "effective_rates", "report")}
    return {"tasks": [task.name for task in run.adapter.tasks], **said}


def _tested(
    found: Evaluation, suite: Suite, places: Mapping[tuple[str, str, str], int]
) -> list[dict[str, Any]]:
    """Each task's scores, and which of its test images (by their place in the suite) were right."""
    tested = []
    for task in found.tasks:
        own = [scored for scored in found.predictions if scored.task == task.name]
        classes = next(t.classes for t in suite.tasks if t.name == task.name)
        tested.append(
            {
                "name": task.name,
                "metric": task.metric,
                "score": task.score,
                "overall_acc": task.overall_acc,
                "mean_acc": task.mean_acc,
                "zero_shot": task.zero_shot,
                "images": [places[task.name, scored.label, scored.image] for scored in own],
                "labels": [classes.index(scored.label) for scored in own],
                "right": "".join("1" if scored.predicted == scored.label else "0" for scored in own),
            }
        )
    return tested


def _parts(suite: Suite, job: Job) -> Sequence[Suite]:
    """The suite, or groups of its tasks, each image in the part that the whole suite's split gives it."""
    if job.together is None or job.together >= len(suite.tasks):
        return [suite]
    split = split_suite(suite, seed=int(job.settings.get("split_seed", 0)))
    placed = [replace(r, part=part) for r, part in zip(suite.records, split.parts, strict=True)]
    return [
        replace(
            suite,
            tasks=tuple(suite.tasks[t] for t in group),
            records=tuple(replace(r, task=r.task - group[0]) for r in placed if r.task in group),
        )
        for group in groups_of(suite, job.together)
    ]


def groups_of(suite: Suite, together: int | None) -> list[range]:
    """Indices of the tasks of each training.

    Args:
        suite: all of its tasks are in one group.
        together: tasks in one training, None for all.
    """
    n = len(suite.tasks)
    size = together or n
    return [range(first, min(first + size, n)) for first in range(0, n, size)]
