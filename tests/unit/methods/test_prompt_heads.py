"""Heads on learned prompts: their text is the prompts', and a share of 1 is the prompts alone."""

import pytest
import torch

from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods.base import SeparateClassifiers, fitted_parts
from softcpt.methods.heads import first_best
from softcpt.methods.loss import unit
from softcpt.methods.prompt_heads import OMEGAS, Blend, PromptsWithHead, VotesBesidePrompts
from softcpt.methods.registry import get_method
from softcpt.methods.ridge import Ridge, RidgeFit
from softcpt.methods.tip_adapter import TipAdapterConfig


def build(problem, key, streams, **options):
    method = get_method(key)
    return method.build(problem, method.config(context_length=3, **options), streams)


@pytest.fixture
def support(problem, given):
    """Images of every task, around directions of its classes."""
    rng = torch.Generator().manual_seed(6)
    made = []
    for task in problem.tasks:
        n, dim = len(task.classes), problem.text.embed_dim
        centres = torch.randn(n, dim, generator=rng, dtype=torch.float64)
        labels, val_labels = torch.arange(n).repeat_interleave(4), torch.arange(n).repeat_interleave(3)

        def around(of, *shape, centres=centres, dim=dim):
            noise = torch.randn(len(of), *shape, dim, generator=rng, dtype=torch.float64)
            return centres[of].view(len(of), *[1] * len(shape), dim) + 1.5 * noise

        made.append(given(around(labels, 3), labels, around(val_labels), val_labels))
    return made


def trained(problem, key, streams, batch, **options):
    classifier = build(problem, key, streams, **options)
    optimizer = build_optimizer(classifier.parameters(), OptimSpec(lr=0.05))
    for _ in range(3):
        loss = classifier.loss(*batch, rng=torch.Generator())
        take_step(optimizer, loss, OptimSpec(lr=0.05))
    return classifier


@pytest.mark.parametrize("key", ["softcpt-nata", "softcpt-dual", "coop-mt"])
def test_prompts_train_as_without_a_head_and_score_alone_until_there_is_one(
    problem, streams, batch, support, key
):
    plain, headed = (trained(problem, key, streams, batch, head=head) for head in ("none", "ridge"))
    assert isinstance(headed, PromptsWithHead)
    learned = dict(plain.named_parameters())
    for name, parameter in headed.prompts.named_parameters():
        assert torch.equal(parameter, learned[name])
    images = support[0].val
    assert torch.equal(headed.scorer()(images, 0), plain.scorer()(images, 0))
    headed.fit(support, streams)
    assert headed.tuned()["garment"].keys() >= {"omega", "lambda", "gamma", "prompts_val_accuracy", "tau"}
    again = build(problem, key, streams, head="ridge")
    again.allocate([len(own.labels) for own in support])
    again.load_state_dict(headed.learned(), strict=False)
    for t in range(3):
        assert torch.allclose(again.scorer()(images, t), headed.scorer()(images, t), atol=1e-9)


def test_the_heads_text_is_the_learned_prompts(problem, streams, batch, support):
    headed = trained(problem, "softcpt-nata", streams, batch, head="ridge")
    features = headed.prompts.class_features().detach()
    assert torch.allclose(headed.text(1)[0], features[problem.columns(1)])
    headed.fit(support, streams)
    chosen = headed.tuned()["garment"]
    own = support[1]
    one_hot = torch.nn.functional.one_hot(own.labels, 2).double()
    fit = RidgeFit.of(unit(own.views(16).mean(1)), one_hot, unit(features[problem.columns(1)]))
    ridge = unit(own.val) @ fit.weights(chosen["lambda"], chosen["gamma"]) * chosen["tau"]
    prompts = headed.prompts.scorer()(own.val, 1)
    omega = chosen["omega"]
    expected = omega * prompts.log_softmax(1) + (1 - omega) * ridge.log_softmax(1)
    assert torch.allclose(headed.scorer()(own.val, 1).log_softmax(1), expected.log_softmax(1), atol=1e-8)


