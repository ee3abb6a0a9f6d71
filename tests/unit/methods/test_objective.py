"""Pulls to hand-written prompts, task weighting, conflicting gradients."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods.conflicts import CosineMeter, GradNorm, cosines, gram_of, pcgrad_weights
from softcpt.methods.registry import get_method
from softcpt.methods.zero_shot import ZeroShot

SIZES = {"context_length": 3, "task_context_length": 2}


def build(problem, key, streams, **options):
    method = get_method(key)
    known = {k: v for k, v in SIZES.items() if k in method.config.model_fields}
    return method.build(problem, method.config(**{**known, **options}), streams)


def rng():
    return torch.Generator().manual_seed(0)


def gradients(classifier, loss):
    named = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(named[n]) if g is None else g for n, g in zip(named, found, strict=True)}


def by_hand(classifier, batch, problem):
    """Each task's loss, summed over its images and divided by the whole batch."""
    logits = classifier.logits(batch[0])
    losses = []
    for t in range(3):
        rows = problem.task_of_class[batch[1]] == t
        own = logits[rows][:, problem.columns(t)]
        labels = batch[1][rows] - problem.first_column[t]
        losses.append(F.cross_entropy(own, labels, reduction="sum") / len(batch[1]))
    return torch.stack(losses)


@pytest.mark.parametrize("key", ["coop-mt", "coop-ca-joint", "softcpt-nata", "softcpt-cata", "softcpt-dual"])
def test_the_text_pull_is_its_formula_with_every_task_alike(problem, streams, batch, key):
    plain, pulled = build(problem, key, streams), build(problem, key, streams, text_pull=2.0)
    assert plain.objective is None
    few = batch[0][:2], batch[1][:2]  # two tasks have no image; their classes are pulled all the same
    written = ZeroShot(problem).class_features()
    gaps = 1 - F.cosine_similarity(plain.class_features(), written, dim=1)
    penalty = torch.stack([gaps[problem.columns(t)].mean() for t in range(3)]).mean()
    expected = plain.loss(*few, rng=rng()) + 2 * penalty
    assert torch.allclose(pulled.loss(*few, rng=rng()), expected, rtol=0, atol=1e-10)


def test_a_strong_pull_holds_features_and_a_pull_of_zero_changes_no_bit(problem, streams, batch):
    written = ZeroShot(problem).class_features().detach()

    def end(**options):
        classifier = build(problem, "coop-ca-joint", streams, **options)
        spec = OptimSpec(lr=0.01, weight_decay=0)
        optimizer = build_optimizer(classifier.parameters(), spec)
        for _ in range(40):
            take_step(optimizer, classifier.loss(*batch, rng=rng()), spec)
        return classifier.context.detach(), F.cosine_similarity(classifier.class_features(), written).mean()

    free, loose = end()
    _, tight = end(text_pull=8.0)
    assert tight > loose + 0.05
    assert torch.equal(free, end(text_pull=0.0)[0])


def test_the_logit_pull_is_the_cross_entropy_of_the_templates_predictions(problem, streams, batch):
    plain, pulled = (build(problem, "coop-mt", streams, logit_pull=w) for w in (0.0, 3.0))
    logits, guess = plain.logits(batch[0]), ZeroShot(problem).logits(batch[0])
    terms = []
    for i, column in enumerate(batch[1]):
        own = problem.columns(int(problem.task_of_class[column]))
        terms.append(-(guess[i, own].softmax(0) * logits[i, own].log_softmax(0)).sum())
    expected = plain.loss(*batch, rng=rng()) + 3 * torch.stack(terms).mean()
    assert torch.allclose(pulled.loss(*batch, rng=rng()), expected, rtol=0, atol=1e-10)


