"""What a run has learned, as files: ``adapter.safetensors`` and ``adapter.json``.

Only learned tensors are stored, never the backbone's. The loader refuses what it does not know: other
tensors, other shapes, another backbone, an edited or truncated file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from softcpt.clip.backbone import Backbone
from softcpt.core.errors import AdapterError, ConfigError, Fault
from softcpt.core.files import digest_of_file, write_whole
from softcpt.core.seeds import seed_for_torch
from softcpt.data.record import Record, Suite, Task
from softcpt.engine.config import EncoderConfig, Settings, resolve, values_of
from softcpt.engine.signed import read_signed, write_signed
from softcpt.engine.support import allocate
from softcpt.methods.base import Classifier, Problem, SeparateClassifiers, Streams, TaskNames
from softcpt.methods.outside import Package
from softcpt.methods.registry import get_method, is_offered, package_of

WEIGHTS = "adapter.safetensors"
FACTS = "adapter.json"

ALL_TASKS = "all tasks"
"""Name of a joint training in random streams and metrics."""

logger = logging.getLogger("softcpt")


@dataclass(frozen=True)
class Adapter:
    """What a run has learned, and all that is needed to use it with its backbone.

    Attributes:
        settings: resolved, with origins.
        suite: name of the suite.
        tasks: names, classes, templates and metrics.
        backbone: how the backbone was asked for.
        backbone_digest: of its weights, architecture, pixels and vocabulary.
        tensors: what was learned.
        facts: everything in the JSON file.
    """

    settings: Settings
    suite: str
    tasks: tuple[Task, ...]
    backbone: str
    backbone_digest: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def n_learned(self) -> int:
        """Numbers stored."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def problem_of(tasks: Sequence[Task], backbone: Backbone, encoder: EncoderConfig | None = None) -> Problem:
    """The tasks' names, with the backbone's text side."""
    names = tuple(TaskNames(t.name, t.classes, t.description, t.template) for t in tasks)
    how = encoder or EncoderConfig()
    return Problem(
        names, backbone.text, backbone.tokenizer, backbone.logit_scale, how.text_encoder, how.text_memory_gb
    )


def init_streams(seed: int, part: str) -> Streams:
    """Random starts of one training; what is drawn for one purpose changes nothing for another."""
    return lambda purpose: torch.Generator().manual_seed(seed_for_torch("init", seed, part, purpose))


def build_classifier(problem: Problem, settings: Settings) -> Classifier:
    """The method's classifier at its random start; one per task where tasks are trained separately."""
    method, seed = settings.method, settings.run.seed
    if not method.separate:
        return method.build(problem, settings.own, init_streams(seed, ALL_TASKS))
    parts = [
        method.build(problem.only(i), settings.own, init_streams(seed, task.name))
        for i, task in enumerate(problem.tasks)
    ]
    return SeparateClassifiers(problem, parts)


