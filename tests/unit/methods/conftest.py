"""A tiny random CLIP and three small tasks."""

from dataclasses import replace

import pytest
import torch

from softcpt.clip.toy import toy_backbone
from softcpt.methods.base import Problem, Support, TaskNames
from softcpt.methods.heads import TaskData, TaskText

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


class GivenSupport(Support):
    """Made-up features of one task."""

    labels = centres = mirrors = val_labels = val = None

    def __init__(self, all_views, labels, val, val_labels, centres=None):
        self.all_views, self.labels, self.val, self.val_labels = all_views, labels, val, val_labels
        self.centres = all_views.mean(1) if centres is None else centres
        self.mirrors = self.centres.roll(1, 1)

    def views(self, count):
        return self.all_views[:, :count] if count else self.centres[:, None]


@pytest.fixture
def given():
    return GivenSupport


def drawn_support(*, classes=3, shots=4, dim=8, n_views=5, noise=0.6, val=4, seed=0):
    """Classes as noisy directions, with norms that are not 1."""
    rng = torch.Generator().manual_seed(seed)

    def around(centres, *shape):
        drawn = torch.randn(*shape, *centres.shape, generator=rng, dtype=torch.float64)
        return 3 * (centres + noise * drawn)

    directions = torch.eye(dim, dtype=torch.float64)[:classes]
    labels = torch.arange(classes).repeat_interleave(shots)
    val_labels = torch.arange(classes).repeat_interleave(val)
    images = around(directions[labels])
    views = images[:, None] + 0.3 * torch.randn(len(labels), n_views, dim, generator=rng, dtype=torch.float64)
    return GivenSupport(views, labels, around(directions[val_labels]), val_labels, images)


@pytest.fixture
def support():
    return drawn_support


@pytest.fixture
def task():
    """One task's data: made-up features, and text features near the classes' directions."""

    def make(*, classes=3, dim=8, scale=20.0, templates=1, text_noise=0.4, given=None, seed=0, **keys):
        own = given or drawn_support(classes=classes, dim=dim, seed=seed, **keys)
        rng = torch.Generator().manual_seed(100 + seed)
        directions = torch.eye(dim, dtype=torch.float64)[:classes]
        drawn = torch.randn(templates, classes, dim, generator=rng, dtype=torch.float64)
        text = 7 * (directions + text_noise * drawn)

        def streams(purpose):
            return torch.Generator().manual_seed(sum(map(ord, purpose)) + seed)

        return TaskData(own, TaskText(lambda: text), scale, classes, torch.float64, streams)

    return make
