"""Our towers and tokens against the published CLIP code's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference import backbone, read_json
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from softcpt.clip.backbone import Backbone
from softcpt.clip.tokens import name_prompts
from softcpt.core.names import prompt_words

CLIPS = tuple(read_json("cases.json")["encode_texts"])


@pytest.fixture(params=CLIPS)
def clip(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def expected(golden: Path, clip: str) -> dict[str, Tensor]:
    return load_file(golden / f"encode_{clip}.safetensors")


@pytest.fixture
def model(golden: Path, clip: str) -> Backbone:
    return backbone(golden, clip, torch.float32)


@pytest.fixture
def texts(golden: Path, clip: str) -> list[str]:
    return json.loads((golden / "cases.json").read_text())["encode_texts"][clip]


def assert_close(found: Tensor, reference: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(reference.abs().max()))
    torch.testing.assert_close(found, reference.float(), atol=bound, rtol=0.0)


def encode_texts(model: Backbone, tokens: Tensor) -> Tensor:
    return model.text.encode(model.text.embed(tokens), tokens.argmax(dim=1))


def test_architecture_read_from_the_weights_is_the_one_they_were_made_with(
    golden: Path, clip: str, model: Backbone
) -> None:
    sizes = json.loads((golden / "world.json").read_text())["clip"][clip]
    assert model.embed_dim == sizes["embed_dim"]
    assert model.text_width == sizes["transformer_width"]
    assert model.pixels.size_px == sizes["image_resolution"]
    assert model.text.context_length == sizes["context_length"]
    assert len(model.text.transformer.resblocks) == sizes["transformer_layers"]
    assert model.text.transformer.resblocks[0].attn.num_heads == sizes["transformer_heads"]


def test_image_features_are_the_published_codes(model: Backbone, expected: dict[str, Tensor]) -> None:
    assert_close(model.encode_images(expected["images"].float()), expected["image_features"])


def test_tokens_are_the_published_codes(
    model: Backbone, expected: dict[str, Tensor], texts: list[str]
) -> None:
    for text, row in zip(texts, expected["tokens"].tolist(), strict=True):
        ids = [model.tokenizer.sot, *model.tokenizer.encode(text), model.tokenizer.eot]
        assert ids + [0] * (len(row) - len(ids)) == row


def test_text_features_are_the_published_codes(model: Backbone, expected: dict[str, Tensor]) -> None:
    assert_close(encode_texts(model, expected["tokens"].long()), expected["text_features"])


def test_names_without_context_give_the_text_features(
    model: Backbone, expected: dict[str, Tensor], texts: list[str]
) -> None:
    prompts = name_prompts(
        texts,
        tokenizer=model.tokenizer,
        context_length=model.text.context_length,
        n_context=0,
        full_stop=False,
    )
    assert_close(model.text.encode(model.text.embed(prompts.ids), prompts.end), expected["text_features"])


def test_logits_are_the_published_codes(model: Backbone, expected: dict[str, Tensor]) -> None:
    images = model.encode_images(expected["images"].float())
    texts = encode_texts(model, expected["tokens"].long())
    logits = model.logit_scale * normalize(images, dim=1) @ normalize(texts, dim=1).T
    assert_close(logits, expected["logits_per_image"])


def test_prompts_with_prefixes_have_the_published_ids_and_ends(golden: Path) -> None:
    model = backbone(golden, "vit", torch.float32)
    rows = json.loads((golden / "text.json").read_text())
    assert rows
    for row in rows:
        prefix = model.tokenizer.encode(row["prefix"])
        prompts = name_prompts(
            [row["name"]],
            tokenizer=model.tokenizer,
            context_length=model.text.context_length,
            n_context=len(prefix),
        )
        filled = [
            prefix[slot] if slot >= 0 else token
            for token, slot in zip(prompts.ids[0].tolist(), prompts.slot[0].tolist(), strict=True)
        ]
        assert filled == row["ids"]
        assert prompts.end.tolist() == [row["eot"]]
        assert len(model.tokenizer.encode(prompt_words(row["name"]))) == row["name_tokens"]
