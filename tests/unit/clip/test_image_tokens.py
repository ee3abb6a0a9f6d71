"""Features of regions: of every token of a ResNet's pool, and of a ViT's patches."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from softcpt.clip.image_tokens import encode_tokens, pool_every_token
from softcpt.clip.toy import toy_backbone


@pytest.fixture(scope="module", params=["vit", "resnet"])
def toy(request):
    return toy_backbone(kind=request.param)


@pytest.fixture
def images(toy):
    size = toy.pixels.size_px
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_the_first_token_is_the_images_feature_to_the_last_bit(toy, images):
    tokens = toy.encode_image_tokens(images)
    assert tokens.shape == (3, 1 + toy.n_regions, toy.embed_dim)
    assert torch.equal(tokens[:, 0], toy.encode_images(images))
    assert not tokens.requires_grad


def test_regions_differ_and_depend_on_their_own_picture(toy, images):
    tokens = toy.encode_image_tokens(images)
    assert float((tokens[:, 1:] - tokens[:, 1:2]).abs().mean()) > 1e-2
    assert torch.allclose(toy.encode_image_tokens(images[1:2])[0], tokens[1], rtol=0, atol=1e-4)


def test_every_query_of_the_pool_is_answered_as_torch_does():
    """The library's own call of attention, kept whole instead of cut to its first token."""
    toy = toy_backbone(kind="resnet").to(dtype=torch.float64)
    pool = toy.visual.attnpool
    width = pool.k_proj.in_features
    grid = torch.randn(5, width, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pool_every_token(pool, grid)
    x = grid.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
    expected, _ = F.multi_head_attention_forward(
        x, x, x, width, pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        None, None, False, 0.0, pool.c_proj.weight, pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        need_weights=False,
    )  # fmt: skip
    assert torch.allclose(found, expected.transpose(0, 1), rtol=0, atol=1e-12)
    assert torch.allclose(found[:, 0], pool(grid), rtol=0, atol=1e-12)


def test_patches_are_those_the_library_gives_behind_its_last_norm():
    toy = toy_backbone(kind="vit")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = toy.encode_image_tokens(images)
    toy.visual.output_tokens = True
    with torch.no_grad():
        _, patches = toy.visual(images)
    assert torch.allclose(found[:, 1:], patches @ toy.visual.proj, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "size", "regions"), [("vit", 32, 16), ("resnet", 64, 4), ("resnet", 96, 9)])
def test_regions_are_counted(kind, size, regions):
    toy = toy_backbone(kind=kind, image_px=size)
    assert toy.n_regions == regions
    assert toy.encode_image_tokens(torch.zeros(1, 3, size, size)).shape[1] == 1 + regions


def test_towers_without_regions_have_none():
    timm = CLIPVisionCfg(
        timm_model_name="convnext_atto", timm_model_pretrained=False, timm_pool="", timm_proj="linear",
        image_size=64,
    )  # fmt: skip
    backbone = replace(toy_backbone(), visual=_build_vision_tower(32, timm).eval())
    assert backbone.n_regions is None
    with pytest.raises(TypeError, match="regions"):
        encode_tokens(backbone.visual, torch.zeros(1, 3, 64, 64))
