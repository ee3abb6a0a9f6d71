"""Claim: memory stays bounded as classes and tasks grow; 100,000 classes train on an ordinary machine.

    python benchmarks/scale.py --case general-10|fashion-20|class-specific [--quick] [--threads N]

Three training steps (forward, cross-entropy, backward to the contexts, batches of 32) on ViT-B/16's text
tower with random weights:

    general-10      one task with one context, 100 to 100,000 classes
    fashion-20      1 to 1,000 tasks of 10 classes with a context each
    class-specific  100 to 10,000 classes with a context each

``--quick`` stops early (2,000 classes; 60 tasks; 240 classes) and lets the encoder keep little between
forward and backward, so that the bound is reached with them. The last line's ``memory_growth`` is the peak
with the most classes over that of the size before, less what every method needs for a class (features and
logits); ``bounded`` says that it is below 1.25. ``time_ratio`` and ``memory_ratio`` are those of the largest
size against 77 positions of as many classes (8 of them measured); ``floor_distance`` counts what is computed
twice for want of memory once; errors are those of ``text_step.py``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import measure
from text_step import Bench

SIZES = {
    "general-10": (100, 1_000, 10_000, 50_000, 100_000),
    "fashion-20": (1, 10, 100, 500, 1_000),
    "class-specific": (100, 1_000, 5_000, 10_000),
}
QUICK = {"general-10": (500, 2_000), "fashion-20": (20, 60), "class-specific": (80, 240)}
QUICK_BYTES = 32 << 20


def main() -> int:
    """Measure one case."""
    parser = measure.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sizes", help="other sizes, as 100,1000")
    asked = parser.parse_args()
    measure.set_threads(1)  # until the last child has been forked: threads would not come along
    sizes = QUICK[asked.case] if asked.quick else SIZES[asked.case]
    if asked.sizes:
        sizes = tuple(int(size) for size in asked.sizes.split(","))
    steps = 1 if asked.quick else asked.steps
    bench = Bench(asked.case, asked.threads, "cpu", "fp32", n_plain=8)
    (plain_mib,) = measure.peaks_apart([lambda: lambda: bench.plain(bench.kind, bench.some_columns())])
    rows = []
    for size in sizes:
        rows.append(measured(asked.case, size, steps, asked.threads, QUICK_BYTES if asked.quick else None))
        print(
            f"{size:>7} {'tasks' if asked.case == 'fashion-20' else 'classes'}: "
            f"{rows[-1]['peak_mib']:.0f} MiB above the start, {rows[-1]['seconds_per_step']:.1f} s a step",
            flush=True,
        )
    measure.set_threads(asked.threads)
    per_class = 8 * 512 * 4 / 2**20  # features, their gradients and norms: rows that every method needs
    net = [max(1.0, row["peak_mib"] - per_class * row["classes"]) for row in rows]
    growth = net[-1] / net[-2] if len(net) > 1 else None
    bench.plain(bench.kind, bench.some_columns())
    plain_s = measure.timed(time.perf_counter, lambda: bench.plain(bench.kind, bench.some_columns()))
    most = rows[-1]
    scale = most["classes_in_play"] / len(bench.some_columns())
    rate = measure.gemm_rate(bench.encoder, 1024, time.perf_counter)
    result = {
        "benchmark": "scale", "case": asked.case, "sizes": rows, "steps": steps,
        "memory_growth": growth, "bounded": growth and growth < 1.25,
        "time_ratio": plain_s * scale / most["seconds_per_step"],
        "memory_ratio": None if plain_mib is None else plain_mib * scale / most["peak_mib"],
        "floor_distance": most["seconds_per_step"] * rate / most["multiply_adds"],
        **bench.errors(bench.kind, bench.some_columns()),
    }  # fmt: skip
    return measure.finish(result, asked.threads)


def measured(case: str, size: int, steps: int, threads: int, saved_bytes: int | None) -> dict[str, Any]:
    """Peak memory and time of one size, in a process of its own so that sizes do not help each other."""
    import json
    import os

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            measure.set_threads(threads)
            os.write(write, json.dumps(_measured(case, size, steps, saved_bytes)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as told:
        text = told.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit(f"{size} did not end well")
    found: dict[str, Any] = json.loads(text)
    return found


def _measured(case: str, size: int, steps: int, saved_bytes: int | None) -> dict[str, Any]:
    import torch

    from softcpt.clip.text_shared import SharedTextEncoder
    from softcpt.methods.loss import cosine_logits
    from softcpt.methods.prompts import class_prompts

    n_classes = size * 10 if case == "fashion-20" else size
    names = _names(n_classes)
    tasks = [names[i : i + 10] for i in range(0, n_classes, 10)] if case == "fashion-20" else [names]
    problem = measure.problem_of(measure.Names(tuple(tuple(task) for task in tasks)))
    kind: dict[str, Any] = {} if saved_bytes is None else {"saved_bytes": saved_bytes, "max_rows": 256}
    encoder = SharedTextEncoder(problem.text, **kind)
    prompts = class_prompts(problem, measure.N_CONTEXT, "end")
    owner = torch.arange(n_classes) if case == "class-specific" else problem.task_of_class
    rng = torch.Generator().manual_seed(0)
    context = (
        torch.randn(int(owner.max()) + 1, measure.N_CONTEXT, 512, generator=rng).mul_(0.02).requires_grad_()
    )
    images = torch.randn(32, 512, generator=rng)
    target = torch.randint(n_classes, (32,), generator=rng)
    columns = problem.columns_in_play(target)
    seconds: list[float] = []

    def run() -> None:
        for _ in range(steps):
            began = time.perf_counter()
            chosen = torch.arange(n_classes) if columns is None else columns
            logits = cosine_logits(images, encoder.encode(prompts, context, owner[chosen], columns), 100.0)
            torch.nn.functional.cross_entropy(logits, torch.searchsorted(chosen, target)).backward()
            with torch.no_grad():
                context.sub_(context.grad, alpha=0.002)
            context.grad = None
            seconds.append(time.perf_counter() - began)

    peak = measure.growth_of_peak(run)
    plan = encoder.plan(prompts, owner if columns is None else owner[columns], columns)
    return {
        "size": size, "classes": n_classes, "peak_mib": peak, "total_mib": measure.resident_mib(),
        "seconds_per_step": measure.median(seconds), "rows": plan.n_rows, "chunks": len(plan.chunks),
        "classes_in_play": len(plan.index), "multiply_adds": sum(plan.multiply_adds()),
    }  # fmt: skip


def _names(n: int) -> list[str]:
    """Short names of two or three words; no two are the same."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as NOUNS

    words = list(dict.fromkeys(str(noun) for noun in NOUNS if str(noun).isalpha() and len(str(noun)) <= 6))
    pairs = [f"{a} {b}" for a in words for b in words]
    longer = [f"{adjective} {pair}" for adjective in measure.ADJECTIVES for pair in pairs]
    return [*pairs, *longer][:n]


if __name__ == "__main__":
    sys.exit(main())
