"""The votes of stored images: by hand, at their limits, and learned."""

import math

import pytest
import torch

from softcpt.methods.heads import pooled, unit
from softcpt.methods.loss import cosine_logits
from softcpt.methods.tip_adapter import (
    PUBLISHED,
    TipAdapter,
    TipAdapterConfig,
    TipAdapterFConfig,
    log_grid,
    train_keys,
    votes,
)


def logits_at(head, data, features, **pair):
    return head.logits(head.explore(data, [pair]).state(0), features, data.text, data.scale)


def test_votes_by_hand():
    features = torch.tensor([[1.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    one_hot = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = votes(features, keys, one_hot, 2.0)
    assert found[0].tolist() == pytest.approx([1 + math.exp(-0.8), math.exp(-2.0)])


def test_without_votes_it_is_zero_shot_bit_for_bit(task):
    data = task()
    found = logits_at(TipAdapter(TipAdapterConfig()), data, data.support.val, alpha=0.0, beta=5.5)
    assert torch.equal(found, cosine_logits(data.support.val, data.text.unit, data.scale))


def test_with_sharp_votes_a_stored_image_finds_its_own_label(task):
    data = task(noise=2.0, text_noise=3.0)  # neither images nor texts say much
    stored = data.support.all_views.mean(1)
    found = logits_at(TipAdapter(TipAdapterConfig()), data, stored, alpha=1e3, beta=1e5)
    assert torch.equal(found.argmax(1), data.labels)


def test_keys_are_the_normalised_means_of_the_views(task):
    data = task()
    state = TipAdapter(TipAdapterConfig(views=3)).explore(data, [PUBLISHED]).state(0)
    assert torch.equal(state["keys"], pooled(data.support.all_views[:, :3]))
    assert torch.allclose(state["keys"].norm(dim=1), torch.ones(12, dtype=torch.float64))


def test_every_pair_is_scored_on_val_as_it_would_score_alone(task):
    data = task(noise=1.5)
    head = TipAdapter(TipAdapterConfig())
    grid = head.grid()
    assert grid[0] == {"alpha": 1.0, "beta": 5.5}
    assert len(grid) == 1 + 40 * 40
    assert log_grid()[-1] == pytest.approx(50)
    assert 0.1 < log_grid()[0] < 0.13
    trials = head.explore(data, grid)
    for g in (0, 17, 803, 1600):
        found = head.logits(trials.state(g), data.support.val, data.text, data.scale)
        accuracy = (found.argmax(1) == data.val_labels).double().mean()
        assert float(trials.scores[g, 0]) == float(accuracy)
    assert len(set(trials.scores[:, 0].tolist())) > 2


def cross_entropy(data, keys):
    features = unit(data.support.all_views).flatten(0, 1)
    labels = data.labels.repeat_interleave(data.support.all_views.shape[1])
    guess = data.scale * features @ data.text.unit.T
    own = guess + PUBLISHED["alpha"] * votes(features, keys, data.one_hot, PUBLISHED["beta"])
    return float(torch.nn.functional.cross_entropy(own, labels))


def test_learned_keys_move_and_fit_the_images_better(task):
    data = task(noise=1.0, text_noise=1.5)
    start = pooled(data.support.all_views)
    keys, epoch = train_keys(data, TipAdapterFConfig(views=5, keep="last"))
    assert epoch == 20
    assert not torch.allclose(keys, start, atol=1e-3)
    assert cross_entropy(data, keys) < cross_entropy(data, start)
    assert not torch.allclose(keys.norm(dim=1), torch.ones(12, dtype=torch.float64), atol=1e-4)


def test_learned_keys_equal_torchs_own_training(task):
    """With one view and one batch an epoch, the loop is that of AdamW with a cosine per step."""
    data = task(noise=1.0, text_noise=1.5)
    keys, _ = train_keys(data, TipAdapterFConfig(views=1, keep="last", epochs=6))
    features = unit(data.support.all_views[:, 0])
    weight = torch.nn.Parameter(features.clone())
    optimizer = torch.optim.AdamW([weight], lr=1e-3, eps=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for _ in range(6):
        own = 20 * features @ data.text.unit.T + torch.exp(-5.5 * (1 - features @ weight.T)) @ data.one_hot
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(own, data.labels).backward()
        optimizer.step()
        schedule.step()
    assert torch.allclose(keys, weight.detach(), atol=1e-12)


def test_the_epoch_is_chosen_on_val_and_stays_the_last_where_none_is_better(task):
    flat = task(noise=0.01, text_noise=0.01)
    assert train_keys(flat, TipAdapterFConfig(epochs=5))[1] == 5
    data = task(noise=1.5, text_noise=1.5, val=20)
    kept, epoch = train_keys(data, TipAdapterFConfig(epochs=8, lr=0.3))
    last, _ = train_keys(data, TipAdapterFConfig(epochs=8, lr=0.3, keep="last"))
    assert 1 <= epoch < 8

    def val_accuracy(keys):
        guess = data.scale * data.val @ data.text.unit.T
        own = guess + votes(data.val, keys, data.one_hot, PUBLISHED["beta"])
        return float((own.argmax(1) == data.val_labels).double().mean())

    assert val_accuracy(kept) > val_accuracy(last)
