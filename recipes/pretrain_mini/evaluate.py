"""What a backbone scores on suites: ``python -m recipes.pretrain_mini.evaluate BACKBONE SUITE ...``.

Everything is scored on the val part while a recipe is worked on; ``--test`` looks at the test part, once,
when the weights are final. The linear probe's regularisation is chosen on val, so on val its score is a
little too good: right for comparing two backbones, not for reporting.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # its usual name
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.data.draw import draw_samples
from softcpt.data.record import Record, Suite
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.features import ImageFeatures
from softcpt.engine.metrics import task_score

Features = NDArray[np.float32]


class Answers(NamedTuple):
    """Logits [n, C] of the images of one part of a task."""

    task: int
    records: list[Record]
    logits: NDArray[np.floating]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The images' classes."""
        return np.array([record.label for record in self.records])


STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Of the linear probe, for features whose mean norm is 10."""


class Bench:
    """A backbone's features of a suite, and scores made of them."""

    def __init__(self, backbone: Backbone, suite: Suite, part: Literal["val", "test"]) -> None:
        self.suite, self.split = suite, split_suite(suite)
        self.backbone, self.part = backbone, part
        features = ImageFeatures(backbone).centres(suite.records)
        self._rows = {
            record.relative: row for record, row in zip(suite.records, features.numpy(), strict=True)
        }

    def records(self, part: str, task: int) -> list[Record]:
        """The images of one part of a task."""
        pairs = zip(self.suite.records, self.split.parts, strict=True)
        return [record for record, found in pairs if found == part and record.task == task]

    def features(self, records: Sequence[Record]) -> Features:
        """Raw features of records."""
        return np.stack([self._rows[record.relative] for record in records])

    def zero_shot(self) -> list[Answers]:
        """With the tasks' own templates."""
        answers = []
        for k, task in enumerate(self.suite.tasks):
            prompts = [task.template.replace("{}", name) for name in task.classes]
            texts = encode_prompts(self.backbone, prompts)
            images = self.records(self.part, k)
            answers.append(Answers(k, images, self.features(images) @ texts.numpy().T))
        return answers

    def prototypes(self, shots: int, seed: int) -> list[Answers]:
        """Nearest class mean by cosine."""
        train = draw_samples(self.suite, self.split, shots=shots, seed=seed).train
        answers = []
        for k, task in enumerate(self.suite.tasks):
            of_task = [record for record in train if record.task == k]
            known = _unit(self.features(of_task))
            labels = np.array([record.label for record in of_task])
            means = _unit(np.stack([known[labels == c].mean(0) for c in range(len(task.classes))]))
            images = self.records(self.part, k)
            answers.append(Answers(k, images, self.features(images) @ means.T))
        return answers

    def linear_probe(self, shots: int, seed: int) -> list[Answers]:
        """Logistic regression on raw features, its strength chosen on the drawn val images."""
        samples = draw_samples(self.suite, self.split, shots=shots, seed=seed)
        answers = []
        for k in range(len(self.suite.tasks)):
            train, val = ([r for r in records if r.task == k] for records in (samples.train, samples.val))
            x = self.features(train)
            scale = 10 / np.linalg.norm(x, axis=1).mean()
            fits = [_fit(scale * x, [r.label for r in train], strength) for strength in STRENGTHS]
            on_val = [
                self.score([Answers(k, val, _decisions(fit, scale * self.features(val)))]) for fit in fits
            ]
            images = self.records(self.part, k)
            best = fits[int(np.argmax(on_val))]
            answers.append(Answers(k, images, _decisions(best, scale * self.features(images))))
        return answers

    def score(self, answers: Sequence[Answers]) -> float:
        """Mean over tasks of their own metrics."""
        scores = []
        for task, records, logits in answers:
            labels = np.array([record.label for record in records])
            metric, n_classes = self.suite.tasks[task].metric, len(self.suite.tasks[task].classes)
            scores.append(task_score(metric, labels, logits.argmax(1), n_classes))
        return float(np.mean(scores))


@torch.no_grad()
def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Text features [n, D] of length 1."""
    words = backbone.tokenizer
    ids = [[words.sot, *words.encode(prompt), words.eot] for prompt in prompts]
    ends = torch.tensor([len(row) - 1 for row in ids])
    rows = torch.tensor([row + [0] * (int(ends.max()) + 1 - len(row)) for row in ids])
    return F.normalize(backbone.text.encode(backbone.text.embed(rows), ends), dim=1)


def _unit(x: Features) -> Features:
    unit: Features = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def _fit(x: Features, labels: Sequence[int], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is as good for our purpose
        return LogisticRegression(C=strength, max_iter=300).fit(x, labels)


def _decisions(fit: LogisticRegression, x: Features) -> NDArray[np.floating]:
    logits: NDArray[np.floating] = fit.decision_function(x)
    return np.stack([-logits, logits], 1) if logits.ndim == 1 else logits  # one column for two classes


def evaluate(
    backbone: Backbone, suites: Sequence[Suite], *, part: Literal["val", "test"], seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Percent for each suite and their mean; few-shot scores are means over seeds."""
    table = {}
    for suite in suites:
        bench = Bench(backbone, suite, part)
        table[suite.name] = {"zero-shot": bench.score(bench.zero_shot())}
        for shots in (4, 16):
            for name, score in (("prototypes", bench.prototypes), ("linear probe", bench.linear_probe)):
                scores = [bench.score(score(shots, seed)) for seed in seeds]
                table[suite.name][f"{name} {shots}"] = float(np.mean(scores))
    table["mean"] = {
        key: float(np.mean([row[key] for row in table.values()])) for key in next(iter(table.values()))
    }
    return {name: {key: round(100 * value, 1) for key, value in row.items()} for name, row in table.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("suites", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", action="store_true", help="score the test part: once, for final weights")
    args = parser.parse_args()
    suites = [load_suite(folder, check_images=False) for folder in args.suites]
    found = evaluate(
        load_backbone(args.backbone), suites,
        part="test" if args.test else "val", seeds=range(1, args.seeds + 1),
    )  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
