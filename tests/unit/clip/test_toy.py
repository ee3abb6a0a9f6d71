"""The tiny random CLIP: the same everywhere, small, and lively enough to be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from softcpt.clip.backbone import load_backbone
from softcpt.clip.tokens import name_prompts
from softcpt.clip.toy import Kind, toy_backbone, write_toy_backbone

KINDS: tuple[Kind, ...] = ("vit", "resnet")


@pytest.mark.parametrize("kind", KINDS)
def test_written_toy_is_the_toy_in_memory(tmp_path: Path, kind: Kind) -> None:
    written = load_backbone(write_toy_backbone(tmp_path / "a" / "toy", seed=3, kind=kind))
    assert written.digest == toy_backbone(3, kind=kind).digest


@pytest.mark.parametrize("kind", KINDS)
def test_seed_makes_the_weights(tmp_path: Path, kind: Kind) -> None:
    assert toy_backbone(1, kind=kind).digest == toy_backbone(1, kind=kind).digest
    assert toy_backbone(1, kind=kind).digest != toy_backbone(2, kind=kind).digest


def test_sizes_are_what_was_asked_for() -> None:
    toy = toy_backbone(embed_dim=24, text_width=96, text_layers=3, image_px=64, n_merges=10, quick_gelu=True)
    assert (toy.embed_dim, toy.text_width, toy.pixels.size_px) == (24, 96, 64)
    assert len(toy.text.transformer.resblocks) == 3
    assert toy.tokenizer.eot == 523
    assert "QuickGELU" in toy.description


@pytest.mark.parametrize("kind", KINDS)
def test_folder_is_small(tmp_path: Path, kind: Kind) -> None:
    folder = write_toy_backbone(tmp_path / "toy", kind=kind)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
    state = load_file(folder / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_toy_backbone(tmp_path / name) for name in "ab")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_features_tell_pictures_and_names_apart(kind: Kind) -> None:
    toy = toy_backbone(kind=kind)
    size = toy.pixels.size_px
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(8, 3, 4, 4, generator=generator)
    pictures = torch.nn.functional.interpolate(small, size, mode="bilinear")
    names = ["robin", "hammer", "sea or lake", "bread knife", "wren"]
    prompts = name_prompts(
        names, tokenizer=toy.tokenizer, context_length=toy.text.context_length, n_context=0
    )
    texts = toy.text.encode(toy.text.embed(prompts.ids), prompts.end)
    for features in (toy.encode_images(pictures), texts):
        units = normalize(features, dim=1)
        cosines = (units @ units.T)[~torch.eye(len(units), dtype=torch.bool)]
        assert float(cosines.mean()) < 0.98
    # Near the raw norm of released CLIPs, on which the first step of SoftCPT depends.
    assert 7 < float(texts.norm(dim=1).mean()) < 13
