"""Optimisers, schedules and batches of heads: against torch, and one training for a whole grid."""

import math

import pytest
import torch
from torch import nn

from softcpt.methods.head_training import (
    Adam,
    BestOnVal,
    Sgd,
    cross_entropies,
    descend,
    epoch_cosine,
    step_cosine,
    view_batches,
)

RULES = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), lambda: Sgd(0.9)),
    "adam": (lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=5e-4), lambda: Adam(weight_decay=5e-4)),
    "adamw": (
        lambda p, lr: torch.optim.AdamW(p, lr=lr, eps=1e-4, weight_decay=0.01),
        lambda: Adam(weight_decay=0.01, decoupled=True, eps=1e-4),
    ),
}


@pytest.fixture
def batches():
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 4, generator=rng, dtype=torch.float64), torch.randint(3, (6,), generator=rng))
        for _ in range(7)
    ]


def loss(weights, batch):
    return cross_entropies(5 * batch[0] @ weights.mT, batch[1])


def torchs_own(start, batches, make):
    weight = nn.Parameter(start.clone())
    optimizer = make([weight], 0.1)
    for i, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(5 * batch[0] @ weight.T, batch[1]).backward()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_trains_as_torchs_own(batches, rule):
    start = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = descend(start, loss, iter(batches), RULES[rule][1](), lambda i: 0.1 / (i + 1))
    assert torch.allclose(ours[0], torchs_own(start[0], batches, RULES[rule][0]), atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_grid_trains_as_its_settings_do_alone(batches, rule):
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rates = torch.tensor([0.1, 0.003], dtype=torch.float64)[:, None, None]
    together = descend(start, loss, iter(batches), RULES[rule][1](), lambda i: rates / (i + 1))
    for g in range(2):
        alone = descend(
            start[g : g + 1], loss, iter(batches), RULES[rule][1](), lambda i, g=g: float(rates[g]) / (i + 1)
        )
        assert torch.allclose(together[g], alone[0], atol=1e-13)


def test_schedules_are_the_published_ones():
    assert epoch_cosine(0.1, 0, 300) == 1e-5
    assert epoch_cosine(0.1, 1, 300) == 0.1
    assert epoch_cosine(0.1, 151, 300) == pytest.approx(0.05)
    # The last epoch is still a good hundred times the rate at which a broken schedule would end.
    assert epoch_cosine(2e-3, 99, 100) == pytest.approx(1e-3 * (1 + math.cos(math.pi * 0.98)))
    assert [step_cosine(1.0, i, 2) for i in range(3)] == pytest.approx([1, 0.5, 0])


def test_an_epoch_shows_every_image_in_one_view_and_all_views_in_turn():
    views = torch.eye(15, dtype=torch.float64).view(5, 3, 15)  # image i, view v: the unit vector 3 i + v
    labels = torch.arange(5)
    shown = []
    for features, of_batch in view_batches(views, labels, 6, torch.Generator().manual_seed(0)):
        which = features.argmax(1)
        assert torch.equal(which // 3, of_batch)
        assert sorted(of_batch.tolist()) == [0, 1, 2, 3, 4]
        shown.append(dict(zip(of_batch.tolist(), (which % 3).tolist(), strict=True)))
    for image in range(5):
        turn = [epoch[image] for epoch in shown]
        assert sorted(turn[:3]) == [0, 1, 2]
        assert turn[:3] == turn[3:]
    assert len({tuple(epoch[image] for epoch in shown[:3]) for image in range(5)}) > 1


def test_a_last_partial_batch_is_dropped_unless_it_is_the_only_one():
    views, labels = torch.randn(7, 1, 4), torch.arange(7)

    def sizes(batch_size):
        rng = torch.Generator().manual_seed(0)
        return [len(b) for _, b in view_batches(views, labels, 2, rng, batch_size)]

    assert sizes(3) == [3, 3, 3, 3]
    assert sizes(8) == [7, 7]


def test_no_image_is_left_out_for_ever():
    """What the dropped batch holds changes each epoch."""
    rng = torch.Generator().manual_seed(0)
    seen = [b.tolist() for _, b in view_batches(torch.randn(7, 1, 4), torch.arange(7), 10, rng, 3)]
    assert {label for batch in seen for label in batch} == set(range(7))


@pytest.mark.parametrize(("prefer_last", "steps"), [(False, [2, 1]), (True, [4, 4])])
def test_each_setting_keeps_its_own_best_step(prefer_last, steps):
    scores = {1: [0.1, 0.5], 2: [0.9, 0.2], 3: [0.3, 0.3], 4: [0.9, 0.5]}
    best = BestOnVal(lambda values: torch.tensor(scores[int(values[0])]), prefer_last=prefer_last)
    for step in scores:
        best.look(step, torch.full((2,), float(step)))
    assert best.steps.tolist() == steps
    assert best.values.tolist() == steps