def vectors(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def projected(g, weights):
    return weights @ g


def test_pcgrad_of_two_opposite_tasks_hurts_neither_and_is_the_papers_projection():
    g = vectors([1.0, 0.2, 0.0], [-0.4, 0.3, 0.1])
    weights = pcgrad_weights(g @ g.T, rng())
    update = projected(g, weights)
    assert (g @ update >= -1e-12).all()
    inner = g[0] @ g[1]
    assert inner < 0
    expected = (g[0] - inner / (g[1] @ g[1]) * g[1]) + (g[1] - inner / (g[0] @ g[0]) * g[0])
    assert torch.allclose(update, expected)
    assert (g @ g.sum(0)).min() < 0  # without it, the second task would lose


def test_pcgrad_leaves_gradients_alone_that_do_not_conflict():
    g = vectors([1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 2.0])
    assert torch.equal(pcgrad_weights(g @ g.T, rng()), torch.ones(3, dtype=torch.float64))


def test_pcgrad_of_many_tasks_is_the_loop_of_the_paper():
    g = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    order, total = rng(), torch.zeros(4, dtype=torch.float64)
    for t in range(5):
        own = g[t].clone()
        for j in torch.randperm(5, generator=order).tolist():
            if j != t and own @ g[j] < 0:
                own -= (own @ g[j]) / (g[j] @ g[j]) * g[j]
        total += own
    assert torch.allclose(projected(g, pcgrad_weights(g @ g.T, rng())), total)


@pytest.mark.parametrize("key", ["coop-mt", "softcpt-nata", "softcpt-dual", "coop-ca-joint"])
def test_pcgrad_is_applied_to_what_tasks_share(problem, streams, batch, key):
    plain = build(problem, key, streams)
    losses = by_hand(plain, batch, problem)
    if key == "softcpt-dual":
        # What is shared is the matrix: <g_s, g_t> = K_st <G_s, G_t>.
        own = torch.autograd.grad(losses.sum(), plain.source._made, retain_graph=True)[0].flatten(1)
        gram = plain.source.kernel * (own @ own.T)
    else:
        gram = gram_of(losses, list(plain.parameters()))
    expected = gradients(plain, (losses * pcgrad_weights(gram, rng())).sum())
    ours = build(problem, key, streams, weighting="pcgrad")
    found = gradients(ours, ours.loss(*batch, rng=rng()))
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-9), name
    report = ours.report()["task_gradients"]
    if key == "coop-ca-joint":  # nothing is shared, nothing conflicts
        untouched = gradients(plain, plain.loss(*batch, rng=rng()))
        assert torch.allclose(found["context"], untouched["context"], rtol=0, atol=1e-10)
        assert report["negative"] == 0
    if key == "coop-mt":
        assert report["cosines"][0][1] == pytest.approx(float(cosines(gram)[0, 1]), abs=1e-3)


def test_the_dual_finds_the_linear_networks_gradient_products(problem, streams, batch):
    linear = build(problem, "softcpt-nata", streams, freeze_task_context=True)
    dual = build(problem, "softcpt-dual", streams)
    tasks = torch.arange(3)
    full = linear.task_gram(by_hand(linear, batch, problem), tasks)
    assert torch.allclose(dual.task_gram(by_hand(dual, batch, problem), tasks), full, rtol=1e-9)


def test_watching_changes_no_gradient(problem, streams, batch):
    plain, watched = (build(problem, "softcpt-nata", streams, weighting=w) for w in ("none", "watch"))
    a, b = (gradients(c, c.loss(*batch, rng=rng())) for c in (plain, watched))
    for name, gradient in a.items():
        assert torch.allclose(b[name], gradient, rtol=0, atol=1e-12)
    assert len(watched.report()["task_gradients"]["cosines"]) == 3


def test_uncertainty_weights_are_their_formula_and_are_learned(problem, streams, batch):
    plain = build(problem, "coop-ca-joint", streams)
    ours = build(problem, "coop-ca-joint", streams, weighting="uncertainty")
    s = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    with torch.no_grad():
        ours.objective.log_variance.copy_(s)
    counts = torch.bincount(problem.task_of_class[batch[1]], minlength=3)
    means = by_hand(plain, batch, problem) * len(batch[1]) / counts
    expected = (torch.exp(-s) * means + s / 2).mean()
    loss = ours.loss(*batch, rng=rng())
    assert torch.allclose(loss, expected, rtol=0, atol=1e-10)
    found = gradients(ours, loss)["objective.log_variance"]
    assert torch.allclose(found, (-torch.exp(-s) * means + 0.5).detach() / 3, atol=1e-10)
    assert "objective.log_variance" in ours.learned()


