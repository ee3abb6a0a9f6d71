"""open_clip's folder format on disk -> which files a backbone consists of; all faults at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from softcpt.clip.weights import SUFFIXES
from softcpt.core.errors import BackboneError, Fault
from softcpt.core.files import relative_part, stays_inside

CONFIG = "open_clip_config.json"
VOCABULARY = "bpe.txt.gz"

# open_clip's own order, so that it and we take the same file.
_PREFERRED = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)


class Source(NamedTuple):
    """What a backbone is read from.

    Attributes:
        model_cfg: the architecture, in open_clip's form.
        preprocess_cfg: what its pixels look like, in open_clip's form; missing values are OpenAI's.
        weights: the weight file.
        vocabulary: the ``bpe.txt.gz``, or None for CLIP's own.
        resize_positions: whether weights of another resolution may be fitted to the architecture. True only
            for weights that open_clip itself pairs with the architecture.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Path
    vocabulary: Path | None = None
    resize_positions: bool = False


def read_folder(folder: Path) -> Source:
    """The parts of a backbone folder: config, weights, and its own vocabulary if it has one.

    Raises:
        BackboneError: all files that are missing or unreadable, in one list.
    """
    faults: list[Fault] = []
    config: dict[str, Any] = {}
    try:
        config = read_config(folder / CONFIG)
    except BackboneError as error:
        faults.extend(error.faults)
    weights = _find_weights(folder)
    if isinstance(weights, Fault):
        faults.append(weights)
    vocabulary = _find_vocabulary(folder, vocabulary_name(config))
    if isinstance(vocabulary, Fault):
        faults.append(vocabulary)
    if faults:
        raise BackboneError(faults, about=f"the backbone folder {folder}")
    assert isinstance(weights, Path)  # a fault was raised above
    assert not isinstance(vocabulary, Fault)
    return Source(config["model_cfg"], config["preprocess_cfg"], weights, vocabulary)


def read_config(path: Path) -> dict[str, Any]:
    """The content of an ``open_clip_config.json``, with ``model_cfg`` and ``preprocess_cfg`` in it.

    Other keys are open_clip's business and left alone.

    Raises:
        BackboneError: the file is missing, is no JSON, or lacks the parts.
    """
    about = "the backbone's config"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = "a backbone folder holds this file beside its weights, as open_clip writes it"
        raise BackboneError(Fault(str(path), "no such file", fix), about=about) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            Fault(str(path), f"is no JSON: {error}", "write it again"), about=about
        ) from error
    if not isinstance(config, dict):
        raise BackboneError(Fault(str(path), "is not a JSON object", "write it again"), about=about)
    config.setdefault("preprocess_cfg", {})
    faults = [
        Fault(f"{path}: {key}", "is missing" if key not in config else "is not an object", "see open_clip")
        for key in ("model_cfg", "preprocess_cfg")
        if not isinstance(config.get(key), dict)
    ]
    if faults:
        raise BackboneError(faults, about=about)
    return config


def vocabulary_name(config: Mapping[str, Any]) -> object:
    """The vocabulary a config names, if any: our ``vocabulary``, or open_clip's ``bpe_path``."""
    if "vocabulary" in config:
        return config["vocabulary"]
    text_cfg = config.get("model_cfg", {}).get("text_cfg")
    arguments = text_cfg.get("tokenizer_kwargs") if isinstance(text_cfg, dict) else None
    return arguments.get("bpe_path") if isinstance(arguments, dict) else None


def _find_weights(folder: Path) -> Path | Fault:
    try:
        there = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)
    except OSError as error:
        return Fault(str(folder), f"cannot be read: {error.strerror}", "check its permissions")
    for name in _PREFERRED:
        if (folder / name) in there:
            return folder / name
    safe = [p for p in there if p.suffix == ".safetensors"]
    candidates = safe or there
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        return Fault(str(folder), "holds no weights", f"put {_PREFERRED[0]} there")
    found = ", ".join(p.name for p in candidates)
    return Fault(str(folder), f"holds several weight files: {found}", f"name the right one {_PREFERRED[0]}")


def _find_vocabulary(folder: Path, name: object) -> Path | Fault | None:
    if name is None:
        path = folder / VOCABULARY
        return path if path.exists() else None
    place = f"{folder / CONFIG}: vocabulary"
    inside = relative_part(name) if isinstance(name, str) else None
    if inside is None:
        return Fault(
            place, f"{name!r} is no path inside the folder", f"name a file there, such as {VOCABULARY}"
        )
    path = folder / inside
    if not path.is_file():
        return Fault(place, f"no file {name!r} in the folder", "copy it there")
    if not stays_inside(path, folder):
        return Fault(place, f"{name!r} leads out of the folder", "copy the file into the folder")
    return path
