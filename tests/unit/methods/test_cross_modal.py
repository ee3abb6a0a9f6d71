"""Texts as training samples: what they do where images say nothing, against torch, and WiSE-FT's ends."""

import itertools
import math

import pytest
import torch

from softcpt.methods import cross_modal
from softcpt.methods.cross_modal import CrossModal, CrossModalConfig, endless, train_probe
from softcpt.methods.heads import unit

SETTINGS = [{"lr": 1e-3, "weight_decay": 0.01}, {"lr": 1e-2, "weight_decay": 0.0}]


@pytest.fixture
def one_class(support, given):
    """Images of class 0 only."""
    own = support(shots=6)
    images = own.labels == 0
    return given(
        own.all_views[images], own.labels[images], own.val[:0], own.val_labels[:0], own.centres[images]
    )


def trained(data, config, settings=SETTINGS, batch_size=8, start=None):
    start = torch.zeros(3, 8, dtype=torch.float64) if start is None else start
    return train_probe(data, start, settings, batch_size, config).weights


def test_the_text_half_teaches_classes_that_have_no_images(task, one_class):
    data = task(given=one_class)
    both = trained(data, CrossModalConfig(iterations=200))
    images = trained(data, CrossModalConfig(iterations=200, text_half=False))
    texts = data.text.unit
    for g in range(len(SETTINGS)):
        assert (texts @ both[g].T).argmax(1).tolist() == [0, 1, 2]
        # Without it the other rows only flee from class 0, both alike.
        assert torch.allclose(images[g][1], images[g][2])
    assert not torch.allclose(both, images, atol=1e-3)


def test_the_batched_grid_equals_torchs_own_training_of_each_setting(task):
    data = task(noise=1.0, templates=2)
    start = unit(data.text.raw)
    n = 70
    ours = train_probe(data_without_val(data), start, SETTINGS, 8, CrossModalConfig(iterations=n)).weights
    images = torch.cat([data.centres, unit(data.support.mirrors)])
    texts = data.text.every.flatten(0, 1)
    of_image, of_text = data.labels.repeat(2), torch.arange(3).repeat(2)
    for g, setting in enumerate(SETTINGS):
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight], lr=setting["lr"], weight_decay=setting["weight_decay"])
        rows = endless(len(images), 4, data.streams("images 8"))
        text_rows = endless(len(texts), 4, data.streams("texts 8"))
        for i in range(n):
            rate = 1e-5 if i == 0 else setting["lr"] * i / 50
            if i >= 50:
                rate = (
                    setting["lr"] * (1 + torch.cos(torch.tensor(torch.pi * (i - 50) / (n - 50))).item()) / 2
                )
            optimizer.param_groups[0]["lr"] = rate
            a, b = next(rows), next(text_rows)
            logits = data.scale * torch.cat([images[a], texts[b]]) @ weight.T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.cat([of_image[a], of_text[b]])).backward()
            optimizer.step()
        assert torch.allclose(ours[g], weight.detach(), atol=1e-10)


def data_without_val(data):
    own = data.support
    blind = type(own)(own.all_views, own.labels, own.val[:0], own.val_labels[:0], own.centres)
    return type(data)(blind, data.text, data.scale, data.n_classes, data.dtype, data.streams)


def test_each_training_keeps_its_best_step_on_val(task, monkeypatch):
    monkeypatch.setattr(cross_modal, "LOOK_EVERY", 10)
    data = task(noise=1.5, val=12)
    wild = [{"lr": 1.0, "weight_decay": 0.0}]
    start = unit(data.text.raw)
    kept = train_probe(data, start, wild, 8, CrossModalConfig(iterations=60))
    last = train_probe(data_without_val(data), start, wild, 8, CrossModalConfig(iterations=60))

    def accuracy(weights):
        return float(data.val_accuracy(data.val @ weights.mT)[0])

    assert accuracy(kept.weights) >= accuracy(last.weights)
    assert int(kept.steps[0]) % 10 == 0
    assert int(last.steps[0]) == 60


