"""Before a run: counts, prompts as they will be built, and what the run will take.

Time is measured, not guessed: one forward and backward pass of the text side and one batch of images on
this machine, times how often the run needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from softcpt.clip.backbone import Backbone
from softcpt.clip.text_shared import shared_encoder
from softcpt.clip.toy import untrained_backbone
from softcpt.core.names import prompt_words, task_text
from softcpt.data.record import Suite
from softcpt.data.split import PARTS
from softcpt.engine.config import Settings
from softcpt.engine.features import autocast, encode_pixels, image_shape
from softcpt.engine.loop import matrix_products, n_steps
from softcpt.engine.prepare import Plan, Prepared, prepare_run
from softcpt.engine.support import allocate, views_of
from softcpt.engine.train import Part, parts_of

BYTES_PER_ACTIVATION = 20 * 4
"""Bytes of fp32 activations per token, layer and unit of width that autograd keeps for the plain text
tower: about 20 W numbers per layer and position, as measured on ViT-B/16's tower."""


@dataclass(frozen=True)
class TaskReport:
    """One task: how much there is, and its prompts.

    Attributes:
        name: the task's.
        metric: how it is scored.
        n_classes: of the task.
        n_images: in all parts.
        n_parts: images of train, val and test.
        n_drawn: images the run trains on, and chooses by.
        zero_shot_prompt: of its first class.
        class_prompt: of its first class, learned tokens written as ``[n learned]``.
        task_prompt: where the method has one.
    """

    name: str
    metric: str
    n_classes: int
    n_images: int
    n_parts: dict[str, int]
    n_drawn: dict[str, int]
    zero_shot_prompt: str
    class_prompt: str
    task_prompt: str | None


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take on this machine.

    Attributes:
        steps: optimizer batches.
        views: image views to encode in training.
        test_images: to encode for the evaluation.
        prompts: class prompts of a step, and their longest.
        n_learned: numbers learned.
        train_s: seconds of training.
        evaluate_s: seconds of the evaluation.
        memory_bytes: weights, activations of one step, and the features of all views.
        measured_on: which backbone and device the times were measured on.
    """

    steps: int
    views: int
    test_images: int
    prompts: int
    n_learned: int
    train_s: float
    evaluate_s: float
    memory_bytes: int
    measured_on: str


@dataclass(frozen=True)
class Report:
    """What :func:`check_suite` found in a suite without faults.

    Attributes:
        suite: its name.
        method: key.
        shots: per class; None for all.
        tasks: in order.
        notes: what is allowed, but should be known.
        cost: what the run is expected to take.
    """

    suite: str
    method: str
    shots: int | None
    tasks: tuple[TaskReport, ...]
    notes: tuple[str, ...]
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def check_suite(
    suite: Suite | Path | str,
    *,
    backbone: Backbone | Path | str | None = None,
    skip_bad_images: bool = False,
    overrides: Mapping[str, Any] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Everything a run would stumble over, found before it.

    Args:
        suite: a loaded suite, a folder or a manifest.
        backbone: what the run would use; without one, times are measured on an untrained ViT-B-16 and the
            names are checked against CLIP's own vocabulary.
        skip_bad_images: leave out images that cannot be read.
        overrides: options, as for :func:`train`.
        on_stage: told what is being done.

    Raises:
        SoftCPTError: every fault of options, images, splits and names, in one list.
    """
    prepared = prepare_run(
        suite,
        backbone,
        overrides or {},
        given_by="command line",
        skip_bad_images=skip_bad_images,
        stand_in=untrained_backbone,
        on_stage=on_stage,
    )
    if on_stage:
        on_stage("measuring a step")
    loaded, plan, settings = prepared.suite, prepared.plan, prepared.settings
    return Report(
        suite=loaded.name,
        method=settings.method.key,
        shots=settings.run.shots,
        tasks=tuple(_task_report(loaded, t, plan, settings) for t in range(len(loaded.tasks))),
        notes=plan.notes,
        cost=measure(prepared),
    )


