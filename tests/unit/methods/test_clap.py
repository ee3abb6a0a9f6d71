"""ZS-LP and CLAP: pulls by hand, what they hold back, the norm of the text, and torch's own training."""

from math import cos, pi

import pytest
import torch

from softcpt.methods.clap import ClapConfig, TextProbe, ZsLpConfig, pulls, train_weights
from softcpt.methods.heads import unit


def weights(data, pull=None, **keys):
    config = ZsLpConfig(**{"epochs": 30, **keys})
    return train_weights(data, data.views(config.views), pull, config)


def test_a_pull_is_the_mean_zero_shot_probability_of_a_class_s_views(task):
    data = task(noise=1.0)
    views = data.views(5)
    wanted = []
    for c in range(3):
        images = views[data.labels == c].reshape(-1, 8)
        cosines = torch.nn.functional.cosine_similarity(images[:, None], data.text.raw[None], dim=-1)
        wanted.append(float((data.scale * cosines).softmax(1)[:, c].mean()))
    assert pulls(data, views, "l2").tolist() == pytest.approx(wanted)
    mean = sum(wanted) / 3
    assert pulls(data, views, "corrected").tolist() == pytest.approx([w / mean for w in wanted])
    assert pulls(data, views, "constant").tolist() == pytest.approx([mean] * 3)
    assert pulls(data, views, "balanced").tolist() == [1, 1, 1]


def test_without_pulls_clap_is_zs_lp(task):
    data = task(noise=1.0)
    assert torch.equal(weights(data, torch.zeros(3, dtype=torch.float64)), weights(data))


def test_a_class_is_held_by_its_own_pull(task):
    data = task(noise=1.0, text_noise=2.0)
    pull = torch.tensor([0.0, 0.3, 30.0], dtype=torch.float64)
    moved = (weights(data, pull, lr=0.03) - data.text.raw).norm(dim=1)
    assert moved[0] > moved[1] > moved[2]
    assert float(moved[2]) < 0.1 * float(moved[0])


@pytest.mark.parametrize("pull", [None, (0.5, 0.0, 2.0)])
def test_both_start_at_the_text_and_equal_torchs_own_training(task, pull):
    data = task(noise=1.0)
    pull = None if pull is None else torch.tensor(pull, dtype=torch.float64)
    ours = weights(data, pull, views=1, epochs=12)
    features = unit(data.views(1)[:, 0])
    weight = torch.nn.Parameter(data.text.raw.clone())
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for epoch in range(12):
        optimizer.param_groups[0]["lr"] = 1e-5 if epoch == 0 else 0.05 * (1 + cos(pi * (epoch - 1) / 12))
        optimizer.zero_grad()
        logits = 20 * features @ torch.nn.functional.normalize(weight, dim=1).T
        loss = torch.nn.functional.cross_entropy(logits, data.labels)
        if pull is not None:
            loss = loss + sum(pull[c] * (weight[c] - data.text.raw[c]).square().sum() for c in range(3)) / 3
        loss.backward()
        optimizer.step()
    assert torch.allclose(ours, weight.detach(), atol=1e-12)


@pytest.mark.parametrize("constraint", [None, "l2"])
def test_the_norm_of_the_text_matters(task, constraint):
    data = task(noise=1.0, text_noise=1.5)
    views = data.views(5)
    pull = None if constraint is None else pulls(data, views, constraint)
    raw, one = (weights(data, pull, text_norm=norm) for norm in ("raw", "unit"))
    assert not torch.allclose(unit(raw), unit(one), atol=0.01)
    # Longer weights turn less at the same rate.
    turned = [(unit(w) * data.text.unit).sum(1).mean() for w in (raw, one)]
    assert turned[0] > turned[1]


def test_val_images_change_nothing(task, given):
    data = task(noise=1.0)
    own = data.support
    other = given(own.all_views, own.labels, -own.val, own.val_labels, own.centres)
    head = TextProbe(ClapConfig(epochs=10), "l2")
    first, second = (head.explore(d, [{}]).state(0)["weight"] for d in (data, task(given=other, noise=1.0)))
    assert torch.equal(first, second)
