"""Scores of a finished run on test images: per task, and averaged over tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.core.errors import Fault, RunError, SuiteError, nearest
from softcpt.core.progress import OnProgress, Progress
from softcpt.data.image import check_image
from softcpt.data.record import Record, Suite, Task
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite, scan_suite
from softcpt.engine.adapter import problem_of, restore_classifier
from softcpt.engine.cache_place import CacheChoice, open_cache
from softcpt.engine.features import ImageFeatures, pooled_of
from softcpt.engine.metrics import class_recalls, mean_class_accuracy, overall_accuracy
from softcpt.engine.prepare import resolve_device
from softcpt.engine.runs import Run, open_run
from softcpt.methods.base import Scorer, Tuned
from softcpt.methods.zero_shot import ZeroShot

FEATURES_BYTES = 1_000_000_000
"""About the most that the features of one piece of the test images take."""


@dataclass(frozen=True)
class Scored:
    """One test image and what was made of it."""

    image: str
    task: str
    label: str
    predicted: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TaskScores:
    """One task's scores, as fractions; None where there are no test images.

    Attributes:
        name: the task's.
        metric: its own, ``overall_acc`` or ``mean_acc``.
        overall_acc: share of right images.
        mean_acc: mean over the classes that have test images.
        recalls: class -> share of its images that are right, None without images.
        n_images: test images.
        zero_shot: the task's own metric for the hand-written template.
    """

    name: str
    metric: str
    overall_acc: float | None
    mean_acc: float | None
    recalls: dict[str, float | None]
    n_images: int
    zero_shot: float | None

    @property
    def score(self) -> float | None:
        """By the task's own metric."""
        return self.mean_acc if self.metric == "mean_acc" else self.overall_acc

    @property
    def missing_classes(self) -> list[str]:
        """Classes without a test image, left out of ``mean_acc``."""
        return [name for name, recall in self.recalls.items() if recall is None]


