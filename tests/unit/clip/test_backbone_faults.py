"""Refusals: everything that is wrong is told at once, by name, and no file of others is executed."""

from __future__ import annotations

import gzip
import json
import pickle
import textwrap
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbone import CLIP_TEXT, RESNET, TEXT, VIT, openai_config, write_model

from softcpt.clip.backbone import load_backbone
from softcpt.clip.bpe import MAX_BYTES
from softcpt.clip.toy import write_toy_backbone
from softcpt.core.errors import BackboneError

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_toy_backbone(tmp_path / "toy")


def refusal(spec: Path) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        load_backbone(spec)
    assert caught.value.exit_code == 4
    assert all(fault.where and fault.what for fault in caught.value.faults)
    return caught.value


def places(error: BackboneError) -> list[str]:
    return [fault.where for fault in error.faults]


def edit_config(folder: Path, part: str, **changes: Any) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    inner = config
    for key in part.split(".") if part else []:
        inner = inner[key]
    inner |= changes
    file.write_text(json.dumps(config))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(folder / WEIGHTS)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, folder / WEIGHTS)


# -- what cannot carry a prompt -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"no_causal_mask": True}, "not causal"),
        ({"pool_type": "last"}, "pooled by 'last'"),
        ({"pool_type": "first"}, "pooled by 'first'"),
        ({"pool_type": "none"}, "pooled by 'none'"),
        ({"pool_type": "eos", "eos_id": 2}, "pooled at token 2"),
        ({"embed_cls": True}, "class token of its own"),
        ({"hf_model_name": "roberta-base"}, "roberta-base"),
        ({"hf_tokenizer_name": "bert-base-uncased"}, "bert-base-uncased"),
        ({"tokenizer_kwargs": {"additional_special_tokens": ["<x>"]}}, "changes the tokenizer"),
    ],
)
def test_text_tower_that_is_not_clips_is_refused_by_name(
    folder: Path, changes: dict[str, Any], reason: str
) -> None:
    edit_config(folder, "model_cfg.text_cfg", **changes)
    error = refusal(folder)
    assert reason in str(error)
    assert len(error.faults) == 1
    assert next(reversed(changes)) in error.faults[0].where


def test_captioning_model_is_refused_by_name(folder: Path) -> None:
    edit_config(folder, "model_cfg", multimodal_cfg={"layers": 2})
    assert "writes captions" in str(refusal(folder))


def test_image_tower_without_one_feature_a_picture_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {"vision_cfg": VIT, "text_cfg": TEXT})
    edit_config(folder, "model_cfg.vision_cfg", output_tokens=True)
    assert "gives tuple for two pictures, not [2, 32]" in str(refusal(folder))


def test_architecture_of_timm_is_never_looked_up_elsewhere(folder: Path) -> None:
    edit_config(folder, "model_cfg.vision_cfg", timm_model_name="hf-hub:org/model")
    assert places(refusal(folder)) == ["model_cfg.vision_cfg.timm_model_name"]


def test_architecture_that_timm_does_not_know_is_a_fault(folder: Path) -> None:
    edit_config(folder, "model_cfg.vision_cfg", timm_model_name="no_such_tower")
    assert "no_such_tower" in str(refusal(folder))


# -- config and files -----------------------------------------------------------------------------------


def test_all_faults_of_a_config_come_at_once(folder: Path) -> None:
    edit_config(folder, "model_cfg", embed_dim="many", quickgelu=True)
    edit_config(folder, "model_cfg.vision_cfg", image_size=[32, 64], layers=-1, patchsize=8)
    edit_config(folder, "model_cfg.text_cfg", width=0, no_causal_mask=True, layers=10**9)
    error = refusal(folder)
    assert set(places(error)) == {
        "model_cfg.embed_dim",
        "model_cfg.quickgelu",
        "model_cfg.vision_cfg.image_size",
        "model_cfg.vision_cfg.layers",
        "model_cfg.vision_cfg.patchsize",
        "model_cfg.text_cfg.width",
        "model_cfg.text_cfg.layers",
        "model_cfg.text_cfg.no_causal_mask",
    }
    assert 'did you mean "quick_gelu"' in str(error)
    assert 'did you mean "patch_size"' in str(error)


