"""Several processes that take each step together, one on each core: one process on all cores is slower."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Peers:
    """The processes of a run; a process by itself has none and every exchange returns what it was given.

    Each process works on its own part of a batch and computes the loss of the whole one. The gradients that
    reach its own features, summed over all processes, are the gradient of that loss.
    """

    def __init__(self, rank: int = 0, number: int = 1, port: int = 0) -> None:
        self.rank, self.number = rank, number
        if number > 1:
            address = f"tcp://127.0.0.1:{port}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=number)

    def gather(self, rows: Tensor) -> Tensor:
        """[n, D] of each process -> [number * n, D], one's own with their gradient."""
        if self.number == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.number)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def gather_sets(self, sets: Sequence[Iterable[str]]) -> list[frozenset[str]]:
        """The sets of all processes, in the order of the rows that :meth:`gather` returns."""
        if self.number == 1:
            return [frozenset(members) for members in sets]
        own = torch.frombuffer(bytearray(json.dumps([sorted(m) for m in sets]).encode()), dtype=torch.uint8)
        lengths = [torch.zeros((), dtype=torch.long) for _ in range(self.number)]
        dist.all_gather(lengths, torch.tensor(len(own)))
        longest = max(int(length) for length in lengths)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.number)]
        dist.all_gather(parts, torch.cat([own, torch.zeros(longest - len(own), dtype=torch.uint8)]))
        texts = [bytes(part[:n].tolist()) for part, n in zip(parts, lengths, strict=True)]
        return [frozenset(members) for text in texts for members in json.loads(text)]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up everybody's gradients."""
        if self.number == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, value: float, *, stop: bool) -> tuple[float, bool]:
        """The first process's value, and whether any wants to stop."""
        if self.number == 1:
            return value, stop
        said = torch.tensor([value if self.rank == 0 else 0.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(said)
        return float(said[0]), bool(said[1] > 0)