def write_adapter(
    folder: Path,
    classifier: Classifier,
    *,
    settings: Settings,
    suite: Suite,
    backbone: Backbone,
    samples: dict[str, list[dict[str, str]]],
    extra: dict[str, Any],
) -> str:
    """Write both files, weights first.

    Returns:
        Digest of the JSON file, which covers the weights.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in classifier.learned().items()}
    write_whole(folder / WEIGHTS, save(tensors, metadata={"format": "softcpt 1"}))
    facts = {
        "kind": "softcpt adapter",
        "method": settings.method.key,
        "seed": settings.run.seed,
        "suite": suite.name,
        "tasks": [
            {
                "name": task.name,
                "description": task.description,
                "template": task.template,
                "metric": task.metric,
                "classes": list(task.classes),
            }
            for task in suite.tasks
        ],
        "backbone": {
            "name": backbone.name,
            "description": backbone.description,
            "digest": backbone.digest,
        },
        "settings": settings.stored(),
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "weights_sha256": digest_of_file(folder / WEIGHTS),
        "samples": samples,
        **_package_facts(settings.method.key),
        **extra,
    }
    return write_signed(folder / FACTS, facts)


def read_adapter(folder: Path) -> Adapter:
    """Read both files and check that they belong together.

    Raises:
        AdapterError: missing, truncated, edited or foreign files.
    """
    facts = read_signed(folder / FACTS)
    if facts.get("kind") != "softcpt adapter":
        raise _refusal(folder / FACTS, "is not an adapter", "name the folder of a run")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise _refusal(weights, "is missing", "restore it, or train again")
    if digest_of_file(weights) != facts["weights_sha256"]:
        raise _refusal(
            weights, "was edited, truncated or exchanged after the run", "restore it, or train again"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise _refusal(weights, f"is not a safetensors file: {error}", "train again") from error
    try:
        return _adapter_of(facts, tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _refusal(folder / FACTS, f"does not hold what it should: {error!r}", "train again") from error


def _package_facts(method: str) -> dict[str, dict[str, str]]:
    """Where a method comes from; nothing for our own."""
    package = package_of(method)
    return {} if package is None else {"method_package": asdict(package)}


def _check_package(facts: dict[str, Any]) -> None:
    """Look for the package that the run's method came from; another version of it is warned of.

    Raises:
        AdapterError: it is not there, or does not work.
    """
    if "method_package" not in facts:
        return
    method, was = facts["method"], Package(**facts["method_package"])
    try:
        get_method(method)
    except ConfigError as error:
        faults = error.faults
        if not is_offered(method):
            what = f"{method!r} is a method of {was}, which is not installed here"
            faults = (Fault("method", what, f"pip install {was.name}=={was.version}"),)
        raise AdapterError(faults, about="the adapter") from error
    now = package_of(method)
    if now is not None and now != was:
        logger.warning("this run's method %s came from %s; here it comes from %s", method, was, now)


def _adapter_of(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Adapter:
    _check_package(facts)
    stored = facts["settings"]
    settings = resolve(values_of(stored))
    settings.origins.update({key: entry["origin"] for key, entry in stored.items()})
    return Adapter(
        settings=settings,
        suite=facts["suite"],
        tasks=tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in facts["tasks"]),
        backbone=facts["backbone"]["name"],
        backbone_digest=facts["backbone"]["digest"],
        tensors=tensors,
        facts=facts,
    )


def restore_classifier(adapter: Adapter, backbone: Backbone) -> Classifier:
    """The trained classifier on its backbone.

    Raises:
        AdapterError: another backbone, or tensors that are not this method's.
    """
    if backbone.digest != adapter.backbone_digest:
        raise AdapterError(
            Fault(
                "backbone",
                f"{backbone.name} has other weights, preprocessing or vocabulary than the backbone "
                f"{adapter.backbone} that this adapter was trained on",
                "name the same backbone",
            ),
            about="the adapter",
        )
    problem = problem_of(adapter.tasks, backbone, adapter.settings.encoder)
    classifier = build_classifier(problem, adapter.settings)
    index = {task.name: t for t, task in enumerate(adapter.tasks)}
    allocate(classifier, [index[entry["task"]] for entry in adapter.facts["samples"]["train"]])
    wanted = {name: tuple(tensor.shape) for name, tensor in classifier.learned().items()}
    given = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    faults = [
        Fault(name, f"has shape {given.get(name, 'none')}; the method needs {wanted.get(name, 'none')}")
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    if faults:
        raise AdapterError(faults, about="the adapter's tensors")
    again, before = classifier.regenerated(), adapter.facts.get("regenerated", {})
    differs = [name for name in before if again.get(name) != before[name]]
    if differs:
        what = "the random start made again from the seed is not the one this adapter was trained from"
        faults = [Fault(name, what, "load it with the NumPy it was trained with") for name in differs]
        raise AdapterError(faults, about="the adapter's seed")
    classifier.load_state_dict(adapter.tensors, strict=False)
    classifier.eval()
    return classifier


def listed(records: Sequence[Record], tasks: Sequence[Task]) -> list[dict[str, str]]:
    """Records as a run folder names them: relative path, task, class, digest."""
    return [
        {
            "image": record.relative,
            "task": tasks[record.task].name,
            "class": tasks[record.task].classes[record.label],
            "digest": record.digest,
        }
        for record in records
    ]


def _refusal(path: Path, what: str, fix: str) -> AdapterError:
    return AdapterError(Fault(str(path), what, fix), about="the adapter")
