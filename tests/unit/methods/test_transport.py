"""Sinkhorn's plan: its margins, its optimum, and that each problem is solved by itself."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from softcpt.methods.transport import transport_plan

EXACT = {"tolerance": 1e-12, "most_iterations": 5000}


def cosines(*shape, seed=0, spread=0.3):
    return spread * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_margins_are_even():
    plan = transport_plan(cosines(5, 3, 49, 4), epsilon=0.1, tolerance=0.01, most_iterations=100)
    assert torch.allclose(plan.sum(-2), torch.full((5, 3, 4), 1 / 4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(
        plan.sum(-1), torch.full((5, 3, 49), 1 / 49, dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_it_is_sinkhorn_s_plan_without_logarithms():
    similarity = cosines(9, 3)
    kernel = np.exp(-(1 - similarity.numpy()) / 0.1)
    r, c = np.ones(9), np.ones(3)
    for _ in range(2000):
        r = (1 / 9) / (kernel @ c)
        c = (1 / 3) / (kernel.T @ r)
    plan = transport_plan(similarity, epsilon=0.1, **EXACT)
    assert np.allclose(plan.numpy(), r[:, None] * kernel * c, rtol=0, atol=1e-12)


def test_it_stops_as_published_where_there_is_one_problem():
    similarity = cosines(7, 2, seed=4)
    kernel = (-(1 - similarity) / 0.1).exp()
    r, c = torch.ones(7, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for _ in range(100):
        before = r
        r = (1 / 7) / (kernel @ c)
        c = (1 / 2) / (kernel.T @ r)
        if (r - before).abs().mean() < 0.01:
            break
    plan = transport_plan(similarity, epsilon=0.1, tolerance=0.01, most_iterations=100)
    assert torch.allclose(plan, r[:, None] * kernel * c, rtol=0, atol=1e-13)
    cut = transport_plan(similarity, epsilon=0.1, tolerance=1e-12, most_iterations=1)
    assert not torch.allclose(cut, plan, rtol=0, atol=1e-6)


def test_with_little_entropy_it_is_the_best_assignment():
    similarity = cosines(5, 5, seed=2, spread=1.0)
    rows, columns = linear_sum_assignment(-similarity.numpy())
    best = np.zeros((5, 5))
    best[rows, columns] = 1 / 5
    plan = transport_plan(similarity, epsilon=0.005, **EXACT)
    assert np.allclose(plan.numpy(), best, rtol=0, atol=1e-2)


def test_a_prompt_for_each_region_finds_it():
    similarity = torch.full((4, 4), 0.1) + 0.3 * torch.eye(4)
    plan = transport_plan(similarity, epsilon=0.1, tolerance=0.01, most_iterations=100)
    assert float(plan.diagonal().sum()) > 0.8
    assert float((plan * similarity).sum()) > float(similarity.mean()) + 0.1
    assert torch.allclose(plan.sum(0), torch.full((4,), 0.25), atol=1e-3)
    assert torch.allclose(plan.sum(1), torch.full((4,), 0.25), atol=1e-3)


def test_a_problem_is_solved_as_if_it_were_alone():
    """Else a prediction would depend on the images beside it."""
    hard, easy = 2 * cosines(1, 16, 4, seed=1), torch.zeros(1, 16, 4, dtype=torch.float64)
    kwargs = {"epsilon": 0.05, "tolerance": 0.01, "most_iterations": 100}
    together = transport_plan(torch.cat([hard, easy]), **kwargs)
    assert torch.equal(together[:1], transport_plan(hard, **kwargs))
    assert torch.equal(together[1:], transport_plan(easy, **kwargs))


@pytest.mark.parametrize("epsilon", [1e-3, 10.0])
def test_kernels_of_any_size_give_numbers_in_fp32(epsilon):
    similarity = cosines(3, 16, 4, spread=2.0).float() - 1
    plan = transport_plan(similarity, epsilon=epsilon, tolerance=0.01, most_iterations=100)
    assert torch.isfinite(plan).all()
    assert torch.allclose(plan.sum(-2), torch.full((3, 4), 0.25), atol=1e-4)


def test_nothing_is_learned_through_the_plan():
    similarity = cosines(4, 2).requires_grad_()
    plan = transport_plan(similarity, epsilon=0.1, tolerance=0.01, most_iterations=100)
    assert not plan.requires_grad
