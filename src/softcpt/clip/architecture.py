"""open_clip's configs, looked at before anything is built: what is wrong, and what cannot carry a prompt."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

from softcpt.clip.bpe import CLEANINGS
from softcpt.core.errors import BackboneError, Fault, nearest
from softcpt.core.pixels import Interpolation, PixelSpec, Resize

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

_MODEL_KEYS = frozenset(
    {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "multimodal_cfg"}
    | {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
)

# Far above any model, far below what would fill a machine: a config is a stranger's file.
_BOUNDS = {"layers": 256, "vocab_size": 1 << 21, "image_size": 4096}
_BOUND = 1 << 16


def find_config_faults(
    model_cfg: Mapping[str, Any],
    *,
    vision_keys: Collection[str],
    text_keys: Collection[str],
    eot: int | None = None,
) -> list[Fault]:
    """All that keeps a ``model_cfg`` from being built, or its text tower from carrying learned context.

    Args:
        model_cfg: in open_clip's form.
        vision_keys: what open_clip knows of image towers.
        text_keys: what open_clip knows of text towers.
        eot: the tokenizer's end token, if it is known already.
    """
    faults = [
        *_find_unknown("model_cfg", model_cfg, _MODEL_KEYS),
        *_find_bad_sizes("model_cfg", model_cfg, ("embed_dim",), needed=True),
    ]
    vision, text = model_cfg.get("vision_cfg"), model_cfg.get("text_cfg")
    if isinstance(vision, Mapping):
        faults += _find_unknown("model_cfg.vision_cfg", vision, vision_keys)
        faults += _find_vision_faults(vision)
    else:
        faults.append(Fault("model_cfg.vision_cfg", "is missing or no object", "see open_clip's configs"))
    if isinstance(text, Mapping):
        faults += _find_unknown("model_cfg.text_cfg", text, text_keys)
        faults += _find_bad_sizes(
            "model_cfg.text_cfg", text, ("context_length", "vocab_size", "width", "heads", "layers")
        )
        faults += _find_text_refusals(text, eot)
    else:
        faults.append(Fault("model_cfg.text_cfg", "is missing or no object", "see open_clip's configs"))
    if model_cfg.get("multimodal_cfg") is not None:
        what = "the model writes captions (CoCa): its text tower ends in a class token, not at EOT"
        faults.append(Fault("model_cfg.multimodal_cfg", what, "take a CLIP without a generating head"))
    return faults


def _find_unknown(place: str, config: Mapping[str, Any], known: Collection[str]) -> Iterator[Fault]:
    for key in config:
        if key not in known:
            yield Fault(f"{place}.{key}", "is not known to the installed open_clip", nearest(str(key), known))


def _find_bad_sizes(
    place: str, config: Mapping[str, Any], keys: Collection[str], *, needed: bool = False
) -> Iterator[Fault]:
    for key in keys:
        value, bound = config.get(key), _BOUNDS.get(key, _BOUND)
        if value is None and not needed:  # open_clip's own ResNets have "patch_size": null
            continue
        if not _is_size(value, bound):
            what = f"is {value!r}, not a whole number from 1 to {bound}" if key in config else "is missing"
            yield Fault(f"{place}.{key}", what, "see open_clip's configs")


def _is_size(value: object, bound: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= bound


def _find_vision_faults(vision: Mapping[str, Any]) -> Iterator[Fault]:
    place = "model_cfg.vision_cfg"
    yield from _find_bad_sizes(place, vision, ("width", "head_width", "patch_size"))
    size = vision.get("image_size", 224)
    sides = size if isinstance(size, list | tuple) else [size]
    if not all(_is_size(side, _BOUNDS["image_size"]) for side in sides) or not 1 <= len(sides) <= 2:
        yield Fault(f"{place}.image_size", f"is {size!r}, not a number of pixels", "see open_clip's configs")
    elif len(set(sides)) > 1:
        yield Fault(f"{place}.image_size", f"is {size!r}; only square pictures are supported", "take another")
    layers = vision.get("layers", 12)
    stages = layers if isinstance(layers, list | tuple) else [layers]
    if not all(_is_size(n, _BOUNDS["layers"]) for n in stages) or len(stages) not in (1, 4):
        yield Fault(f"{place}.layers", f"is {layers!r}, not one number or four", "see open_clip's configs")
    timm_name = vision.get("timm_model_name")
    if timm_name is not None and (not isinstance(timm_name, str) or ":" in timm_name or "/" in timm_name):
        what = f"{timm_name!r} would be looked up elsewhere, not among timm's architectures"
        yield Fault(f"{place}.timm_model_name", what, "name an architecture")


def _find_text_refusals(text: Mapping[str, Any], eot: int | None) -> Iterator[Fault]:
    """Text towers that are not causal, not pooled at EOT, or do not read CLIP's byte pairs, by name."""
    place = "model_cfg.text_cfg"
    fix = "take a backbone with CLIP's own kind of text tower, such as ViT-B-16/openai"
    if text.get("hf_model_name"):
        what = f"the text tower is the transformers model {text['hf_model_name']!r}, not a causal CLIP tower"
        yield Fault(f"{place}.hf_model_name", what, fix)
    if text.get("no_causal_mask"):
        what = "attention in the text tower is not causal: what stands behind EOT would change the features"
        yield Fault(f"{place}.no_causal_mask", what, fix)
    if text.get("embed_cls"):
        what = "the text tower ends in a class token of its own (CoCa), not at EOT"
        yield Fault(f"{place}.embed_cls", what, fix)
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        yield Fault(f"{place}.pool_type", f"the text tower is pooled by {pool!r}, not at EOT", fix)
    elif pool == "eos" and eot is not None and text.get("eos_id", 2) != eot:
        what = (
            f"the text tower is pooled at token {text.get('eos_id', 2)}, but the vocabulary ends with {eot}"
        )
        yield Fault(f"{place}.eos_id", what, fix)
    if text.get("hf_tokenizer_name"):
        what = f"texts are cut up by the tokenizer {text['hf_tokenizer_name']!r}, not by CLIP's byte pairs"
        yield Fault(f"{place}.hf_tokenizer_name", what, fix)
    if text.get("proj_type", "linear") not in ("linear", "none"):
        yield Fault(f"{place}.proj_type", f"{text['proj_type']!r} is not known", 'known: "linear", "none"')
    yield from _find_tokenizer_refusals(text.get("tokenizer_kwargs") or {})


