"""The model: open_clip's own CLIP from a config, and a text pass that stops at the longest caption."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # its usual name
from open_clip.model import CLIP
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def model_config(
    vocab_size: int,
    *,
    width: int = 28,
    layers: tuple[int, ...] = (2, 2, 2, 2),
    text_width: int = 256,
    text_layers: int = 6,
) -> dict[str, Any]:
    """``model_cfg`` in open_clip's form."""
    return {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 64, "layers": list(layers), "width": width, "head_width": 64},
        "text_cfg": {
            "context_length": 77, "vocab_size": vocab_size, "width": text_width,
            "heads": max(text_width // 64, 1), "layers": text_layers,
        },
    }  # fmt: skip


def build(model_cfg: dict[str, Any], *, seed: int, logit_scale: float) -> CLIP:
    """A model with random weights, the same for a seed."""
    torch.manual_seed(seed)
    model = CLIP(**model_cfg)
    with torch.no_grad():
        model.logit_scale.fill_(torch.tensor(logit_scale).log())
    model.visual.to(memory_format=torch.channels_last)
    return model


def encode_images(model: CLIP, pixels: Tensor) -> Tensor:
    """[B, 3, S, S] in 0..1 -> [B, D] of length 1."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    features: Tensor = model.visual(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))
    return F.normalize(features.float(), dim=1)


def encode_texts(
    model: CLIP,
    captions: list[list[int]],
    blanks: list[int],
    noise: torch.Generator,
    *,
    normalise: bool = True,
) -> Tensor:
    """Captions of any length -> [B, D], of length 1 if normalised.

    Captions of similar length go together, so that little is padded. ``blanks`` says how many random vectors
    stand between the start token and a caption: what a learned context looks like before it has learned.
    """
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]) + blanks[i])
    n_parts = 8 if len(order) >= 64 else 1
    parts = [order[k * len(order) // n_parts : (k + 1) * len(order) // n_parts] for k in range(n_parts)]
    features = torch.cat([_encode_part(model, captions, blanks, part, noise) for part in parts])
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    features = features[back].float()
    return F.normalize(features, dim=1) if normalise else features


def _encode_part(
    model: CLIP, captions: list[list[int]], blanks: list[int], rows: list[int], noise: torch.Generator
) -> Tensor:
    longest = max(len(captions[i]) + blanks[i] for i in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    is_blank = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, i in enumerate(rows):
        text = [captions[i][0], *[0] * blanks[i], *captions[i][1:]]
        ids[row, : len(text)] = torch.tensor(text)
        is_blank[row, 1 : 1 + blanks[i]] = True
    x = model.token_embedding(ids)
    # Up to the size of words; how large a context of somebody's own will be is not known here.
    size = x.detach().square().mean().sqrt() * torch.rand(len(rows), 1, 1, generator=noise)
    x = torch.where(is_blank[..., None], size * torch.randn(x.shape, generator=noise), x)
    x = x + model.positional_embedding[:longest]
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.bfloat16)  # else every block casts back and forth, a quarter of the time
    x = model.transformer(x, attn_mask=model.attn_mask[:longest, :longest])
    ends = torch.tensor([len(captions[i]) + blanks[i] - 1 for i in rows])
    pooled = model.ln_final(x[torch.arange(len(rows)), ends])
    features: Tensor = pooled @ model.text_projection
    return features
