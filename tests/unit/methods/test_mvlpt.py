"""MVLPT's text part: two stages, and what passes from one to the other."""

import pytest
import torch
import torch.nn.functional as F
from rivals import SUITES, build, count

from softcpt.methods.mvlpt import MVLPT

SHORT = {"context_length": 3}


@pytest.mark.parametrize(
    ("share", "n", "expected"), [(0.5, 50, (25, 25)), (0.25, 10, (2, 8)), (1.0, 7, (7, 0))]
)
def test_the_epochs_are_divided_between_the_stages(problem, streams, share, n, expected):
    classifier = build(problem, "mvlpt", streams, shared_epochs=share, **SHORT)
    first, *rest = classifier.stages()
    assert first.task is None
    assert [stage.task for stage in rest] == [0, 1, 2]
    assert (first.epochs(n), {stage.epochs(n) for stage in rest}) == (expected[0], {expected[1]})


def test_every_task_starts_where_the_shared_prompt_ended(problem, streams):
    classifier = build(problem, "mvlpt", streams, **SHORT)
    first, *rest = classifier.stages()
    with torch.no_grad():
        first.classifier.context += 1.0
    for stage in rest:
        assert not torch.equal(stage.classifier.context, first.classifier.context)
        stage.begin()
        assert torch.equal(stage.classifier.context, first.classifier.context)
        with torch.no_grad():
            stage.classifier.context += 1.0  # trained: the next task is not to notice
    assert torch.equal(classifier.shared.context, first.classifier.context)


def test_of_several_source_runs_the_mean_is_adapted(problem, streams):
    classifier = build(problem, "mvlpt", streams, source_runs=3, **SHORT)
    sources = [stage for stage in classifier.stages() if stage.task is None]
    assert len({stage.note for stage in sources}) == 3
    contexts = [stage.classifier.context.detach().clone() for stage in sources]
    assert not torch.equal(contexts[0], contexts[1])
    for stage in classifier.stages():
        stage.begin()
    for part in (classifier.shared, *classifier.tasks):
        assert torch.allclose(part.context, sum(contexts) / 3, rtol=0, atol=1e-15)
    assert set(classifier.learned()) == {"shared.context", *(f"tasks.{t}.context" for t in range(3))}


def test_the_shared_prompts_loss_is_coop_mt_s(problem, streams, batch):
    shared = build(problem, "mvlpt", streams, position="end", **SHORT).shared
    hard = build(problem, "coop-mt", streams, **SHORT)
    assert torch.equal(shared.context, hard.context)
    losses = [c.loss(*batch, rng=torch.Generator()) for c in (shared, hard)]
    assert torch.equal(*losses)


def test_the_joint_softmax_is_over_all_classes_of_all_tasks(problem, streams, batch):
    shared = build(problem, "mvlpt", streams, softmax="joint", **SHORT).shared
    found = shared.loss(*batch, rng=torch.Generator())
    assert torch.allclose(found, F.cross_entropy(shared.logits(batch[0]), batch[1]), rtol=1e-12)
    own = build(problem, "mvlpt", streams, **SHORT).shared.loss(*batch, rng=torch.Generator())
    assert float((found - own).detach()) > 0.1  # foreign classes take part


def test_a_tasks_scores_are_its_own_prompts(problem, streams, batch):
    classifier = build(problem, "mvlpt", streams, **SHORT)
    assert isinstance(classifier, MVLPT)
    score = classifier.scorer()
    for t in range(3):
        expected = classifier.part(t).logits(batch[0]).detach()
        assert torch.allclose(score(batch[0], t), expected, rtol=0, atol=1e-10)


def test_names_stand_in_the_middle_unless_asked_otherwise(problem, streams):
    slots = build(problem, "mvlpt", streams, context_length=4).shared.prompts.slot[0].tolist()
    assert slots[:3] == [-1, 0, 1]
    assert slots[3] == -1


@pytest.mark.parametrize("suite", ["general-10", "plant-6"])
def test_counts_are_a_context_and_then_one_per_task(resnet50_sized, streams, suite):
    n_tasks = SUITES[suite][0]
    assert count(resnet50_sized, "mvlpt", streams, n_tasks=n_tasks) == 8_192 + n_tasks * 8_192


def test_new_tasks_take_the_shared_prompt(problem, streams):
    classifier = build(problem, "mvlpt", streams, **SHORT)
    again = classifier.for_tasks(problem).class_features()
    assert torch.allclose(again, classifier.shared.class_features(), rtol=0, atol=1e-11)