def test_wise_ft_ends_at_zero_shot_and_halves_in_between(task):
    data = task(noise=1.0)
    grid = CrossModal(CrossModalConfig()).grid()[:2]
    states = {
        share: CrossModal(CrossModalConfig(iterations=50, wise_ft=share))
        .explore(data, grid)
        .state(0)["weight"]
        for share in (0.0, 0.5, 1.0)
    }
    assert torch.allclose(states[1.0], data.text.unit)
    assert torch.allclose(states[0.5], (states[0.0] + data.text.unit) / 2)
    head = CrossModal(CrossModalConfig())
    found = head.logits({"weight": states[1.0]}, data.support.val, data.text, data.scale)
    assert torch.allclose(found, data.scale * data.val @ data.text.unit.T)


def test_the_uni_modal_probe_starts_where_it_is_told(task, monkeypatch):
    monkeypatch.setattr(cross_modal, "WARMUP_LR", 0.0)
    data = task()

    def start(**keys):
        config = CrossModalConfig(iterations=1, text_half=False, **keys)
        return CrossModal(config).explore(data, CrossModal(config).grid()[:1]).state(0)["weight"]

    assert torch.allclose(start(), unit(data.text.raw))
    drawn = start(start="random")
    assert float(drawn.abs().max()) <= 8**-0.5
    assert not torch.allclose(drawn, unit(data.text.raw), atol=0.1)


def test_a_random_start_without_the_text_half_knows_nothing_of_the_text(task):
    """Else a comparison with it would hide what the text half brings."""
    data, other = task(noise=1.0), task(noise=1.0, text_noise=5.0)
    assert not torch.allclose(data.text.unit, other.text.unit, atol=0.1)
    config = CrossModalConfig(iterations=30, text_half=False, start="random")
    grid = CrossModal(config).grid()[:2]
    ours, theirs = (CrossModal(config).explore(d, grid).state(1)["weight"] for d in (data, other))
    assert torch.equal(ours, theirs)
    from_text = CrossModalConfig(iterations=30, text_half=False, start="text")
    assert not torch.allclose(CrossModal(from_text).explore(data, grid).state(1)["weight"], ours, atol=0.01)


def test_without_the_text_half_it_is_the_uni_modal_probe_trained_by_torch(task):
    data = task(noise=1.0)
    n, start = 60, unit(data.text.raw)
    config = CrossModalConfig(iterations=n, text_half=False)
    ours = train_probe(data_without_val(data), start, SETTINGS[1:], 8, config).weights[0]
    images, labels = torch.cat([data.centres, unit(data.support.mirrors)]), data.labels.repeat(2)
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.0)
    for i, rows in zip(range(n), endless(len(images), 8, data.streams("images 8")), strict=False):
        rate = 1e-5 if i == 0 else 1e-2 * i / 50
        optimizer.param_groups[0]["lr"] = (
            rate if i < 50 else 5e-3 * (1 + math.cos(math.pi * (i - 50) / (n - 50)))
        )
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(data.scale * images[rows] @ weight.T, labels[rows]).backward()
        optimizer.step()
    assert torch.allclose(ours, weight.detach(), atol=1e-10)


def test_twelve_settings_count_as_twelve_trainings(task):
    head = CrossModal(CrossModalConfig(iterations=2))
    grid = head.grid()
    assert len(grid) == 12
    assert {s["lr"] for s in grid} == {1e-3, 1e-4}
    assert {s["weight_decay"] for s in grid} == {0.0, 0.01, 1e-4}
    assert {s["batch_size"] for s in grid} == {8, 32}
    assert head.explore(task(), grid).trainings == 12


def test_batches_go_on_and_hold_no_row_twice():
    found = list(itertools.islice(endless(7, 3, torch.Generator().manual_seed(0)), 6))
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert len({*first.tolist(), *second.tolist()}) == 6
    assert [len(b) for b in itertools.islice(endless(2, 16, torch.Generator()), 3)] == [2, 2, 2]


def test_no_image_is_left_out_for_ever():
    """A last partial batch is dropped; what is in it changes each time round."""
    rounds = itertools.islice(endless(7, 3, torch.Generator().manual_seed(0)), 20)
    assert set(torch.cat(list(rounds)).tolist()) == set(range(7))
