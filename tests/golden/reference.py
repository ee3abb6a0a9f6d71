"""Reads reference cases and builds our classifiers for them. L counts context tokens."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.engine.optim import OptimSpec
from softcpt.methods.base import Problem, PromptClassifier, TaskNames, TextPath
from softcpt.methods.coop import CoOp, CoOpConfig, Sharing
from softcpt.methods.softcpt import ClassAwareConfig, Share, SoftCPT, SoftCPTConfig, Variant

PUBLISHED_OFFSET = 1e-6
"""What the published code adds to the features it keeps in class sampling."""


EXTRACT = Path(__file__).parent / "extract"


def golden_folder() -> Path:
    """The folder named by SOFTCPT_GOLDEN, else the committed extract; a missing one fails, never skips."""
    folder = Path(os.environ.get("SOFTCPT_GOLDEN") or EXTRACT)
    if not (folder / "world.json").is_file():
        raise FileNotFoundError(f"{folder} holds no world.json; is SOFTCPT_GOLDEN right?")
    return folder


def read_json(name: str) -> Any:
    return json.loads((golden_folder() / name).read_text())


@cache
def backbone(folder: Path, clip: str, dtype: torch.dtype) -> Backbone:
    return load_backbone(folder / f"clip_{clip}.safetensors").to(dtype=dtype)


def problem(folder: Path, clip: str, dtype: torch.dtype = torch.float32) -> Problem:
    model = backbone(folder, clip, dtype)
    world = json.loads((folder / "world.json").read_text())
    tasks = tuple(TaskNames(name=t["name"], classes=tuple(t["classes"])) for t in world["tasks"])
    return Problem(tasks, model.text, model.tokenizer, model.logit_scale)


def images(folder: Path, clip: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Image features [n, D] of all reference images."""
    model = backbone(folder, clip, dtype)
    pixels = load_file(folder / f"encode_{clip}.safetensors")["images"].to(dtype)
    return model.encode_images(pixels)


def streams(purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(0)


def build(
    folder: Path,
    case: dict[str, Any],
    start: dict[str, torch.Tensor],
    dtype: torch.dtype,
    text_path: TextPath = "fast",
):
    """Our classifier for a reference case, at the reference's start."""
    world = replace(problem(folder, case["clip"], dtype), text_path=text_path)
    classifier = (_coop if case["trainer"] == "MTCoOpHard" else _softcpt)(world, case["options"], start)
    load_learned(classifier, start, dtype)
    return classifier


def _softcpt(world: Problem, options: dict[str, Any], start: dict[str, torch.Tensor]) -> SoftCPT:
    # As published, initial words make a specific context one shared context; the shapes tell.
    class_start = start.get("class_context", start.get("frozen.class_context"))
    tasks = Share.SPECIFIC if start.get("task_context", torch.empty(0, 0)).dim() == 3 else Share.AGNOSTIC
    common = {
        "context_length": options["N_CTX"],
        "position": options.get("TOKEN_POSITION", "end"),
        "task_context_length": start["task_context"].shape[-2] if "task_context" in start else 0,
        "task_text": "name",
        "task_position": options.get("TASK_TOKEN_POSITION", "end"),
        "meta": options["PG_TYPE"],
    }
    if not options["CSC"]:
        return SoftCPT(world, SoftCPTConfig(**common), Variant(Share.NONE, tasks), streams)
    specific = class_start is not None and class_start.dim() == 3
    config = ClassAwareConfig(
        **common,
        class_context_length=0 if class_start is None else class_start.shape[-2],
        class_position=options.get("CLASS_TOKEN_POSITION", "end"),
        class_sampling=options.get("CLS_SAMPLE_RATE", 0.0),
        class_sampling_offset=PUBLISHED_OFFSET,
        freeze_class_context=bool(options.get("FREEZE_CLS_PROMPT", False)),
    )
    return SoftCPT(world, config, Variant(Share.SPECIFIC if specific else Share.AGNOSTIC, tasks), streams)


def _coop(world: Problem, options: dict[str, Any], start: dict[str, torch.Tensor]) -> CoOp:
    any_context = start["context"] if "context" in start else start["context.task0"]
    if "context" not in start:
        sharing = Sharing.TASK
    else:
        sharing = Sharing.CLASS if any_context.dim() == 3 else Sharing.ALL
    config = CoOpConfig(context_length=any_context.shape[-2], position=options.get("TOKEN_POSITION", "end"))
    return CoOp(world, config, sharing, streams)


def joined(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Reference tensors under our names: a context per task is one tensor [T, L, W]."""
    per_task = [name for name in tensors if name.startswith("context.task")]
    rest = {k: v for k, v in tensors.items() if k not in per_task}
    if per_task:
        per_task.sort(key=lambda name: int(name.removeprefix("context.task")))
        rest["context"] = torch.stack([tensors[name] for name in per_task])
    return rest


def load_learned(classifier: PromptClassifier, start: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    state = {name.removeprefix("frozen."): tensor.to(dtype) for name, tensor in joined(start).items()}
    empty = {name: t for name, t in classifier.state_dict().items() if t.numel() == 0}
    classifier.load_state_dict({**state, **empty}, strict=True)
    classifier.to(dtype)


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def start_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    frozen = {k: v for k, v in tensors.items() if k.startswith("frozen.")}
    return {**under(tensors, "start."), **frozen}


def optim_spec(optim: dict[str, Any], repeated: int, momentum: float = 0.9, decay: float = 5e-4) -> OptimSpec:
    warmup = optim.get("WARMUP_EPOCH", -1)
    kind = optim.get("WARMUP_TYPE", "constant") if warmup > 0 else "none"
    lr_key = "WARMUP_CONS_LR" if kind == "constant" else "WARMUP_MIN_LR"
    return OptimSpec(
        lr=optim["LR"],
        epochs=optim["MAX_EPOCH"],
        momentum=momentum,
        weight_decay=decay,
        warmup=kind,
        warmup_steps=max(warmup, 0),
        warmup_lr=optim.get(lr_key, 0.0),
        recount=optim.get("WARMUP_RECOUNT", True),
        repeated_steps=repeated,
    )


def assert_close(
    ours: torch.Tensor, reference: torch.Tensor, *, what: str, scale: float, floor: float
) -> None:
    """Largest difference at most ``scale * max|reference| + floor``."""
    gap = float((ours.double() - reference.double()).abs().max()) if reference.numel() else 0.0
    allowed = scale * float(reference.double().abs().max()) + floor if reference.numel() else 0.0
    assert ours.shape == reference.shape, f"{what}: {tuple(ours.shape)} is not {tuple(reference.shape)}"
    assert gap <= allowed, f"{what}: off by {gap:.3g}, allowed {allowed:.3g}"


def assert_scores(ours: torch.Tensor, reference: torch.Tensor, *, what: str) -> None:
    """Logits, losses and features: within 1e-5 * max(1, max|reference|)."""
    largest = max(1.0, float(reference.double().abs().max()))
    assert_close(ours, reference, what=what, scale=0.0, floor=1e-5 * largest)
