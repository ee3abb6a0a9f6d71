"""Backbone: the few things we ask of any CLIP, and how a name becomes one."""

from __future__ import annotations

import copy
import fnmatch
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softcpt.clip import open_clip as adapter
from softcpt.clip.bpe import CLEANINGS, BpeTokenizer, read_vocabulary
from softcpt.clip.folder import CONFIG, Source, read_folder
from softcpt.clip.image_tokens import count_regions, encode_tokens, has_attention_pool
from softcpt.clip.openai_weights import read_architecture, whole_token_embedding
from softcpt.clip.own import list_own, own_folder
from softcpt.clip.text import TextTower
from softcpt.clip.tokens import Tokenizer
from softcpt.clip.weights import SUFFIXES, read_weights
from softcpt.core.errors import BackboneError, Fault, nearest
from softcpt.core.pixels import PixelSpec

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP.

    Attributes:
        name: what it was asked for by: ``mini``, ``ViT-B-16/openai``, ``hf-hub:org/model``, or an absolute
            path.
        digest: SHA-256 of weights, architecture, pixels and vocabulary; the same wherever the weights lie
            and in whatever precision they are stored, as long as that holds their values.
        pixels: what its pictures look like.
        tokenizer: its vocabulary.
        text: its text tower, frozen, in evaluation mode.
        visual: [B, 3, S, S] -> [B, D], frozen, in evaluation mode; features are not normalised.
        logit_scale: what cosines are multiplied with, about 100 for released models.
        description: one line for people.
    """

    name: str
    digest: str
    pixels: PixelSpec
    tokenizer: Tokenizer
    text: TextTower
    visual: nn.Module
    logit_scale: float
    description: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text.device

    @property
    def embed_dim(self) -> int:
        """D, the size of the joint embedding."""
        return self.text.embed_dim

    @property
    def text_width(self) -> int:
        """W, the size of a token's embedding."""
        return self.text.width

    @property
    def n_regions(self) -> int | None:
        """r, the regions of an image that have features of their own; None where the tower gives none."""
        return count_regions(self.visual)

    @property
    def regions_are_pooled(self) -> bool:
        """Whether regions go through the very pooling that makes an image's feature (a ResNet's)."""
        return has_attention_pool(self.visual)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Backbone:
        """The same backbone elsewhere or in another precision; this one stays as it is."""
        return replace(self, text=_moved(self.text, device, dtype), visual=_moved(self.visual, device, dtype))

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Image features, not normalised, without gradients."""
        features: Tensor = self.visual(images.to(self.device, self.text.dtype))
        return features

    @torch.no_grad()
    def encode_image_tokens(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B t D"]:
        """The features of images, and behind each those of its regions, row by row; as above.

        Raises:
            TypeError: the tower gives none (:attr:`n_regions` is None).
        """
        return encode_tokens(self.visual, images.to(self.device, self.text.dtype))


def load_backbone(spec: str | Path, *, device: torch.device | str = "cpu") -> Backbone:
    """The backbone of a name or path, in fp32.

    Args:
        spec: ``mini``, the small CLIP that the package carries; a folder with ``open_clip_config.json`` and
            weights, a file with weights in OpenAI's names, ``name/pretrained-tag`` of open_clip (see
            :func:`list_backbones`), or ``hf-hub:org/model``. Only the last two ever use the network. A
            prefix says which is meant where a name could be both: ``local-dir:`` for folders and
            ``open-clip:`` for names.
        device: where its weights go.

    Raises:
        BackboneError: all that is wrong with the name, or with the config, or with the weights.

    Example:
        >>> load_backbone("ViT-B-16/openai")  # doctest: +SKIP
    """
    kind, name = _read_spec(spec)
    if kind == "own":
        folder = own_folder(name)
        assert folder is not None  # else it would have been taken for something else
        backbone = _load_source(read_folder(folder), name)
    elif kind == "folder":
        backbone = _load_source(read_folder(Path(name)), name)
    elif kind == "file":
        backbone = _load_openai(Path(name))
    elif kind == "hub":
        backbone = _load_source(adapter.fetch_hub(name), f"hf-hub:{name}")
    else:
        model, tag = adapter.find_tag(name)
        backbone = _load_source(adapter.fetch_tag(model, tag), f"{model}/{tag}")
    return backbone.to(device)


def list_backbones(pattern: str = "*") -> list[str]:
    """The package's own backbones and open_clip's ``name/pretrained-tag`` that match, such as ``"ViT-B-*"``.

    Names of models whose text tower cannot carry a prompt (SigLIP, CoCa, ...) are left out.

    Example:
        >>> list_backbones("RN50/o*")
        ['RN50/openai']
    """
    return [*fnmatch.filter(list_own(), pattern), *adapter.list_tags(pattern)]


def _read_spec(spec: str | Path) -> tuple[str, str]:
    """Kind (own, folder, file, hub, tag) and the name or absolute path of what is asked for."""
    text = str(spec)
    if isinstance(spec, str) and own_folder(text) is not None:
        return "own", text  # whatever lies in the working directory: "./mini" is that
    for prefix, kind in (("hf-hub:", "hub"), ("open-clip:", "tag")):
        if isinstance(spec, str) and text.startswith(prefix):
            return kind, text.removeprefix(prefix)
    is_path = isinstance(spec, Path) or text.startswith("local-dir:")
    path = Path(text.removeprefix("local-dir:")).expanduser()
    if text.strip() and _is_there(path):
        if not is_path and text in adapter.list_tags():
            raise BackboneError(
                Fault("backbone", f"{text!r} is a path here and a name of open_clip",
                      f"write local-dir:{text} or open-clip:{text}"),
                about="the backbone's name",
            )  # fmt: skip
        return "folder" if path.is_dir() else "file", str(path.resolve())
    looks_like_path = text.startswith(("/", "./", "../", "~")) or path.suffix in SUFFIXES
    if is_path or looks_like_path:
        parent = path.absolute().parent
        near = nearest(path.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else ""
        fix = near if near.startswith("did you mean") else "check the path"
        raise BackboneError(Fault("backbone", f"no folder or file {path}", fix), about="the backbone's name")
    return "tag", text


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name a file could have
        return False


def _load_source(source: Source, name: str) -> Backbone:
    weights = read_weights(source.weights)
    return assemble_backbone(
        name,
        source.model_cfg,
        source.preprocess_cfg,
        whole_token_embedding(weights.tensors, weights.metadata),
        vocabulary=source.vocabulary,
        resize_positions=source.resize_positions,
    )


def _load_openai(path: Path) -> Backbone:
    if (path.parent / CONFIG).exists():
        # Its config may say another activation than OpenAI's, which the weights cannot tell.
        fault = Fault("backbone", f"{path} lies beside its {CONFIG}", f"name the folder, {path.parent}")
        raise BackboneError(fault, about="the backbone's name")
    weights = read_weights(path)
    tensors = whole_token_embedding(weights.tensors, weights.metadata)
    return assemble_backbone(str(path), read_architecture(tensors), {}, tensors)


def assemble_backbone(
    name: str,
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    vocabulary: Path | BpeTokenizer | None = None,
    resize_positions: bool = False,
) -> Backbone:
    """A backbone of parts in memory.

    Args:
        name: what it is called.
        model_cfg: the architecture, in open_clip's form.
        preprocess_cfg: its pixels, in open_clip's form.
        tensors: its weights by open_clip's or OpenAI's names.
        vocabulary: its own; CLIP's without.
        resize_positions: fit position embeddings of another resolution to the architecture.

    Raises:
        BackboneError: all that is wrong with the config, or else with the weights.
    """
    tokenizer = _tokenizer_for(model_cfg, vocabulary)
    towers = adapter.build_towers(
        model_cfg, preprocess_cfg, tensors,
        tokenizer=tokenizer, about=name, resize_positions=resize_positions,
    )  # fmt: skip
    facts = {**towers.facts, "pixels": asdict(towers.pixels), "vocabulary": tokenizer.digest}
    n_weights = sum(tensor.numel() for tensor in towers.weights.values())
    activation = "QuickGELU" if towers.facts["quick_gelu"] else "GELU"
    return Backbone(
        name=name,
        digest=digest_of_weights(towers.weights, facts),
        pixels=towers.pixels,
        tokenizer=tokenizer,
        text=towers.text,
        visual=towers.visual,
        logit_scale=towers.logit_scale,
        description=(
            f"{name}: {type(towers.visual).__name__}, {towers.pixels.size_px} px, embedding "
            f"{towers.text.embed_dim}, text width {towers.text.width}, {activation}, "
            f"{n_weights / 1e6:.1f} million weights, logit scale {towers.logit_scale:.1f}"
        ),
    )


def _tokenizer_for(model_cfg: Mapping[str, Any], vocabulary: Path | BpeTokenizer | None) -> BpeTokenizer:
    if isinstance(vocabulary, BpeTokenizer):
        return vocabulary
    text_cfg = model_cfg.get("text_cfg")
    arguments = text_cfg.get("tokenizer_kwargs") if isinstance(text_cfg, Mapping) else None
    clean = arguments.get("clean", "lower") if isinstance(arguments, Mapping) else "lower"
    if not isinstance(clean, str) or clean not in CLEANINGS:
        clean = "lower"  # a fault of the config, told with its other faults
    return _default_tokenizer(clean) if vocabulary is None else read_vocabulary(vocabulary, clean=clean)


@functools.cache
def _default_tokenizer(clean: str) -> BpeTokenizer:
    return read_vocabulary(adapter.default_vocabulary(), clean=clean)


def digest_of_weights(weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts and of named tensors, whose floating values count as fp32.

    Counters of batch norms are left out: some formats drop them, and nothing depends on them.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = weights[name].detach().cpu()
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
        digest.update(f"\n{name}{list(tensor.shape)}".encode())
        # The tensor's own memory, without a copy: hashing 600 MB should cost the hashing alone.
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()


def _moved(module: Module, device: torch.device | str | None, dtype: torch.dtype | None) -> Module:
    """A copy of a frozen module elsewhere; tensors that need no change are shared with the original."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to(device=device, dtype=dtype), requires_grad=False)
    for buffer in module.buffers():
        # Counters and index tables keep their type.
        memo[id(buffer)] = buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else None)
    return copy.deepcopy(module, memo)
