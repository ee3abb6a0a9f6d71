"""KgCoOp: a pull towards the hand-written prompt, of the right size."""

from dataclasses import replace

import pytest
import torch
from rivals import SUITES, alone, build, count, gradients

from softcpt.engine.optim import OptimSpec, build_optimizer, take_step


def template_features(problem, streams):
    features = build(problem, "zero-shot", streams).class_features()
    return features / features.norm(dim=1, keepdim=True)


def test_without_a_pull_it_is_coop_from_words(problem, streams, batch):
    ours = gradients(build(problem, "kgcoop", streams, pull=0.0), batch)
    coop = gradients(build(problem, "coop-ca-joint", streams, init_words="a photo of a"), batch)
    assert torch.equal(ours[0], coop[0])
    assert torch.allclose(ours[1]["context"], coop[1]["context"], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("distance", "factor"), [("cos", 1), ("l2", 2)])
def test_the_pull_is_the_mean_distance_of_the_classes(problem, streams, batch, distance, factor):
    one = problem.only(0)
    features, columns = batch[0][:3], torch.tensor([0, 2, 1])
    classifier = build(one, "kgcoop", streams, pull=3.0, distance=distance)
    made = classifier.class_features().detach()
    made = made / made.norm(dim=1, keepdim=True)
    written = template_features(one, streams)
    by_hand = {
        "cos": torch.stack([1 - torch.dot(a, b) for a, b in zip(made, written, strict=True)]).mean(),
        "l2": ((made - written) ** 2).sum(1).mean(),
    }
    assert torch.allclose(by_hand["l2"], 2 * by_hand["cos"])
    plain = build(one, "kgcoop", streams, pull=0.0)
    loss = classifier.loss(features, columns, rng=torch.Generator())
    expected = plain.loss(features, columns, rng=torch.Generator()) + 3.0 * by_hand[distance]
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert float(by_hand[distance]) > factor * 1e-3


def test_at_the_template_there_is_no_pull_and_no_gradient_of_it(problem, streams, batch):
    one = alone(problem, template="a photo of a {}.")
    here = batch[0][:3], torch.tensor([0, 2, 1])
    pulled = gradients(build(one, "kgcoop", streams, pull=100.0), here)
    free = gradients(build(one, "kgcoop", streams, pull=0.0), here)
    assert torch.allclose(pulled[0], free[0], rtol=0, atol=1e-11)
    assert torch.allclose(pulled[1]["context"], free[1]["context"], rtol=0, atol=1e-9)


def test_a_strong_pull_keeps_features_at_the_template_where_coop_drifts(problem, streams, batch):
    one = alone(problem, template="a photo of a {}.")
    here = batch[0][:3], torch.tensor([0, 2, 1])
    kept = {}
    for pull in (0.0, 1e6):
        classifier = build(one, "kgcoop", streams, pull=pull)
        # A step of the same length whatever the pull, else a strong one would leap over its goal.
        spec = OptimSpec(lr=0.02 / max(1.0, pull), weight_decay=0)
        optimizer = build_optimizer(classifier.parameters(), spec)
        for group in optimizer.param_groups:
            group["lr"] = spec.lr
        with torch.no_grad():  # a little off, for the pull to have something to do
            classifier.context += 0.02 * torch.randn(
                classifier.context.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            )
        for _ in range(60):
            take_step(optimizer, classifier.loss(*here, rng=torch.Generator()), spec)
        made = classifier.class_features().detach()
        cosines = torch.cosine_similarity(made, template_features(one, streams))
        kept[pull] = float(cosines.mean())
    assert kept[1e6] >= 0.999
    assert kept[0.0] < 0.99


def test_of_several_tasks_each_is_pulled_by_its_images(problem, streams, batch):
    features, columns = batch
    one = build(problem, "kgcoop", streams, pull=5.0)
    free = build(problem, "kgcoop", streams, pull=0.0)
    found = one.loss(features, columns, rng=torch.Generator()) - free.loss(
        features, columns, rng=torch.Generator()
    )
    moved = 1 - torch.cosine_similarity(one.class_features().detach(), template_features(problem, streams))
    of_task = torch.stack([moved[problem.columns(t)].mean() for t in range(3)])
    assert torch.allclose(found, 5.0 * of_task[problem.task_of_class[columns]].mean(), rtol=1e-9)


def test_the_reference_is_the_tasks_own_template(problem, streams):
    other = alone(problem, template="a drawing of {}.")
    assert not torch.allclose(
        build(problem.only(0), "kgcoop", streams).reference, build(other, "kgcoop", streams).reference
    )
    same = replace(other.tasks[0], description="not looked at")
    again = build(replace(other, tasks=(same,)), "kgcoop", streams)
    assert torch.equal(again.reference, build(other, "kgcoop", streams).reference)


def test_words_may_be_left_out(problem, streams):
    classifier = build(problem, "kgcoop", streams, init_words="", context_length=7)
    assert classifier.context.shape[1] == 7


@pytest.mark.parametrize(("suite", "published"), [("general-10", 20_480), ("fashion-20", 40_960)])
def test_counts_are_the_published_ones(resnet50_sized, streams, suite, published):
    assert count(resnet50_sized, "kgcoop", streams, n_tasks=SUITES[suite][0]) == published
