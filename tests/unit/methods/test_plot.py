"""PLOT: regions, prompts, and the plan between them."""

import pytest
import torch
from rivals import SUITES, assert_both_text_paths_agree, build, count

from softcpt.methods import plot
from softcpt.methods.transport import transport_plan

SHORT = {"context_length": 3}


@pytest.fixture
def images(problem, batch):
    """A batch with six regions an image, tokens of all classes near enough to tell regions apart."""
    generator = torch.Generator().manual_seed(9)
    regions = torch.randn(len(batch[1]), 7, problem.text.embed_dim, generator=generator, dtype=torch.float64)
    return regions, batch[1]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_one_prompt_is_compared_with_the_mean_of_the_regions(problem, streams, images):
    classifier = build(problem, "plot", streams, prompts=1, **SHORT)
    weights = unit(classifier.class_features())
    pooled = unit(images[0][:, 1:]).mean(1)
    expected = problem.logit_scale * pooled @ weights.T
    assert torch.allclose(classifier.logits(images[0]), expected, rtol=0, atol=1e-10)
    one_prompt = build(problem, "coop-mt", streams, **SHORT)
    with torch.no_grad():
        one_prompt.context.copy_(classifier.context[0])
    assert torch.allclose(one_prompt.class_features(), classifier.class_features(), rtol=0, atol=1e-11)


def test_logits_are_the_plans_similarity_image_by_image_and_class_by_class(problem, streams, images):
    classifier = build(problem, "plot", streams, prompts=3, **SHORT)
    logits = classifier.logits(images[0])
    texts = unit(classifier.prompt_features())
    for i, image in enumerate(unit(images[0][:, 1:])):
        for k in (0, 4, 8):
            similarity = image @ texts[k].T
            plan = transport_plan(similarity, epsilon=0.1, tolerance=0.01, most_iterations=100)
            expected = problem.logit_scale * (plan * similarity).sum()
            assert torch.allclose(logits[i, k], expected, rtol=0, atol=1e-10)


def test_each_prompt_has_its_own_context(problem, streams):
    classifier = build(problem, "plot", streams, prompts=2, **SHORT)
    one_prompt = build(problem, "coop-mt", streams, **SHORT)
    for n in range(2):
        with torch.no_grad():
            one_prompt.context.copy_(classifier.context[n])
        expected = one_prompt.class_features()
        assert torch.allclose(classifier.prompt_features()[:, n], expected, rtol=0, atol=1e-11)


def test_an_even_plan_would_give_other_logits(problem, streams, images, monkeypatch):
    classifier = build(problem, "plot", streams, epsilon=0.005, **SHORT)
    found = classifier.logits(images[0])
    monkeypatch.setattr(
        plot, "transport_plan", lambda s, **how: torch.full_like(s, 1 / (s.shape[-1] * s.shape[-2]))
    )
    assert float((classifier.logits(images[0]) - found).detach().abs().max()) > 0.01


def test_the_gradient_holds_the_plan_still(problem, streams, images):
    classifier = build(problem, "plot", streams, prompts=2, **SHORT)
    features, columns = images[0], images[1]
    loss = classifier.loss(features, columns, rng=torch.Generator())
    [found] = torch.autograd.grad(loss, [classifier.context])
    texts = classifier.prompt_features()
    similarity = classifier.similarity(features, texts)
    plan = classifier.plan(similarity)
    logits = problem.logit_scale * (plan * similarity).sum((-2, -1))
    terms = []
    for row, column in zip(logits, columns, strict=True):
        block = problem.columns(int(problem.task_of_class[column]))
        terms.append(-row[block].log_softmax(0)[column - block.start])
    [expected] = torch.autograd.grad(torch.stack(terms).mean(), [classifier.context])
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_both_text_paths_give_the_same_loss_and_gradients(problem, streams, images):
    assert_both_text_paths_agree(problem, "plot", streams, images, prompts=2, **SHORT)


def test_the_global_score_is_added_on_request(problem, streams, images):
    without = build(problem, "plot", streams, **SHORT).logits(images[0])
    classifier = build(problem, "plot", streams, add_global=True, **SHORT)
    own = problem.logit_scale * unit(images[0][:, 0]) @ unit(classifier.class_features()).T
    assert torch.allclose(classifier.logits(images[0]), without + own, rtol=0, atol=1e-10)


def test_scores_do_not_depend_on_the_images_beside(problem, streams, images, monkeypatch):
    classifier = build(problem, "plot", streams, **SHORT)
    with torch.no_grad():
        expected = classifier.logits(images[0])
    for at_once in (1 << 22, 200):
        monkeypatch.setattr(plot, "NUMBERS_AT_ONCE", at_once)
        for task in range(3):
            score = classifier.scorer()
            whole = score(images[0], task)
            assert torch.allclose(whole, expected[:, problem.columns(task)], rtol=0, atol=1e-10)
            one = score(images[0][2:3], task)
            assert torch.allclose(one, whole[2:3], rtol=0, atol=1e-10)


def test_the_entropy_of_plans_tells_an_even_one(problem, streams, images):
    classifier = build(problem, "plot", streams, epsilon=0.005, **SHORT)
    assert classifier.facts(images[0])["plan_entropy"] < 0.99
    with torch.no_grad():
        classifier.context.copy_(classifier.context[:1].expand_as(classifier.context))
    assert classifier.facts(images[0])["plan_entropy"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("suite", "prompts", "published"),
    [("general-10", 2, 163_840), ("plant-6", 4, 196_608), ("fashion-20", 4, 655_360)],
)
def test_counts_are_the_published_ones(resnet50_sized, streams, suite, prompts, published):
    """The table's count of General-10 fits two prompts, all others four."""
    n_tasks = SUITES[suite][0]
    assert count(resnet50_sized, "plot", streams, n_tasks=n_tasks, prompts=prompts) == published
