"""What the benchmarks share: names and towers of the right size, clocks, memory, and the last line's JSON."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from softcpt.clip.text import TextTower
    from softcpt.methods.base import Problem

CASES = ("general-10", "fashion-20", "class-specific")

GENERAL_TASKS = (100, 47, 10, 100, 101, 102, 37, 196, 397, 101)
FASHION_TASKS = (4,) * 18 + (3,) * 2
SPECIFIC_TASKS = (47, 10)
N_CONTEXT = 16
STATM = Path("/proc/self/statm")

ADJECTIVES = (
    "young", "old", "large", "small", "red", "blue", "green", "wild", "black",
    "white", "common", "great", "little", "northern", "southern", "eastern", "western",
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Class names of several tasks, in one row."""

    tasks: tuple[tuple[str, ...], ...]

    @property
    def every(self) -> list[str]:
        """All names, task after task."""
        return [name for task in self.tasks for name in task]


def names_of(case: str) -> Names:
    """ImageNet's names; in the General-10-size list three of four have an adjective before them.

    A name then has 3.0 tokens in the mean (2.5 in the Fashion-20-size list), and names of a task share first
    words as real ones do.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as NOUNS

    sizes = {"general-10": GENERAL_TASKS, "fashion-20": FASHION_TASKS, "class-specific": SPECIFIC_TASKS}[case]
    tasks, i = [], 0
    for t, size in enumerate(sizes):
        names = []
        for _ in range(size):
            noun = str(NOUNS[i % len(NOUNS)])
            plain = case == "fashion-20" or i % 4 == 0
            names.append(noun if plain else f"{ADJECTIVES[(i * 7 + t) % len(ADJECTIVES)]} {noun}")
            i += 1
        tasks.append(tuple(names))
    return Names(tuple(tasks))


def problem_of(names: Names) -> Problem:
    """A problem of these names on ViT-B/16's text tower with random weights in OpenAI's scale."""
    from softcpt.clip.toy import untrained_backbone
    from softcpt.methods.base import Problem, TaskNames

    backbone = untrained_backbone()
    to_openai_scale(backbone.text)
    tasks = tuple(TaskNames(f"task {t + 1}", classes) for t, classes in enumerate(names.tasks))
    return Problem(tasks, backbone.text, backbone.tokenizer, 100.0)


def to_openai_scale(tower: TextTower) -> None:
    """Redraw a tower's weights as OpenAI initialised theirs; norms and biases differ from the identity."""
    import torch

    width, layers = tower.width, len(tower.transformer.resblocks)  # type: ignore[arg-type,attr-defined]
    rng = torch.Generator().manual_seed(0)
    std = {
        "token_embedding": 0.02,
        "attn.in_proj_weight": width**-0.5,
        "mlp.c_fc.weight": (2 * width) ** -0.5,
        "attn.out_proj.weight": (2 * layers * width) ** -0.5,
        "mlp.c_proj.weight": (2 * layers * width) ** -0.5,
    }
    with torch.no_grad():
        for name, tensor in tower.named_parameters():
            scale = next((value for part, value in std.items() if part in name), 0.02)
            fresh = torch.randn(tensor.shape, generator=rng) * scale
            tensor.copy_(fresh + 1 if "ln_" in name and name.endswith("weight") else fresh)
        tower.positional_embedding.copy_(torch.randn(tower.positional_embedding.shape, generator=rng) * 0.01)
        if tower.projection is not None:
            tower.projection.copy_(torch.randn(tower.projection.shape, generator=rng) * width**-0.5)


def arguments(doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """What every benchmark can be asked."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default=CASES[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--threads", type=int, default=1)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser


# -- clocks and memory ---------------------------------------------------------------------------------


def clock_for(threads: int, device: str = "cpu") -> Callable[[], float]:
    """CPU time of this process where one thread works, which neighbours disturb least; else the wall's."""
    if device == "cuda":
        import torch

        def after_everything() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return after_everything
    return time.process_time if threads == 1 else time.perf_counter


def timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = clock()
    work()
    return clock() - began


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def peaks_apart(works: Sequence[Callable[[], Callable[[], object]]]) -> list[float | None]:
    """Peak memory in MiB of several pieces of work, each in a process of its own.

    Args:
        works: each prepares, and returns what is measured above the state then.

    Returns:
        The growth of the peak resident size; None where the system does not tell.
    """
    if not STATM.exists():
        return [None] * len(works)
    pipes = []
    for prepare in works:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                set_threads(1)  # the parent's threads are not here, and who waits for them waits for ever
                work = prepare()
                os.write(write, str(growth_of_peak(work)).encode())
            finally:
                os._exit(0)
        os.close(write)
        pipes.append((child, read))
    found: list[float | None] = []
    for child, read in pipes:
        with os.fdopen(read) as told:
            text = told.read()
        os.waitpid(child, 0)
        found.append(float(text) if text else None)
    return found


def growth_of_peak(work: Callable[[], object]) -> float:
    """MiB by which a call's highest resident size lies above the one before it, looked at all the time."""
    return_free_memory()
    before = resident_mib()
    highest, over = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(highest, resident_mib()) - before


def return_free_memory() -> None:
    """What was freed before must not be had for nothing (glibc keeps it)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_mib() -> float:
    """This process's memory now; NaN where the system does not tell."""
    if not STATM.exists():
        return math.nan
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# -- floor ---------------------------------------------------------------------------------------------


def gemm_rate(encoder: Any, n_rows: int, clock: Callable[[], float]) -> float:  # noqa: ANN401
    """Multiply-adds a second of the tower's own eight products, at a chunk's row count.

    Three layers' weights, so that they come from where a step finds them.
    """
    import torch

    folded = encoder.folded
    d, up = folded.width, folded.layers[0].w_up.shape[0]
    kind = {"dtype": folded.narrow, "device": folded.device}
    x, u, qkv = (torch.randn(n_rows, size, **kind) for size in (d, up, 3 * d))
    out_x, out_u, out_qkv = (torch.empty_like(t) for t in (x, u, qkv))
    layers = folded.layers[1 : len(folded.layers) - 1 : 3]

    def products() -> None:
        for layer in layers:
            torch.mm(x, layer.w_qkv.t(), out=out_qkv)
            torch.mm(x, layer.w_out.t(), out=out_x)
            torch.mm(x, layer.w_up.t(), out=out_u)
            torch.mm(u, layer.w_down.t(), out=out_x)
            torch.mm(qkv, layer.w_qkv, out=out_x)
            torch.mm(x, layer.w_out, out=out_x)
            torch.mm(u, layer.w_up, out=out_x)
            torch.mm(x, layer.w_down, out=out_u)

    products()
    seconds = timed(clock, products)
    return len(layers) * n_rows * 2 * (4 * d * d + 2 * d * up) / seconds


# -- output --------------------------------------------------------------------------------------------


def machine(threads: int) -> dict[str, Any]:
    """Where the figures come from."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "gpu": gpu, "system": platform.system()}


def versions() -> dict[str, str]:
    """What computed."""
    from importlib.metadata import version

    return {name: version(name) for name in ("softcpt", "torch", "open_clip_torch")} | {
        "python": platform.python_version()
    }


def finish(result: dict[str, Any], threads: int) -> int:
    """Print the last line."""
    print(json.dumps(_rounded(result | {"machine": machine(threads), "versions": versions()})))
    return 0


def _rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(own) for own in value]
    return value


def set_threads(threads: int) -> None:
    """Before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
