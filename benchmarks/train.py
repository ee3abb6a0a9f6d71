"""Claim: a whole 16-shot training takes a fraction of the published way's time.

    python benchmarks/train.py --case general-10|fashion-20|class-specific [--quick] [--threads N] [--full]

Published way: every step encodes its 32 images and runs all 77 positions of all class prompts. Ours: each of
16 views of each image is encoded once, then every step takes features from memory and goes through the
shared-prefix encoder, task prompts too, without the tasks that a batch has no image of. SoftCPT-NATA
(``class-specific``: SoftCPT-CATA), 16 shots, batches of 32, 50 epochs, ViT-B/16 with random weights. Both are
measured per step, in turn, and extrapolated to the whole training; with ``--full`` (meant for a GPU) ours
runs through all its steps. Images are random pixels: reading and decoding them is in neither.

    time_ratio                published / ours, whole training
    floor_distance            our step's time / its text side's multiply-adds at the tower's rate
    memory_ratio, errors      of a step's text side, as text_step.py measures them
    hours                     of both, and what they consist of
    losses_follow             largest difference between the losses of bf16 and fp32, with --full in bf16
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure
from text_step import Bench

SHOTS, BATCH, EPOCHS, VIEWS = 16, 32, 50, 16


def main() -> int:
    """Measure one case."""
    parser = measure.arguments(__doc__, rounds=3)
    parser.add_argument("--full", action="store_true", help="run all steps of ours, in bf16 also beside fp32")
    asked = parser.parse_args()
    measure.set_threads(asked.threads)
    device, rounds = asked.device, 1 if asked.quick else asked.rounds
    n_plain = 12 if asked.quick else 24
    text = Bench(asked.case, asked.threads, device, asked.precision, n_plain)
    of_text = text.memory(text.kind) | text.errors(text.kind, text.some_columns())
    run = Run(asked.case, device, asked.precision)
    clock = measure.clock_for(asked.threads, device)
    result: dict[str, Any] = {
        "benchmark": "train", "case": asked.case, "device": device, "precision": asked.precision
    }  # fmt: skip
    result |= of_text | run.extrapolated(clock, rounds, n_plain)
    if asked.full:
        result |= run.in_full(clock)
    hours = result["hours"]
    print(
        f"{asked.case}, {run.n_steps} steps on {device}: published way {hours['published']:.1f} h, "
        f"ours {hours['ours']:.2f} h, {result['time_ratio']:.1f} times as fast"
    )
    return measure.finish(result, asked.threads)


class Run:
    """A training of random images, with its features."""

    def __init__(self, case: str, device: str, precision: str) -> None:
        import torch

        from softcpt.clip.toy import untrained_backbone
        from softcpt.engine.features import autocast

        self.device, self.precision = device, precision
        self.problem = measure.problem_of(measure.names_of(case))
        self.backbone = untrained_backbone()
        if device == "cuda":
            self.problem.text.to(device)
            self.backbone = self.backbone.to(device)
        self.n_images = len(self.problem.class_names) * SHOTS
        self.n_steps = self.n_images // BATCH * EPOCHS
        self.method = "softcpt-cata" if case == "class-specific" else "softcpt-nata"
        self.autocast: Callable[[], Any] = lambda: autocast(torch.device(device), self.precision)  # type: ignore[arg-type]
        rng = torch.Generator().manual_seed(0)
        self.features = torch.randn(self.n_images, self.problem.text.embed_dim, generator=rng).to(device)
        self.columns = torch.arange(len(self.problem.class_names)).repeat_interleave(SHOTS).to(device)
        self.order = torch.randperm(self.n_images, generator=rng).to(device)
        self.pixels = torch.randn(BATCH, 3, 224, 224, generator=rng).to(device)

    def trainer(self) -> tuple[Any, Any, Any]:
        """Classifier, optimizer and their settings, at the start."""
        from softcpt.engine.adapter import build_classifier
        from softcpt.engine.config import resolve
        from softcpt.engine.optim import build_optimizer

        settings = resolve({"method": self.method, "shots": SHOTS, "epochs": EPOCHS})
        classifier = build_classifier(self.problem, settings)
        spec = settings.training().optim(SHOTS)
        return classifier, build_optimizer(classifier.parameters(), spec), spec

    def step(self, trainer: tuple[Any, Any, Any], i: int, images: Any = None) -> Any:  # noqa: ANN401
        """One step; returns the loss."""
        import torch

        from softcpt.engine.optim import take_step

        classifier, optimizer, spec = trainer
        batch = self.order[(i * BATCH) % (self.n_images - BATCH) :][:BATCH]
        images = self.features[batch] if images is None else images
        with self.autocast():
            loss = classifier.loss(images, self.columns[batch], rng=torch.Generator())
        take_step(optimizer, loss, spec)
        return loss.detach()

    def encoder(self) -> Any:  # noqa: ANN401
        """The fast encoder of the text tower."""
        from softcpt.clip.text_shared import shared_encoder

        with self.autocast():
            return shared_encoder(self.problem.text)

    def multiply_adds(self, trainer: tuple[Any, Any, Any], i: int) -> int:
        """Of a step's text side: class prompts, task prompts and, where there are any, auxiliary ones."""
        import torch

        classifier, encoder = trainer[0], self.encoder()
        batch = self.order[(i * BATCH) % (self.n_images - BATCH) :][:BATCH]
        selected = self.problem.columns_in_play(self.columns[batch])
        columns = torch.arange(len(self.columns) // SHOTS) if selected is None else selected
        of_class = self.problem.task_of_class[columns]
        tasks = torch.unique(of_class)
        plans = [encoder.plan(classifier.task_prompts, None, tasks)]
        if self.method == "softcpt-cata":
            plans.append(encoder.plan(classifier.aux_prompts, None, columns))
            plans.append(encoder.plan(classifier.prompts, columns, columns))
        else:
            plans.append(encoder.plan(classifier.prompts, of_class, columns))
        return sum(sum(plan.multiply_adds()) for plan in plans)

    def extrapolated(self, clock: Callable[[], float], rounds: int, n_plain: int) -> dict[str, Any]:
        """The whole training from measured steps."""
        from softcpt.engine.features import encode_pixels

        ours = self.trainer()
        self.step(ours, 0)
        encode = lambda n=BATCH: encode_pixels(self.backbone, self.pixels[:n], self.precision)  # noqa: E731  # type: ignore[arg-type]
        text = self.plain_text_step(n_plain)
        encode(2)  # warm
        seconds: dict[str, list[float]] = {"step": [], "images": [], "text": []}
        distances = []
        for i in range(rounds):
            n = 20 if self.device == "cuda" else 1
            rate = measure.gemm_rate(self.encoder(), 1024, clock)
            seconds["step"].append(
                measure.timed(clock, lambda i=i, n=n: [self.step(ours, i * n + j + 1) for j in range(n)]) / n
            )
            distances.append(seconds["step"][-1] / (self.multiply_adds(ours, i * n + n) / rate))
            seconds["images"].append(measure.timed(clock, encode))
            seconds["text"].append(measure.timed(clock, text) * len(self.problem.class_names) / n_plain)
        step, images, plain = (measure.median(seconds[key]) for key in ("step", "images", "text"))
        encoding = images / BATCH * self.n_images * VIEWS
        published = self.n_steps * (images + plain)
        own = encoding + self.n_steps * step
        return {
            "time_ratio": published / own,
            "step_ratio": (images + plain) / step,
            "floor_distance": measure.median(distances),
            "hours": {
                "published": published / 3600,
                "ours": own / 3600,
                "ours_with_known_features": self.n_steps * step / 3600,
            },
            "seconds": {"our_step": step, "images_of_a_batch": images, "plain_text_of_a_step": plain},
            "steps": self.n_steps,
            "rounds": rounds,
        }

    def plain_text_step(self, n_plain: int) -> Callable[[], object]:
        """Forward and backward of 77 positions of some classes; the rest scales with them."""
        import torch

        from softcpt.clip.tokens import put_context
        from softcpt.methods.prompts import class_prompts

        text = self.problem.text
        prompts = class_prompts(self.problem, measure.N_CONTEXT, "end")
        some = prompts.rows_of(torch.arange(n_plain, device=self.device))
        room = text.context_length - some.ids.shape[1]
        ids = torch.nn.functional.pad(some.ids, (0, room))
        slot = torch.nn.functional.pad(some.slot, (0, room), value=-1)
        factor = 2 if self.method == "softcpt-cata" else 1  # auxiliary class prompts cost the same again

        def step() -> None:
            for _ in range(factor):
                context = torch.zeros(1, measure.N_CONTEXT, text.width, device=self.device).requires_grad_()
                with self.autocast():
                    rows = put_context(text.embed(ids), slot, context)
                    text.encode(rows, some.end, full_length=True).float().square().mean().backward()

        step()
        return step

    def in_full(self, clock: Callable[[], float]) -> dict[str, Any]:
        """All steps of ours from cached features; in bf16 the losses of fp32's beginning beside them."""
        import torch

        losses = []
        trainer = self.trainer()
        self.step(trainer, 0)
        trainer = self.trainer()

        def run() -> None:
            losses.extend(self.step(trainer, i) for i in range(self.n_steps))

        seconds = measure.timed(clock, run)
        found: dict[str, Any] = {
            "full_minutes": seconds / 60,
            "last_loss": float(torch.stack(losses[-100:]).mean()),
        }
        if self.precision == "bf16":
            self.precision = "fp32"
            exact, n = self.trainer(), min(1000, self.n_steps)
            beside = torch.stack([self.step(exact, i) for i in range(n)])
            self.precision = "bf16"
            found["losses_follow"] = {
                "steps": n,
                "largest_difference": float((torch.stack(losses[:n]) - beside).abs().max()),
                "mean_loss": {"bf16": float(torch.stack(losses[:n]).mean()), "fp32": float(beside.mean())},
            }
        return found


if __name__ == "__main__":
    sys.exit(main())
