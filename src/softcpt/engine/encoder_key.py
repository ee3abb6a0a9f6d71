"""What an image feature depends on beside the image and the view."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from softcpt.clip.backbone import Backbone
from softcpt.engine.feature_cache import Encoder
from softcpt.methods.base import ImageKind

VIEW_RULE = 1
"""Counts changes of what a view or the centre of a picture is: features of another rule are not found."""

BATCH_RULE = 1
"""Counts changes of the batches in which pictures are encoded."""

_PACKAGES = ("torch", "open_clip_torch", "timm", "pillow", "numpy")
"""They decode, scale and encode; another version may round otherwise."""


def encoder_key(backbone: Backbone, precision: str, kind: ImageKind = "pooled") -> Encoder:
    """The identity of a backbone's image encoder as it computes here.

    Machine, libraries and threads belong to it, since they decide about the last bits: a run gives the same
    numbers with a full cache, an empty one and none.

    Args:
        backbone: whose image encoder.
        precision: it runs at.
        kind: pooled features, or those of regions with them.
    """
    details = {} if kind == "pooled" else {"kind": kind}
    n_rows = 1 if kind == "pooled" else 1 + (backbone.n_regions or 0)
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Encoder(
        name=backbone.name,
        digest=backbone.digest,
        precision=precision,
        size_px=backbone.pixels.size_px,
        dim=n_rows * backbone.embed_dim,
        details={
            "pixels": asdict(backbone.pixels),
            "rules": [VIEW_RULE, BATCH_RULE],
            "weights_dtype": str(backbone.text.dtype),
            "computed_by": _computer(backbone.device),
            "versions": versions,
            **details,
        },
    )


def _computer(device: torch.device) -> list[str | int]:
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device), _matmul_precision()]
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return ["cpu", _cpu_name(), capability, torch.get_num_threads(), _matmul_precision()]
    return [device.type, platform.machine()]


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's older and newer settings at once
        return "mixed"


def _cpu_name() -> str:
    """The processor's model where the system tells it: two with the same instructions may still differ."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