def test_parts_that_are_missing_from_a_config_are_all_named(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert places(refusal(folder)) == ["model_cfg.embed_dim", "model_cfg.vision_cfg", "model_cfg.text_cfg"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": 3}', "[" * 100_000, "\udcff"])
def test_config_that_is_no_config_is_refused(folder: Path, content: str) -> None:
    file = folder / "open_clip_config.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert str(file) in str(refusal(folder))


def test_missing_files_of_a_folder_come_at_once(folder: Path) -> None:
    edit_config(folder, "", vocabulary="other.gz")
    (folder / WEIGHTS).unlink()
    error = refusal(folder)
    assert len(error.faults) == 2
    assert "holds no weights" in str(error)
    assert "no file 'other.gz'" in str(error)


def test_several_weight_files_without_a_usual_name_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    assert load_backbone(folder)
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    assert "several weight files: a.safetensors, b.safetensors" in str(refusal(folder))


def test_architecture_that_does_not_build_is_a_fault(folder: Path) -> None:
    edit_config(folder, "model_cfg.text_cfg", heads=5)
    assert "cannot build this architecture" in str(refusal(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5]),
        ("std", [0.1, 0.0, 0.1]),
        ("interpolation", "nearest"),
        ("resize_mode", "stretch"),
        ("fill_color", -1),
        ("mode", "L"),
    ],
)
def test_pixels_that_cannot_be_are_refused(folder: Path, key: str, value: object) -> None:
    edit_config(folder, "preprocess_cfg", **{key: value})
    assert places(refusal(folder)) == [f"preprocess_cfg.{key}"]


# -- vocabulary -----------------------------------------------------------------------------------------


def test_vocabulary_of_another_size_than_the_text_tower_is_refused(folder: Path) -> None:
    edit_config(folder, "model_cfg.text_cfg", vocab_size=600)
    error = refusal(folder)
    assert places(error) == ["model_cfg.text_cfg.vocab_size"]
    assert "1514 tokens" in str(error)


def test_folder_with_clips_own_size_but_a_cut_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {"vision_cfg": VIT, "text_cfg": CLIP_TEXT})
    toy = write_toy_backbone(tmp_path / "toy")
    (folder / "bpe.txt.gz").write_bytes((toy / "bpe.txt.gz").read_bytes())
    assert places(refusal(folder)) == ["model_cfg.text_cfg.vocab_size"]


@pytest.mark.parametrize("name", ["../bpe.txt.gz", "/etc/passwd", "", 7, "C:\\bpe.txt.gz"])
def test_vocabulary_outside_the_folder_is_refused(folder: Path, name: object) -> None:
    (folder.parent / "bpe.txt.gz").write_bytes((folder / "bpe.txt.gz").read_bytes())
    edit_config(folder, "", vocabulary=name)
    assert "no path inside the folder" in str(refusal(folder))


def test_vocabulary_that_is_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "bpe.txt.gz").rename(folder.parent / "bpe.txt.gz")
    (folder / "bpe.txt.gz").symlink_to(folder.parent / "bpe.txt.gz")
    assert "leads out of the folder" in str(refusal(folder))


def test_vocabulary_is_found_without_being_named(folder: Path) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    named = load_backbone(folder).digest
    del config["vocabulary"]
    file.write_text(json.dumps(config))
    assert load_backbone(folder).digest == named


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no gzip", "no gzipped text"),
        (gzip.compress(b"\xff\xfe"), "no gzipped text"),
        (gzip.compress(b"#\n" + b"a b\n" * 3)[:-12], "no gzipped text"),
        (gzip.compress(b"#\na b c\n"), "not a pair"),
        (gzip.compress(b"#\n\na b\n"), "not a pair"),
        (gzip.compress(b"#\na b\na b\n"), "there already"),
        (gzip.compress(b"x" * (MAX_BYTES + 1)), "unpacks to more"),
    ],
    ids=["text", "bytes", "cut", "three", "blank", "twice", "bomb"],
)
def test_vocabulary_that_is_none_is_refused(folder: Path, content: bytes, reason: str) -> None:
    (folder / "bpe.txt.gz").write_bytes(content)
    assert reason in str(refusal(folder))


# -- weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_weights_that_were_cut_short_are_refused(folder: Path, keep: int) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    assert "no whole safetensors file" in str(refusal(folder))


def test_all_faults_of_weights_come_at_once(folder: Path) -> None:
    edit_weights(
        folder,
        ln_final__bias=None,
        ln_final__extra=torch.zeros(3),
        text_projection=torch.zeros(64, 31),
        positional_embedding=torch.full((77, 64), torch.nan),
        ln_final__weight=torch.full((64,), torch.inf),
        visual__proj=torch.zeros(64, 32, dtype=torch.int8),
    )
    assert set(places(refusal(folder))) == {
        "ln_final.bias",
        "ln_final.extra",
        "ln_final.weight",
        "text_projection",
        "positional_embedding",
        "visual.proj",
    }