def _find_tokenizer_refusals(arguments: object) -> Iterator[Fault]:
    place = "model_cfg.text_cfg.tokenizer_kwargs"
    if not isinstance(arguments, Mapping):
        yield Fault(place, "is no object", "see open_clip's configs")
        return
    # A reduction mask only says what to leave out of texts that are too long; those are errors here.
    for key in arguments.keys() - {"clean", "reduction_mask", "context_length", "bpe_path"}:
        yield Fault(f"{place}.{key}", "changes the tokenizer in a way that is not supported", "leave it out")
    clean = arguments.get("clean", "lower")
    if not isinstance(clean, str) or clean not in CLEANINGS:
        yield Fault(f"{place}.clean", f"{clean!r} is not known", nearest(str(clean), CLEANINGS))


def read_pixels(
    preprocess_cfg: Mapping[str, Any], image_size: int | Sequence[int], *, about: str
) -> PixelSpec:
    """What the image tower wants; values the config leaves out are OpenAI's.

    Raises:
        BackboneError: all values that are none.
    """
    given = {key: value for key, value in preprocess_cfg.items() if value is not None}
    size_px = image_size if isinstance(image_size, int) else image_size[0]
    mean, std = given.get("mean", OPENAI_MEAN), given.get("std", OPENAI_STD)
    interpolation, resize = given.get("interpolation", "bicubic"), given.get("resize_mode", "shortest")
    fill = given.get("fill_color", 0)
    checks = (
        ("mean", mean, _is_colour(mean), "three numbers"),
        ("std", std, _is_colour(std) and min(std) > 0, "three numbers above 0"),
        ("interpolation", interpolation, interpolation in get_args(Interpolation), _either(Interpolation)),
        ("resize_mode", resize, resize in get_args(Resize), _either(Resize)),
        ("fill_color", fill, fill == 0 or _is_size(fill, 255), "a grey level from 0 to 255"),
        ("mode", given.get("mode", "RGB"), given.get("mode", "RGB") == "RGB", '"RGB"'),
    )
    faults = [
        Fault(f"preprocess_cfg.{key}", f"is {value!r}", f"must be {wanted}")
        for key, value, fits, wanted in checks
        if not fits
    ]
    if faults:
        raise BackboneError(faults, about=about)
    return PixelSpec(
        size_px=int(size_px),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        interpolation=interpolation,
        resize=resize,
        fill=int(fill),
    )


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )


def _either(choice: object) -> str:
    return " or ".join(repr(name) for name in get_args(choice))
