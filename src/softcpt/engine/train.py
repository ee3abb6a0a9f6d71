"""One run: suite and backbone in, a run folder out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softcpt.clip.backbone import Backbone
from softcpt.clip.text_shared import release_memory
from softcpt.core.errors import Collector
from softcpt.core.files import digest_of_file
from softcpt.core.progress import OnProgress
from softcpt.data.record import Record, Suite
from softcpt.engine.adapter import ALL_TASKS, FACTS, listed, write_adapter
from softcpt.engine.cache_place import CacheChoice, open_cache
from softcpt.engine.config import Settings, TrainConfig
from softcpt.engine.feature_cache import FeatureCache
from softcpt.engine.features import ImageFeatures
from softcpt.engine.loop import OnStep, Pool, fit
from softcpt.engine.metrics import task_score
from softcpt.engine.prepare import Prepared, prepare_run
from softcpt.engine.rates import effective_rates, joint_length, with_numbers
from softcpt.engine.runs import (
    CONFIG,
    RESULT,
    SPLIT,
    MetricsFile,
    Run,
    open_output,
    open_run,
    versions,
    write_config,
)
from softcpt.engine.signed import write_signed
from softcpt.engine.support import fit_to_support
from softcpt.methods.base import Classifier, Stage, Tuned, n_parameters

logger = logging.getLogger("softcpt")


def train(
    suite: Suite | Path | str,
    backbone: Backbone | Path | str | None,
    output: Path | str,
    *,
    config: Path | str | None = None,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    cache: CacheChoice = None,
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
        cache: folder where image features are kept for later runs; False for none; None for what
            ``SOFTCPT_CACHE`` says, or else the user's cache folder. It changes no result.
        on_progress: told how far it is.
        overrides: options that come from a command line.
        **keys: options: ``method``, ``recipe``, ``shots``, ``seed``, ``device``, ``epochs``, ``lr``, ...

    Returns:
        The finished run.

    Raises:
        SoftCPTError: everything that is wrong with options, suite, backbone or output, before anything
            is written.
    """
    collector = Collector()
    prepared = collector.keep(
        lambda: prepare_run(
            suite,
            backbone,
            {**keys, **(overrides or {})},
            given_by="argument" if overrides is None else "command line",
            config=Path(config) if config else None,
            output=Path(output),
            overwrite=overwrite,
            skip_bad_images=skip_bad_images,
        )
    )
    kept = collector.keep(lambda: open_cache(cache))
    collector.raise_any()
    assert prepared is not None  # what failed was raised
    assert kept is not None
    with kept as store, open_output(Path(output), overwrite=overwrite) as folder:
        _run(folder, prepared, store, on_progress)
    return open_run(output)


def _run(
    folder: Path, prepared: Prepared, cache: FeatureCache | None, on_progress: OnProgress | None
) -> None:
    settings, suite, plan = prepared.settings, prepared.suite, prepared.plan
    backbone, classifier = prepared.backbone, prepared.classifier
    began = time.perf_counter()
    samples = plan.samples
    write_config(folder, settings.stored())
    logger.info("%s on %s with %s", settings.method.label, suite.name, backbone.description)
    for note in plan.notes:
        logger.info("note: %s", note)
    kind = settings.method.image_features
    features = ImageFeatures(backbone, settings.encoder.precision, cache, kind)
    norms, steps_at_start = task_feature_norms(classifier), _effective(classifier, settings)
    if steps_at_start:
        shown = ", ".join(f"{name} {step:.3g}" for name, step in steps_at_start.items())
        logger.info("effective rate on each task's context: %s", shown)
    with MetricsFile(folder) as metrics:
        epochs, tuned = learn(prepared, features, on_step=metrics.write, on_progress=on_progress)
    release_memory(backbone.text)
    val = val_score(classifier, suite, samples.val, features)
    measured = measured_facts(classifier, samples.val, features)
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
            "regenerated": classifier.regenerated(),
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
        "shots": settings.run.shots if settings.method.uses_images else 0,
        "seed": settings.run.seed,
        "epochs": epochs,
        "val_score": val,
        **({"regions": backbone.n_regions} if kind == "tokens" else {}),
        **({"measured": measured} if measured else {}),
        "tuned": tuned,
        "effective_rates": {"start": steps_at_start, "end": _effective(classifier, settings)},
        "report": classifier.report(),
        "n_parameters": n_parameters(classifier),
        "n_learned": sum(tensor.numel() for tensor in classifier.learned().values()),
        "n_train": len(samples.train),
        "n_val": len(samples.val),
        "n_test": len(samples.test),
        "seconds": round(time.perf_counter() - began, 3),
        "threads": torch.get_num_threads(),
        "device": str(backbone.device),
        "digests": {FACTS: facts, SPLIT: split, CONFIG: digest_of_file(folder / CONFIG)},
    }
    logger.info("done in %.1f s", result["seconds"])
    write_signed(folder / RESULT, result)