def test_weights_of_another_architecture_are_told_in_few_lines(folder: Path, tmp_path: Path) -> None:
    other = write_toy_backbone(tmp_path / "other", kind="resnet")
    (folder / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
    error = refusal(folder)
    assert len(error.faults) < 5
    assert "are missing" in str(error)
    assert "are not of this architecture" in str(error)


def test_weights_beside_their_config_are_loaded_with_it_or_not_at_all(folder: Path) -> None:
    assert f"name the folder, {folder}" in str(refusal(folder / WEIGHTS))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_state_dict_that_is_not_openais_is_refused(tmp_path: Path, kind: str) -> None:
    model = write_model(tmp_path / "model", openai_config(kind))
    state = load_file(model / WEIGHTS)
    file = tmp_path / "weights.safetensors"
    save_file({f"clip.{name}": tensor for name, tensor in state.items()}, file)
    assert "not OpenAI's names" in str(refusal(file))
    save_file({name: t for name, t in state.items() if name != "text_projection"}, file)
    assert "text_projection: is missing" in str(refusal(file))


@pytest.mark.parametrize(
    "vision_cfg", [{**VIT, "width": 96, "head_width": 32}, {**RESNET, "width": 5, "head_width": 32}]
)
def test_state_dict_with_heads_of_another_width_is_refused(
    tmp_path: Path, vision_cfg: dict[str, Any]
) -> None:
    model = write_model(tmp_path / "model", {**openai_config("vit"), "vision_cfg": vision_cfg})
    state = load_file(model / WEIGHTS)
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    assert "multiple of 64" in str(refusal(file))


@pytest.mark.parametrize(
    ("ids", "rows"),
    [([1, 2, 3], 2), ([1, 49408], 2), ([-1, 2], 2), ([0.5, 1.0], 2)],
    ids=["counts", "behind", "before", "fractions"],
)
def test_sparse_token_embedding_that_does_not_fit_is_refused(
    tmp_path: Path, ids: list[float], rows: int
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(
        {
            "token_embedding.used_ids": torch.tensor(ids),
            "token_embedding.used_rows": torch.zeros(rows, 64),
        },
        file,
    )
    assert places(refusal(file)) == ["token_embedding.used_rows"]


def test_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.npz"
    file.write_bytes(b"PK")
    assert ".safetensors .pt .pth .bin" in str(refusal(file))


# -- files that would execute something -------------------------------------------------------------------


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


@pytest.mark.parametrize("ending", ["pt", "bin", "pth"])
@pytest.mark.parametrize("form", ["archive", "plain pickle", "old archive"])
def test_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, form: str, ending: str) -> None:
    proof = tmp_path / "proof"
    hostile = {"visual.proj": torch.zeros(2), "x": Malice(proof)}
    file = tmp_path / f"weights.{ending}"
    if form == "plain pickle":
        file.write_bytes(pickle.dumps({"x": Malice(proof)}))
    else:
        torch.save(hostile, file, _use_new_zipfile_serialization=form == "archive")
    error = refusal(file)
    assert "restricted reader" in str(error)
    assert "weights_only=True" in str(error)
    assert not proof.exists()


def remedy(error: BackboneError) -> str:
    """The lines of the message that a user would run."""
    lines = str(error).splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip() == "import torch")
    return textwrap.dedent("\n".join(lines[first:]).removesuffix(")"))


def test_remedy_for_a_refused_checkpoint_converts_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", openai_config("vit"))
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": load_file(model / WEIGHTS), "options": Namespace(epochs=3)}, file)
    exec(remedy(refusal(file)), {})  # what a user who trusts the file would do
    assert load_backbone(tmp_path / "weights.safetensors").digest == load_backbone(model).digest


def test_torchscript_archive_is_refused_and_its_remedy_converts_it(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch discourages TorchScript in several ways
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), file)
        error = refusal(file)
        assert "TorchScript" in str(error)
        exec(remedy(error), {})
    assert set(load_file(tmp_path / "weights.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {"state_dict": {"x": 3}}, {}])
def test_checkpoint_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    assert "tensor" in str(refusal(file))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_checkpoint_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(content)
    assert str(file) in str(refusal(file))
