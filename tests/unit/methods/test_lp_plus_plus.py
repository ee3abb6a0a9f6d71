"""LP++: its start, its two blocks of steps, the bounds they come from, and the released gradient."""

from itertools import pairwise

import pytest
import torch

from softcpt.methods.heads import unit
from softcpt.methods.lp_plus_plus import (
    LpPlusPlus,
    LpPlusPlusConfig,
    StepSizes,
    Weights,
    descend,
    start_weights,
    step_sizes,
)


@pytest.fixture
def parts(task):
    data = task(noise=1.0)
    features, text = unit(data.views(1)[:, 0]), data.text.unit
    return data, features, text


def start(data, features, text):
    return start_weights(features, data.one_hot, text, torch.Generator().manual_seed(0))


def loss(weights, features, labels, text):
    return float(torch.nn.functional.cross_entropy(weights.logits(features, text), labels))


def test_it_starts_at_class_sums_and_one_weight_of_the_text(parts):
    data, features, text = parts
    own = start(data, features, text)
    sums = torch.stack([features[data.labels == c].sum(0) for c in range(3)])
    alpha = 250 * sum(float((features[data.labels == c] @ text[c]).mean()) for c in range(3)) / 3
    assert torch.allclose(own.w, sums)
    assert own.alpha.tolist() == pytest.approx([alpha] * 3)
    assert float(own.b.abs().max()) <= 8**-0.5
    images = unit(data.support.val)
    wanted = images @ sums.T + alpha * images @ text.T
    assert torch.equal(own.logits(images, text).argmax(1), (wanted + own.b).argmax(1))


def test_without_the_text_it_is_a_plain_probe_trained_by_torch(parts):
    data, features, text = parts
    own = start(data, features, text)
    own.alpha.zero_()
    rates = StepSizes(step_sizes(features, text, "released").w, 0.0)
    layer = torch.nn.Linear(8, 3, dtype=torch.float64)
    layer.load_state_dict({"weight": own.w.clone(), "bias": own.b.clone()})
    optimizer = torch.optim.SGD(layer.parameters(), lr=rates.w, momentum=0.9)
    for present in descend(own, features, data.labels, text, rates, iterations=40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(features), data.labels).backward()
        optimizer.step()
        assert torch.allclose(present.w, layer.weight.detach(), atol=1e-9)
        assert torch.allclose(present.b, layer.bias.detach(), atol=1e-9)


def test_with_the_text_it_predicts_otherwise(task):
    data = task(noise=1.2, text_noise=0.1)
    head = LpPlusPlus(LpPlusPlusConfig(keep="last"))
    state = head.explore(data, [{}]).state(0)
    own = head.logits(state, data.support.val, data.text, data.scale)
    frozen = head.logits({**state, "alpha": torch.zeros(3)}, data.support.val, data.text, data.scale)
    assert not torch.equal(own.argmax(1), frozen.argmax(1))


def test_the_text_weights_move_every_tenth_step_by_their_own_gradient(parts):
    data, features, text = parts
    own = start(data, features, text)
    rates = step_sizes(features, text, "released")
    before = own.alpha.clone()
    for step, present in enumerate(descend(own, features, data.labels, text, rates, iterations=10), 1):
        if step < 10:
            assert torch.equal(present.alpha, before)
        if step == 9:
            fixed = Weights(present.w.clone(), present.b.clone(), before.clone().requires_grad_())
            torch.nn.functional.cross_entropy(fixed.logits(features, text), data.labels).backward()
    assert torch.allclose(own.alpha, before - rates.alpha * fixed.alpha.grad)


def test_the_released_gradient_is_the_sum_of_all_so_far(parts):
    data, features, text = parts
    rates = step_sizes(features, text, "released")
    fresh, summed = (start(data, features, text) for _ in range(2))
    gradients = []
    before = summed.alpha.clone()
    own = summed.copy()
    own.alpha.requires_grad_()
    torch.nn.functional.cross_entropy(own.logits(features, text), data.labels).backward()
    gradients.append(own.alpha.grad)
    path = descend(summed, features, data.labels, text, rates, iterations=10, accumulate=True)
    for step, present in enumerate(path, 1):
        if step < 10:
            own = present.copy()
            own.alpha.requires_grad_()
            torch.nn.functional.cross_entropy(own.logits(features, text), data.labels).backward()
            gradients.append(own.alpha.grad)
    assert torch.allclose(summed.alpha, before - rates.alpha * sum(gradients))
    list(descend(fresh, features, data.labels, text, rates, iterations=10))
    assert not torch.allclose(fresh.alpha, summed.alpha)


