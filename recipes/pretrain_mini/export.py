"""A checkpoint -> a backbone folder: ``python -m recipes.pretrain_mini.export last.pt TO --suites ...``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from recipes.pretrain_mini.batches import to_images
from recipes.pretrain_mini.model import MEAN, STD, encode_images, encode_texts
from recipes.pretrain_mini.train import Run
from softcpt.clip.bpe import vocabulary_bytes
from softcpt.clip.folder import CONFIG, VOCABULARY
from softcpt.data.suite import load_suite

WEIGHTS = "open_clip_model.safetensors"
TEXT_NORM = 10.0
"""Mean norm of raw text features, near released CLIPs': SoftCPT's contexts scale with it, scores do not."""


def export(
    run: Run,
    folder: Path,
    prompts: Sequence[str],
    *,
    logit_scale: float | None = None,
    word_size: float | None = None,
) -> None:
    """Write config, weights in fp16 and vocabulary.

    Args:
        run: what was trained.
        folder: is made.
        prompts: get the mean norm 10 from the text projection's scale.
        logit_scale: instead of the learned one. It changes no ranking of classes, but how fast prompts learn.
        word_size: the root mean square of token embeddings, see :func:`scale_words`; None leaves them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in run.model.state_dict().items()
        if not name.endswith(("num_batches_tracked", "attn_mask"))
    }
    tensors["text_projection"] *= TEXT_NORM / float(raw_norms(run, prompts).mean())
    if word_size is not None:
        scale_words(tensors, word_size)
    if logit_scale is not None:
        tensors["logit_scale"].fill_(math.log(logit_scale))
    save_file({name: t.to(torch.float16).contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    config = {
        "model_cfg": run.model_cfg,
        "preprocess_cfg": {
            "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest",
        },
        "vocabulary": VOCABULARY,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / VOCABULARY).write_bytes(vocabulary_bytes(run.merges))


def scale_words(tensors: dict[str, Tensor], size: float) -> None:
    """Give token embeddings this root mean square without changing what the text tower says.

    Every block reads the residual stream through a layer norm, so all that is written into it (embeddings,
    positions, the blocks' outputs) can be multiplied by one number. Learned contexts lie in that stream:
    where words are small, a context starts larger beside them, and a step at one rate goes further.
    """
    factor = size / float(tensors["token_embedding.weight"].square().mean().sqrt())
    written = ("attn.out_proj.weight", "attn.out_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    for name, tensor in tensors.items():
        in_block = name.startswith("transformer.resblocks.") and name.endswith(written)
        if in_block or name in ("token_embedding.weight", "positional_embedding"):
            tensor *= factor


@torch.no_grad()
def settle_norms(run: Run, photos: NDArray[np.uint8], *, batches: int = 40, size: int = 128) -> None:
    """Take the batch norms' means and variances anew, from photographs as they are.

    Training averages them over its mixture of crops, changed pictures, scenes and letters; what the model is
    used for are whole photographs.
    """
    rng = np.random.default_rng(run.settings.seed)
    norms = [module for module in run.model.visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    run.model.train()
    for _ in range(batches):
        chosen = np.sort(rng.choice(len(photos), min(size, len(photos)), replace=False))
        encode_images(run.model, to_images(photos[chosen]))
    run.model.eval()


@torch.no_grad()
def raw_norms(run: Run, prompts: Sequence[str]) -> Tensor:
    """Norms of text features before they are normalised, [n]."""
    run.model.eval()
    ids = [run.tokenize(prompt) for prompt in prompts]
    features = encode_texts(run.model, ids, [0] * len(ids), torch.Generator(), normalise=False)
    norms: Tensor = features.norm(dim=1)
    return norms


def class_prompts(suites: Sequence[Path]) -> list[str]:
    """The zero-shot prompts of all classes of some suites."""
    return [
        task.template.replace("{}", name)
        for folder in suites
        for task in load_suite(folder, check_images=False).tasks
        for name in task.classes
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--suites", type=Path, nargs="+", required=True, help="whose class prompts set the norm"
    )
    parser.add_argument("--word-size", type=float, help="root mean square of token embeddings")
    parser.add_argument("--logit-scale", type=float, help="instead of the learned one")
    parser.add_argument(
        "--settle", type=Path, metavar="CACHE", help="settle the norms on the photographs there"
    )
    args = parser.parse_args()
    prompts, run = class_prompts(args.suites), Run.load(args.checkpoint)
    if args.settle:
        settle_norms(run, np.load(args.settle / "photos.npy", mmap_mode="r"))
    export(run, args.folder, prompts, logit_scale=args.logit_scale, word_size=args.word_size)


if __name__ == "__main__":
    main()
