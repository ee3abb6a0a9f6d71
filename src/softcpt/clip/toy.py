"""Tiny seeded random CLIPs: tests and documentation run without a download.

They know nothing: their scores are chance. What they are good for is that everything a released CLIP goes
through, from the folder on disk to a trained adapter, goes through in a second.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from softcpt.clip.backbone import Backbone, assemble_backbone
from softcpt.clip.bpe import BpeTokenizer, merges_of, vocabulary_bytes
from softcpt.clip.folder import CONFIG, VOCABULARY
from softcpt.clip.open_clip import default_vocabulary, shapes_of
from softcpt.core.files import to_json, write_whole
from softcpt.core.seeds import stream

Kind = Literal["vit", "resnet"]
WEIGHTS = "open_clip_model.safetensors"


def toy_backbone(
    seed: int = 0,
    *,
    kind: Kind = "vit",
    embed_dim: int = 32,
    text_width: int = 64,
    text_layers: int = 2,
    image_px: int | None = None,
    n_merges: int = 1000,
    quick_gelu: bool = False,
) -> Backbone:
    """A tiny random CLIP in memory: what :func:`write_toy_backbone` writes, without the disk.

    Args:
        seed: the same seed gives the same weights on every machine.
        kind: a vision transformer, or CLIP's ResNet with its attention pool.
        embed_dim: D.
        text_width: W; a head is 32 wide.
        text_layers: of the text tower.
        image_px: size of a picture; 32 for a ViT, 64 for a ResNet (whose trunk halves it five times).
        n_merges: how many of CLIP's own merges the vocabulary keeps behind the byte tokens.
        quick_gelu: the activation: OpenAI's approximation instead of GELU.

    Example:
        >>> toy_backbone().encode_images(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 32])
    """
    config = _config(
        kind, embed_dim, text_width, text_layers, image_px or _IMAGE_PX[kind], n_merges, quick_gelu
    )
    merges = merges_of(default_vocabulary(), n_merges)
    tensors = _draw_weights(config["model_cfg"], seed)
    return assemble_backbone(
        f"toy-{kind}-{seed}",
        config["model_cfg"],
        config["preprocess_cfg"],
        tensors,
        vocabulary=BpeTokenizer(merges),
    )


def write_toy_backbone(
    folder: Path,
    *,
    seed: int = 0,
    kind: Kind = "vit",
    embed_dim: int = 32,
    text_width: int = 64,
    text_layers: int = 2,
    image_px: int | None = None,
    n_merges: int = 1000,
    quick_gelu: bool = False,
) -> Path:
    """The folder, in open_clip's format with a vocabulary of its own, of a tiny random CLIP.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        seed: see :func:`toy_backbone`, as for all others.
        kind: see there.
        embed_dim: see there.
        text_width: see there.
        text_layers: see there.
        image_px: see there.
        n_merges: see there.
        quick_gelu: see there.
    """
    config = _config(
        kind, embed_dim, text_width, text_layers, image_px or _IMAGE_PX[kind], n_merges, quick_gelu
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / VOCABULARY, vocabulary_bytes(merges_of(default_vocabulary(), n_merges)))
    write_whole(folder / WEIGHTS, save(_draw_weights(config["model_cfg"], seed)))
    write_whole(folder / CONFIG, to_json(config))
    return folder


_IMAGE_PX = {"vit": 32, "resnet": 64}


def _config(
    kind: Kind,
    embed_dim: int,
    text_width: int,
    text_layers: int,
    image_px: int,
    n_merges: int,
    quick_gelu: bool,
) -> dict[str, Any]:
    vision: dict[Kind, dict[str, Any]] = {
        "vit": {"image_size": image_px, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
        # The attention pool is 32 times as wide as the trunk begins: 128, two heads.
        "resnet": {"image_size": image_px, "width": 4, "head_width": 64, "layers": [1, 1, 1, 1]},
    }
    return {
        "model_cfg": {
            "embed_dim": embed_dim,
            "quick_gelu": quick_gelu,
            "vision_cfg": vision[kind],
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 512 + n_merges + 2,
                "width": text_width,
                "heads": text_width // 32,
                "layers": text_layers,
            },
        },
        "preprocess_cfg": {
            # Not OpenAI's, so that a place which takes those for granted shows itself.
            "mean": [0.5, 0.45, 0.4],
            "std": [0.25, 0.25, 0.3],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
        "vocabulary": VOCABULARY,
    }


def _draw_weights(model_cfg: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Random weights in fp16, each tensor from a stream of its own name.

    Livelier than an initialisation for training, under which all texts have nearly the same features:
    here what a name or a picture says reaches the features.
    """
    return {
        name: torch.from_numpy(_draw(name, shape, seed)).to(torch.float16)
        for name, shape in shapes_of(model_cfg).items()
        if not name.endswith("num_batches_tracked")
    }


def _draw(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = stream("toy backbone", seed, name).standard_normal(shape)
    if name == "logit_scale":
        return np.full(shape, np.log(30.0))
    if name == "text_projection":
        # The norm before it is sqrt(W): raw text features get a norm near 10, as in released CLIPs.
        return normal * (10.0 / math.sqrt(shape[0] * shape[1]))
    if name.endswith("running_var"):
        return 0.3 + 0.05 * np.abs(normal)  # below 1: what the stages weaken is made strong again
    if name.endswith(("bias", "running_mean")):
        return 0.02 * normal
    if len(shape) == 1 and not name.endswith("class_embedding"):
        return 1.0 + 0.1 * normal  # gains of norms
    if "embedding" in name:
        return 0.5 * normal
    if name == "visual.proj":
        return normal / math.sqrt(shape[0])
    if len(shape) == 4 and name != "visual.conv1.weight":
        # Behind a ReLU all is positive: filters of mean zero keep that from drowning the picture.
        normal = math.sqrt(2.0) * (normal - normal.mean(axis=(1, 2, 3), keepdims=True))
    return normal / math.sqrt(math.prod(shape[1:]))


def untrained_backbone() -> Backbone:
    """A random CLIP of ViT-B/16's size with CLIP's own vocabulary, good for measuring time alone."""
    model_cfg = {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes_of(model_cfg).items()
    }
    return assemble_backbone("an untrained ViT-B-16", model_cfg, {}, tensors)
