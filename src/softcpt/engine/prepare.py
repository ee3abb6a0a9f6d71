"""Everything a run needs, or every fault that stands in its way: options, suite, output, backbone, names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.core.errors import Collector, ConfigError, Fault, RunError, SuiteError
from softcpt.core.files import stays_inside
from softcpt.core.names import prompt_words
from softcpt.data.draw import Samples, draw_samples
from softcpt.data.record import Suite
from softcpt.data.split import Split, split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.adapter import build_classifier, problem_of
from softcpt.engine.config import Settings, resolve
from softcpt.engine.features import image_shape
from softcpt.engine.loop import check_weights
from softcpt.engine.runs import check_output
from softcpt.methods.base import Classifier, Method, Problem
from softcpt.methods.zero_shot import ZeroShot

FEW_REGIONS = 16
"""With fewer regions of an image than this, a method that looks at regions has hardly anything to look at."""


@dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
        settings: resolved; the backbone by the name it can be found under from anywhere.
        suite: read and checked.
        plan: which images are used for what.
        backbone: on its device.
        classifier: at its random start.
    """

    settings: Settings
    suite: Suite
    plan: Plan
    backbone: Backbone
    classifier: Classifier


@dataclass(frozen=True)
class Plan:
    """Which images a run uses for what, and what should be said about it."""

    split: Split
    samples: Samples
    notes: tuple[str, ...]


