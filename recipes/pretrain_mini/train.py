"""Trains ``softcpt-mini``: ``python -m recipes.pretrain_mini.train CORPUS --output RUN --hours 2``.

A run that was stopped goes on from its last checkpoint; started with more hours it goes on for longer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from open_clip.model import CLIP
from torch.nn.attention import SDPBackend, sdpa_kernel

from recipes.pretrain_mini.batches import Batch, Batches, Material
from recipes.pretrain_mini.captions import read_subjects
from recipes.pretrain_mini.changes import KINDS
from recipes.pretrain_mini.data import read_photos
from recipes.pretrain_mini.glyphs import draw_glyphs, find_fonts
from recipes.pretrain_mini.labels import LabelHead, frequent_labels
from recipes.pretrain_mini.losses import contrastive_loss, true_pairs
from recipes.pretrain_mini.model import build, encode_images, encode_texts, model_config
from recipes.pretrain_mini.peers import Peers
from recipes.pretrain_mini.scenes import read_scenes
from recipes.pretrain_mini.vocabulary import FastTokenizer, Merge

MAX_TOKENS = 60
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Settings:
    """What a run does; a checkpoint carries them.

    Attributes:
        hours: of training time, over which the rate rises, stays, and falls to zero.
        batch_size: pictures a step.
        rate: AdamW's, at its highest.
        weight_decay: on matrices and filters.
        warm_up: share of the hours in which the rate rises.
        fall: share of the hours in which it falls.
        logit_scale: at the start.
        captioned: share of the pictures that have a caption; all have labels.
        label_weight: of the labels' loss, beside the captions'.
        blanks: share of captions with random vectors between start token and text.
        seed: of weights and batches.
    """

    hours: float
    batch_size: int = 256
    rate: float = 1.5e-3
    weight_decay: float = 0.1
    warm_up: float = 0.05
    fall: float = 0.5
    logit_scale: float = 25.0
    captioned: float = 0.6
    label_weight: float = 0.5
    blanks: float = 0.25
    seed: int = 0


def rate_at(progress: float, settings: Settings) -> float:
    """The learning rate at a share of the hours: a straight rise, a plateau, a straight fall to zero.

    A plateau, since a checkpoint on it can be trained on for longer than was first planned.

    Example:
        >>> settings = Settings(hours=1.0, rate=1.0, warm_up=0.1, fall=0.5)
        >>> [round(rate_at(progress, settings), 2) for progress in (0.05, 0.3, 0.75, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    rising = progress / settings.warm_up if settings.warm_up else 1.0
    return settings.rate * max(0.0, min(1.0, rising, (1.0 - progress) / settings.fall))


class Run:
    """Model, optimiser and counters."""

    def __init__(
        self,
        settings: Settings,
        merges: Sequence[Merge],
        model_cfg: dict[str, Any],
        labels: Mapping[str, float],
    ) -> None:
        self.settings, self.merges, self.model_cfg = settings, list(merges), model_cfg
        self.model: CLIP = build(model_cfg, seed=settings.seed, logit_scale=settings.logit_scale)
        self.head = LabelHead(list(labels), list(labels.values()), model_cfg["embed_dim"])
        matrices = [p for name, p in self.model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim < 2 or "embedding" in name]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay},
             {"params": others, "weight_decay": 0.0},
             {"params": list(self.head.parameters()), "weight_decay": 0.0}],
            lr=settings.rate, betas=(0.9, 0.98), eps=1e-6,
        )  # fmt: skip
        self.tokenize = FastTokenizer(merges)
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the hours that is over."""
        return self.seconds / (3600 * self.settings.hours)

    def train_step(self, batch: Batch, peers: Peers | None = None) -> float:
        """One step on one batch, or on one's part of it beside peers; the captions' loss."""
        peers = peers or Peers()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.progress, self.settings)
        noise = torch.Generator().manual_seed(self.step * peers.number + peers.rank)
        n_captions = round(self.settings.captioned * len(batch.captions))
        chosen = draw_captioned(batch.hard, n_captions, noise)
        captions = [_fitted(self.tokenize(batch.captions[i].text)) for i in chosen]
        blanks = draw_blanks(captions, self.settings.blanks, noise)
        # The plain attention is the faster one for sequences as short as these.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            images = encode_images(self.model, batch.images)
            texts = encode_texts(self.model, captions, blanks, noise)
        has = peers.gather_sets(batch.has)
        is_true = true_pairs(has, peers.gather_sets([batch.captions[i].needs for i in chosen]))
        scale = self.model.logit_scale.exp()
        loss = contrastive_loss(peers.gather(images), peers.gather(texts), scale, is_true)
        told = loss.detach()
        loss = loss + self.settings.label_weight / peers.number * self.head.loss(images, batch.has)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.model.logit_scale.grad is not None  # the loss has it
        self.model.logit_scale.grad /= peers.number  # everybody's is the whole
        peers.sum_gradients([*self.model.parameters(), *self.head.parameters()])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log().item())
        self.step += 1
        return float(told)

    def save(self, file: Path) -> None:
        """Write the whole state, or nothing."""
        state = {
            "settings": asdict(self.settings), "merges": [" ".join(merge) for merge in self.merges],
            "model_cfg": self.model_cfg, "model": self.model.state_dict(), "head": self.head.state_dict(),
            "labels": self.head.labels,
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        part = file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, file)  # noqa: PTH105  # atomic on every system

    @classmethod
    def load(cls, file: Path, **changed: float) -> Run:
        """The run of a checkpoint, with some settings changed."""
        state = torch.load(file, weights_only=True)
        settings = Settings(**{**state["settings"], **changed})
        first, second = (
            zip(*(line.split(" ") for line in state["merges"]), strict=True) if state["merges"] else ((), ())
        )
        labels = dict(zip(state["labels"], state["head"]["rarity"].tolist(), strict=True))
        run = cls(settings, list(zip(first, second, strict=True)), state["model_cfg"], labels)
        run.model.load_state_dict(state["model"])
        run.head.load_state_dict(state["head"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.seconds = state["step"], state["seconds"]
        return run


def _fitted(ids: list[int]) -> list[int]:
    """A caption within the longest length; only a few very long sentences are cut."""
    return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]


def draw_captioned(hard: Sequence[bool], n: int, rng: torch.Generator) -> list[int]:
    """Which pictures of a batch get a caption: first those that only context words tell apart, then any."""
    order = torch.randperm(len(hard), generator=rng).tolist()
    return sorted(sorted(order, key=lambda i: not hard[i])[:n])


def draw_blanks(captions: Sequence[Sequence[int]], share: float, rng: torch.Generator) -> list[int]:
    """How many random vectors stand before each caption: mostly none, else up to 16."""
    some = torch.rand(len(captions), generator=rng) < share
    n = torch.randint(1, 17, (len(captions),), generator=rng)
    return [
        min(k, MAX_TOKENS - len(ids)) if is_some else 0
        for k, is_some, ids in zip(n.tolist(), some.tolist(), captions, strict=True)
    ]


def train(
    run: Run, batches: Batches, folder: Path, *, save_every_s: float, steps: int | None, peers: Peers
) -> None:
    """Train until the hours are over or the steps are made; checkpoints and a log go to ``folder``."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stop.append(n))
    is_first = peers.rank == 0
    saved, losses, since, is_over = time.monotonic(), [], time.monotonic(), False
    run.model.train()
    while run.progress < 1 and not is_over and (steps is None or run.step < steps):
        started = time.monotonic()
        falling = run.progress >= 1 - run.settings.fall
        losses.append(run.train_step(batches[run.step * peers.number + peers.rank], peers))
        run.seconds, is_over = peers.agree(run.seconds + time.monotonic() - started, stop=bool(stop))
        if not is_first:
            continue
        if not falling and run.progress >= 1 - run.settings.fall:
            run.save(folder / "before_fall.pt")
        if run.step % 50 == 0:
            now = time.monotonic()
            _log(
                folder, run, sum(losses) / len(losses), len(losses) * run.settings.batch_size / (now - since)
            )
            losses, since = [], now
        if time.monotonic() - saved > save_every_s:
            run.save(folder / "last.pt")
            saved = time.monotonic()
    if is_first:
        run.save(folder / "last.pt")


