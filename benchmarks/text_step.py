"""Claim: a training step's text side costs a fraction of the published 77-position way, for the same result.

    python benchmarks/text_step.py --case general-10|fashion-20|class-specific [--quick] [--threads N]

Forward and backward to the contexts, ViT-B/16's text tower with random weights, fp32. The plain path (all 77
positions of every class) and the trimmed one (cut at the last EOT) run on 24 classes at a time, warm, their
best case, and are scaled by classes. Fast is the whole step. Everything is measured in turn within one
run; medians. The last line is one JSON object:

    time_ratio, memory_ratio    plain / fast, higher is better
    floor_distance              time / (multiply-adds of the exact computation / rate of the tower's products)
    logits_error, gradient_error   fast against plain in fp32, relative to the largest value
    variants                    the same for the case's other shapes
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure
import numpy as np


def main() -> int:
    """Measure one case."""
    asked = measure.arguments(__doc__, rounds=5).parse_args()
    measure.set_threads(asked.threads)
    rounds = 1 if asked.quick else asked.rounds
    bench = Bench(asked.case, asked.threads, asked.device, asked.precision, n_plain=12 if asked.quick else 24)
    main_kind, others = bench.kind, bench.kinds[1:]
    result: dict[str, Any] = {"benchmark": "text_step", "case": asked.case, "precision": asked.precision}
    memory = bench.memory(main_kind)
    result |= bench.measure(main_kind, rounds) | memory
    if asked.case == "fashion-20":
        others.append("absent-skipped")
    result["variants"] = {kind: bench.measure(kind, rounds) for kind in others}
    for kind, found in {main_kind: result, **result["variants"]}.items():
        print(bench.line(kind, found))
    return measure.finish(result, asked.threads)


class Bench:
    """One case: problem, prompts, and steps of all paths."""

    def __init__(self, case: str, threads: int, device: str, precision: str, n_plain: int) -> None:
        import torch

        from softcpt.clip.text_shared import SharedTextEncoder

        self.case, self.threads, self.device = case, threads, device
        self.clock = measure.clock_for(threads, device)
        self.names = measure.names_of(case)
        self.problem = measure.problem_of(self.names)
        if device == "cuda":
            self.problem.text.to("cuda")
        self.narrow = torch.bfloat16 if precision == "bf16" else None
        self.encoder = SharedTextEncoder(self.problem.text, self.narrow)
        self.fresh = lambda: SharedTextEncoder(self.problem.text, self.narrow)
        self.n_plain = n_plain
        self.n_classes = len(self.names.every)
        self.kinds = ["coop-cs", "cata", "front"] if case == "class-specific" else ["end"]
        self.kind = self.kinds[0]
        self.images = torch.randn(32, 512, generator=torch.Generator().manual_seed(0)).to(device)
        self._prompts: dict[Any, Any] = {}

    # -- what a step is --------------------------------------------------------------------------------

    def prompts(self, kind: str, n_context: int = measure.N_CONTEXT) -> Any:  # noqa: ANN401
        """All prompts of a kind."""
        from softcpt.methods.prompts import class_prompts

        position: Any = "front" if kind == "front" else "end"
        if (position, n_context) not in self._prompts:
            self._prompts[position, n_context] = class_prompts(self.problem, n_context, position)
        return self._prompts[position, n_context]

    def owners(self, kind: str) -> Any:  # noqa: ANN401
        """Whose context each class takes."""
        import torch

        if kind in ("coop-cs", "cata"):
            return torch.arange(self.n_classes, device=self.device)
        return self.problem.task_of_class

    def context(self, kind: str, n_context: int = measure.N_CONTEXT) -> Any:  # noqa: ANN401
        """Contexts at a random start."""
        import torch

        n = int(self.owners(kind).max()) + 1 if n_context == measure.N_CONTEXT else 1
        rng = torch.Generator().manual_seed(1)
        start = torch.randn(n, n_context, 512, generator=rng) * 0.02
        return start.to(self.device).requires_grad_()

    def step(self, kind: str, encode: Callable[..., Any], columns: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """Logits and the gradient of a cross-entropy to the contexts, of some columns."""
        import torch

        from softcpt.methods.loss import cosine_logits

        leaves = [self.context(kind)]
        contexts = leaves[0]
        owner = self.owners(kind)[columns]
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.narrow is not None):
            if kind == "cata":
                # Auxiliary class prompts with a shared context of 4, whose features move the contexts.
                leaves.append(self.context(kind, 4))
                aux = encode(self.prompts(kind, 4), leaves[1], torch.zeros_like(columns), columns)
                shift = aux.float().mean(dim=1)[:, None, None] * 1e-3
                contexts = contexts[columns] + shift
                owner = torch.arange(len(columns), device=self.device)
            features = encode(self.prompts(kind), contexts, owner, columns)
        logits = cosine_logits(self.images.to(contexts), features, 100.0)
        target = torch.arange(len(logits), device=self.device) % logits.shape[1]
        torch.nn.functional.cross_entropy(logits, target).backward()
        return logits.detach(), torch.cat([leaf.grad.flatten() for leaf in leaves])

    def fast(self, kind: str, columns: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """By the fast encoder."""
        return self.step(kind, self.encoder.encode, columns)

    def plain(
        self,
        kind: str,
        columns: Any,  # noqa: ANN401
        *,
        full_length: bool = True,
        tower: Any = None,  # noqa: ANN401
    ) -> tuple[Any, Any]:
        """By the tower itself; all 77 positions, or up to the last EOT."""
        import torch

        from softcpt.clip.tokens import put_context

        text = tower or self.problem.text

        def encode(prompts: Any, context: Any, owner: Any, selected: Any) -> Any:  # noqa: ANN401
            chosen = prompts.rows_of(selected)
            ids, slot = chosen.ids, chosen.slot
            if full_length:
                room = text.context_length - ids.shape[1]
                ids = torch.nn.functional.pad(ids, (0, room))
                slot = torch.nn.functional.pad(slot, (0, room), value=-1)
            rows = put_context(text.embed(ids), slot, context[owner].to(text.dtype))
            return text.encode(rows, chosen.end, full_length=full_length)

        return self.step(kind, encode, columns)

    def all_columns(self) -> Any:  # noqa: ANN401
        """Every class."""
        import torch

        return torch.arange(self.n_classes, device=self.device)

    def some_columns(self) -> Any:  # noqa: ANN401
        """The classes of the plain path's batch: whole small tasks first, then of the next."""
        import torch

        first = self.problem.first_column
        small = sorted(range(len(first) - 1), key=lambda t: first[t + 1] - first[t])
        columns = [c for t in small for c in range(first[t], first[t + 1])]
        return torch.tensor(sorted(columns[: self.n_plain]), device=self.device)

    # -- figures ---------------------------------------------------------------------------------------

    def measure(self, kind: str, rounds: int) -> dict[str, Any]:
        """Times, distance and errors of a kind."""
        if kind == "absent-skipped":
            return self.measure_absent(rounds)
        every, some = self.all_columns(), self.some_columns()
        share = len(some) / self.n_classes
        plan = self.encoder.plan(self.prompts(kind), self.owners(kind), every)
        adds, rows = sum(plan.multiply_adds()), plan.n_rows
        n_rows = max(chunk.n_rows for chunk in plan.chunks)
        if kind == "cata":
            import torch

            aux = self.encoder.plan(self.prompts(kind, 4), torch.zeros_like(every), every)
            adds, rows = adds + sum(aux.multiply_adds()), rows + aux.n_rows
        errors = self.errors(kind, some)
        self.fast(kind, every)
        times: dict[str, list[float]] = {key: [] for key in ("fast", "plain", "trimmed", "distance", "rate")}
        for _ in range(rounds):
            before = measure.gemm_rate(self.encoder, n_rows, self.clock)
            fast = measure.timed(self.clock, lambda: self.fast(kind, every))
            after = measure.gemm_rate(self.encoder, n_rows, self.clock)
            rate = (before + after) / 2
            times["rate"].append(rate)
            times["fast"].append(fast)
            times["distance"].append(fast / (adds / rate))
            times["plain"].append(measure.timed(self.clock, lambda: self.plain(kind, some)) / share)
            times["trimmed"].append(
                measure.timed(self.clock, lambda: self.plain(kind, some, full_length=False)) / share
            )
        found = {
            "time_ratio": measure.median([p / f for p, f in zip(times["plain"], times["fast"], strict=True)]),
            "trimmed_ratio": measure.median(
                [p / f for p, f in zip(times["trimmed"], times["fast"], strict=True)]
            ),
            "floor_distance": measure.median(times["distance"]),
            "seconds": {key: measure.median(times[key]) for key in ("fast", "plain", "trimmed")},
            "rounds": rounds,
            "gemm_gflops": 2 * measure.median(times["rate"]) / 1e9,
            "rows": {
                "plain": 77 * self.n_classes * (2 if kind == "cata" else 1),
                "fast": rows,
                "closed_form": self.closed_form(kind),
            },
            "multiply_adds": {
                "fast": adds,
                "plain": self.plain_adds(kind),
                "ratio": self.plain_adds(kind) / adds,
            },
            **errors,
        }
        if self.threads > 1:
            found["thread_speedup"] = self.thread_speedup(kind, max(rounds, 2))
        return found

    def measure_absent(self, rounds: int) -> dict[str, Any]:
        """Batches of 32 images drawn evenly over the tasks, tasks without images left out."""
        import torch

        some = self.some_columns()
        share = len(some) / self.n_classes
        rng = np.random.default_rng(0)
        fast, plain, tasks = [], [], []
        sizes = [len(task) for task in self.names.tasks]
        for i in range(3 * rounds + 1):
            present = np.unique(rng.integers(0, len(sizes), 32))
            kept = np.isin(np.repeat(np.arange(len(sizes)), sizes), present)
            columns = torch.from_numpy(np.flatnonzero(kept)).to(self.device)
            seconds = measure.timed(self.clock, lambda columns=columns: self.fast("end", columns))
            if i == 0:
                continue  # memory is fresh in the first
            fast.append(seconds)
            tasks.append(len(present) / len(sizes))
            plain.append(measure.timed(self.clock, lambda: self.plain("end", some)) / share)
        return {
            "time_ratio": sum(plain) / len(plain) / (sum(fast) / len(fast)),
            "seconds": {"fast": sum(fast) / len(fast), "plain": sum(plain) / len(plain)},
            "tasks_present": sum(tasks) / len(tasks),
            "batches": len(fast),
        }

    def errors(self, kind: str, columns: Any) -> dict[str, Any]:  # noqa: ANN401
        """Fast against plain, and plain fp32 against plain fp64, the yardstick."""
        import copy

        import torch

        few = columns[:10]
        fast, plain = self.fast(kind, few), self.plain(kind, few)
        exact_tower = copy.deepcopy(self.problem.text).double()
        narrow, self.narrow = self.narrow, None
        exact = self.plain(kind, few, tower=exact_tower)
        self.narrow = narrow
        del exact_tower
        torch.cuda.empty_cache() if self.device == "cuda" else None
        names = ("logits", "gradient")
        return {
            **{
                f"{n}_error": measure.relative_error(f, p) for n, f, p in zip(names, fast, plain, strict=True)
            },
            "against_fp64": {
                "plain": {
                    n: measure.relative_error(p, e) for n, p, e in zip(names, plain, exact, strict=True)
                },
                "fast": {n: measure.relative_error(f, e) for n, f, e in zip(names, fast, exact, strict=True)},
            },
        }

    def memory(self, kind: str) -> dict[str, Any]:
        """Peak memory of a whole step above the state before it, each path in a process of its own."""
        some = self.some_columns()
        if self.device == "cuda":
            return self.memory_of_gpu(kind, some)

        def prepare_fast() -> Callable[[], object]:
            self.encoder = self.fresh()
            self.fast(kind, self.all_columns()[:1])  # loops are compiled and libraries loaded once a process
            self.encoder.release()
            self.encoder.plan(self.prompts(kind), self.owners(kind), self.all_columns())
            return lambda: self.fast(kind, self.all_columns())

        fast, plain = measure.peaks_apart([prepare_fast, lambda: lambda: self.plain(kind, some)])
        if fast is None or plain is None:
            return {"memory_ratio": None}
        per_class = plain / len(some)
        return {
            "memory_ratio": per_class * self.n_classes / fast,
            "memory_mib": {"fast": fast, "plain_per_class": per_class},
        }

    def memory_of_gpu(self, kind: str, some: Any) -> dict[str, Any]:  # noqa: ANN401
        """The same by the GPU's own counter."""
        import torch

        def peak(work: Callable[[], object]) -> float:
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            return (torch.cuda.max_memory_allocated() - before) / 2**20

        self.encoder = self.fresh()
        fast = peak(lambda: self.fast(kind, self.all_columns()))
        per_class = peak(lambda: self.plain(kind, some)) / len(some)
        return {
            "memory_ratio": per_class * self.n_classes / fast,
            "memory_mib": {"fast": fast, "plain_per_class": per_class},
        }

    def thread_speedup(self, kind: str, rounds: int) -> float:
        """Wall time on one thread over that on all, in turn."""
        import time

        import torch

        every = self.all_columns()
        seconds: dict[int, list[float]] = {self.threads: [], 1: []}
        encoders = {}
        for _ in range(rounds + 1):  # the first warms
            for n, of_threads in seconds.items():
                torch.set_num_threads(n)
                self.encoder = encoders[n] = encoders.get(n) or self.fresh()  # each chooses its attention
                of_threads.append(measure.timed(time.perf_counter, lambda: self.fast(kind, every)))
        torch.set_num_threads(self.threads)
        self.encoder = encoders[self.threads]
        ratios = [one / many for one, many in zip(seconds[1][1:], seconds[self.threads][1:], strict=True)]
        return measure.median(ratios)

    def closed_form(self, kind: str) -> int:
        """Rows an exact computation needs: the different histories, counted without the planner.

        Chunks that are computed apart repeat what they share; they are counted apart here too.
        """
        if kind == "cata":
            return self.closed_form("coop-cs") + self._histories(self.prompts(kind, 4), [0] * self.n_classes)
        return self._histories(self.prompts(kind), self.owners(kind).tolist())

    def _histories(self, prompts: Any, owners: list[int]) -> int:  # noqa: ANN401
        import torch

        plan = self.encoder.plan(prompts, torch.tensor(owners, device=self.device), self.all_columns())
        ids, slots, ends = prompts.ids.tolist(), prompts.slot.tolist(), prompts.end.tolist()
        total = 0
        for chunk in plan.chunks:
            members = set(plan.forest.prompt[chunk.layout.prompts].tolist())
            histories = set()
            for k in members:
                rows = [
                    (ids[k][p], -1, -1) if slots[k][p] < 0 else (-1, owners[k], slots[k][p])
                    for p in range(1, ends[k] + 1)
                ]
                first = next((i for i, row in enumerate(rows) if row[1] >= 0), 0)  # names before: constants
                histories |= {tuple(rows[: i + 1]) for i in range(first, len(rows))}
            total += len(histories)
        return total

    def plain_adds(self, kind: str) -> int:
        """Multiply-adds of all 77 positions, forward and backward."""
        d, layers = 512, 12
        prompts = self.n_classes * (2 if kind == "cata" else 1)
        return prompts * (2 * 77 * 12 * d * d * layers + 6 * 77 * 77 * d * layers)

    @staticmethod
    def line(kind: str, found: dict[str, Any]) -> str:
        """For people."""
        parts = [f"{kind}: {found['time_ratio']:.1f} times as fast as 77 positions"]
        if found.get("memory_ratio"):
            parts.append(f"1/{found['memory_ratio']:.0f} of the memory")
        if "floor_distance" in found:
            parts.append(f"{found['floor_distance']:.2f} of the arithmetic floor")
            parts.append(
                f"errors {found['logits_error']:.1e} (logits) {found['gradient_error']:.1e} (gradient)"
            )
        return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