def prepare_run(
    suite: Suite | Path | str,
    backbone: Backbone | Path | str | None,
    given: Mapping[str, Any],
    *,
    given_by: str,
    config: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    stand_in: Callable[[], Backbone] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Prepared:
    """Read, load and build everything; nothing is written.

    Args:
        suite: a loaded suite, a folder or a manifest.
        backbone: a loaded one, its name, or None for the one that the configuration file names.
        given: options.
        given_by: their origin.
        config: a configuration file.
        output: folder of the run to be.
        overwrite: whether it may hold another run.
        skip_bad_images: leave out images that cannot be read.
        stand_in: makes a backbone where none is named.
        on_stage: told what is being done.

    Raises:
        SoftCPTError: every fault of all of these in one error.
    """
    tell = on_stage or (lambda _: None)
    asked = dict(given)
    if backbone is not None:
        asked["backbone"] = backbone.name if isinstance(backbone, Backbone) else str(backbone)
    collector = Collector()
    keep = collector.keep
    settings = keep(lambda: resolve(asked, file=config, given_by=given_by))
    tell("reading every image")
    loaded = keep(
        lambda: suite if isinstance(suite, Suite) else load_suite(suite, skip_bad_images=skip_bad_images)
    )
    if output is not None:
        keep(lambda: check_output(output, overwrite=overwrite))
        if loaded is not None and loaded.source.is_dir():  # beside a manifest a run does no harm
            keep(lambda: _refuse_inside(output, loaded.root))
    plan = keep(lambda: plan_run(loaded, settings)) if loaded and settings else None
    model = None
    if settings:
        device = keep(lambda: pick_device(settings))
        tell("loading the backbone")
        model = keep(lambda: _chosen_backbone(backbone, settings, device or torch.device("cpu"), stand_in))
    seen = keep(lambda: _note_regions(model, settings.method)) if model and settings else None
    classifier = keep(lambda: _build(loaded, model, settings)) if loaded and model and settings else None
    collector.raise_any()
    assert settings is not None  # what failed was raised
    assert loaded is not None
    assert plan is not None
    assert model is not None
    assert classifier is not None
    run = settings.run.model_copy(update={"backbone": model.name})
    plan = replace(plan, notes=(*plan.notes, *(seen or ())))
    return Prepared(replace(settings, run=run), loaded, plan, model, classifier)


def _chosen_backbone(
    backbone: Backbone | Path | str | None,
    settings: Settings,
    device: torch.device,
    stand_in: Callable[[], Backbone] | None,
) -> Backbone:
    if isinstance(backbone, Backbone):
        return backbone.to(device)
    if settings.run.backbone is None:
        if stand_in is not None:
            return stand_in().to(device)
        raise ConfigError(
            Fault(
                "backbone",
                "none is named, and the package has none of its own yet",
                "name one: ViT-B-16/openai, hf-hub:org/model, or a folder with open_clip_config.json",
            ),
            about="the options",
        )
    return load_backbone(settings.run.backbone, device=device)


def _note_regions(backbone: Backbone, method: Method) -> tuple[str, ...]:
    """What to say of a method that looks at regions on this backbone.

    Raises:
        BackboneError: the backbone gives none.
    """
    if method.image_features == "pooled":
        return ()
    n = image_shape(backbone, method.image_features)[0] - 1
    few = f"; fewer than {FEW_REGIONS} are not representative of the method" if n < FEW_REGIONS else ""
    notes = [f"{method.key} sees {n} regions of an image on this backbone{few}"]
    if not backbone.regions_are_pooled:
        notes.append(f"{method.key} was made for ResNets: a ViT's patches are not trained to match texts")
    return tuple(notes)


def _build(suite: Suite, backbone: Backbone, settings: Settings) -> Classifier:
    """The classifier; names that fit neither its prompts nor the templates are told together."""
    problem = problem_of(suite.tasks, backbone, settings.encoder)
    collector = Collector()
    collector.keep(lambda: _check_published_words(problem, settings))
    classifier = collector.keep(lambda: build_classifier(problem, settings))
    told = {fault.where for error in collector.errors for fault in error.faults}
    collector.keep(lambda: _check_templates(problem, told))
    collector.raise_any()
    assert classifier is not None  # what failed was raised
    return classifier


def _check_templates(problem: Problem, told: Collection[str]) -> None:
    """Refuse names that do not fit their templates, beside those that were already told not to fit."""
    try:
        ZeroShot(problem)
    except SuiteError as error:
        faults = [fault for fault in error.faults if fault.where not in told]
        if faults:
            raise SuiteError(faults, about="the names in their templates") from error


def _check_published_words(problem: Problem, settings: Settings) -> None:
    """Refuse words of several tokens under ``recipe=published``: its code counts blanks and cuts them."""
    if settings.run.recipe != "published":
        return
    faults = []
    for key in ("init_words", "class_init_words"):
        words = getattr(settings.own, key, None)
        if words and len(problem.tokenizer.encode(prompt_words(words))) != len(prompt_words(words).split()):
            what = f"{words!r}: the published code counts blanks, and cuts words of several tokens"
            faults.append(Fault(key, what, "use words of one token, or recipe paper"))
    if faults:
        raise ConfigError(faults, about="the options")


def _refuse_inside(output: Path, root: Path) -> None:
    if stays_inside(output, root):
        raise RunError(
            Fault(
                str(output),
                "lies in the suite's folder, where it would count as a task",
                "name a folder elsewhere",
            ),
            about="the run folder",
        )


def plan_run(suite: Suite, settings: Settings) -> Plan:
    """Split and draw.

    Raises:
        SuiteError: every class that has nothing to train on.
        ConfigError: weights for tasks there are not.
    """
    if settings.train is not None:
        check_weights(settings.train, [task.name for task in suite.tasks])
    split = split_suite(suite, seed=settings.data.split_seed, mode=settings.data.split)
    idle: tuple[str, ...] = ()
    if settings.data.split_seed != 0 and all(record.part is not None for record in suite.records):
        idle = ("split_seed draws nothing here: the suite gives its own parts",)
    if (
        settings.train is not None
        and settings.train.n_epochs(settings.run.shots) <= settings.train.warmup_epochs
    ):
        idle += ("lr has no effect here: all epochs are at the warm-up's rate (warmup_epochs, warmup_lr)",)
    if not settings.method.uses_images:
        # Nothing is drawn where nothing is learned or chosen.
        test = [r for r, part in zip(suite.records, split.parts, strict=True) if part == "test"]
        return Plan(split, Samples((), (), tuple(test)), (*suite.notes, *split.notes, *idle))
    samples = draw_samples(
        suite, split, shots=settings.run.shots, seed=settings.run.seed, rule=settings.data.draw
    )
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
    if settings.train is not None and settings.train.keeps_best:
        key = "epochs=auto" if settings.train.epochs == "auto" else "keep=best"
        fix = "give epochs a number" if key == "epochs=auto" else "use keep=last"
        chosen_by = {record.task for record in samples.val}
        faults += [
            Fault(
                f'task "{task.name}"',
                f"has no val images, by which {key} chooses",
                fix,
            )
            for t, task in enumerate(suite.tasks)
            if t not in chosen_by
        ]
    if faults:
        raise SuiteError(faults, about=f"the suite {suite.name}")
    return Plan(split, samples, (*suite.notes, *split.notes, *idle, *samples.notes))


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