def learn(
    prepared: Prepared,
    features: ImageFeatures,
    *,
    on_step: OnStep | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[dict[str, dict[str, int]], Tuned]:
    """All trainings of a run and what is fitted after them, in place; nothing is written.

    Args:
        prepared: a run that can start.
        features: where image features come from.
        on_step: told after every step.
        on_progress: told how far it is.

    Returns:
        How each training ended, by its name, and what was chosen on val, by task.

    Raises:
        RunError: a loss is no longer a number.
        SuiteError: every image that cannot be read.
    """
    settings, samples = prepared.settings, prepared.plan.samples
    epochs: dict[str, dict[str, int]] = {}
    for part in parts_of(prepared.classifier, samples.train, samples.val, settings):
        part.begin()
        if not part.epochs:
            continue
        trained = fit(
            part.classifier,
            part.pool,
            features,
            part.training,
            shots=settings.run.shots,
            seed=settings.run.seed,
            part=part.name,
            epochs=part.epochs,
            validate=_validator(part, prepared.suite, features),
            on_step=on_step,
            on_progress=on_progress,
        )
        epochs[part.name] = asdict(trained)
    tuned = fit_to_support(
        prepared.classifier, samples, features, seed=settings.run.seed, on_progress=on_progress
    )
    return epochs, tuned


@dataclass(frozen=True)
class Part:
    """One training: of all tasks together, or of one task alone, which its classifier calls 0."""

    name: str
    classifier: Classifier
    pool: Pool
    val: Sequence[Record]
    training: TrainConfig
    epochs: int
    begin: Callable[[], None]
    alone: bool = False


def parts_of(
    classifier: Classifier, train: Sequence[Record], val: Sequence[Record], settings: Settings
) -> list[Part]:
    """The trainings that make up a run."""
    if not settings.method.trains:
        return []
    training = with_numbers(settings, classifier.problem)
    return [
        _part(classifier, stage, train, val, training, settings.run.shots) for stage in classifier.stages()
    ]


def _part(
    whole: Classifier,
    stage: Stage,
    train: Sequence[Record],
    val: Sequence[Record],
    training: TrainConfig,
    shots: int | None,
) -> Part:
    name = ALL_TASKS if stage.task is None else whole.problem.tasks[stage.task].name
    alone = stage.task is not None
    own = [record for record in train if not alone or record.task == stage.task]
    if alone:
        pool = Pool(own, torch.tensor([record.label for record in own]), [0] * len(own))
    else:
        pool = _pool(stage.classifier, own)
    if alone and training.joint_steps:
        training = joint_length(training, shots, len(train), len(own))
    return Part(
        name=name + stage.note,
        classifier=stage.classifier,
        pool=pool,
        val=[record for record in val if not alone or record.task == stage.task],
        training=training,
        epochs=stage.epochs(training.n_epochs(shots)),
        begin=stage.begin,
        alone=alone,
    )


def _pool(classifier: Classifier, records: Sequence[Record]) -> Pool:
    first = classifier.problem.first_column
    columns = torch.tensor([first[record.task] + record.label for record in records])
    return Pool(records, columns, [record.task for record in records])


def _validator(part: Part, suite: Suite, features: ImageFeatures) -> Callable[[], float] | None:
    if not part.val:
        return None
    centres = features.centres(part.val)

    def validate() -> float:
        return suite_score(part.classifier, suite, part.val, centres, alone=part.alone)

    return validate


def suite_score(
    classifier: Classifier,
    suite: Suite,
    records: Sequence[Record],
    features: Tensor,
    *,
    alone: bool = False,
) -> float:
    """The suite's metric on some images, averaged over the tasks that have any, as a fraction.

    Args:
        classifier: what scores them.
        suite: whose tasks' metrics.
        records: the images.
        features: theirs [n, D].
        alone: the classifier knows one task only, and calls it 0.
    """
    score = classifier.scorer()
    scores = []
    for t in sorted({record.task for record in records}):
        rows = [i for i, record in enumerate(records) if record.task == t]
        with torch.no_grad():
            predicted = score(features[rows], 0 if alone else t).argmax(1).cpu().numpy()
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


def measured_facts(
    classifier: Classifier, val: Sequence[Record], features: ImageFeatures
) -> dict[str, dict[str, float]]:
    """What the method wants recorded, measured on the drawn val samples: training -> name -> number."""
    facts = {}
    for stage in classifier.stages():
        own = [record for record in val if stage.task in (None, record.task)]
        of_stage = stage.classifier.facts(features.centres(own)) if own else {}
        if of_stage:
            name = ALL_TASKS if stage.task is None else classifier.problem.tasks[stage.task].name
            facts[name] = {key: round(value, 6) for key, value in of_stage.items()}
    return facts


def _effective(classifier: Classifier, settings: Settings) -> dict[str, float]:
    """Effective rate on each task's context, where the method trains and has a formula.

    Adam's steps have none: they do not grow with the gradient.
    """
    if not settings.method.trains or settings.training().optimizer != "sgd":
        return {}
    rate = with_numbers(settings, classifier.problem).optim(settings.run.shots).lr
    return effective_rates(classifier, rate)


def task_feature_norms(classifier: Classifier) -> dict[str, float]:
    """Norms of the task features, which set the scale of SoftCPT's contexts and of their steps."""
    task_features = getattr(classifier, "task_features", None)
    if task_features is None:
        return {}
    with torch.no_grad():
        norms = task_features().norm(dim=1).tolist()
    return {task.name: round(norm, 6) for task, norm in zip(classifier.problem.tasks, norms, strict=True)}
