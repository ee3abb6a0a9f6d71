"""The adapter to open_clip: its names, its downloads, its towers.

Besides, only ``image_tokens`` knows that library: it looks into image towers.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip import factory, pretrained
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from softcpt.clip.architecture import find_config_faults, read_pixels
from softcpt.clip.bpe import BpeTokenizer
from softcpt.clip.folder import CONFIG, Source, read_config, vocabulary_name
from softcpt.clip.openai_weights import EXTRAS
from softcpt.clip.text import TextTower
from softcpt.core.errors import BackboneError, Fault, nearest
from softcpt.core.files import relative_part
from softcpt.core.pixels import PixelSpec

# Tensors that some checkpoints carry and no tower needs.
_IGNORED = (*EXTRAS, "attn_mask", "text.attn_mask", "text.transformer.embeddings.position_ids")

# Says nothing about what a loaded model computes: where it once came from, and what only training uses.
_NO_FACTS = frozenset(
    {"timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout", "output_tokens"}
    | {"pool_type", "eos_id", "pad_id", "tokenizer_kwargs"}
)


class Towers(NamedTuple):
    """A model of open_clip taken apart.

    Attributes:
        visual: pictures to features that are not normalised.
        text: the text tower.
        logit_scale: with the exponential applied.
        pixels: what the visual tower wants.
        weights: all of the model's weights in fp32, by name.
        facts: what the architecture is, apart from open_clip's defaults.
    """

    visual: nn.Module
    text: TextTower
    logit_scale: float
    pixels: PixelSpec
    weights: dict[str, Tensor]
    facts: dict[str, Any]


def default_vocabulary() -> Path:
    """CLIP's own vocabulary file."""
    return Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"


# -- names ---------------------------------------------------------------------------------------------


def list_tags(pattern: str = "*") -> list[str]:
    """The ``name/tag`` of weights that open_clip knows, that match a wildcard and can carry a prompt."""
    usable = {
        name
        for name in {name for name, _ in open_clip.list_pretrained()}
        if not _find_faults(factory.get_model_config(name))
    }
    return sorted(
        f"{name}/{tag}"
        for name, tag in open_clip.list_pretrained()
        if name in usable and fnmatch.fnmatchcase(f"{name}/{tag}", pattern)
    )


def find_tag(spec: str) -> tuple[str, str]:
    """Model name and pretrained tag, as open_clip writes them, of ``name/tag``.

    A slash inside the model's name (``ViT-B/32``) may also be a hyphen, as in open_clip.

    Raises:
        BackboneError: unknown; with the nearest names, or the tags a known model has.
    """
    name, _, tag = spec.rpartition("/")
    name = name.replace("/", "-")
    tag = tag.lower().replace("-", "_")
    known = open_clip.list_pretrained_tags_by_model(name)
    if tag in known:
        return name, tag
    whole = spec.replace("/", "-")
    without_tag = open_clip.list_pretrained_tags_by_model(whole)
    if without_tag:
        what = f"{spec!r} names a model but not which of its weights"
        fix = "write one of " + ", ".join(f"{whole}/{t}" for t in without_tag)
    elif known:
        what = f"{name} has no weights {tag!r}"
        fix = nearest(f"{name}/{tag}", [f"{name}/{t}" for t in known])
    else:
        what = f"no folder or file, and no name/pretrained-tag of open_clip, is called {spec!r}"
        close = nearest(f"{name}/{tag}" if name else spec, list_tags())
        fix = (
            close if close.startswith("did you mean") else "list_backbones() lists the names"
        ) + "; a folder is given by its path, a repository of the Hugging Face hub as hf-hub:org/model"
    raise BackboneError(Fault("backbone", what, fix), about="the backbone's name")


# -- downloads: only here, and only when the name asks for it --------------------------------------------


def fetch_tag(name: str, tag: str) -> Source:
    """Architecture and (downloaded or cached) weights of a known name and tag.

    The activation is the tag's, whatever the name's architecture says: ``ViT-B-32/openai`` is QuickGELU
    with and without ``-quickgelu`` in its name, where open_clip only warns.
    """
    config = factory.get_model_config(name)
    known = pretrained.get_pretrained_cfg(name, tag)
    config["quick_gelu"] = bool(known.get("quick_gelu", False))
    faults = _find_faults(config)
    if faults:  # before hundreds of megabytes are fetched in vain
        raise BackboneError(faults, about=f"{name}/{tag}")
    try:
        weights = Path(pretrained.download_pretrained(known))
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_fetched(f"{name}/{tag}", error) from error
    return Source(config, known, weights, resize_positions=True)


