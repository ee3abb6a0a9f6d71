"""Logistic regression beside text: against scikit-learn's, its limits, and what is chosen."""

import numpy as np
import pytest
import torch

from softcpt.methods.linear_probe import fit_logistic
from softcpt.methods.logistic import GAMMAS, STRENGTHS, Logistic, fit_beside
from softcpt.methods.loss import unit
from softcpt.methods.registry import get_method


@pytest.fixture
def images():
    rng = np.random.RandomState(2)
    centres = rng.randn(3, 6)
    labels = np.arange(3).repeat(5)
    return centres[labels] + rng.randn(15, 6), labels


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_without_text_it_is_scikit_learns_regression(images, strength):
    features, labels = images
    found = fit_beside(np.zeros((15, 3)), features, labels, strength, np.zeros((3, 7)))
    weight, bias = fit_logistic(features, labels, 3, strength)
    assert np.allclose(found[:, :-1], weight, atol=0.01 * max(1, abs(weight).max()))
    theirs = features @ weight.T + bias
    ours = features @ found[:, :-1].T + found[:, -1]
    # A number added to all biases changes nothing.
    assert np.allclose(
        ours - ours.mean(1, keepdims=True),
        theirs - theirs.mean(1, keepdims=True),
        atol=0.02 * abs(theirs).max(),
    )


def test_with_text_the_slope_is_zero_at_the_minimum(images):
    features, labels = images
    text = np.random.RandomState(3).randn(15, 3) * 2
    found = fit_beside(text, features, labels, 0.5, np.zeros((3, 7)))
    w = torch.from_numpy(found).requires_grad_()
    x = torch.from_numpy(features)
    logits = torch.from_numpy(text) + x @ w[:, :-1].T + w[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    loss = loss + w[:, :-1].square().sum() / (2 * 0.5)
    (slope,) = torch.autograd.grad(loss, w)
    assert float(slope.abs().max()) < 1e-2
    alone = fit_beside(np.zeros((15, 3)), features, labels, 0.5, np.zeros((3, 7)))
    assert not np.allclose(found, alone, atol=0.05)  # it learns what the text has wrong, not the same again


def test_the_start_does_not_matter(images):
    features, labels = images
    near, far = (
        fit_beside(np.zeros((15, 3)), features, labels, 1.0, start)
        for start in (np.zeros((3, 7)), np.random.RandomState(1).randn(3, 7))
    )
    assert np.allclose(near[:, :-1], far[:, :-1], atol=2e-2)


def test_good_text_and_noisy_images_leave_the_text(task):
    data = task(noise=6.0, text_noise=0.0)
    head = Logistic()
    grid = head.grid()
    assert grid[0] == {"gamma": 1.0, "C": 0.0}
    assert [setting["gamma"] for setting in grid[1:]] == [g for g in GAMMAS for _ in STRENGTHS]
    trials = head.explore(data, grid)
    text = data.scale * unit(data.support.val) @ data.text.unit.T
    assert torch.equal(head.logits(trials.state(0), data.support.val, data.text, data.scale), text)
    for g in (3, len(STRENGTHS) + 4):
        logits = head.logits(trials.state(g), data.support.val, data.text, data.scale)
        assert float(trials.scores[g, 0]) == pytest.approx(float(data.val_accuracy(logits)))
    said = trials.record(0)
    assert said["text_val_accuracy"] == pytest.approx(float(data.val_accuracy(text)))
    assert said["probe_val_accuracy"] == max(float(s) for s in trials.scores[len(STRENGTHS) + 1 :, 0])


def test_wrong_text_is_left_out_or_outvoted(task):
    data = task(noise=0.2, text_noise=0.0, scale=40.0)
    data.text.__dict__["unit"] = data.text.unit.roll(1, 0)  # every class by another's name
    head = Logistic()
    trials = head.explore(data, head.grid())
    assert float(trials.scores.max(0).values[0]) > 0.9
    assert trials.record(0)["text_val_accuracy"] < 0.2


def test_the_method_is_offered_and_keeps_what_it_learned():
    method = get_method("logistic")
    assert method.fits
    assert not method.trains
    assert set(Logistic().shapes(9, 3, 8)) == {"weight", "bias", "gamma"}
