"""Where methods are checked: two drawn tasks, a toy CLIP, and the trainings that checks ask for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.clip.toy import write_toy_backbone
from softcpt.data.drawn import draw_suite
from softcpt.data.record import Suite
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.adapter import read_adapter, restore_classifier, write_adapter
from softcpt.engine.config import EncoderConfig
from softcpt.engine.features import ImageFeatures
from softcpt.engine.prepare import Prepared, prepare_run
from softcpt.engine.train import learn
from softcpt.methods.base import Classifier, Method, Stage

TASKS = ("shape", "pattern")

QUICK = {"epochs": 2, "views": 2, "batch_size": 4, "warmup_epochs": 0, "lr": 0.02}
"""Training settings of methods that the loop trains; what is given to the checks goes before."""


@dataclass(frozen=True)
class Bench:
    """What methods are checked on.

    Attributes:
        suite: two small tasks, each image with its part.
        spoilt: the same with test images that cannot be read.
        backbone: a toy CLIP, never trained on itself: every training has a copy.
        scratch: for files that are needed for a moment.
    """

    suite: Suite
    spoilt: Suite
    backbone: Backbone
    scratch: Path

    @property
    def one(self) -> Suite:
        """The last task alone."""
        t = len(self.suite.tasks) - 1
        records = [replace(record, task=0) for record in self.suite.records if record.task == t]
        return replace(self.suite, tasks=self.suite.tasks[t:], records=tuple(records))


@contextmanager
def open_bench() -> Iterator[Bench]:
    """Draw the suite and the toy CLIP into a folder that is there while the block runs."""
    with tempfile.TemporaryDirectory(prefix="softcpt-") as name:
        folder = Path(name)
        draw_suite(folder / "suite", tasks=TASKS, images_per_class=6, size_px=32)
        suite = load_suite(folder / "suite")
        parts = split_suite(suite, seed=0).parts
        records = [replace(r, part=part) for r, part in zip(suite.records, parts, strict=True)]
        shutil.copytree(folder / "suite", folder / "spoilt")
        spoilt = [replace(r, path=folder / "spoilt" / r.relative) for r in records]
        for record in spoilt:
            if record.part == "test":
                record.path.write_bytes(b"not to be looked at: " + record.relative.encode())
        toy = write_toy_backbone(folder / "toy", text_width=32, text_layers=1, n_merges=300)
        scratch = folder / "scratch"
        scratch.mkdir()
        yield Bench(
            replace(suite, records=tuple(records)),
            replace(suite, root=folder / "spoilt", source=folder / "spoilt", records=tuple(spoilt)),
            load_backbone(toy),
            scratch,
        )


class Trial:
    """A method on the bench: its trainings, each made when a check asks for it.

    Args:
        method: what is checked.
        bench: on what.
        settings: keys and values for all trainings.
    """

    def __init__(self, method: Method, bench: Bench, settings: Mapping[str, Any]) -> None:
        self.method, self.bench, self.settings = method, bench, settings
        self.features = ImageFeatures(deepcopy(bench.backbone), kind=method.image_features)

    def train(self, suite: Suite | None = None, **keys: Any) -> Prepared:  # noqa: ANN401  checked as settings
        """A run on a fresh copy of the backbone, trained in memory."""
        quick = QUICK if self.method.trains else {}
        given = {"method": self.method.key, "shots": 2, "device": "cpu", **quick, **self.settings, **keys}
        backbone = deepcopy(self.bench.backbone)
        prepared = prepare_run(suite or self.bench.suite, backbone, given, given_by="the checks")
        learn(prepared, self.features)
        prepared.classifier.eval()
        return prepared

    @cached_property
    def trained(self) -> Prepared:
        """The training that others are compared with."""
        return self.train()

    @cached_property
    def alone(self) -> Prepared:
        """A training on the last task alone."""
        return self.train(self.bench.one)

    @cached_property
    def restored(self) -> Classifier:
        """The trained classifier, written and read again."""
        return self.restore(self.trained.settings.encoder)

    def restore(self, encoder: EncoderConfig) -> Classifier:
        """The trained classifier from its files, on a fresh copy of the backbone."""
        run = self.trained
        samples = {
            part: [{"task": run.suite.tasks[record.task].name} for record in getattr(run.plan.samples, part)]
            for part in ("train", "val")
        }
        write_adapter(
            self.bench.scratch,
            run.classifier,
            settings=run.settings,
            suite=run.suite,
            backbone=run.backbone,
            samples=samples,
            extra={"regenerated": run.classifier.regenerated()},
        )
        adapter = read_adapter(self.bench.scratch)
        adapter = replace(adapter, settings=replace(adapter.settings, encoder=encoder))
        return restore_classifier(adapter, deepcopy(self.bench.backbone))

    @cached_property
    def images(self) -> list[Tensor]:
        """Features of each task's test images [B, D], or with regions [B, 1 + r, D]."""
        suite = self.bench.suite
        test = [record for record in suite.records if record.part == "test"]
        return [self.features.centres([r for r in test if r.task == t]) for t in range(len(suite.tasks))]

    def scores(self, classifier: Classifier) -> list[Tensor]:
        """Those of each task's test images [B, C]."""
        with torch.no_grad():
            score = classifier.scorer()
            return [score(images, t) for t, images in enumerate(self.images)]

    def losses(self, run: Prepared, stage: Stage) -> tuple[Tensor, ...]:
        """One batch's, of all training images that a stage sees."""
        own = [r for r in run.plan.samples.train if stage.task in (None, r.task)]
        first = [0] * len(run.suite.tasks) if stage.task is not None else run.classifier.problem.first_column
        columns = torch.tensor([first[record.task] + record.label for record in own])
        rng = torch.Generator().manual_seed(0)
        return stage.classifier.losses(self.features.centres(own), columns, rng=rng)