def fetch_hub(repository: str) -> Source:
    """Architecture and (downloaded or cached) weights of ``org/model`` on the Hugging Face hub."""
    name = f"hf-hub:{repository}"
    try:
        config_path = Path(pretrained.download_pretrained_from_hf(repository, filename=CONFIG))
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_fetched(name, error) from error
    config = read_config(config_path)
    faults = _find_faults(config["model_cfg"])
    wanted = vocabulary_name(config)
    if wanted is not None and not (isinstance(wanted, str) and relative_part(wanted)):
        faults.append(Fault("vocabulary", f"{wanted!r} is no path inside the repository", "ask its owner"))
    if faults:
        raise BackboneError(faults, about=name)
    try:
        weights = Path(pretrained.download_pretrained_from_hf(repository))
        vocabulary = (
            None
            if wanted is None
            else Path(pretrained.download_pretrained_from_hf(repository, filename=str(wanted)))
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_fetched(name, error) from error
    return Source(config["model_cfg"], config["preprocess_cfg"], weights, vocabulary, resize_positions=True)


def _not_fetched(name: str, error: Exception) -> BackboneError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    fix = (
        "check the name and the network; without network use a local folder with open_clip_config.json and "
        "its weights, or fill the Hugging Face cache on another machine and copy it"
    )
    return BackboneError(Fault(name, f"could not be downloaded: {reason[:300]}", fix), about="the download")


# -- towers ----------------------------------------------------------------------------------------------


def build_towers(
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: BpeTokenizer,
    about: str,
    resize_positions: bool = False,
) -> Towers:
    """The towers of an architecture, with its weights in fp32, frozen and in evaluation mode.

    Args:
        model_cfg: the architecture in open_clip's form.
        preprocess_cfg: its pixels in open_clip's form.
        tensors: the weights, of any floating type.
        tokenizer: whose ids the text tower reads.
        about: what is being loaded, for faults.
        resize_positions: fit position embeddings of another resolution, as open_clip does.

    Raises:
        BackboneError: everything that is wrong with the config, or else with the weights.
    """
    faults = _find_faults(model_cfg, eot=tokenizer.eot)
    if not faults and model_cfg["text_cfg"].get("vocab_size", CLIPTextCfg.vocab_size) != tokenizer.vocab_size:
        what = f"does not fit the vocabulary, which has {tokenizer.vocab_size} tokens"
        fix = "give the folder the vocabulary (bpe.txt.gz) it was trained with"
        faults.append(Fault("model_cfg.text_cfg.vocab_size", what, fix))
    if faults:
        raise BackboneError(faults, about=about)
    model = _build_model(model_cfg, about)
    pixels = read_pixels(preprocess_cfg, model.visual.image_size, about=about)
    model.requires_grad_(False).eval()
    _check_features(model.visual, pixels.size_px, int(model_cfg["embed_dim"]), about)
    state = _fit_names(model, tensors)
    if resize_positions and "visual.positional_embedding" in state:
        state["visual.positional_embedding"] = state["visual.positional_embedding"].float()
        open_clip.model.resize_pos_embed(state, model)
    _put_weights(model, state, about)
    return Towers(
        visual=model.visual,
        text=_read_text_tower(model),
        logit_scale=float(model.logit_scale.double().exp()),
        pixels=pixels,
        weights={name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()},
        facts=_stated_facts(model_cfg),
    )


def shapes_of(model_cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors an architecture has, by name."""
    faults = _find_faults(model_cfg)
    if faults:
        raise BackboneError(faults, about="the architecture")
    own = _build_model(model_cfg, "the architecture").state_dict()
    return {name: tuple(tensor.shape) for name, tensor in own.items()}


def _find_faults(model_cfg: Mapping[str, Any], *, eot: int | None = None) -> list[Fault]:
    return find_config_faults(
        model_cfg,
        vision_keys={field.name for field in dataclasses.fields(CLIPVisionCfg)},
        text_keys={field.name for field in dataclasses.fields(CLIPTextCfg)},
        eot=eot,
    )


def _build_model(model_cfg: Mapping[str, Any], about: str) -> Any:  # noqa: ANN401  # open_clip has no types
    config = deepcopy(dict(model_cfg))
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    is_timm = config["vision_cfg"].get("timm_model_name") is not None
    if is_timm:
        config["vision_cfg"]["timm_model_pretrained"] = False  # its own download, overwritten at once
    # Without storage a tower costs nothing until its weights come. timm's towers compute some of their
    # buffers, which are not among the weights, so those are built for real, apart from others' randomness.
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if is_timm else "meta"):
            return kind(**config)
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        fix = "compare model_cfg with open_clip's model_configs"
        what = f"open_clip cannot build this architecture: {type(error).__name__}: {error}"
        raise BackboneError(Fault("model_cfg", what, fix), about=about) from error


def _fit_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names, and scalars in the form, that the model has; as open_clip does it."""
    state = dict(factory.convert_state_dict(model, dict(tensors)))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in own and state[name].numel() == own[name].numel() == 1:
            state[name] = state[name].reshape(own[name].shape)
    if "logit_bias" in own and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros(own["logit_bias"].shape)
    for name in own:
        if name.endswith("num_batches_tracked"):  # batch norms in evaluation mode do not look at it
            state.setdefault(name, torch.zeros((), dtype=torch.long))
    return {name: tensor for name, tensor in state.items() if name in own or name not in _IGNORED}


def _put_weights(model: nn.Module, state: Mapping[str, Tensor], about: str) -> None:
    """Give the model its weights, in fp32 (whatever they are stored as, fp16 and bf16 exactly)."""
    own = model.state_dict()
    faults = [
        *_name_all(
            "missing", "the weights are of another architecture, or not whole", own.keys() - state.keys()
        ),
        *_name_all("not of this architecture", "check model_cfg", state.keys() - own.keys()),
        *(
            fault
            for name in sorted(own.keys() & state.keys())
            for fault in _find_fault(name, state[name], own[name])
        ),
    ]
    if faults:
        raise BackboneError(faults, about=f"the weights of {about}")
    # Copies, so that the file may change or go while we compute.
    whole = {
        name: state[name].to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in own.items()
    }
    model.load_state_dict(whole, strict=True, assign=True)
    model.requires_grad_(False)


def _name_all(what: str, fix: str, names: set[str]) -> Iterator[Fault]:
    # A tower of another architecture misses hundreds of tensors: one line for all of them.
    if len(names) > 8:
        listed = ", ".join(sorted(names)[:8])
        yield Fault("tensors", f"{len(names)} are {what}: {listed}, ...", fix)
    else:
        yield from (Fault(name, f"is {what}", fix) for name in sorted(names))


def _find_fault(name: str, tensor: Tensor, own: Tensor) -> Iterator[Fault]:
    if tensor.shape != own.shape:
        what = f"has shape {list(tensor.shape)}, the architecture {list(own.shape)}"
        yield Fault(name, what, "check model_cfg")
    elif tensor.is_floating_point() != own.is_floating_point() or tensor.is_complex():
        yield Fault(name, f"is stored as {tensor.dtype}", "store weights as fp32, fp16 or bf16")
    elif tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
        yield Fault(name, "holds values that are not finite", "take weights that trained to the end")


def _read_text_tower(model: nn.Module) -> TextTower:
    # open_clip's older class holds the parts of the text tower itself.
    text: Any = model.text if isinstance(model, CustomTextCLIP) else model
    projection: Any = text.text_projection
    bias: Tensor | None = None
    if isinstance(projection, nn.Linear):
        projection, bias = projection.weight.T.contiguous(), projection.bias
    return TextTower(
        token_embedding=text.token_embedding,
        positional_embedding=text.positional_embedding,
        transformer=text.transformer,
        ln_final=text.ln_final,
        projection=projection,
        projection_bias=bias,
    )


def _check_features(visual: nn.Module, size_px: int, embed_dim: int, about: str) -> None:
    """Refuse an image tower that does not give one feature of the joint size for each picture."""
    device = next(visual.parameters()).device  # "meta" where shapes are all there is: costs nothing
    with torch.no_grad():
        try:
            found = visual(torch.zeros(2, 3, size_px, size_px, device=device))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            what = f"the image tower does not take [B, 3, {size_px}, {size_px}]: {error}"
            raise BackboneError(Fault("vision_cfg", what, "check image_size"), about=about) from error
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != [2, embed_dim]:
        what = f"the image tower gives {shape} for two pictures, not [2, {embed_dim}]"
        raise BackboneError(
            Fault("vision_cfg", what, "such towers are not supported; take one that pools"), about=about
        )


def _stated_facts(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says beyond open_clip's defaults, so that new options of open_clip change nothing."""
    facts: dict[str, Any] = {
        "embed_dim": model_cfg["embed_dim"],
        "quick_gelu": bool(model_cfg.get("quick_gelu", False)),
    }
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        defaults = dataclasses.asdict(kind())
        given = model_cfg[part]
        facts[part] = {k: v for k, v in given.items() if k not in _NO_FACTS and v != defaults.get(k)}
    return facts
