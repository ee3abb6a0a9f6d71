"""CoOp: who shares a context."""

from dataclasses import replace

import pytest
import torch

from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods.registry import get_method


def build(problem, key, streams, **options):
    method = get_method(key)
    return method.build(problem, method.config(**{"context_length": 3, **options}), streams)


def step(classifier, features, columns, lr=0.1):
    spec = OptimSpec(lr=lr, weight_decay=0)
    optimizer = build_optimizer(classifier.parameters(), spec)
    take_step(optimizer, classifier.loss(features, columns, rng=torch.Generator()), spec)


@pytest.mark.parametrize(
    ("key", "moves"), [("coop-mt", True), ("coop-ca-joint", False), ("coop-cs-joint", False)]
)
def test_a_step_on_one_task_moves_another_only_under_hard_sharing(problem, streams, batch, key, moves):
    classifier = build(problem, key, streams)
    before = classifier.class_features().detach()
    step(classifier, batch[0][:2], batch[1][:2])
    after = classifier.class_features().detach()
    first, second = problem.columns(0), problem.columns(1)
    assert not torch.allclose(before[first], after[first])
    assert (not torch.allclose(before[second], after[second], atol=1e-12)) is moves


@pytest.mark.parametrize(("key", "swaps"), [("coop-ca-joint", True), ("coop-cs-joint", False)])
def test_swapped_names_swap_features_unless_each_class_has_its_own_context(
    problem, streams, batch, key, swaps
):
    classifier = build(problem, key, streams)
    step(classifier, *batch)
    first, *rest = problem.tasks
    a, b, *others = first.classes
    swapped = replace(problem, tasks=(replace(first, classes=(b, a, *others)), *rest))
    other = build(swapped, key, streams)
    other.load_state_dict(classifier.state_dict())
    ours, theirs = classifier.class_features(), other.class_features()
    assert torch.allclose(ours[0], theirs[1], atol=1e-12) is swaps


@pytest.mark.parametrize("key", ["coop-mt", "coop-ca-joint", "coop-cs-joint"])
def test_words_start_every_context_and_keep_it_specific(problem, streams, key):
    """The published code makes one shared context of initial words; ours stays the method's own."""
    classifier = get_method(key).build(problem, get_method(key).config(init_words="a photo of a"), streams)
    ids = problem.tokenizer.encode("a photo of a")
    rows = problem.text.embed(torch.tensor(ids)[None])[0]
    copies = {"coop-mt": (), "coop-ca-joint": (3,), "coop-cs-joint": (9,)}[key]
    assert classifier.context.shape == (*copies, len(ids), problem.text.width)
    assert torch.equal(classifier.context, rows.expand(classifier.context.shape))


def test_equal_contexts_make_all_three_kinds_one_classifier(problem, streams):
    shared = build(problem, "coop-mt", streams)
    for key, copies in (("coop-ca-joint", 3), ("coop-cs-joint", 9)):
        other = build(problem, key, streams)
        with torch.no_grad():
            other.context.copy_(shared.context.expand(copies, -1, -1))
        assert torch.allclose(other.class_features(), shared.class_features(), atol=1e-12)


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("coop-ca", {}),
        ("mvlpt", {}),
        ("plot", {}),
        *((key, {"init_words": ""}) for key in ("cocoop", "kgcoop")),
    ],
)
def test_a_random_start_is_scaled_and_words_are_not(problem, streams, key, own):
    method = get_method(key)
    starts = []
    for scale in (1.0, 10.0):
        made = method.build(problem, method.config(context_length=3, init_scale=scale, **own), streams)
        contexts = [p for name, p in made.named_parameters() if name.endswith("context")]
        starts.append(torch.cat([p.flatten() for p in contexts]).detach())
    assert torch.allclose(starts[1], 10 * starts[0], rtol=1e-5, atol=0)
    if key != "plot":
        with pytest.raises(ValueError, match="no effect on words"):
            method.config(init_scale=10.0, init_words="a photo of a")
