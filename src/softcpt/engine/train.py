"""One run: suite and backbone in, a run folder out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.core.errors import Collector, ConfigError, Fault, SuiteError
from softcpt.data.draw import Samples, draw_samples
from softcpt.data.record import Record, Suite
from softcpt.data.split import Split, split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.adapter import ALL_TASKS, FACTS, build_classifier, listed, problem_of, write_adapter
from softcpt.engine.config import Settings, resolve
from softcpt.engine.features import ImageFeatures
from softcpt.engine.loop import OnProgress, Pool, check_weights, fit
from softcpt.engine.metrics import task_score
from softcpt.engine.runs import (
    RESULT,
    SPLIT,
    MetricsFile,
    Run,
    check_output,
    open_output,
    open_run,
    versions,
    write_config,
)
from softcpt.engine.signed import write_signed
from softcpt.methods.base import Classifier, SeparateClassifiers

logger = logging.getLogger("softcpt")


def train(
    suite: Suite | Path | str,
    backbone: Backbone | Path | str | None,
    output: Path | str,
    *,
    config: Path | str | None = None,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    on_progress: OnProgress | None = None,
    overrides: Mapping[str, Any] | None = None,
    **keys: Any,  # noqa: ANN401  values of the options, checked by their own types
) -> Run:
    """Train a method on all tasks of a suite and write a run folder.

    Args:
        suite: a loaded suite, a folder ``<task>/<class>/<image>``, or a CSV manifest.
        backbone: a loaded backbone or what :func:`load_backbone` takes; None takes it from ``config``.
        output: folder of the run; must not hold another one.
        config: YAML file with options, or the ``config.json`` of a run to repeat.
        overwrite: replace a run that is already there.
        skip_bad_images: leave out images that cannot be read instead of refusing the suite.
        on_progress: told how far it is.
        overrides: options that come from a command line.
        **keys: options: ``method``, ``recipe``, ``shots``, ``seed``, ``device``, ``epochs``, ``lr``, ...

    Returns:
        The finished run.

    Raises:
        SoftCPTError: everything that is wrong with options, suite, backbone or output, before anything
            is written.
    """
    given: dict[str, Any] = {**keys, **(overrides or {})}
    if isinstance(backbone, Backbone):
        given["backbone"] = backbone.name
    elif backbone is not None:
        given["backbone"] = str(backbone)
    origin = "argument" if overrides is None else "command line"
    collector = Collector()
    settings = collector.keep(lambda: resolve(given, file=Path(config) if config else None, given_by=origin))
    loaded = collector.keep(
        lambda: suite if isinstance(suite, Suite) else load_suite(suite, skip_bad_images=skip_bad_images)
    )
    collector.keep(lambda: check_output(Path(output), overwrite=overwrite))
    collector.raise_any()
    assert settings is not None  # what failed was raised
    assert loaded is not None
    device = pick_device(settings)
    plan = plan_run(loaded, settings)
    model = (
        backbone.to(device)
        if isinstance(backbone, Backbone)
        else load_backbone(_named_backbone(settings), device=device)
    )
    classifier = build_classifier(problem_of(loaded.tasks, model), settings)
    with open_output(Path(output), overwrite=overwrite) as folder:
        _run(folder, loaded, plan, model, classifier, settings, on_progress)
    return open_run(output)


@dataclass(frozen=True)
class Plan:
    """Which images a run uses for what, and what should be said about it."""

    split: Split
    samples: Samples
    notes: tuple[str, ...]


def plan_run(suite: Suite, settings: Settings) -> Plan:
    """Split and draw.

    Raises:
        SuiteError: every class that has nothing to train on.
        ConfigError: weights for tasks there are not.
    """
    if settings.train is not None:
        check_weights(settings.train, [task.name for task in suite.tasks])
    split = split_suite(suite, seed=settings.data.split_seed, mode=settings.data.split)
    samples = draw_samples(
        suite, split, shots=settings.run.shots, seed=settings.run.seed, rule=settings.data.draw
    )
    if settings.method.trains:
        drawn = {(record.task, record.label) for record in samples.train}
        faults = [
            Fault(
                f'task "{task.name}", class "{name}"',
                "has no image to train on",
                "add images, or drop the class",
            )
            for t, task in enumerate(suite.tasks)
            for label, name in enumerate(task.classes)
            if (t, label) not in drawn
        ]
        if faults:
            raise SuiteError(faults, about=f"the suite {suite.name}")
    return Plan(split, samples, (*suite.notes, *split.notes, *samples.notes))


def _run(
    folder: Path,
    suite: Suite,
    plan: Plan,
    backbone: Backbone,
    classifier: Classifier,
    settings: Settings,
    on_progress: OnProgress | None,
) -> None:
    began = time.perf_counter()
    samples = plan.samples
    write_config(folder, settings.stored())
    logger.info("%s on %s with %s", settings.method.label, suite.name, backbone.description)
    for note in plan.notes:
        logger.info("note: %s", note)
    features = ImageFeatures(backbone, settings.encoder.precision)
    norms = task_feature_norms(classifier)
    epochs: dict[str, int] = {}
    with MetricsFile(folder) as metrics:
        for part in parts_of(classifier, samples.train, samples.val, settings):
            epochs[part.name] = fit(
                part.classifier,
                part.pool,
                features,
                settings.training(),
                shots=settings.run.shots,
                seed=settings.run.seed,
                part=part.name,
                validate=_validator(part, suite, features),
                on_step=metrics.write,
                on_progress=on_progress,
            )
    val = val_score(classifier, suite, samples.val, features)
    stored = {"train": listed(samples.train, suite.tasks), "val": listed(samples.val, suite.tasks)}
    facts = write_adapter(
        folder,
        classifier,
        settings=settings,
        suite=suite,
        backbone=backbone,
        samples=stored,
        extra={
            "versions": versions(),
            "task_feature_norms": {"start": norms, "end": task_feature_norms(classifier)},
        },
    )
    split = write_signed(
        folder / SPLIT,
        {
            "suite": suite.name,
            "source": str(suite.source.resolve()),
            "root": str(suite.root.resolve()),
            "test": listed(samples.test, suite.tasks),
            "notes": list(plan.notes),
        },
    )
    result = {
        "method": settings.method.key,
        "suite": suite.name,
        "shots": settings.run.shots if settings.method.trains else 0,
        "seed": settings.run.seed,
        "epochs": epochs,
        "val_score": val,
        "n_learned": sum(tensor.numel() for tensor in classifier.learned().values()),
        "n_train": len(samples.train),
        "n_val": len(samples.val),
        "n_test": len(samples.test),
        "seconds": round(time.perf_counter() - began, 3),
        "threads": torch.get_num_threads(),
        "device": str(backbone.device),
        "digests": {FACTS: facts, SPLIT: split},
    }
    logger.info("done in %.1f s", result["seconds"])
    write_signed(folder / RESULT, result)


@dataclass(frozen=True)
class Part:
    """One training: of all tasks together, or of one task on its own."""

    name: str
    classifier: Classifier
    pool: Pool
    val: Sequence[Record]


def parts_of(
    classifier: Classifier, train: Sequence[Record], val: Sequence[Record], settings: Settings
) -> list[Part]:
    """The trainings that make up a run."""
    if not settings.method.trains:
        return []
    tasks = classifier.problem.tasks
    if not isinstance(classifier, SeparateClassifiers):
        return [Part(ALL_TASKS, classifier, _pool(classifier, train), val)]
    parts = []
    for t, task in enumerate(tasks):
        own = [record for record in train if record.task == t]
        labels = torch.tensor([record.label for record in own])
        pool = Pool(own, labels, [0] * len(own))
        parts.append(
            Part(task.name, classifier.part(t), pool, [record for record in val if record.task == t])
        )
    return parts


def _pool(classifier: Classifier, records: Sequence[Record]) -> Pool:
    first = classifier.problem.first_column
    columns = torch.tensor([first[record.task] + record.label for record in records])
    return Pool(records, columns, [record.task for record in records])


def _validator(part: Part, suite: Suite, features: ImageFeatures) -> Callable[[], float] | None:
    if not part.val:
        return None
    centres = features.centres(part.val)
    separate = len(part.classifier.problem.tasks) == 1 and part.name != ALL_TASKS

    def validate() -> float:
        return suite_score(part.classifier, suite, part.val, centres, separate=separate)

    return validate


def suite_score(
    classifier: Classifier,
    suite: Suite,
    records: Sequence[Record],
    features: Tensor,
    *,
    separate: bool = False,
) -> float:
    """The suite's metric on some images, averaged over the tasks that have any, as a fraction.

    Args:
        classifier: what scores them.
        suite: whose tasks' metrics.
        records: the images.
        features: theirs [n, D].
        separate: the classifier knows one task only, and calls it 0.
    """
    score = classifier.scorer()
    scores = []
    for t in sorted({record.task for record in records}):
        rows = [i for i, record in enumerate(records) if record.task == t]
        with torch.no_grad():
            predicted = score(features[rows], 0 if separate else t).argmax(1).cpu().numpy()
        labels = torch.tensor([records[i].label for i in rows]).numpy()
        task = suite.tasks[t]
        scores.append(task_score(task.metric, labels, predicted, len(task.classes)))
    return sum(scores) / len(scores)


def val_score(
    classifier: Classifier, suite: Suite, val: Sequence[Record], features: ImageFeatures
) -> float | None:
    """The suite's metric on the drawn val samples, or None without any."""
    if not val:
        return None
    return suite_score(classifier, suite, val, features.centres(val))


