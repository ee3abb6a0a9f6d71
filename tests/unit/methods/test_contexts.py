"""Where contexts come from: low rank, a hidden layer, a shared basis, a gated residual."""

from dataclasses import replace

import pytest
import torch

from softcpt.core.errors import ConfigError
from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods.base import TaskNames
from softcpt.methods.basis import BasisConfig, BasisContexts
from softcpt.methods.meta import FIRST_WORDS, HiddenMeta, LinearMeta, LowRankMeta
from softcpt.methods.prompts import word_context
from softcpt.methods.registry import get_method
from softcpt.methods.residual import ResidualConfig, ResidualContexts

SIZES = {"context_length": 3, "task_context_length": 2}


def build(problem, key, streams, **options):
    method = get_method(key)
    return method.build(problem, method.config(**{"context_length": 3, **options}), streams)


def descend(parameters, loss, steps, lr):
    """Plain gradient descent with momentum on a loss of no batch."""
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return float(loss().detach())


def test_low_rank_of_at_least_the_tasks_reaches_what_the_full_matrix_does(problem, streams):
    """With fixed task features; a lower rank cannot."""
    n_tasks, dim, size = 4, problem.text.embed_dim, 3 * problem.text.width
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(n_tasks, dim, generator=generator, dtype=torch.float64)
    targets = torch.randn(n_tasks, size, generator=generator, dtype=torch.float64) * 0.1

    def end(meta):
        def loss():
            return (meta(features).flatten(1) - targets).square().sum()

        return descend(meta.parameters(), loss, 600, 2e-3)

    full = end(LinearMeta(problem, dim, 3, streams))
    assert end(LowRankMeta(problem, dim, 3, 4, streams)) < full + 1e-2
    assert end(LowRankMeta(problem, dim, 3, 4, streams, learn_down=False)) < full + 1e-2
    too_low = LowRankMeta(problem, dim, 3, 2, streams)
    assert end(too_low) > full + 0.3
    assert torch.linalg.matrix_rank(too_low(features).flatten(1)) == 2


def test_a_frozen_first_matrix_is_kept_and_not_learned(problem, streams, batch):
    frozen = build(problem, "softcpt-nata", streams, **SIZES, meta="lowrank", rank=2, freeze_down=True)
    assert sum(p.numel() for p in frozen.meta.parameters()) == 2 * 3 * problem.text.width
    before = frozen.meta.down.clone()
    spec = OptimSpec(lr=0.1)
    optimizer = build_optimizer(frozen.parameters(), spec)
    take_step(optimizer, frozen.loss(*batch, rng=torch.Generator()), spec)
    assert torch.equal(frozen.meta.down, before)
    assert "meta.down" in frozen.learned()


def test_a_rank_above_the_matrix_is_refused(problem, streams):
    with pytest.raises(ConfigError, match="use at most 32"):
        build(problem, "softcpt-nata", streams, meta="lowrank", rank=33)


def test_a_hidden_layer_is_no_linear_map_and_has_its_count_and_scale(problem, streams):
    dim, size = problem.text.embed_dim, 3 * problem.text.width
    meta = HiddenMeta(problem, dim, 3, 8, streams)
    assert sum(p.numel() for p in meta.parameters()) == 8 * (dim + 1 + size)
    x = torch.randn(2, dim, dtype=torch.float64)
    assert not torch.allclose(meta(x[:1]) + meta(x[1:]), meta(x.sum(0, keepdim=True)), atol=1e-3)
    wide = [
        net(problem, dim, 3, *extra, lambda p, s=s: torch.Generator().manual_seed(s + len(p)))
        for net, extra in ((HiddenMeta, (64,)), (LinearMeta, ()))
        for s in range(30)
    ]
    sizes = [torch.stack([net(x) for net in group]).std().item() for group in (wide[:30], wide[30:])]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
    assert build(problem, "softcpt-nata", streams, meta="mlp", hidden=5).meta.bias.shape == (5,)


@pytest.mark.parametrize("meta", ["lin", "lowrank", "mlp"])
def test_a_mean_context_of_words_is_where_all_tasks_start(problem, streams, batch, meta):
    classifier = build(
        problem, "softcpt-nata", streams, context_length=6, meta=meta, mean_context="words", rank=None
    )
    words = word_context(problem, FIRST_WORDS, 6)
    n_words = len(problem.tokenizer.encode(FIRST_WORDS))
    assert not words[: 6 - n_words].any()
    assert words[6 - n_words :].abs().sum(1).min() > 0
    assert torch.allclose(classifier.contexts(), words.expand(3, -1, -1))
    spec = OptimSpec(lr=0.1)
    optimizer = build_optimizer(classifier.parameters(), spec)
    take_step(optimizer, classifier.loss(*batch, rng=torch.Generator()), spec)
    moved = (classifier.contexts() - words).flatten(1)
    assert not torch.allclose(moved[0], moved[1], atol=1e-6)  # the network moves each task its own way
    zeros = build(problem, "softcpt-nata", streams, meta=meta, mean_context="zeros")
    plain = build(problem, "softcpt-nata", streams, meta=meta)
    assert torch.equal(zeros.contexts(), plain.contexts())


def basis(problem, streams, raw, **options):
    config = BasisConfig(context_length=4, **options)
    return BasisContexts(problem, config, streams, raw)


