"""What a learning rate comes to on a context, and controls that take over SoftCPT's.

A step of SoftCPT's matrix moves task t's own context |z_t|^2 times as far as the same rate moves a context
that is learned directly. Beside a rate that is compared, that product must be known.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from softcpt.engine.adapter import ALL_TASKS, init_streams
from softcpt.engine.config import Settings, TrainConfig
from softcpt.methods.base import Classifier, Problem, PromptClassifier, SeparateClassifiers
from softcpt.methods.prompt_heads import PromptsWithHead
from softcpt.methods.task_features import TaskTextConfig, start_features


def kernel_at_start(problem: Problem, seed: int) -> Float[Tensor, "T T"]:
    """Z Z^T of SoftCPT-NATA at its start, with its default options and this seed."""
    features = start_features(problem, TaskTextConfig(), init_streams(seed, ALL_TASKS))
    return features @ features.T


def rate_factor(train: TrainConfig, problem: Problem, seed: int) -> float:
    """The factor of the rate as a number."""
    if not isinstance(train.lr_factor, str):
        return train.lr_factor
    kernel = kernel_at_start(problem, seed)
    if train.lr_factor == "task-norms":
        return float(kernel.diagonal().mean())
    return float(torch.linalg.eigvalsh(kernel)[-1])


def with_numbers(settings: Settings, problem: Problem) -> TrainConfig:
    """The training's settings with its factor as a number."""
    train = settings.training()
    return train.model_copy(update={"lr_factor": rate_factor(train, problem, settings.run.seed)})


def joint_length(train: TrainConfig, shots: int | None, n_images: int, n_own: int) -> TrainConfig:
    """A separate training's settings with as many epochs as give it the steps of the joint one.

    Args:
        train: settings of the run.
        shots: images a class.
        n_images: of all tasks.
        n_own: of this one.
    """
    joint = train.n_epochs(shots) * max(1, n_images // train.batch_size)
    own = max(1, n_own // train.batch_size)
    return train.model_copy(update={"epochs": math.ceil(joint / own)})


def effective_rates(classifier: Classifier, rate: float) -> dict[str, float]:
    """Task -> rate times what its context's gradient is multiplied with; empty without a formula."""
    if isinstance(classifier, SeparateClassifiers):
        parts = [classifier.part(t) for t in range(len(classifier.tasks))]
    else:
        parts = [classifier]
    found: dict[str, float] = {}
    for part in parts:
        if not isinstance(part, PromptClassifier | PromptsWithHead):
            return {}
        factors = part.step_factors()
        if factors is None:
            return {}
        names = [task.name for task in part.problem.tasks]
        found |= {name: float(f"{rate * float(f):.6g}") for name, f in zip(names, factors, strict=True)}
    return found