def test_a_share_of_one_is_the_prompts_and_of_zero_the_head(task):
    data = task(noise=1.0)
    blend = Blend(Ridge(4, "val"))
    grid = blend.grid()
    assert [setting["omega"] for setting in grid][:: len(grid) // 5] == list(OMEGAS)
    trials = blend.explore(data, [grid[0], grid[-1]])
    features = data.support.val
    alone = (data.scale * unit(features) @ data.text.unit.T).log_softmax(1)
    assert torch.equal(blend.logits(trials.state(0), features, data.text, data.scale), alone)
    inner = Ridge(4, "val")
    head = inner.logits(trials.state(1), features, data.text, data.scale)
    found = blend.logits(trials.state(1), features, data.text, data.scale)
    assert torch.allclose(found, head.log_softmax(1))


def test_without_votes_the_tip_head_is_the_prompts(problem, streams, batch, support):
    headed = trained(problem, "softcpt-nata", streams, batch, head="tip")
    headed.fit(support, streams)
    stored = {n: t.clone().zero_() if n.endswith("alpha") else t for n, t in headed.learned().items()}
    headed.load_state_dict(stored, strict=False)
    for t, own in enumerate(support):
        prompts = headed.prompts.scorer()(own.val, t)
        assert torch.allclose(headed.scorer()(own.val, t), prompts, rtol=0, atol=1e-9)


def test_each_share_is_scored_as_it_scores(task):
    data = task(noise=1.5)
    blend = Blend(Ridge(4, "val"))
    grid = blend.grid()[40:60]
    trials = blend.explore(data, grid)
    for g in (0, 7, 19):
        logits = blend.logits(trials.state(g), data.support.val, data.text, data.scale)
        assert float(trials.scores[g, 0]) == pytest.approx(float(data.val_accuracy(logits)))


@pytest.mark.parametrize("head", ["tip", "lp++", "logistic"])
def test_other_heads_are_fitted_to_the_prompts_too(problem, streams, batch, support, head):
    headed = trained(problem, "softcpt-dual", streams, batch, head=head)
    headed.fit(support, streams)
    right = [
        (headed.scorer()(own.val, t).argmax(1) == own.val_labels).double().mean()
        for t, own in enumerate(support)
    ]
    alone = [
        (headed.prompts.scorer()(own.val, t).argmax(1) == own.val_labels).double().mean()
        for t, own in enumerate(support)
    ]
    assert sum(right) >= sum(alone)  # chosen on these images, with the prompts alone among the choices
    assert sum(right) > 1.5
    for t, chosen in enumerate(headed.tuned().values()):
        said = chosen["text_val_accuracy" if head == "logistic" else "prompts_val_accuracy"]
        assert said == pytest.approx(float(alone[t]))
        assert ("probe_val_accuracy" if head == "logistic" else "head_val_accuracy") in chosen


def test_votes_that_only_harm_are_left_out(task):
    """The prompts alone are among tip's choices: images of other classes' looks have nothing to say."""
    data = task(noise=0.01, text_noise=0.01)
    data.support.labels = data.support.labels.roll(4)
    head = VotesBesidePrompts(TipAdapterConfig(views=2))
    grid = [setting for setting in head.grid() if setting["alpha"] in (0.0, head.grid()[-1]["alpha"])]
    trials = head.explore(data, grid)
    best = grid[first_best(trials.scores)]
    assert best["alpha"] == 0.0


def test_separately_trained_tasks_get_their_heads(problem, streams, batch, support):
    parts = [build(problem.only(t), "coop-ca", streams, head="ridge") for t in range(3)]
    both = SeparateClassifiers(problem, parts)
    assert [tasks for _, tasks in fitted_parts(both)] == [[0], [1], [2]]
    for part, own in fitted_parts(both):
        part.fit([support[t] for t in own], streams)
    assert both.scorer()(support[2].val, 2).shape == (len(support[2].val), 4)


@pytest.mark.parametrize(
    "options", [{"head_views": 4}, {"head_tune": "task"}, {"head": "lp++", "head_views": 4}]
)
def test_options_of_a_head_without_one_are_refused(options):
    with pytest.raises(ValueError, match="has no effect"):
        get_method("coop-mt").config(**options)
