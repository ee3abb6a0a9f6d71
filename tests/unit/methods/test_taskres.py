"""TaskRes: where it starts, what it moves, and that its weights could be ZS-LP's."""

from math import cos, pi

import pytest
import torch

from softcpt.methods import taskres
from softcpt.methods.clap import TextProbe, ZsLpConfig
from softcpt.methods.heads import unit
from softcpt.methods.taskres import TaskRes, TaskResConfig, train_residuals

CONFIG = TaskResConfig(epochs=20, views=1)


def alphas(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_residual_of_zero_is_zero_shot(task):
    data = task()
    state = {"residual": torch.zeros(3, 8, dtype=torch.float64), "alpha": alphas(0.5)[0]}
    found = TaskRes(CONFIG).logits(state, data.support.val, data.text, data.scale)
    assert torch.allclose(found, data.scale * data.val @ data.text.unit.T)


def test_with_a_weight_of_zero_predictions_stay(task):
    data = task(noise=1.0)
    trials = TaskRes(CONFIG).explore(data, [{"alpha": 0.0}])
    found = TaskRes(CONFIG).logits(trials.state(0), data.support.val, data.text, data.scale)
    assert torch.allclose(found, data.scale * data.val @ data.text.unit.T)
    assert torch.equal(trials.state(0)["residual"], torch.zeros(3, 8, dtype=torch.float64))


def test_the_residual_is_learned_and_the_text_stays(task):
    data = task(noise=1.0, text_noise=1.5)
    text = data.text.raw.clone()
    residual = train_residuals(data, alphas(0.5), CONFIG)
    assert float(residual.abs().max()) > 1e-3
    assert torch.equal(data.text.raw, text)


def test_each_weight_trains_as_torchs_adam_does_alone(task):
    data = task(noise=1.0)
    values = (0.5, 0.2, 2.0)
    ours = train_residuals(data, alphas(*values), CONFIG)
    features = unit(data.views(1)[:, 0])
    for g, alpha in enumerate(values):
        residual = torch.nn.Parameter(torch.zeros(3, 8, dtype=torch.float64))
        optimizer = torch.optim.Adam([residual], lr=2e-3, weight_decay=5e-4)
        for epoch in range(20):
            cosine = 1e-3 * (1 + cos(pi * (epoch - 1) / 20))
            optimizer.param_groups[0]["lr"] = 1e-5 if epoch == 0 else cosine
            optimizer.zero_grad()
            classes = torch.nn.functional.normalize(data.text.raw + alpha * residual, dim=1)
            torch.nn.functional.cross_entropy(20 * features @ classes.T, data.labels).backward()
            optimizer.step()
        assert torch.allclose(ours[g], residual.detach(), atol=1e-12)


def test_its_weights_could_be_those_of_zs_lp(task):
    data = task(noise=1.0)
    state = TaskRes(CONFIG).explore(data, [{"alpha": 0.5}]).state(0)
    weight = data.text.raw + 0.5 * state["residual"]
    probe = TextProbe(ZsLpConfig(), None)
    assert torch.allclose(
        TaskRes(CONFIG).logits(state, data.support.val, data.text, data.scale),
        probe.logits({"weight": weight}, data.support.val, data.text, data.scale),
    )


@pytest.mark.parametrize(("shots", "epochs"), [(4, 100), (5, 200)])
def test_its_length_follows_the_shots(task, shots, epochs, monkeypatch):
    seen = []
    monkeypatch.setattr(taskres, "descend", lambda *args: seen.append(args[2]) or args[0])
    monkeypatch.setattr(taskres, "view_batches", lambda views, labels, n_epochs, rng: n_epochs)
    train_residuals(task(shots=shots), alphas(0.5), TaskResConfig())
    assert seen == [epochs]


def test_the_published_weight_stands_first():
    grid = TaskRes(CONFIG).grid()
    assert grid[0] == {"alpha": 0.5}
    assert sorted(setting["alpha"] for setting in grid) == [0.2, 0.5, 1.0, 2.0]


def test_the_norm_of_the_text_matters(task):
    data = task(noise=1.0, text_noise=1.5)
    raw, one = (
        train_residuals(data, alphas(0.5), TaskResConfig(epochs=20, text_norm=norm))
        for norm in ("raw", "unit")
    )
    assert not torch.allclose(raw, one, atol=1e-4)
