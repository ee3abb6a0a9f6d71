"""Loading: whatever the format, our features are open_clip's own."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.clip.bpe import merges_of, vocabulary_bytes
from softcpt.clip.open_clip import default_vocabulary
from softcpt.clip.tokens import name_prompts
from softcpt.clip.toy import write_toy_backbone

NAMES = ["robin", "great spotted woodpecker", "café crème", "x", "don't 42"]
TEMPLATE = "a photo of a {}."
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2}
RESNET = {"image_size": 64, "width": 4, "head_width": 64, "layers": [1, 1, 1, 1]}
N_MERGES = 1000
TEXT = {"context_length": 40, "vocab_size": 512 + N_MERGES + 2, "width": 32, "heads": 2, "layers": 2}
CLIP_TEXT = {**TEXT, "vocab_size": 49408}  # with CLIP's own vocabulary: 1.5 million weights

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {"vision_cfg": RESNET, "text_cfg": TEXT},
    "vit with QuickGELU": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "custom text": {"custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "custom text with a biased projection": {
        "custom_text": True,
        "vision_cfg": VIT,
        "text_cfg": {**TEXT, "proj_bias": True},
        "init_logit_bias": -10,
    },
    "layer scale, other norms and activations": {
        "vision_cfg": {**VIT, "ls_init_value": 0.5, "norm_kwargs": {"eps": 1e-3}},
        "text_cfg": {
            **TEXT,
            "ls_init_value": 0.5,
            "mlp_ratio": 2.0,
            "norm_kwargs": {"eps": 1e-3},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "no text projection": {"vision_cfg": VIT, "text_cfg": {**TEXT, "proj_type": "none"}},
    "pooled at the end token's id": {
        "vision_cfg": VIT,
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 512 + N_MERGES + 1},
    },
    "mean pooling of patches": {
        "vision_cfg": {
            **VIT,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "pos_embed_type": "sin_cos_2d",
        },
        "text_cfg": {**TEXT, "qk_norm": True, "scale_attn": True},
    },
    "timm image tower": {
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": 160,
        },
        "text_cfg": TEXT,
    },
}


def write_model(folder: Path, model_cfg: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A folder of open_clip with weights in which nothing is at its start value."""
    folder.mkdir(parents=True)
    if model_cfg["text_cfg"]["vocab_size"] != CLIP_TEXT["vocab_size"]:
        (folder / "bpe.txt.gz").write_bytes(vocabulary_bytes(merges_of(default_vocabulary(), N_MERGES)))
    config = {"model_cfg": {"embed_dim": 32, **model_cfg}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name != "logit_scale":
                tensor.add_(torch.randn_like(tensor) * 0.1)
            if name.endswith("running_var"):
                tensor.abs_()
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@functools.cache
def open_clip_tokenizer(vocabulary: Path | None = None) -> Any:
    arguments = {} if vocabulary is None else {"bpe_path": str(vocabulary)}
    return open_clip.SimpleTokenizer(context_length=TEXT["context_length"], **arguments)


def pictures(backbone: Backbone) -> torch.Tensor:
    size = backbone.pixels.size_px
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def encode_texts(backbone: Backbone, texts: list[str]) -> torch.Tensor:
    """Whole texts through our tower, the padded way."""
    rows = [
        [backbone.tokenizer.sot, *backbone.tokenizer.encode(text), backbone.tokenizer.eot] for text in texts
    ]
    ids = torch.tensor([row + [0] * (backbone.text.context_length - len(row)) for row in rows])
    end = torch.tensor([len(row) - 1 for row in rows])
    return backbone.text.encode(backbone.text.embed(ids), end, full_length=True)


def encode_names(backbone: Backbone, names: list[str]) -> torch.Tensor:
    """``name.`` through our prompt layout and tower."""
    prompts = name_prompts(
        names, tokenizer=backbone.tokenizer, context_length=backbone.text.context_length, n_context=0
    )
    return backbone.text.encode(backbone.text.embed(prompts.ids), prompts.end)


@torch.no_grad()
def assert_equals_open_clip(backbone: Backbone, model: Any, tokenizer: Any) -> None:
    close = {"atol": 2e-5, "rtol": 1e-5}
    model.eval()
    images = pictures(backbone)
    torch.testing.assert_close(backbone.encode_images(images), model.encode_image(images), **close)
    texts = [TEMPLATE.format(name) for name in NAMES]
    torch.testing.assert_close(encode_texts(backbone, texts), model.encode_text(tokenizer(texts)), **close)
    expected = model.encode_text(tokenizer([f"{name}." for name in NAMES]))
    torch.testing.assert_close(encode_names(backbone, NAMES), expected, **close)
    assert backbone.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    assert expected.std(dim=0).min() > 1e-4  # the texts differ, so that equal means something


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folder_gives_open_clips_features(tmp_path: Path, architecture: str) -> None:
    folder = write_model(tmp_path / "model", ARCHITECTURES[architecture])
    assert_equals_open_clip(
        load_backbone(folder),
        open_clip.create_model(f"local-dir:{folder}"),
        open_clip_tokenizer(folder / "bpe.txt.gz"),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["vit", "resnet", "custom text"])
def test_half_weights_are_computed_exactly_in_fp32(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    folder = write_model(tmp_path / "model", ARCHITECTURES[architecture], dtype)
    backbone = load_backbone(folder)
    assert backbone.text.dtype == torch.float32
    assert_equals_open_clip(
        backbone,
        open_clip.create_model(f"local-dir:{folder}", precision="fp32"),
        open_clip_tokenizer(folder / "bpe.txt.gz"),
    )
    stored = load_file(folder / "open_clip_model.safetensors")
    prefix = "text." if architecture == "custom text" else ""
    assert torch.equal(
        backbone.text.token_embedding.weight, stored[f"{prefix}token_embedding.weight"].float()
    )


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_folder_with_clips_vocabulary_gives_open_clips_features(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "model", {**ARCHITECTURES[kind], "text_cfg": CLIP_TEXT})
    assert_equals_open_clip(
        load_backbone(folder),
        open_clip.create_model(f"local-dir:{folder}"),
        open_clip.get_tokenizer(f"local-dir:{folder}"),
    )


def openai_config(kind: str) -> dict[str, Any]:
    vision = {**VIT, "head_width": 64} if kind == "vit" else RESNET
    return {"quick_gelu": True, "vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "width": 64, "heads": 1}}


@pytest.mark.parametrize("ending", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_state_dict_in_openai_names_equals_open_clips_own_reading(
    tmp_path: Path, kind: str, ending: str
) -> None:
    folder = write_model(tmp_path / "model", openai_config(kind), torch.float16)
    state = load_file(folder / "open_clip_model.safetensors")
    file = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(state, file)
    else:  # as OpenAI's own state dicts: with sizes among the weights
        torch.save({**state, "input_resolution": torch.tensor(32), "context_length": torch.tensor(20)}, file)
    reference = open_clip.model.build_model_from_openai_state_dict(dict(state), cast_dtype=None).float()
    backbone = load_backbone(file)
    assert_equals_open_clip(backbone, reference, open_clip_tokenizer())
    # The folder says the same in words, so it is the same backbone.
    assert backbone.digest == load_backbone(folder).digest
    assert backbone.pixels.mean == open_clip.OPENAI_DATASET_MEAN
    assert backbone.pixels.std == open_clip.OPENAI_DATASET_STD


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_sparsely_stored_token_embedding_is_put_together(tmp_path: Path, ending: str) -> None:
    folder = write_model(tmp_path / "model", openai_config("vit"))
    state = load_file(folder / "open_clip_model.safetensors")
    used = torch.tensor([5, 320, 49406, 49407])
    rows = state.pop("token_embedding.weight")[used]
    state |= {"token_embedding.used_ids": used, "token_embedding.used_rows": rows}
    file = tmp_path / f"sparse.{ending}"
    if ending == "safetensors":
        save_file(state, file, metadata={"token_embedding_shape": "[49408, 64]"})
    else:
        torch.save(state, file)
    embedding = load_backbone(file).text.token_embedding.weight
    assert embedding.shape == (49408, 64)
    assert torch.equal(embedding[used], rows)
    assert float(embedding.abs().sum()) == pytest.approx(float(rows.abs().sum()), rel=1e-5)


def test_checkpoint_of_a_parallel_training_is_unpacked(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", ARCHITECTURES["vit"])
    expected = load_backbone(folder)
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        folder / "open_clip_pytorch_model.bin",
    )
    assert load_backbone(folder).digest == expected.digest


def test_custom_text_tower_reads_weights_in_flat_names(tmp_path: Path) -> None:
    flat = write_model(tmp_path / "flat", ARCHITECTURES["vit"])
    custom = write_model(tmp_path / "custom", ARCHITECTURES["custom text"])
    shutil.copy(flat / "open_clip_model.safetensors", custom / "open_clip_model.safetensors")
    assert load_backbone(custom).digest == load_backbone(flat).digest


def test_batch_norms_are_in_evaluation_mode(tmp_path: Path) -> None:
    backbone = load_backbone(write_toy_backbone(tmp_path / "toy", kind="resnet"))
    images = pictures(backbone)
    alone = torch.cat([backbone.encode_images(image[None]) for image in images])
    torch.testing.assert_close(backbone.encode_images(images), alone, atol=1e-4, rtol=1e-4)
    assert not any(module.training for module in backbone.visual.modules())


def test_nothing_of_a_backbone_can_be_trained(tmp_path: Path) -> None:
    backbone = load_backbone(write_toy_backbone(tmp_path / "toy"))
    weights = [*backbone.visual.parameters(), *backbone.text.parameters()]
    assert weights
    assert not any(weight.requires_grad for weight in weights)
    assert not any(weight.is_meta for weight in [*weights, *backbone.visual.buffers()])


def test_image_features_can_stand_beside_trained_text(tmp_path: Path) -> None:
    backbone = load_backbone(write_toy_backbone(tmp_path / "toy"))
    trained = torch.ones(backbone.embed_dim, requires_grad=True)
    (backbone.encode_images(pictures(backbone)) @ trained).sum().backward()
    assert trained.grad is not None


def test_another_precision_is_another_backbone_and_leaves_the_first_alone(tmp_path: Path) -> None:
    backbone = load_backbone(write_toy_backbone(tmp_path / "toy", kind="resnet"))
    images = pictures(backbone)
    before = backbone.encode_images(images)
    double = backbone.to(dtype=torch.float64)
    assert double.encode_images(images).dtype == torch.float64
    assert encode_names(double, NAMES).dtype == torch.float64
    assert double.digest == backbone.digest
    assert backbone.text.dtype == torch.float32
    assert torch.equal(backbone.encode_images(images), before)
    torch.testing.assert_close(double.encode_images(images).float(), before, atol=1e-4, rtol=1e-4)


def test_random_numbers_of_others_are_left_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", ARCHITECTURES["timm image tower"])
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_backbone(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_outlive_their_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", ARCHITECTURES["vit"])
    backbone = load_backbone(folder)
    before = backbone.encode_images(pictures(backbone))
    file = folder / "open_clip_model.safetensors"
    with file.open("r+b") as stored:
        stored.seek(file.stat().st_size // 2)
        stored.write(b"\x7f" * (file.stat().st_size // 4))
    assert torch.equal(backbone.encode_images(pictures(backbone)), before)


# -- the digest ----------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_place_or_on_precision_that_holds_the_values(tmp_path: Path) -> None:
    half = write_toy_backbone(tmp_path / "half")
    whole = Path(shutil.copytree(half, tmp_path / "elsewhere" / "whole"))
    state = load_file(half / "open_clip_model.safetensors")
    save_file({k: v.float() for k, v in state.items()}, whole / "open_clip_model.safetensors")
    assert load_backbone(whole).digest == load_backbone(half).digest


def change_weights(folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state["ln_final.bias"][0] += 0.5
    save_file(state, folder / "open_clip_model.safetensors")


def change_config(folder: Path, part: str, key: str, value: object) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config[part][key] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        lambda folder: change_config(folder, "model_cfg", "quick_gelu", True),
        lambda folder: change_config(folder, "preprocess_cfg", "mean", [0.0, 0.0, 0.0]),
        lambda folder: (folder / "bpe.txt.gz").write_bytes(other_vocabulary(folder / "bpe.txt.gz")),
    ],
    ids=["weight", "activation", "pixels", "vocabulary"],
)
def test_digest_tells_what_computes_differently(tmp_path: Path, change: Any) -> None:
    folder = write_toy_backbone(tmp_path / "toy")
    before = load_backbone(folder).digest
    change(folder)
    assert load_backbone(folder).digest != before


def other_vocabulary(file: Path) -> bytes:
    """The same number of merges, in another order."""
    return vocabulary_bytes(reversed(merges_of(file, N_MERGES)))


def test_defaults_that_a_config_spells_out_are_the_same_architecture(tmp_path: Path) -> None:
    folder = write_toy_backbone(tmp_path / "toy")
    before = load_backbone(folder).digest
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"mlp_ratio": 4.0, "pool_type": "argmax", "proj_type": "linear"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load_backbone(folder).digest == before
