"""The dual form: SoftCPT's trajectory from the contexts alone, its kernels, and tasks nobody trained."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from softcpt.core.errors import ConfigError
from softcpt.engine.optim import OptimSpec, build_optimizer, learning_rate, set_learning_rate, take_step
from softcpt.methods.base import TaskNames
from softcpt.methods.dual import DualConfig
from softcpt.methods.kernel import kernel_features, mix_gradients, task_kernel
from softcpt.methods.logistic import Logistic
from softcpt.methods.registry import get_method

SIZES = {"context_length": 3, "task_context_length": 2}
NEW = (
    TaskNames("shoe", ("boot", "sandal"), None, "a photo of a {}, a shoe."),
    TaskNames("leaf_disease", ("mildew", "healthy"), "a leaf disease task."),
)


def build(problem, key, streams, **options):
    method = get_method(key)
    return method.build(problem, method.config(**{"context_length": 3, **options}), streams)


def train(classifier, batch, spec, steps=100):
    """Steps over batches that hold one, two or all tasks in turn, through the whole schedule."""
    optimizer = build_optimizer(classifier.parameters(), spec)
    features, columns = batch
    rows = [slice(0, 2), slice(2, 5), slice(0, 8), slice(5, 7)]
    for i in range(steps):
        set_learning_rate(optimizer, learning_rate(spec, i * spec.epochs // steps))
        chosen = rows[i % len(rows)]
        take_step(optimizer, classifier.loss(features[chosen], columns[chosen], rng=torch.Generator()), spec)
    return classifier


@pytest.fixture
def linear(problem, streams):
    return lambda **options: build(
        problem, "softcpt-nata", streams, task_context_length=2, freeze_task_context=True, **options
    )


@pytest.mark.parametrize("repeated", [1, 3])
def test_the_dual_takes_the_linear_networks_trajectory(problem, streams, batch, linear, repeated):
    """100 steps with momentum and weight decay, to 1e-9; and its guess for tasks nobody trained."""
    spec = OptimSpec(lr=0.002, epochs=10, weight_decay=0.01, repeated_steps=repeated)
    full, dual = linear(), build(problem, "softcpt-dual", streams, task_context_length=2)
    start = dual.source().detach().clone()
    assert torch.allclose(full.contexts(), start, rtol=0, atol=1e-12)
    train(full, batch, spec)
    train(dual, batch, spec)
    moved = (dual.source() - start).abs().max()
    assert moved > 0.01
    assert torch.allclose(full.contexts(), dual.source(), rtol=0, atol=1e-9)
    assert float(dual.source.decay.detach()) < 1 - 1e-4
    new = replace(problem, tasks=NEW)
    ours, theirs = dual.for_tasks(new), full.for_tasks(new)
    assert torch.allclose(ours.contexts, theirs.contexts(), rtol=0, atol=1e-7)
    assert (
        ours.contexts[0] - dual.source.decay.detach() * dual.source._project(dual.source._features_of(new))[0]
    ).abs().max() > 1e-3  # what was learned has reached the new task
    features = batch[0]
    assert torch.allclose(ours.scorer()(features, 1), theirs.scorer()(features, 1), atol=1e-5)


def test_a_scaled_start_and_factor_are_those_of_a_scaled_matrix(problem, streams, batch, linear):
    spec = OptimSpec(lr=0.002, epochs=10, weight_decay=0.01)
    full = linear(init_scale=0.5)
    dual = build(problem, "softcpt-dual", streams, task_context_length=2, init_scale=0.5)
    train(full, batch, spec, 10)
    train(dual, batch, spec, 10)
    assert torch.allclose(full.contexts(), dual.source(), rtol=0, atol=1e-9)
    once, twice = (build(problem, "softcpt-dual", streams, kernel_factor=f) for f in (1.0, 2.0))
    spec = OptimSpec(lr=0.01, weight_decay=0)
    steps = []
    for classifier in (once, twice):
        before = classifier.source().detach().clone()
        train(classifier, batch, spec, 1)
        steps.append(classifier.source().detach() - before)
    assert torch.allclose(2 * steps[0], steps[1], atol=1e-12)


def test_what_is_stored_is_the_contexts_and_one_number(problem, streams):
    dual = build(problem, "softcpt-dual", streams, context_length=16)
    n_tasks, width = 3, problem.text.width
    assert {k: tuple(t.shape) for k, t in dual.learned().items()} == {
        "source.mixed": (n_tasks, 16, width),
        "source.decay": (),
    }
    learned = build(problem, "softcpt-dual", streams, kernel="learned").learned()
    assert sum(t.numel() for t in learned.values()) == n_tasks * (n_tasks + 1) // 2 + n_tasks * 3 * width


def test_without_mixing_the_trajectory_is_another(problem, streams, batch, linear, monkeypatch):
    """So that the trajectory test looks at the kernel and not at the rate."""
    from softcpt.methods import dual as module

    spec = OptimSpec(lr=0.002, epochs=10)
    full = train(linear(), batch, spec, 20)
    monkeypatch.setattr(module, "mix_gradients", lambda contexts, kernel: contexts)
    dual = train(build(problem, "softcpt-dual", streams, task_context_length=2), batch, spec, 20)
    assert not torch.allclose(full.contexts(), dual.source(), atol=1e-4)


def test_mixing_leaves_values_and_multiplies_gradients():
    contexts = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    kernel = torch.tensor([[2.0, 1, 0], [1, 3, -1], [0, -1, 1]], dtype=torch.float64)
    wanted = torch.randn(3, 2, 4, dtype=torch.float64)
    mixed = mix_gradients(contexts, kernel)
    assert torch.equal(mixed, contexts)
    (mixed * wanted).sum().backward()
    assert torch.allclose(contexts.grad, torch.einsum("st,tnw->snw", kernel, wanted))


Z = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 2


def kernel(kind, **options):
    return task_kernel(kind, Z, logit_scale=25.0, **options)


def test_kernels_are_what_they_are_called():
    unit = Z / Z.norm(dim=1, keepdim=True)
    assert torch.allclose(kernel("published").matrix, Z @ Z.T)
    assert torch.allclose(kernel("unit").matrix, 4 * 100 * unit @ unit.T)
    assert torch.allclose(kernel("unit", factor=1.0).matrix, 100 * unit @ unit.T)
    away = Z - Z.mean(0)
    away = away / away.norm(dim=1, keepdim=True)
    assert torch.allclose(kernel("centred", share=0.25, factor=1.0).matrix, 75 * away @ away.T + 25)
    assert torch.allclose(kernel("diagonal").matrix, (Z @ Z.T).diagonal().diag())
    top = torch.linalg.eigvalsh(Z @ Z.T)[-1]
    assert torch.allclose(kernel("diagonal-top").matrix, top * torch.eye(4, dtype=torch.float64))
    rho = kernel("rho", share=0.25, factor=0.01).matrix
    assert torch.allclose(rho, torch.full((4, 4), 0.25, dtype=torch.float64).fill_diagonal_(1))
    for kind in ("published", "unit", "centred"):
        made = kernel(kind)
        assert torch.allclose(made.matrix, made.factor * made.features @ made.features.T)
        again = kernel_features(kind, Z, Z.mean(0), 0.5)
        assert torch.allclose(again, made.features)


def test_a_diagonal_kernel_shares_nothing(problem, streams, batch):
    features, columns = batch[0][:2], batch[1][:2]
    for kind, shares in (("published", True), ("unit", True), ("diagonal", False), ("diagonal-top", False)):
        dual = build(problem, "softcpt-dual", streams, kernel=kind)
        before = dual.source().detach().clone()
        train(dual, (features, columns), OptimSpec(lr=0.01, weight_decay=0), 1)
        moved = (dual.source() - before).abs().flatten(1).amax(1) > 0
        assert moved.tolist() == [True, shares, shares], kind


def test_rho_ends_in_coop_ca_and_coop_mt(problem, streams, batch):
    spec = OptimSpec(lr=0.02, epochs=5)
    for share, key in ((0.0, "coop-ca-joint"), (1.0, "coop-mt")):
        dual = build(problem, "softcpt-dual", streams, kernel="rho", share=share, kernel_factor=0.01)
        start = dual.source().detach().clone()
        assert torch.equal(start[0], start[2])
        other = build(problem, key, streams)
        with torch.no_grad():
            other.context.copy_(start if share == 0 else start[0])
        train(dual, batch, spec, 12)
        train(other, batch, spec, 12)
        contexts = other.context if share == 0 else other.context.expand(3, -1, -1)
        assert torch.allclose(dual.source(), contexts, rtol=0, atol=1e-10), key
        new = dual.for_tasks(replace(problem, tasks=NEW)).contexts
        if share == 1:  # a new task gets what all share
            assert torch.allclose(new[0], other.context, atol=1e-9)
        else:
            assert torch.allclose(new[0], dual.source.decay.detach() * start[0], atol=1e-9)


def test_a_learned_kernel_starts_at_the_fixed_ones_step_and_learns(problem, streams, batch):
    fixed = build(problem, "softcpt-dual", streams, kernel="unit")
    learned = build(problem, "softcpt-dual", streams, kernel="learned")
    assert torch.allclose(fixed.source(), learned.source(), rtol=0, atol=1e-9)
    before = fixed.source().detach().clone()
    spec = OptimSpec(lr=1e-6, weight_decay=0, warmup="none")
    train(fixed, batch, spec, 1)
    lower = learned.source.lower().detach().clone()
    learned.source.factor.requires_grad_(False)
    train(learned, batch, spec, 1)
    learned.source.factor.requires_grad_(True)
    step, ours = fixed.source() - before, learned.source() - before
    assert torch.allclose(step, ours, rtol=0, atol=1e-3 * float(step.abs().max().detach()))
    train(learned, batch, OptimSpec(lr=1e-3, warmup="none"), 3)
    assert (learned.source.lower() - lower).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["diagonal", "diagonal-top", "learned"])
def test_kernels_without_a_row_for_new_tasks_refuse_them(problem, streams, kind):
    dual = build(problem, "softcpt-dual", streams, kernel=kind)
    with pytest.raises(ConfigError, match="no context for an unseen task"):
        dual.for_tasks(replace(problem, tasks=NEW))


def test_the_start_is_the_seeds_on_every_machine(problem, streams):
    """NumPy's RandomState is frozen; these numbers may never change."""
    dual = build(problem, "softcpt-dual", streams, task_context_length=2)
    first = dual.source._projection()[0, :3]
    import numpy as np

    state = np.random.RandomState([len("meta.proj"), 0])
    assert torch.allclose(first, torch.tensor(state.standard_normal(3) * 0.02, dtype=torch.float32))
    digest = dual.regenerated()["projection_sha256"]
    other = build(problem, "softcpt-dual", lambda p: torch.Generator().manual_seed(77))
    assert len(digest) == 64
    assert digest != other.regenerated()["projection_sha256"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": 0.5}, "share has no effect with kernel=published"),
        ({"kernel": "rho", "task_text": "name"}, "task_text has no effect with kernel=rho"),
    ],
)
def test_options_without_effect_are_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        DualConfig(**options)


def test_our_choice_is_the_dual_form_with_its_settings_named(problem, streams):
    """softcpt-rho, and softcpt-plus, which adds a head chosen for each task."""
    rho, plus, plain = (get_method(key) for key in ("softcpt-rho", "softcpt-plus", "softcpt-dual"))
    same = {"kernel": "rho", "share": 0.2, "context_length": 3}
    ours = rho.build(problem, rho.config(context_length=3), streams)
    theirs = plain.build(problem, plain.config(**same), streams)
    assert torch.equal(ours.source.kernel, theirs.source.kernel)
    assert torch.equal(ours.source.mixed, theirs.source.mixed)
    headed = plus.build(problem, plus.config(context_length=3), streams)
    assert isinstance(headed.head, Logistic)
    assert headed.tune == "task"
    assert torch.equal(headed.prompts.source.kernel, ours.source.kernel)
    for method in (rho, plus):
        assert method.defaults == {"optimizer": "adam"}
        with pytest.raises(ValueError, match="rho"):
            method.config(kernel="unit")
