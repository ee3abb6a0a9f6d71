"""Names: which weights a name means, with which activation, and that only names reach the network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from safetensors.torch import load_file
from test_backbone import CLIP_TEXT, VIT, pictures, write_model

from softcpt.clip.backbone import list_backbones, load_backbone
from softcpt.clip.toy import write_toy_backbone
from softcpt.core.errors import BackboneError

SMALL = {"vision_cfg": VIT, "text_cfg": CLIP_TEXT}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small architecture that stands in for the released ones."""
    folder = write_model(tmp_path_factory.mktemp("names") / "model", SMALL)
    return folder / "open_clip_model.safetensors"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, weights: Path) -> list[str]:
    """What was downloaded; architectures shrunk to the stand-in, activation and tags as they are."""
    asked: list[str] = []

    def download(known: dict[str, Any]) -> str:
        asked.append(known["hf_hub"])
        return str(weights)

    def shrink(name: str) -> dict[str, Any]:
        config = json.loads(json.dumps(real(name)))
        return {**config, "embed_dim": 32, "vision_cfg": VIT, "text_cfg": CLIP_TEXT}

    real = factory.get_model_config
    monkeypatch.setattr(pretrained, "download_pretrained", download)
    monkeypatch.setattr(factory, "get_model_config", shrink)
    return asked


def features(weights: Path, quick_gelu: bool, tmp_path: Path) -> torch.Tensor:
    """What open_clip computes with these weights under one activation."""
    folder = tmp_path / f"quick-{quick_gelu}"
    folder.mkdir()
    model_cfg = {"embed_dim": 32, **SMALL, "quick_gelu": quick_gelu}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    shutil.copy(weights, folder)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        return model.encode_image(images)


def test_the_two_activations_differ(weights: Path, tmp_path: Path) -> None:
    quick, exact = features(weights, True, tmp_path), features(weights, False, tmp_path)
    assert float((quick - exact).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("spec", "quick_gelu"),
    [
        ("ViT-B-32/openai", True),
        ("ViT-B-32-quickgelu/openai", True),
        ("ViT-B-32/laion400m_e32", True),
        ("ViT-B-32-quickgelu/laion400m_e32", True),
        ("ViT-B-32/laion2b_s34b_b79k", False),
    ],
)
def test_activation_is_what_the_weights_were_trained_with(
    downloads: list[str], weights: Path, tmp_path: Path, spec: str, quick_gelu: bool
) -> None:
    backbone = load_backbone(spec)
    assert len(downloads) == 1
    torch.testing.assert_close(
        backbone.encode_images(pictures(backbone)), features(weights, quick_gelu, tmp_path)
    )
    assert ("QuickGELU" in backbone.description) == quick_gelu


@pytest.mark.usefixtures("downloads")
def test_every_openai_tag_is_quickgelu() -> None:
    names = list_backbones("*/openai")
    assert len(names) > 8
    for name in names[:3]:
        assert "QuickGELU" in load_backbone(name).description
    models = {name: pretrained.get_pretrained_cfg(*name.split("/")) for name in names}
    assert all(known["quick_gelu"] for known in models.values())


@pytest.mark.parametrize(
    "spec", ["ViT-B/32/openai", "ViT-B-32/OpenAI", "open-clip:ViT-B-32/openai", "ViT-B-32/openai"]
)
def test_spellings_of_one_name_are_one_backbone(downloads: list[str], spec: str) -> None:
    assert load_backbone(spec).name == "ViT-B-32/openai"
    assert downloads == ["timm/vit_base_patch32_clip_224.openai/"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ViT-B-32/openay", '"ViT-B-32/openai"'),
        ("ViT-B-23/openai", '"ViT-B-32/openai"'),
        ("ViT-B-32", "write one of ViT-B-32/openai"),
        ("ViT-B/32", "write one of ViT-B-32/openai"),
        ("openai/clip-vit-base-patch32", "hf-hub:org/model"),
        ("nothing like it", "list_backbones()"),
        ("", "list_backbones()"),
        ("./no/such/folder", "no folder or file"),
        ("weights.safetensors", "no folder or file"),
        ("local-dir:nowhere", "no folder or file"),
    ],
)
def test_unknown_name_says_what_would_work(spec: str, said: str) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(spec)
    assert said in str(caught.value)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("ViT-B-16-SigLIP/webli", "not causal"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "writes captions"),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", "roberta-base"),
        ("ViT-H-14-CLIPA/datacomp1b", "pooled by 'last'"),
        ("ViT-H-14-worldwide/metaclip2_worldwide", "tokenizer"),
    ],
)
def test_tower_that_cannot_carry_a_prompt_is_refused_before_any_download(spec: str, reason: str) -> None:
    with pytest.raises(BackboneError, match=reason):
        load_backbone(spec)
    assert spec not in list_backbones()