def task_feature_norms(classifier: Classifier) -> dict[str, float]:
    """Norms of the task features, which set the scale of SoftCPT's contexts and of their steps."""
    task_features = getattr(classifier, "task_features", None)
    if task_features is None:
        return {}
    with torch.no_grad():
        norms = task_features().norm(dim=1).tolist()
    return {task.name: round(norm, 6) for task, norm in zip(classifier.problem.tasks, norms, strict=True)}


def pick_device(settings: Settings) -> torch.device:
    """The device asked for; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: it is not there, or cannot run the precision.
    """
    device = resolve_device(settings.run.device)
    if settings.encoder.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            Fault("precision", f"fp16 needs CUDA; this run is on {device.type}", "use fp32 or bf16"),
            about="the options",
        )
    return device


def resolve_device(name: str) -> torch.device:
    """A torch device by name or ``auto``.

    Raises:
        ConfigError: this machine has none of that kind.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there.get(name, False):
        usable = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ConfigError(
            Fault("device", f"this machine has no {name!r}", f"use auto, or one of: {usable}"),
            about="the options",
        )
    return torch.device(name)


def _named_backbone(settings: Settings) -> str:
    if settings.run.backbone is None:
        raise ConfigError(
            Fault(
                "backbone",
                "none is named, and the package has none of its own yet",
                "name one: ViT-B-16/openai, hf-hub:org/model, or a folder with open_clip_config.json",
            ),
            about="the options",
        )
    return settings.run.backbone