def measure(prepared: Prepared) -> Cost:
    """Time one batch of images and one step of the text side, and count how many a run has."""
    settings, suite, plan = prepared.settings, prepared.suite, prepared.plan
    backbone, classifier = prepared.backbone, prepared.classifier
    samples = plan.samples
    shape = image_shape(backbone, settings.method.image_features)
    image_s = _seconds_per_image(backbone, settings)
    parts = parts_of(classifier, samples.train, samples.val, settings)
    train_s = steps = views = 0.0
    for part in parts:
        if not part.epochs:
            continue
        train = part.training
        spec = replace(train.optim(settings.run.shots), epochs=part.epochs)
        n = n_steps(spec, len(part.pool.records), train.batch_size)
        n_views = len(part.pool.records) * max(1, min(train.views, part.epochs))
        train_s += n * _seconds_per_step(part, backbone, settings) + n_views * image_s
        steps, views = steps + n, views + n_views
    if settings.method.fits and not parts:  # what fitting takes beside encoding is not measured
        views += len(samples.train) * len(views_of(settings.own.pictures()))
        train_s += (views + len(samples.val)) * image_s
    allocate(classifier, [record.task for record in samples.train])
    text = backbone.text
    layers = sum(isinstance(module, torch.nn.MultiheadAttention) for module in text.transformer.modules())
    n_names = max(len(part.classifier.problem.class_names) for part in parts) if parts else suite.n_classes
    length = max(len(text_ids) for text_ids in map(backbone.tokenizer.encode, _longest_names(suite))) + 3
    length += getattr(settings.own, "context_length", 8)
    with autocast(backbone.device, settings.encoder.precision):
        fast = shared_encoder(text) if settings.encoder.text_encoder == "fast" else None
    activations = n_names * length * layers * text.width * BYTES_PER_ACTIVATION if parts else 0
    if fast is not None:  # the measured step has left its memory there, and folded weights beside the tower's
        activations = fast.n_bytes + sum(p.numel() * p.element_size() for p in text.parameters())
    weights = sum(p.numel() * p.element_size() for m in (text, backbone.visual) for p in m.parameters())
    return Cost(
        steps=int(steps),
        views=int(views),
        test_images=len(samples.test),
        prompts=n_names,
        n_learned=sum(t.numel() for t in classifier.learned().values()),
        train_s=round(train_s, 3),
        evaluate_s=round(len(samples.test) * image_s + _seconds_of_scores(prepared), 3),
        memory_bytes=int(weights + activations + views * prod(shape) * 4),
        measured_on=f"{backbone.description}; {backbone.device}, {torch.get_num_threads()} threads",
    )


def _longest_names(suite: Suite) -> list[str]:
    return [prompt_words(max(task.classes, key=len)) for task in suite.tasks]


def _seconds_per_image(backbone: Backbone, settings: Settings) -> float:
    size = backbone.pixels.size_px
    pixels = torch.zeros(8, 3, size, size)
    kind = settings.method.image_features
    taken = _seconds(lambda: encode_pixels(backbone, pixels, settings.encoder.precision, kind), backbone)
    return taken / len(pixels)


def _seconds_per_step(part: Part, backbone: Backbone, settings: Settings) -> float:
    """One forward and backward pass over a batch of made-up features; the classifier stays as it is."""
    n = min(settings.training().batch_size, len(part.pool.records))
    generator = torch.Generator().manual_seed(0)
    shape = image_shape(backbone, settings.method.image_features)
    features = torch.randn(n, *shape, generator=generator).to(backbone.device)
    # Images of all tasks, as in training: tasks that a batch has no image of cost nothing.
    spread = torch.linspace(0, len(part.pool.records) - 1, n).long()
    columns = part.pool.columns[spread].to(backbone.device)

    def step() -> None:
        with matrix_products(part.training.matmul):
            with autocast(backbone.device, settings.encoder.precision):
                losses = part.classifier.losses(features, columns, rng=generator)
            part.classifier.backward(losses)
        part.classifier.zero_grad(set_to_none=True)

    return _seconds(step, backbone)


def _seconds_of_scores(prepared: Prepared) -> float:
    """What the test images cost beyond their features, where each has texts of its own."""
    if not prepared.settings.method.texts_per_image:
        return 0.0
    backbone, score = prepared.backbone, prepared.classifier.scorer()
    shape = image_shape(backbone, prepared.settings.method.image_features)
    features = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    seconds = 0.0
    for t in range(len(prepared.suite.tasks)):
        n = sum(record.task == t for record in prepared.plan.samples.test)
        seconds += n * _seconds(lambda t=t: score(features, t), backbone) / len(features)  # type: ignore[misc]
    return seconds


def _seconds(work: Callable[[], object], backbone: Backbone) -> float:
    """The quicker of two runs after a first: the first warms up, and neighbours only ever slow one down."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _task_report(suite: Suite, index: int, plan: Plan, settings: Settings) -> TaskReport:
    task = suite.tasks[index]
    parts = [
        part for record, part in zip(suite.records, plan.split.parts, strict=True) if record.task == index
    ]
    samples = plan.samples
    first = task.classes[0]
    own = settings.own.model_dump()
    name_first, around = own.get("position", "end"), own.get("context_length", 0)
    words = task_text(task.name, task.description, own.get("task_text", "description"))
    has_task_prompt = own.get("task_text") in ("description", "name")
    return TaskReport(
        name=task.name,
        metric=task.metric,
        n_classes=len(task.classes),
        n_images=len(parts),
        n_parts={part: parts.count(part) for part in PARTS},
        n_drawn={
            "train": sum(record.task == index for record in samples.train),
            "val": sum(record.task == index for record in samples.val),
        },
        zero_shot_prompt=task.template.replace("{}", prompt_words(first)),
        class_prompt=show_prompt(first, around, name_first),
        task_prompt=(
            show_prompt(words, own["task_context_length"], own["task_position"]) if has_task_prompt else None
        ),
    )


def show_prompt(name: str, n_context: int, position: str) -> str:
    """A prompt for people, learned tokens in brackets.

    Example:
        >>> show_prompt("apple_scab", 16, "middle")
        '[8 learned] apple scab [8 learned] .'
    """
    words = prompt_words(name)
    before = {"end": n_context, "middle": n_context // 2, "front": 0}[position]

    def learned(n: int) -> list[str]:
        return [f"[{n} learned]"] if n else []

    after = learned(n_context - before)
    pieces = [*learned(before), words, *after, "."] if after else [*learned(before), words + "."]
    return " ".join(pieces)