def test_step_sizes_are_those_of_the_eigenvalue_and_the_products(parts):
    _, features, text = parts
    largest = float(torch.linalg.eigvalsh(features.T @ features).max())
    products = max(float((features @ text[k]).square().sum()) for k in range(3))
    released, derived = (step_sizes(features, text, rule) for rule in ("released", "derived"))
    assert released.w == pytest.approx(4 * len(features) / largest)
    assert released.alpha == pytest.approx(len(features) / (4 * products))
    assert (derived.w, derived.alpha) == pytest.approx((released.w / 2, released.alpha * 8))


def test_at_the_derived_bound_the_loss_never_rises_without_momentum(parts):
    data, features, text = parts
    derived = step_sizes(features, text, "derived")
    for factor in (1.0, 0.5):
        own = start(data, features, text)
        own.b.zero_()
        losses = [loss(own, features, data.labels, text)]
        rates = StepSizes(factor * derived.w, 0.0)
        for present in descend(own, features, data.labels, text, rates, iterations=60, momentum=0.0):
            present.b.zero_()  # the bound is that of w
            losses.append(loss(present, features, data.labels, text))
        assert all(b <= a + 1e-12 for a, b in pairwise(losses))
    own = start(data, features, text)
    rates = StepSizes(0.0, derived.alpha)
    losses = [
        loss(present, features, data.labels, text)
        for present in descend(own, features, data.labels, text, rates, iterations=200, momentum=0.0)
    ]
    assert all(b <= a + 1e-12 for a, b in pairwise(losses))


def test_val_keeps_the_later_of_equal_steps(task):
    easy = task(noise=0.01, text_noise=0.01)
    trials = LpPlusPlus(LpPlusPlusConfig(iterations=25)).explore(easy, [{}])
    assert trials.record(0) == {"iteration": 25}
    hard = task(noise=2.0, text_noise=2.0, val=20)
    kept, last = (
        LpPlusPlus(LpPlusPlusConfig(iterations=60, keep=keep)).explore(hard, [{}]).scores[0, 0]
        for keep in ("val", "last")
    )
    assert kept >= last


@pytest.mark.parametrize("keys", [{"alpha_grad": "accumulated"}, {"steps": "derived"}, {"iterations": 30}])
def test_every_switch_changes_the_weights(task, keys):
    data = task(noise=1.0)
    plain, other = (
        LpPlusPlus(LpPlusPlusConfig(keep="last", **k)).explore(data, [{}]).state(0) for k in ({}, keys)
    )
    assert not torch.allclose(plain["weight"], other["weight"], atol=1e-6)


def test_the_gradient_of_the_text_weights_is_fresh_unless_asked_otherwise(task):
    data = task(noise=1.0)
    default, fresh, released = (
        LpPlusPlus(LpPlusPlusConfig(keep="last", **keys)).explore(data, [{}]).state(0)["alpha"]
        for keys in ({}, {"alpha_grad": "fresh"}, {"alpha_grad": "accumulated"})
    )
    assert torch.equal(default, fresh)
    assert not torch.allclose(default, released, atol=1e-6)


def test_classes_of_unequal_size_start_at_their_own_sums(task, support, given):
    """The released code counts classes as images over shots."""
    own = support()
    kept = torch.tensor([0, 4, 5, 6, 8, 9])  # 1, 3 and 2 images
    data = task(given=given(own.all_views[kept], own.labels[kept], own.val, own.val_labels))
    features, text = unit(data.views(1)[:, 0]), data.text.unit
    found = start(data, features, text)
    parts = (features[:1], features[1:4], features[4:])
    assert torch.allclose(found.w, torch.stack([part.sum(0) for part in parts]))
    alpha = 250 / 3 * sum(float((part @ t).mean()) for part, t in zip(parts, text, strict=True))
    assert found.alpha.tolist() == pytest.approx([alpha] * 3)
