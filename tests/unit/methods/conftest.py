"""A tiny random CLIP and three small tasks."""

from dataclasses import replace

import pytest
import torch

from softcpt.clip.toy import toy_backbone
from softcpt.methods.base import Problem, TaskNames

TASKS = (
    TaskNames(
        "leaf_disease", ("rust", "black_rot", "healthy leaf"), "a leaf disease task.", "a leaf with {}."
    ),
    TaskNames("garment", ("shirt", "long sleeved dress"), None, "a photo of a {}, a garment."),
    TaskNames("land use", ("forest", "river", "crop land", "road"), "land seen from above"),
)


@pytest.fixture(scope="session")
def toy():
    return toy_backbone(seed=3, quick_gelu=True)


@pytest.fixture(scope="session")
def resnet50_sized():
    """RN50's text side in the sizes that count: W = 512, D = 1024."""
    return toy_backbone(embed_dim=1024, text_width=512, text_layers=1)


@pytest.fixture(scope="session")
def problem(toy):
    """In fp64, so that equal means equal."""
    exact = toy.to(dtype=torch.float64)
    return Problem(TASKS, exact.text, exact.tokenizer, 30.0)


@pytest.fixture
def streams():
    return lambda purpose: torch.Generator().manual_seed(len(purpose))


@pytest.fixture
def batch(problem):
    """Image features [B, D] and labels as columns, all tasks present."""
    generator = torch.Generator().manual_seed(5)
    columns = torch.tensor([0, 2, 3, 4, 5, 8, 7, 1])
    features = torch.randn(len(columns), problem.text.embed_dim, generator=generator, dtype=torch.float64)
    return features, columns


@pytest.fixture
def renamed(problem):
    def rename(index: int, name: str) -> Problem:
        tasks = list(problem.tasks)
        tasks[index] = replace(tasks[index], name=name, description=None)
        return replace(problem, tasks=tuple(tasks))

    return rename
