"""A context per class in a span that the tasks share."""

from dataclasses import replace

import pytest
import torch

from softcpt.core.errors import ConfigError
from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods.base import TaskNames
from softcpt.methods.registry import get_method


def build(problem, streams, **options):
    method = get_method("softcpt-span")
    return method.build(problem, method.config(**{"context_length": 3, **options}), streams)


def test_contexts_are_a_start_and_places_in_shared_directions(problem, streams):
    """Against the sum written out, and with the count that makes it small."""
    made = build(problem, streams, span_size=2)
    n_classes, width = len(problem.class_names), problem.text.width
    by_hand = torch.stack(
        [
            made.start[0]
            + made.places[j, 0] * made.directions[0, 0]
            + made.places[j, 1] * made.directions[0, 1]
            for j in range(n_classes)
        ]
    )
    assert torch.allclose(made.contexts(), by_hand, rtol=0, atol=1e-12)
    some = torch.tensor([0, 3, 4])
    assert torch.allclose(made.contexts(some), by_hand[some], rtol=0, atol=1e-12)
    assert sum(p.numel() for p in made.parameters()) == 3 * width * (1 + 2) + n_classes * 2
    moved = (made.contexts() - made.start).flatten(1)
    assert torch.linalg.matrix_rank(moved) == 2


def test_an_image_of_one_task_moves_the_classes_of_every_task(problem, streams, batch):
    """The directions are shared; with a span for each task they are not."""
    features, columns = batch
    of_class = problem.task_of_class
    first = of_class[columns] == 0
    assert first.any()
    for span, shared in (("shared", True), ("own", False)):
        made = build(problem, streams, span=span, span_size=2)
        before = made.contexts().detach()
        spec = OptimSpec(lr=0.1, weight_decay=0.0)
        optimizer = build_optimizer(made.parameters(), spec)
        loss = made.loss(features[first], columns[first], rng=torch.Generator())
        take_step(optimizer, loss, spec)
        moved = (made.contexts().detach() - before).abs().flatten(1).amax(1) > 1e-9
        assert moved[of_class == 0].all()
        assert bool(moved[of_class != 0].any()) is shared


def test_enough_directions_reach_what_a_context_for_each_class_does(problem, streams):
    targets = torch.randn(
        len(problem.class_names), 3, problem.text.width, generator=torch.Generator().manual_seed(1)
    ).to(problem.dtype)
    left = {}
    for size in (1, len(problem.class_names)):
        made = build(problem, streams, span_size=size)
        optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
        for _ in range(600):
            optimizer.zero_grad()
            loss = (made.contexts() - targets).square().mean()
            loss.backward()
            optimizer.step()
        left[size] = float(loss.detach())
    assert left[len(problem.class_names)] < 1e-2
    assert left[1] > 0.2


def test_new_tasks_stand_where_the_trained_classes_stand_on_average(problem, streams):
    made = build(problem, streams, span_size=2)
    new = replace(problem, tasks=(TaskNames("shoe", ("boot", "sandal")), TaskNames("hat", ("cap", "crown"))))
    contexts = made.for_tasks(new).contexts
    assert torch.allclose(contexts, made.contexts().mean(0).expand(2, -1, -1), rtol=0, atol=1e-9)
    with pytest.raises(ConfigError, match="unseen"):
        build(problem, streams, span="own").for_tasks(new)


def test_it_takes_adams_steps_unless_asked_otherwise():
    assert get_method("softcpt-span").defaults == {"optimizer": "adam"}