def test_gradnorm_raises_the_weight_of_a_task_with_a_small_gradient_and_keeps_the_sum():
    norm, tasks = GradNorm(2), torch.tensor([0, 1])
    losses = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for _ in range(30):
        norm.update(tasks, vectors([4.0, 1.0])[0], losses)
    assert norm.weights.sum() == pytest.approx(2)
    assert norm.weights[1] > 1.3
    slow = GradNorm(2)
    slow.update(tasks, vectors([1.0, 1.0])[0], losses)
    for _ in range(10):  # alike in gradient; the second learns slowly
        slow.update(tasks, vectors([1.0, 1.0])[0], torch.tensor([0.2, 1.0], dtype=torch.float64))
    assert slow.weights[1] > slow.weights[0]


def test_gradnorm_weights_reach_the_loss(problem, streams, batch):
    ours = build(problem, "coop-mt", streams, weighting="gradnorm")
    with torch.no_grad():
        ours.objective._norm.weights = torch.tensor([2.0, 0.5, 0.5], dtype=torch.float64)
    counts = torch.bincount(problem.task_of_class[batch[1]], minlength=3)
    means = by_hand(build(problem, "coop-mt", streams), batch, problem) * len(batch[1]) / counts
    expected = (means * torch.tensor([2.0, 0.5, 0.5], dtype=torch.float64)).sum() / 3
    assert torch.allclose(ours.loss(*batch, rng=rng()), expected, rtol=0, atol=1e-10)
    assert ours.report()["task_gradients"]["weights"] != [2.0, 0.5, 0.5]


def test_gradnorm_sees_a_tasks_own_loss_however_many_tasks_a_batch_holds(
    problem, streams, batch, monkeypatch
):
    seen = []
    monkeypatch.setattr(GradNorm, "update", lambda self, tasks, norms, losses: seen.append(losses))
    ours = build(problem, "coop-mt", streams, weighting="gradnorm")
    first = problem.task_of_class[batch[1]] == 0
    ours.loss(*batch, rng=rng())
    ours.loss(batch[0][first], batch[1][first], rng=rng())
    assert len(seen[0]) == 3
    assert torch.allclose(seen[0][:1], seen[1], rtol=0, atol=1e-12)


def test_gradnorm_leaves_tasks_that_are_alike_alone_when_one_came_first():
    norm, one = GradNorm(3), torch.ones(3, dtype=torch.float64)
    norm.update(torch.tensor([2]), one[:1], one[:1])
    for _ in range(20):
        norm.update(torch.arange(3), one, one)
    assert torch.allclose(norm.weights, one)


def test_the_meter_counts_pairs_that_met():
    meter = CosineMeter(3)
    meter.see(torch.tensor([0, 2]), vectors([4.0, -1.0], [-1.0, 1.0]))
    report = meter.report()
    assert report["cosines"][0] == [1.0, None, -0.5]
    assert report["negative"] == 1.0


def test_weights_of_images_and_absent_tasks_work_beside_weighting(problem, streams, batch):
    few = batch[0][:5], torch.tensor([0, 2, 1, 5, 8])
    weights = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    for key in ("softcpt-nata", "softcpt-dual"):
        plain = build(problem, key, streams)
        for weighting in ("watch", "pcgrad", "gradnorm", "uncertainty"):
            ours = build(problem, key, streams, weighting=weighting)
            loss = ours.loss(*few, rng=rng(), weights=weights)
            if weighting == "watch":
                assert torch.allclose(loss, plain.loss(*few, rng=rng(), weights=weights), atol=1e-12)
            loss.backward()


def test_pulls_and_weights_go_through_the_plain_text_encoder_too(problem, streams, batch):
    values = []
    for path in ("fast", "plain"):
        world = replace(problem, text_path=path)
        ours = build(world, "softcpt-nata", streams, weighting="pcgrad", text_pull=1.0)
        loss = ours.loss(*batch, rng=rng())
        values.append((loss.detach(), gradients(ours, loss)))
    assert torch.allclose(values[0][0], values[1][0], rtol=0, atol=1e-10)
    for name, gradient in values[0][1].items():
        assert torch.allclose(gradient, values[1][1][name], rtol=0, atol=1e-8)


def test_what_an_objective_keeps_is_not_stored(problem, streams, batch):
    ours = build(problem, "coop-mt", streams, text_pull=1.0, weighting="pcgrad")
    ours.loss(*batch, rng=rng())
    assert set(ours.learned()) == {"context"}
    assert set(copy.deepcopy(ours.state_dict())) == {"context"}