@pytest.mark.parametrize("mixture", ["softmax", "linear", "free"])
def test_the_mixture_tells_planted_groups_of_tasks_apart(problem, streams, mixture):
    """Four tasks in two groups, by their features and by the contexts that serve them."""
    generator = torch.Generator().manual_seed(4)
    dim, width = problem.text.embed_dim, problem.text.width
    of_group = torch.randn(2, dim, generator=generator, dtype=torch.float64) * 3
    raw = of_group[[0, 0, 1, 1]] + torch.randn(4, dim, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 4, width, generator=generator, dtype=torch.float64)[[0, 0, 1, 1]]
    source = basis(problem, streams, raw, basis_size=3, mixture=mixture)
    before = source.weights().detach()
    assert torch.allclose(before, torch.full_like(before, 1 / 3))
    left = descend(source.parameters(), lambda: (source() - targets).square().mean(), 400, 1.0)
    assert left < 0.3
    a = source.weights().detach()
    a = a - a.mean(0)
    near = torch.nn.functional.cosine_similarity(a[[0, 2]], a[[1, 3]]).min()
    far = torch.nn.functional.cosine_similarity(a[[0, 0, 1]], a[[2, 3, 2]]).max()
    assert near > far + 0.5


def test_one_shared_context_is_coop_mt(problem, streams, batch):
    source = build(problem, "softcpt-basis", streams, basis_size=1, context_length=4)
    shared = build(problem, "coop-mt", streams, context_length=4)
    with torch.no_grad():
        shared.context.copy_(source.source.basis[0])
    spec = OptimSpec(lr=0.05)
    for classifier in (source, shared):
        optimizer = build_optimizer(classifier.parameters(), spec)
        for _ in range(5):
            take_step(optimizer, classifier.loss(*batch, rng=torch.Generator()), spec)
    assert torch.allclose(source.source(), shared.context.expand(3, -1, -1), rtol=0, atol=1e-12)


def test_the_basis_has_its_count_and_serves_new_tasks_by_text_alone(problem, streams):
    dim, width = problem.text.embed_dim, problem.text.width
    for mixture, extra in (("softmax", dim * 2), ("linear", dim * 2), ("free", 3 * 2)):
        made = build(problem, "softcpt-basis", streams, basis_size=2, mixture=mixture, context_length=4)
        assert sum(p.numel() for p in made.parameters()) == 2 * 4 * width + extra
        new = replace(problem, tasks=(problem.tasks[2], TaskNames("shoe", ("boot", "sandal"))))
        if mixture == "free":
            with pytest.raises(ConfigError, match="unseen"):
                made.for_tasks(new)
            continue
        with torch.no_grad():
            made.source.mixer.normal_(generator=torch.Generator().manual_seed(3))
        contexts = made.for_tasks(new).contexts
        assert torch.allclose(contexts[0], made.source()[2], atol=1e-9)
        assert not torch.allclose(contexts[1], contexts[0], atol=1e-4)


def test_a_reward_for_balance_evens_the_mixture_out(problem, streams):
    raw = torch.randn(3, problem.text.embed_dim, dtype=torch.float64)
    source = basis(problem, streams, raw, basis_size=3, mixture="free", basis_balance=1.0)
    with torch.no_grad():
        source.mixer[:, 0] = 1.0
    uneven = float(source.weights().mean(0).max().detach())
    descend(source.parameters(), source.penalty, 50, 0.5)
    assert float(source.weights().mean(0).max().detach()) < uneven - 0.1
    assert basis(problem, streams, raw).penalty() is None


def residual(problem, streams, n_tasks, **options):
    tasks = tuple(replace(problem.tasks[0], name=f"task {t}") for t in range(n_tasks))
    config = ResidualConfig(context_length=2, **options)
    return ResidualContexts(replace(problem, tasks=tasks), config, streams)


def test_a_task_unlike_the_others_leaves_and_like_ones_do_not(problem, streams):
    generator = torch.Generator().manual_seed(4)
    width = problem.text.width
    common, other = torch.randn(2, 2, width, generator=generator, dtype=torch.float64)
    targets = torch.stack([common, common, common, -other])
    source = residual(problem, streams, 4, residual_penalty=0.05)

    def loss():
        return (source() - targets).square().flatten(1).sum(1).mean() + source.penalty()

    descend(source.parameters(), loss, 300, 0.05)
    sizes = source.residual.detach().flatten(1).norm(dim=1)
    assert sizes.argmax() == 3
    assert sizes[3] > 2 * sizes[:3].max()
    alone = (source()[3] - targets[3]).square().sum() / targets[3].square().sum()
    assert alone < 0.2  # nearly what a context of its own would reach
    alike = residual(problem, streams, 3, residual_penalty=0.05)
    descend(
        alike.parameters(),
        lambda: (alike() - common).square().flatten(1).sum(1).mean() + alike.penalty(),
        300,
        0.05,
    )
    assert alike.residual.detach().abs().max() < 1e-2


def test_without_residuals_it_is_coop_mt_and_counts_are_the_formulas(problem, streams, batch):
    n, width = 3, problem.text.width
    none = build(problem, "softcpt-residual", streams, residual_penalty="inf")
    shared = build(problem, "coop-mt", streams)
    assert torch.equal(none.source.shared, shared.context)
    spec = OptimSpec(lr=0.05)
    for classifier in (none, shared):
        optimizer = build_optimizer(classifier.parameters(), spec)
        for _ in range(3):
            take_step(optimizer, classifier.loss(*batch, rng=torch.Generator()), spec)
    assert torch.allclose(none.source()[1], shared.context, rtol=0, atol=1e-12)
    for gate, gates in (("task", 3), ("token", 3 * n)):
        made = build(problem, "softcpt-residual", streams, gate=gate)
        assert sum(p.numel() for p in made.parameters()) == n * width * (1 + 3) + gates
    new = replace(problem, tasks=problem.tasks[:1])
    assert torch.equal(none.for_tasks(new).contexts[0], none.source.shared)


def test_an_infinite_penalty_survives_a_file():
    stored = ResidualConfig(residual_penalty="inf").model_dump(mode="json")
    assert ResidualConfig(**stored).residual_penalty == "inf"
