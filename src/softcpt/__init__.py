"""Tune CLIP's prompts for several related few-shot image classification tasks at once.

The public names are resolved on first use, so that ``import softcpt`` itself imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from softcpt._version import __version__

if TYPE_CHECKING:
    from softcpt.clip.backbone import list_backbones, load_backbone
    from softcpt.core.errors import SoftCPTError
    from softcpt.data.record import Suite
    from softcpt.data.suite import load_suite
    from softcpt.deploy.predictor import Predictor
    from softcpt.engine.evaluate import evaluate
    from softcpt.engine.runs import open_run as load
    from softcpt.engine.train import train
    from softcpt.methods.registry import list_methods

__all__ = [
    "Predictor",
    "SoftCPTError",
    "Suite",
    "__version__",
    "evaluate",
    "list_backbones",
    "list_methods",
    "load",
    "load_backbone",
    "load_suite",
    "train",
]

_HOME = {
    "Predictor": "softcpt.deploy.predictor:Predictor",
    "SoftCPTError": "softcpt.core.errors:SoftCPTError",
    "Suite": "softcpt.data.record:Suite",
    "evaluate": "softcpt.engine.evaluate:evaluate",
    "list_backbones": "softcpt.clip.backbone:list_backbones",
    "list_methods": "softcpt.methods.registry:list_methods",
    "load": "softcpt.engine.runs:open_run",
    "load_backbone": "softcpt.clip.backbone:load_backbone",
    "load_suite": "softcpt.data.suite:load_suite",
    "train": "softcpt.engine.train:train",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    value: object = getattr(importlib.import_module(module), attribute)
    globals()[name] = value  # the next access no longer comes here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
