"""Small text towers in which nothing is at its start value, and prompts of many shapes."""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from softcpt.clip.backbone import assemble_backbone
from softcpt.clip.bpe import BpeTokenizer, merges_of
from softcpt.clip.open_clip import default_vocabulary, shapes_of
from softcpt.clip.tokens import NamePrompts, name_prompts
from softcpt.methods.prompts import encode_plainly

N_MERGES = 2000
WIDTH = 64
VISION = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 32, "layers": 1}
TEXT = {"context_length": 77, "vocab_size": 512 + N_MERGES + 2, "width": WIDTH, "heads": 2}

TOWERS = {
    "quick gelu": {"quick_gelu": True},
    "gelu": {},
    "tanh gelu": {"text_cfg": {"act_kwargs": {"approximate": "tanh"}}},
    "layer scale": {"text_cfg": {"ls_init_value": 0.5}},
    "many heads, a narrow MLP, another epsilon": {
        "quick_gelu": True,
        "text_cfg": {"heads": 8, "mlp_ratio": 2.0, "norm_kwargs": {"eps": 1e-2}},
    },
    "no projection": {"embed_dim": WIDTH, "text_cfg": {"proj_type": "none"}},
    "biased projection": {"custom_text": True, "text_cfg": {"proj_bias": True}},
    "blocks of another kind": {"text_cfg": {"qk_norm": True, "scale_attn": True}},
}


@cache
def tokenizer():
    return BpeTokenizer(merges_of(default_vocabulary(), N_MERGES))


def build_backbone(kind="quick gelu", layers=3, dtype=torch.float64):
    """A backbone of its own, whose weights a test may change."""
    config = {"embed_dim": 24, **TOWERS[kind], "vision_cfg": VISION}
    config["text_cfg"] = {**TEXT, "layers": layers, **TOWERS[kind].get("text_cfg", {})}
    generator = torch.Generator().manual_seed(7)
    weights = {name: draw(name, shape, generator) for name, shape in shapes_of(config).items()}
    return assemble_backbone(kind, config, {}, weights, vocabulary=tokenizer()).to(dtype=dtype)


def draw(name, shape, generator):
    normal = torch.randn(shape, generator=generator)
    if name == "logit_scale":
        return torch.full(shape, 3.0)
    if name.endswith("bias"):
        return 0.3 * normal
    if "embedding" in name:
        return 0.5 * normal
    if len(shape) == 1:  # gains
        return 1 + 0.3 * normal
    return normal / shape[-1] ** 0.5


@cache
def backbone(kind="quick gelu", layers=3, dtype=torch.float64):
    return build_backbone(kind, layers, dtype)


def tower(kind="quick gelu", layers=3, dtype=torch.float64):
    """Shared between tests, which leave it as it is."""
    return backbone(kind, layers, dtype).text


ANIMALS = "lion tiger bear horse cow pig hen duck goose fish ant bee"
MANY = [f"{a} {b}" for a in ("great", "baby", "old") for b in ANIMALS.split()]

# names, and the task of each
SUITES = {
    "ragged": (
        ["x", "baby carriage", "a very long name of many words that goes on (really)", "sea-lion", "cat"],
        [0, 0, 0, 1, 1],
    ),
    "one class": (["apple pie"], [0]),
    "one task": (["apple", "cat", "great white shark", "baby"], [0, 0, 0, 0]),
    "a task of one class": (["apple", "cat", "dog", "shark", "baby"], [0, 0, 1, 2, 2]),
    "duplicates": (["apple", "cat", "apple", "cat", "apple", "dog"], [0, 0, 0, 0, 1, 1]),
    "prefixes": (["baby", "baby grand", "baby grand piano", "a", "baby carriage", "a baby"], [0] * 6),
    "many classes": ([*MANY, "great", "apple", "old sea"], [0] * 24 + [1] * 12 + [2] * 3),
}

OWNERS = ("one", "task", "class")


class Case(NamedTuple):
    """Prompts, the contexts put into them, and whose each is."""

    prompts: NamePrompts
    context: torch.Tensor
    owner: torch.Tensor


def build_prompts(names, n_context, position="end"):
    return name_prompts(
        names, tokenizer=tokenizer(), context_length=77, n_context=n_context, position=position
    )


@cache
def build_case(suite="ragged", position="end", owners="task", n_context=4, *, dtype=torch.float64, seed=1):
    """The same object each time, so that its plans are found again."""
    names, tasks = SUITES[suite]
    owner = {
        "one": torch.zeros(len(names), dtype=torch.long),
        "task": torch.tensor(tasks),
        "class": torch.arange(len(names)),
    }[owners]
    context = drawn(int(owner.max()) + 1, n_context, WIDTH, seed=seed).to(dtype)
    return Case(build_prompts(names, n_context, position), context, owner)


def full_length(prompts):
    """The same prompts with all 77 positions."""
    room = 77 - prompts.ids.shape[1]
    ids = torch.nn.functional.pad(prompts.ids, (0, room))
    slot = torch.nn.functional.pad(prompts.slot, (0, room), value=-1)
    return NamePrompts(ids, slot, prompts.end, prompts.n_context)


def encode_alone(text, case, context, selected=None):
    """Each prompt by itself: what the fast encoder is held to."""
    if selected is None:
        return encode_plainly(text, case.prompts, context, case.owner)
    return encode_plainly(text, case.prompts.rows_of(selected), context, case.owner[selected])


def encode_shared(encoder, case, context, selected=None):
    owner = case.owner if selected is None else case.owner[selected]
    return encoder.encode(case.prompts, context, owner, selected)


def logits_of(features):
    """Cosines with a few images, times CLIP's scale."""
    images = drawn(5, features.shape[1]).to(features)
    return 100 * F.normalize(images) @ F.normalize(features).T


def loss_of(features):
    """Something that looks at every direction of every feature, unevenly."""
    return (logits_of(features) * drawn(5, len(features)).to(features)).sum() / 30


def run(encode, which, case, selected=None):
    """Features and the gradient of a loss, by one of the two ways above."""
    context = case.context.clone().requires_grad_()
    features = encode(which, case, context, selected)
    loss_of(features).backward()
    return features.detach(), context.grad


def drawn(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def off(ours, reference):
    """Largest difference, relative to the largest number; infinite if anything is not finite."""
    assert ours.shape == reference.shape
    if reference.numel() == 0:
        return 0.0
    ours, reference = ours.detach().double(), reference.detach().double()
    if not bool(torch.isfinite(ours).all()):
        return float("inf")
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-300))