@dataclass(frozen=True)
class Evaluation:
    """What a run scores on a suite's test part.

    Attributes:
        suite: name of the suite evaluated on.
        method: key.
        shots: training images per class; 0 for zero-shot, None for all.
        seed: the run's.
        tasks: in the suite's order.
        predictions: one per test image.
        notes: what a reader should know.
        tuned: task -> what the run chose on its val images.
    """

    suite: str
    method: str
    shots: int | None
    seed: int
    tasks: tuple[TaskScores, ...]
    predictions: tuple[Scored, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    tuned: Tuned = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean over tasks of their own metric, as a fraction."""
        return mean_of([task.score for task in self.tasks])

    @property
    def zero_shot(self) -> float:
        """The same for zero-shot with the tasks' templates."""
        return mean_of([task.zero_shot for task in self.tasks])

    def to_json(self) -> dict[str, Any]:
        """For programs: accuracies in percent."""
        return {
            "suite": self.suite,
            "method": self.method,
            "shots": "all" if self.shots is None else self.shots,
            "seed": self.seed,
            "score": _percent(self.score),
            "tasks": {task.name: _percent(task.score) for task in self.tasks},
            "metrics": {task.name: task.metric for task in self.tasks},
            "overall_acc": {
                "average": _percent(mean_of([task.overall_acc for task in self.tasks])),
                "tasks": {task.name: _percent(task.overall_acc) for task in self.tasks},
            },
            "mean_acc": {
                "average": _percent(mean_of([task.mean_acc for task in self.tasks])),
                "tasks": {task.name: _percent(task.mean_acc) for task in self.tasks},
            },
            "zero_shot": {
                "score": _percent(self.zero_shot),
                "tasks": {task.name: _percent(task.zero_shot) for task in self.tasks},
            },
            "classes": {
                task.name: {name: _percent(recall) for name, recall in task.recalls.items()}
                for task in self.tasks
            },
            "n_images": {task.name: task.n_images for task in self.tasks},
            "tuned": {
                name: {
                    key: _percent(value) if key.endswith("_accuracy") and value is not None else value
                    for key, value in own.items()
                }
                for name, own in self.tuned.items()
            },
            "missing_classes": {t.name: t.missing_classes for t in self.tasks if t.missing_classes},
            "notes": list(self.notes),
        }


def evaluate(
    run: Run | Path | str,
    suite: Suite | Path | str | None = None,
    *,
    backbone: Backbone | Path | str | None = None,
    device: str = "auto",
    skip_bad_images: bool = False,
    cache: CacheChoice = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Score a run on test images it has never seen.

    Args:
        run: a run or its folder.
        suite: None for the run's own suite; else the same tasks and classes elsewhere, of which only the
            test part is used, without images the run was trained on.
        backbone: where the run's backbone is now, if not where it was.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        skip_bad_images: leave out images that cannot be read.
        cache: folder where image features are kept, as for :func:`softcpt.train`.
        on_progress: told how far it is.

    Raises:
        ConfigError: the cache's settings in the environment.
        RunError: the run has no test images.
        SuiteError: missing or changed images, or a suite with other tasks.
        AdapterError: the run's files or the backbone are not what they were.
    """
    kept = open_cache(cache)
    run = run if isinstance(run, Run) else open_run(run)
    tasks = run.adapter.tasks
    if suite is None:
        name, records, notes = run.adapter.suite, *_own_test(run, skip_bad_images)
    else:
        name, records, notes = _other_test(run, suite, skip_bad_images)
    if not records:
        raise RunError(
            Fault(str(run.path), "there are no test images", "name a suite that has a test part"),
            about="the evaluation",
        )
    model = load_run_backbone(run, backbone, device)
    classifier = restore_classifier(run.adapter, model)
    told = _teller(on_progress, len(records))
    problem = problem_of(tasks, model, run.adapter.settings.encoder)
    with kept as store:  # in fp32, so that images one by one give the same probabilities
        images = ImageFeatures(model, cache=store, kind=run.adapter.settings.method.image_features)
        found = _probabilities(images, records, (classifier.scorer(), ZeroShot(problem).scorer()), told)
    scores, predictions = [], []
    for t, task in enumerate(tasks):
        rows = [i for i, record in enumerate(records) if record.task == t]
        own = [records[i] for i in rows]
        probabilities = np.array([found[i][0] for i in rows]).reshape(len(rows), len(task.classes))
        guesses = np.array([found[i][1] for i in rows], dtype=np.int64)
        scores.append(_task_scores(task, own, probabilities.argmax(1), guesses))
        predictions += _scored(task, own, probabilities)
        if not own:
            notes = (*notes, f'task "{task.name}" has no test images and is left out of the average')
        elif scores[-1].missing_classes:
            missing = ", ".join(scores[-1].missing_classes)
            notes = (
                *notes,
                f'task "{task.name}": no test images of {missing}; left out of the mean over classes',
            )
    settings = run.adapter.settings
    return Evaluation(
        suite=name,
        method=settings.method.key,
        shots=settings.run.shots if settings.method.uses_images else 0,
        seed=settings.run.seed,
        tasks=tuple(scores),
        predictions=tuple(predictions),
        notes=tuple(notes),
        tuned=run.result.get("tuned", {}),
    )


def _probabilities(
    images: ImageFeatures,
    records: Sequence[Record],
    scorers: tuple[Scorer, Scorer],
    told: Callable[[int], None] | None,
) -> list[tuple[np.ndarray, int]]:
    """Each image's probabilities over its task's classes, and the class that zero-shot guesses.

    In pieces, so that features of regions, fifty times as large as others, need not all be there at once.
    """
    score, guess = scorers
    at_once = max(1, FEATURES_BYTES // (4 * prod(images.shape)))
    found: dict[int, tuple[np.ndarray, int]] = {}
    for start in range(0, len(records), at_once):
        piece = records[start : start + at_once]
        centres = images.centres(piece, None if told is None else _shifted(told, start))
        for t in {record.task for record in piece}:
            rows = [i for i, record in enumerate(piece) if record.task == t]
            probabilities = class_probabilities(score, centres[rows], t)
            guesses = class_probabilities(guess, pooled_of(centres[rows]), t).argmax(1)
            for i, row, guessed in zip(rows, probabilities, guesses, strict=True):
                found[start + i] = (row, int(guessed))
    return [found[i] for i in range(len(records))]


def _shifted(told: Callable[[int], None], start: int) -> Callable[[int], None]:
    return lambda done: told(start + done)


def class_probabilities(score: Scorer, features: torch.Tensor, task: int) -> np.ndarray:
    """Softmax over one task's classes [n, C]."""
    with torch.no_grad():
        probabilities: np.ndarray = score(features, task).softmax(1).cpu().numpy()
    return probabilities


def load_run_backbone(run: Run, backbone: Backbone | Path | str | None, device: str) -> Backbone:
    """The backbone a run was trained on, from where it was or is now."""
    where = resolve_device(device)
    if isinstance(backbone, Backbone):
        return backbone.to(where)
    return load_backbone(backbone if backbone is not None else run.adapter.backbone, device=where)


def mean_of(scores: Sequence[float | None]) -> float:
    """Mean of the scores there are; NaN without any."""
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else float("nan")


def _task_scores(
    task: Task, records: Sequence[Record], predicted: np.ndarray, guesses: np.ndarray
) -> TaskScores:
    labels = np.array([record.label for record in records], dtype=np.int64)
    n_classes = len(task.classes)
    recalls = class_recalls(labels, predicted, n_classes)

    def metric(values: np.ndarray) -> float | None:
        if not len(labels):
            return None
        if task.metric == "mean_acc":
            return mean_class_accuracy(labels, values, n_classes)
        return overall_accuracy(labels, values)

    return TaskScores(
        name=task.name,
        metric=task.metric,
        overall_acc=overall_accuracy(labels, predicted) if len(labels) else None,
        mean_acc=mean_class_accuracy(labels, predicted, n_classes) if len(labels) else None,
        recalls={
            name: None if np.isnan(recall) else float(recall)
            for name, recall in zip(task.classes, recalls, strict=True)
        },
        n_images=len(records),
        zero_shot=metric(guesses),
    )


def _scored(task: Task, records: Sequence[Record], probabilities: np.ndarray) -> list[Scored]:
    return [
        Scored(
            image=record.relative,
            task=task.name,
            label=task.classes[record.label],
            predicted=task.classes[int(row.argmax())],
            probabilities=tuple(row.tolist()),
        )
        for record, row in zip(records, probabilities, strict=True)
    ]


def _own_test(run: Run, skip_bad_images: bool) -> tuple[list[Record], tuple[str, ...]]:
    """The test images the run kept away from its training, unchanged since."""
    if not run.split["test"]:
        raise RunError(
            Fault(
                str(run.path),
                "its suite has no test part; every image was for training",
                "name a suite with a test part: softcpt evaluate RUN SUITE",
            ),
            about="the evaluation",
        )
    source = Path(run.split["source"])
    if not source.exists():
        raise SuiteError(
            Fault(
                str(source),
                "the suite is no longer there",
                "name where it is now: softcpt evaluate RUN SUITE",
            ),
            about="the run's suite",
        )
    # The suite is listed again, since a name in a stored file is not yet a path on this disk.
    suite, faults = scan_suite(source)
    if suite is None:
        raise SuiteError(faults, about=f"the run's suite {source}")
    there = {record.relative: record for record in suite.records}
    records, faults = _listed_test(run, lambda entry: there.get(entry["image"]), str(source))
    return _readable(run, records, faults, skip_bad_images)


def _listed_test(
    run: Run, find: Callable[[dict[str, str]], Record | None], where: str
) -> tuple[list[Record], list[Fault]]:
    """The run's own test images as they are found now, in its order, and what is wrong with them."""
    tasks = run.adapter.tasks
    index = {task.name: t for t, task in enumerate(tasks)}
    records: list[Record] = []
    faults: list[Fault] = []
    for entry in run.split["test"]:
        found = find(entry)
        if found is None:
            faults.append(Fault(entry["image"], f"is no longer in {where}", "restore it, or name the suite"))
        elif found.digest != entry["digest"]:
            faults.append(Fault(entry["image"], "was changed after the run", "restore it, or name the suite"))
        else:
            task = index[entry["task"]]
            records.append(
                Record(found.path, entry["image"], task, tasks[task].classes.index(entry["class"]))
            )
    return records, faults


def _readable(
    run: Run, records: list[Record], faults: list[Fault], skip_bad_images: bool
) -> tuple[list[Record], tuple[str, ...]]:
    """Those of the records that can be read; the others are faults, or notes where they may be skipped."""
    notes = list(run.split["notes"])
    good: list[Record] = []
    for record in records:
        reason = _reason_it_is_bad(record.path)
        if reason is None:
            good.append(record)
        elif skip_bad_images:
            notes.append(f"left out {record.relative}: {reason}")
        else:
            faults.append(Fault(record.relative, reason, "repair it, or add --skip-bad-images"))
    if faults:
        raise SuiteError(faults, about=f"the test images of {run.adapter.suite}")
    return good, tuple(notes)


def _reason_it_is_bad(path: Path) -> str | None:
    try:
        check_image(path)
    except SuiteError as error:
        return error.faults[0].what
    return None


def _other_test(
    run: Run, source: Suite | Path | str, skip_bad_images: bool
) -> tuple[str, list[Record], tuple[str, ...]]:
    """The test part of another suite with the same tasks and classes, in the run's order."""
    suite = source if isinstance(source, Suite) else load_suite(source, skip_bad_images=skip_bad_images)
    tasks = run.adapter.tasks
    faults = _task_faults(suite, tasks)
    if faults:
        raise SuiteError(faults, about=f"the suite {suite.name}, which is not what the run was trained for")
    moved = _moved_test(run, suite)
    if moved is not None:
        return suite.name, moved, (*suite.notes, *run.split["notes"])
    # Drawn under the run's own name of the suite, which is part of the random streams.
    as_named = replace(suite, name=run.adapter.suite)
    split = split_suite(as_named, seed=run.adapter.settings.data.split_seed)
    samples = run.adapter.facts["samples"]
    seen = {entry["digest"] for part in ("train", "val") for entry in samples[part]}
    index = {task.name: t for t, task in enumerate(tasks)}
    records: list[Record] = []
    left_out = 0
    for record, part in zip(suite.records, split.parts, strict=True):
        if part != "test":
            continue
        if record.digest in seen:
            left_out += 1
            continue
        own = suite.tasks[record.task]
        t = index[own.name]
        label = tasks[t].classes.index(own.classes[record.label])
        records.append(Record(record.path, record.relative, t, label, part, record.group))
    notes = [*suite.notes, *split.notes]
    if run.split["test"]:
        notes.append("these are not the test images of the run's own suite")
    if left_out:
        notes.append(f"left out {left_out} test images that the run was trained on or chosen by")
    records.sort(key=lambda record: (record.task, record.label, record.relative))
    return suite.name, records, tuple(notes)


def _moved_test(run: Run, suite: Suite) -> list[Record] | None:
    """The run's own test images, where the suite holds all of them and gives no parts of its own."""
    if not run.split["test"] or any(record.part is not None for record in suite.records):
        return None
    there: dict[tuple[str, str, str], Record] = {}
    for record in suite.records:
        task = suite.tasks[record.task]
        there.setdefault((task.name, task.classes[record.label], record.digest), record)
    records, faults = _listed_test(
        run, lambda entry: there.get((entry["task"], entry["class"], entry["digest"])), str(suite.source)
    )
    return None if faults else records


def _task_faults(suite: Suite, tasks: Sequence[Task]) -> list[Fault]:
    given = {task.name: task for task in suite.tasks}
    wanted = {task.name: task for task in tasks}
    faults = [Fault(f'task "{n}"', "is missing", nearest(n, given)) for n in wanted if n not in given]
    faults += [
        Fault(f'task "{name}"', "the run was not trained for it", nearest(name, wanted))
        for name in given
        if name not in wanted
    ]
    for name in wanted:
        if name not in given:
            continue
        ours, theirs = set(wanted[name].classes), set(given[name].classes)
        faults += [
            Fault(f'task "{name}", class "{c}"', "is missing", nearest(c, theirs))
            for c in sorted(ours - theirs)
        ]
        faults += [
            Fault(f'task "{name}", class "{c}"', "the run was not trained for it", nearest(c, ours))
            for c in sorted(theirs - ours)
        ]
    return faults


def _teller(on_progress: OnProgress | None, total: int) -> Callable[[int], None] | None:
    if on_progress is None:
        return None
    return lambda done: on_progress(Progress("test images", done, total))


def _percent(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else 100 * value
