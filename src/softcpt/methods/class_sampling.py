"""Class sampling: in training, only some class prompts of each task go through the text encoder.

Of the published code of SoftCPT, Ding et al., arXiv:2208.13474.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor


def sample_classes(
    columns: Int[Tensor, " B"], task_of_class: Int[Tensor, " K"], rate: float, rng: torch.Generator
) -> Int[Tensor, " k"]:
    """Columns whose prompts are encoded for this batch, task after task.

    All classes that occur as a label, in ascending order, then ``ceil(rate * others)`` of the task's other
    classes in random order. One permutation is drawn for every task, also for those absent from the batch.

    Args:
        columns: the batch's labels.
        task_of_class: task of each column, ascending.
        rate: share of the other classes to keep, in (0, 1].
        rng: a CPU stream.
    """
    present = torch.zeros(len(task_of_class), dtype=torch.bool)
    present[columns.cpu()] = True
    tasks = task_of_class.cpu()
    chosen: list[Tensor] = []
    for task in range(int(tasks.max()) + 1):
        positives = torch.nonzero((tasks == task) & present).flatten()
        negatives = torch.nonzero((tasks == task) & ~present).flatten()
        order = torch.randperm(len(negatives), generator=rng)
        chosen += [positives, negatives[order[: math.ceil(rate * len(negatives))]]]
    return torch.cat(chosen).to(task_of_class.device)
