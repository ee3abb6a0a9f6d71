"""The optimizer's repeated steps, worked by hand."""

import pytest
import torch
from torch import nn

from softcpt.engine.optim import OptimSpec, build_optimizer, learning_rate, set_learning_rate, take_step

# Worked by hand: without decay, one batch moves p by -lr (a g + b v) and leaves v = c v + d g.
TABLE = {1: (1, 0.9, 0.9, 1), 3: (5.61, 2.439, 0.729, 2.71), 4: (9.049, 3.0951, 0.6561, 3.439)}


@pytest.mark.parametrize("repeated", TABLE)
def test_repeated_steps_move_by_the_published_factors(repeated):
    a, b, c, d = TABLE[repeated]
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    spec = OptimSpec(lr=0.1, weight_decay=0, repeated_steps=repeated)
    optimizer = build_optimizer([parameter], spec)
    take_step(optimizer, (2.0 * parameter).sum(), spec)
    velocity = optimizer.state[parameter]["momentum_buffer"].clone()
    before = parameter.detach().clone()
    take_step(optimizer, (3.0 * parameter).sum(), spec)
    assert torch.allclose(parameter - before, -0.1 * (a * 3.0 + b * velocity))
    assert torch.allclose(optimizer.state[parameter]["momentum_buffer"], c * velocity + d * 3.0)


def test_a_parameter_the_loss_does_not_see_still_decays():
    seen, unseen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    spec = OptimSpec(lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer([seen, unseen], spec)
    take_step(optimizer, seen.sum(), spec)
    assert unseen.item() == pytest.approx(1 - 0.1 * 0.5)


def test_adams_steps_do_not_depend_on_the_size_of_gradients_and_decay_is_apart():
    small, large = nn.Parameter(torch.full((2,), 2.0)), nn.Parameter(torch.full((2,), 2.0))
    spec = OptimSpec(lr=0.1, optimizer="adam", weight_decay=0.5)
    optimizer = build_optimizer([small, large], spec)
    take_step(optimizer, (1e-2 * small).sum() + (1e3 * large).sum(), spec)
    # The first step is the rate itself: both means are the gradient's, and cancel.
    assert torch.allclose(small, torch.full((2,), 2.0 * (1 - 0.1 * 0.5) - 0.1), atol=1e-5)
    assert torch.allclose(small, large, atol=1e-5)


def test_momentum_is_adams_first_decay():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    spec = OptimSpec(lr=0.1, optimizer="adam", momentum=0.5, weight_decay=0)
    optimizer = build_optimizer([parameter], spec)
    take_step(optimizer, (2.0 * parameter).sum(), spec)
    before = parameter.detach().clone()
    take_step(optimizer, (-1.0 * parameter).sum(), spec)
    mean = (0.5 * 0.5 * 2.0 + 0.5 * -1.0) / (1 - 0.5**2)
    square = (0.999 * 0.001 * 4.0 + 0.001 * 1.0) / (1 - 0.999**2)
    assert torch.allclose(parameter - before, torch.tensor(-0.1 * mean / square**0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("epoch", "rates"),
    [
        (0, (1e-5,) * 3),
        (1, (0.002, 0.00199, 0.00198)),
        (17, (0.00154, 0, 0.000518)),
        (49, (7.9e-6, 3.1e-5, 0.00195)),
    ],
)
def test_the_published_table_of_rates(epoch, rates):
    for repeated, rate in zip((1, 3, 4), rates, strict=True):
        ours = learning_rate(OptimSpec(repeated_steps=repeated), epoch)
        assert ours == pytest.approx(rate, rel=2e-2, abs=1e-9)


def test_setting_the_rate_changes_the_step():
    parameter = nn.Parameter(torch.zeros(1))
    spec = OptimSpec(weight_decay=0)
    optimizer = build_optimizer([parameter], spec)
    set_learning_rate(optimizer, 0.25)
    take_step(optimizer, parameter.sum(), spec)
    assert parameter.item() == -0.25
