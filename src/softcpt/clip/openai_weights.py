"""State dicts in OpenAI's names -> the architecture they belong to, by OpenAI's own rules."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from softcpt.core.errors import BackboneError, Fault

# Vocabulary of a sparsely stored token embedding that does not say its shape.
CLIP_VOCABULARY = 49408

# Numbers that OpenAI's files carry beside the weights; the shapes say the same.
EXTRAS = ("input_resolution", "context_length", "vocab_size")

_TEXT = (
    "text_projection",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
    "logit_scale",
)
_VIT = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
_RESNET = (
    *("visual.conv1.weight", "visual.attnpool.positional_embedding", "visual.attnpool.c_proj.weight"),
    *(f"visual.layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)),
)


def whole_token_embedding(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors with a sparsely stored token embedding put together.

    ``token_embedding.used_ids`` and ``.used_rows`` become ``token_embedding.weight``; rows that are not
    stored are zero. The shape comes from the metadata (``token_embedding_shape``), else the vocabulary is
    CLIP's.

    Raises:
        BackboneError: ids and rows do not fit together.
    """
    whole = dict(tensors)
    if "token_embedding.used_ids" not in whole:
        return whole
    ids = whole.pop("token_embedding.used_ids")
    rows = whole.pop("token_embedding.used_rows", None)
    where, about = "token_embedding.used_rows", "the weights"
    if rows is None or rows.ndim != 2 or ids.shape != rows.shape[:1] or ids.is_floating_point():
        found = "missing" if rows is None else f"{list(rows.shape)} for ids {list(ids.shape)} ({ids.dtype})"
        raise BackboneError(
            Fault(where, f"is {found}", "store one row for each whole-numbered id"), about=about
        )
    shape = _stored_shape(metadata) or (CLIP_VOCABULARY, rows.shape[1])
    if shape[1] != rows.shape[1] or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < shape[0]):
        raise BackboneError(
            Fault(where, f"rows of {list(rows.shape)} do not go into {list(shape)}", "store the file again"),
            about=about,
        )
    weight = torch.zeros(shape, dtype=rows.dtype)
    weight[ids] = rows
    whole["token_embedding.weight"] = weight
    return whole


def _stored_shape(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    try:
        shape = json.loads(metadata["token_embedding_shape"])
        n, width = shape
    except (KeyError, ValueError, TypeError):
        return None
    usable = isinstance(n, int) and isinstance(width, int) and 0 < n < 1 << 22 and 0 < width < 1 << 16
    return (n, width) if usable else None


def read_architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``model_cfg`` (open_clip's form) of a state dict in OpenAI's names.

    Sizes come from the shapes. Heads are 64 wide, in the text tower, a ViT and a ResNet's attention pool
    (whose width is 32 times the ResNet's). The activation, which weights do not tell, is QuickGELU.

    Raises:
        BackboneError: tensors that such a state dict needs are missing or of the wrong rank.

    Source: ``build_model`` of github.com/openai/CLIP.
    """
    is_vit = "visual.proj" in tensors
    needed = {*_TEXT, *(_VIT if is_vit else _RESNET)}
    faults = [Fault(name, "is missing", "") for name in sorted(needed - tensors.keys())]
    if faults:
        hint = Fault(
            "names",
            "these are not OpenAI's names for a whole CLIP",
            "put weights of other names into a folder beside open_clip_config.json and name the folder",
        )
        raise BackboneError([hint, *faults], about="the weights")
    ranks = {
        **{"text_projection": 2, "positional_embedding": 2, "token_embedding.weight": 2},
        **{
            "visual.conv1.weight": 4,
            "visual.positional_embedding": 2,
            "visual.attnpool.positional_embedding": 2,
        },
    }
    faults = [
        Fault(name, f"has shape {list(tensors[name].shape)}", f"{rank} axes are needed")
        for name, rank in ranks.items()
        if name in tensors and tensors[name].ndim != rank
    ]
    if faults:
        raise BackboneError(faults, about="the weights")

    context_length, width = tensors["positional_embedding"].shape
    vision = _read_vit(tensors) if is_vit else _read_resnet(tensors)
    config = {
        "embed_dim": tensors["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": width,
            "heads": width // 64,
            "layers": _count(r"transformer\.resblocks\.(\d+)\.", tensors),
        },
    }
    pool_width = vision["width"] * (1 if is_vit else 32)
    faults = [
        Fault(place, f"is {size} wide", "OpenAI's rule needs a multiple of 64, the width of a head")
        for place, size in (("transformer", width), ("visual" if is_vit else "visual.attnpool", pool_width))
        if size < 64 or size % 64
    ]
    if faults:
        raise BackboneError(faults, about="the weights")
    return config


def _read_vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, _, patch = tensors["visual.conv1.weight"].shape
    side = _side(tensors["visual.positional_embedding"].shape[0], "visual.positional_embedding")
    return {
        "image_size": patch * side,
        "layers": _count(r"visual\.transformer\.resblocks\.(\d+)\.", tensors),
        "width": width,
        "patch_size": patch,
        "head_width": 64,
    }


def _read_resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    place = "visual.attnpool.positional_embedding"
    return {
        # The trunk halves the picture five times before the attention pool.
        "image_size": 32 * _side(tensors[place].shape[0], place),
        "layers": [_count(rf"visual\.layer{stage}\.(\d+)\.", tensors) for stage in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "head_width": 64,
    }


def _side(n_positions: int, where: str) -> int:
    """Cells along one side of a square grid with one more position for the whole."""
    side = math.isqrt(max(n_positions - 1, 0))
    if side < 1 or side * side + 1 != n_positions:
        raise BackboneError(
            Fault(where, f"{n_positions} positions are no square grid and one more", "square inputs only"),
            about="the weights",
        )
    return side


def _count(pattern: str, names: Iterable[str]) -> int:
    return len({found.group(1) for found in (re.match(pattern, name) for name in names) if found})