def test_backbones_are_listed_by_wildcard() -> None:
    assert "ViT-B-16/openai" in list_backbones("ViT-B-16/*")
    assert "RN50/openai" in list_backbones()
    assert all(name.startswith("RN50/") for name in list_backbones("RN50/*"))
    assert list_backbones("nothing*") == []


@pytest.mark.parametrize("error", [FileNotFoundError("no net"), RuntimeError("bad sum"), OSError("timeout")])
def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(pretrained, "download_pretrained", fail)
    monkeypatch.setattr(pretrained, "download_pretrained_from_hf", fail)
    for spec in ("ViT-B-32/openai", "hf-hub:org/model"):
        with pytest.raises(BackboneError, match="local folder") as caught:
            load_backbone(spec)
        assert str(error) in str(caught.value)


def test_hub_repository_is_read_like_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_toy_backbone(tmp_path / "toy")
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, filename: str | None = None) -> str:
        asked.append((repository, filename))
        return str(folder / (filename or "open_clip_model.safetensors"))

    monkeypatch.setattr(pretrained, "download_pretrained_from_hf", download)
    backbone = load_backbone("hf-hub:org/model")
    assert backbone.name == "hf-hub:org/model"
    assert backbone.digest == load_backbone(folder).digest
    assert asked == [
        ("org/model", "open_clip_config.json"),
        ("org/model", None),
        ("org/model", "bpe.txt.gz"),
    ]


def test_local_path_never_asks_the_network(tmp_path: Path) -> None:
    folder = write_toy_backbone(tmp_path / "toy")
    for spec in (folder, str(folder), f"local-dir:{folder}"):
        assert load_backbone(spec).name == str(folder.resolve())


def test_name_that_is_also_a_path_must_say_which(
    downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_toy_backbone(tmp_path / "ViT-B-32" / "openai")
    with pytest.raises(BackboneError, match="local-dir:ViT-B-32/openai or open-clip:ViT-B-32/openai"):
        load_backbone("ViT-B-32/openai")
    assert load_backbone("local-dir:ViT-B-32/openai").name == str(folder)
    assert load_backbone(Path("ViT-B-32/openai")).name == str(folder)
    assert downloads == []
    assert load_backbone("open-clip:ViT-B-32/openai").name == "ViT-B-32/openai"


def test_weights_of_another_resolution_are_fitted_for_open_clips_own_names_only(
    monkeypatch: pytest.MonkeyPatch, downloads: list[str], weights: Path, tmp_path: Path
) -> None:
    folder = write_model(
        tmp_path / "fine",
        {"vision_cfg": {**VIT, "image_size": 48}, "text_cfg": CLIP_TEXT, "quick_gelu": True},
    )
    fine = folder / "open_clip_model.safetensors"
    monkeypatch.setattr(pretrained, "download_pretrained", lambda _: str(fine))
    assert load_file(fine)["visual.positional_embedding"].shape[0] == 37
    assert load_backbone("ViT-B-32/openai").pixels.size_px == 32
    config = {"model_cfg": {"embed_dim": 32, **SMALL}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=r"visual\.positional_embedding: has shape \[37, 64\]"):
        load_backbone(folder)
