"""Features of an image's regions, in the joint space, from open_clip's image towers.

    ResNet   every token of the attention pool as a query, not the mean alone: region i's feature is what the
             pool would give if it asked on behalf of region i
    ViT      patch tokens behind the last norm and the projection; nothing ever trained these to match texts

The first way is that of PLOT (Chen et al., ICLR 2023, arXiv:2210.01253), by a pooling function of our own:
the library's returns the first token only, and OpenAI's newer one computes no other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


def has_attention_pool(visual: nn.Module) -> bool:
    """Whether it is CLIP's own ResNet."""
    return isinstance(visual, ModifiedResNet)


def count_regions(visual: nn.Module) -> int | None:
    """Regions of an image that have features of their own, None where the tower gives none."""
    if isinstance(visual, ModifiedResNet):
        return int(visual.attnpool.positional_embedding.shape[0]) - 1
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        rows, columns = visual.grid_size
        return int(rows * columns)
    return None


def encode_tokens(visual: nn.Module, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B t D"]:
    """The tower's own feature of each image, and behind it those of the image's regions, row by row.

    Raises:
        TypeError: the tower gives none.
    """
    if isinstance(visual, ModifiedResNet):
        grid = images
        for stage in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            grid = stage(grid)
        # Not our own first token: an image's feature is the same to the last bit with regions and without.
        pooled = visual.attnpool(grid)
        return torch.cat([pooled[:, None], pool_every_token(visual.attnpool, grid)[:, 1:]], dim=1)
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        made = visual.forward_intermediates(images, indices=1, normalize_intermediates=True, output_fmt="NLC")
        patches = made["image_intermediates"][-1] @ visual.proj
        return torch.cat([made["image_features"][:, None], patches], dim=1)
    raise TypeError(f"{type(visual).__name__} gives no features of regions")


def pool_every_token(pool: AttentionPool2d, grid: Float[Tensor, "B w h h"]) -> Float[Tensor, "B t D"]:
    """What an attention pool gives for each of its tokens as a query: the mean first, then the places.

    Args:
        pool: of a ResNet.
        grid: what its last stage gives.
    """
    places = grid.flatten(2).transpose(1, 2)
    tokens = torch.cat([places.mean(1, keepdim=True), places], dim=1)
    tokens = tokens + pool.positional_embedding.to(tokens.dtype)

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], pool.num_heads, -1).transpose(1, 2)

    queries, keys, values = (heads(part(tokens)) for part in (pool.q_proj, pool.k_proj, pool.v_proj))
    attended = F.scaled_dot_product_attention(queries, keys, values)
    pooled: Tensor = pool.c_proj(attended.transpose(1, 2).flatten(2))
    return pooled