def _log(folder: Path, run: Run, loss: float, images_per_s: float) -> None:
    line = {
        "step": run.step, "progress": round(run.progress, 4), "loss": round(loss, 4),
        "logit_scale": round(float(run.model.logit_scale.detach().exp()), 2),
        "rate": run.optimizer.param_groups[0]["lr"], "images_per_s": round(images_per_s, 1),
        "time": time.strftime("%H:%M:%S"),
    }  # fmt: skip
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_material(corpus: Path, cache: Path, fonts: Sequence[Path]) -> Material:
    """All that is at hand: photographs, signs in the fonts that were found, scenes if they were drawn."""
    photos = read_photos(corpus, cache)
    files = find_fonts(fonts)
    return Material(photos, read_subjects(photos), draw_glyphs(files) if files else None, read_scenes(cache))


def labels_of_material(material: Material) -> dict[str, float]:
    """Frequent facts of photographs and scenes, all changes, all signs."""
    pictures: list[Iterable[str]] = [subject.facts for subject in material.subjects]
    if material.scenes:
        pictures += material.scenes.captions
    labels = frequent_labels(pictures)
    rarity = max(labels.values(), default=1.0)
    signs = {fact for facts in material.glyphs.facts for fact in facts} if material.glyphs else set()
    return {**dict.fromkeys(sorted(signs | {kind.words.fact for kind in KINDS}), rarity), **labels}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder with captions.tsv and its shards")
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of unpacked pictures and drawn scenes"
    )
    parser.add_argument("--vocabulary", type=Path, help="bpe.txt.gz to start with (see vocabulary.py)")
    parser.add_argument("--fonts", type=Path, nargs="*", default=[], help="folders with .ttf files")
    parser.add_argument(
        "--hours", type=float, required=True, help="of training in all, earlier parts included"
    )
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--blanks", type=float, help=f"share of captions with them ({Settings.blanks})")
    parser.add_argument("--label-weight", type=float, help=f"of the labels' loss ({Settings.label_weight})")
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="one for each core")
    parser.add_argument("--save-every", type=float, default=300, help="seconds")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if args.processes == 1:
        _work(0, args, port)
    else:
        mp.spawn(_work, (args, port), args.processes)  # type: ignore[attr-defined, no-untyped-call]


def _work(rank: int, args: argparse.Namespace, port: int) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    peers = Peers(rank, args.processes, port)
    last = args.output / "last.pt"
    material = read_material(args.corpus, args.cache, args.fonts)
    given = {"blanks": args.blanks, "label_weight": args.label_weight}
    given = {"hours": args.hours, **{name: value for name, value in given.items() if value is not None}}
    if last.exists():
        run = Run.load(last, **given)
    else:
        from softcpt.clip.bpe import MAX_MERGES, merges_of

        merges = merges_of(args.vocabulary, MAX_MERGES)
        settings = Settings(batch_size=args.batch_size, **given)
        run = Run(settings, merges, model_config(512 + len(merges) + 2), labels_of_material(material))
    batches = Batches(material, size=run.settings.batch_size // peers.number, seed=run.settings.seed)
    train(run, batches, args.output, save_every_s=args.save_every, steps=args.steps, peers=peers)


if __name__ == "__main__":
    main()
