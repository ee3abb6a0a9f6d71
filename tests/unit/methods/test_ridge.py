"""Ridge towards text: its limits, both forms of it, and leave-one-out against brute force."""

import pytest
import torch

from softcpt.methods.heads import pooled, unit
from softcpt.methods.ridge import GAMMAS, LAMBDAS, Ridge, RidgeFit, best_tau


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(3)
    images = unit(torch.randn(20, 12, generator=generator, dtype=torch.float64))
    labels = torch.randint(4, (20,), generator=generator)
    text = unit(torch.randn(4, 12, generator=generator, dtype=torch.float64))
    return images, torch.nn.functional.one_hot(labels, 4).double(), text


@pytest.mark.parametrize("n", [8, 20])  # fewer images than coordinates, and more
def test_primal_and_dual_formulas_and_the_svd_agree(parts, n):
    images, one_hot, text = parts[0][:n], parts[1][:n], parts[2]
    for lam, gamma in ((0.01, 0.3), (1.0, 1.0), (100.0, 10.0)):
        residual = one_hot - gamma * images @ text.T
        primal = gamma * text.T + torch.linalg.solve(
            images.T @ images + lam * torch.eye(12).double(), images.T @ residual
        )
        dual = gamma * text.T + images.T @ torch.linalg.solve(
            images @ images.T + lam * torch.eye(n).double(), residual
        )
        ours = RidgeFit.of(images, one_hot, text).weights(lam, gamma)
        assert torch.allclose(primal, dual, rtol=0, atol=1e-9)
        assert torch.allclose(ours, primal, rtol=0, atol=1e-9)


def test_a_very_strong_pull_leaves_the_text(parts):
    weights = RidgeFit.of(*parts).weights(1e12, 3.0)
    assert torch.allclose(weights, 3 * parts[2].T, rtol=0, atol=1e-9)


def test_a_weak_pull_fits_the_labels_where_it_can(parts):
    images, one_hot, text = parts[0][:8], parts[1][:8], parts[2]
    assert torch.allclose(images @ RidgeFit.of(images, one_hot, text).weights(1e-10, 1.0), one_hot, atol=1e-6)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
def test_leave_one_out_is_what_twenty_fits_say(parts, lam):
    images, one_hot, text = parts
    ours = RidgeFit.of(images, one_hot, text).left_out(lam, 0.7)
    for i in range(20):
        rest = torch.arange(20) != i
        fit = RidgeFit.of(images[rest], one_hot[rest], text)
        assert torch.allclose(images[i] @ fit.weights(lam, 0.7), ours[i], rtol=0, atol=1e-8)


def test_the_temperature_is_the_likeliest():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]]).double()
    tau, loss = best_tau(scores, torch.tensor([0, 1, 0]))
    assert 2 < tau < 16
    assert loss < float(torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 0])))


def test_settings_are_chosen_without_val_images_or_on_them(task):
    data = task(noise=1.0)
    grid = Ridge(4, "loo").grid()
    assert len(grid) == len(LAMBDAS) * len(GAMMAS)
    assert grid[0] == {"lambda": 1e3, "gamma": 1.0}
    by_loo, by_val = (Ridge(4, by).explore(data, grid) for by in ("loo", "val"))
    fit = RidgeFit.of(pooled(data.views(4)), data.one_hot, data.text.unit)
    right = (fit.left_out(1e3, 1.0).argmax(1) == data.labels).double().mean()
    assert float(by_loo.scores[0, 0]) == pytest.approx(float(right))
    on_val = data.val_accuracy(data.val @ fit.weights(1e3, 1.0))
    assert float(by_val.scores[0, 0]) == pytest.approx(float(on_val))
    assert by_loo.record(0)["chosen_by"] == "loo"
    head = Ridge(4, "loo")
    logits = head.logits(by_loo.state(5), data.support.val, data.text, data.scale)
    expected = data.val @ fit.weights(grid[5]["lambda"], grid[5]["gamma"]) * by_loo.record(5)["tau"]
    assert torch.allclose(logits, expected, atol=1e-9)
