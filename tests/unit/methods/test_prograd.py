"""ProGrad: which gradient a step takes."""

import pytest
import torch
import torch.nn.functional as F
from rivals import SUITES, alone, build, count, gradients

from softcpt.core.errors import ConfigError
from softcpt.methods.prograd import aligned, words_before_name


def test_at_an_obtuse_angle_what_points_against_the_direction_is_taken_out():
    gradient, direction = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[-4.0, 1.0], [0.5, 2.0]])
    dot = float((gradient * direction).sum())
    assert dot == -3.5
    kept = aligned(gradient, direction, 1.0)
    assert float((kept * direction).sum()) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(kept, gradient + 3.5 / 21.25 * direction)
    half = aligned(gradient, direction, 0.5)
    assert torch.allclose(half, gradient + 0.5 * 3.5 / 21.25 * direction)


def test_at_an_acute_angle_nothing_changes():
    gradient, direction = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    assert torch.equal(aligned(gradient, direction, 1.0), gradient)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_a_direction_that_vanishes_or_is_huge_gives_numbers(size):
    gradient, direction = torch.tensor([1.0, 2.0]), torch.tensor([-size, 0.0])
    expected = [0.0, 2.0] if size else [1.0, 2.0]
    assert torch.allclose(aligned(gradient, direction, 1.0), torch.tensor(expected))


@pytest.fixture
def against(problem, streams):
    """Images with the labels that zero-shot finds too likely already: the two gradients disagree."""
    one = alone(problem, template="a leaf with {}.")
    classifier = build(one, "prograd", streams)
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(6, one.text.embed_dim, generator=generator, dtype=torch.float64)
    images = features / features.norm(dim=1, keepdim=True)
    zero_shot = (one.logit_scale * images @ classifier.teacher.T).softmax(1)
    ours = classifier.logits(features).detach().softmax(1)
    return one, (features, (ours - zero_shot).argmax(1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_step_follows_the_projected_gradient(against, streams, temperature):
    """Against KL divergence by torch itself, whose gradient is the cross-entropy's."""
    one, (features, columns) = against
    classifier = build(one, "prograd", streams, temperature=temperature)
    logits = classifier.logits(features)
    images = features / features.norm(dim=1, keepdim=True)
    zero_shot = one.logit_scale * images @ classifier.teacher.T
    kept = F.kl_div(
        (logits / temperature).log_softmax(1), (zero_shot / temperature).softmax(1), reduction="batchmean"
    )
    [a] = torch.autograd.grad(F.cross_entropy(logits, columns), [classifier.context], retain_graph=True)
    [b] = torch.autograd.grad(temperature**2 * kept, [classifier.context])
    dot = (a * b).sum()
    assert dot < 0
    loss, found = gradients(classifier, (features, columns))
    assert torch.allclose(found["context"], a - dot / (b * b).sum() * b, rtol=0, atol=1e-10)
    assert torch.allclose(loss, F.cross_entropy(logits, columns))


def test_without_strength_it_is_coop_from_the_template(against, streams):
    one, batch = against
    classifier = build(one, "prograd", streams, strength=0.0)
    coop = build(one, "coop-ca-joint", streams)
    coop.load_state_dict(classifier.state_dict())
    ours, theirs = gradients(classifier, batch), gradients(coop, batch)
    assert torch.equal(ours[0], theirs[0])
    assert torch.allclose(ours[1]["context"], theirs[1]["context"], rtol=0, atol=1e-13)


def test_absent_tasks_and_foreign_classes_have_no_part(problem, streams):
    features = torch.randn(
        4, problem.text.embed_dim, generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    together = build(problem, "prograd", streams)
    loss, kept = together.losses(features, torch.tensor([3, 4, 4, 3]), rng=torch.Generator())
    own, own_kept = build(problem.only(1), "prograd", streams).losses(
        features, torch.tensor([0, 1, 1, 0]), rng=torch.Generator()
    )
    assert torch.allclose(loss, own)
    assert torch.allclose(kept, own_kept)
    mixed = together.losses(features, torch.tensor([3, 8, 0, 3]), rng=torch.Generator())
    assert all(torch.isfinite(value) for value in mixed)
    together.backward(mixed)
    assert torch.isfinite(together.context.grad).all()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of a {}, a type of flower.", "a type of flower, a photo of a"),
        ("a photo of a {}.", "a photo of a"),
        ("{} texture.", "texture"),
        ("a photo of a plant leaf with {} disease.", "disease, a photo of a plant leaf with"),
        ("{}", ""),
    ],
)
def test_templates_are_turned_so_that_the_name_is_last(template, words):
    assert words_before_name(template) == words


def test_the_context_starts_as_the_templates_words_behind_zeros(problem, streams):
    classifier = build(problem, "prograd", streams, context_length=12)
    for t, words in enumerate(["a leaf with", "a garment, a photo of a", "a photo of a"]):
        ids = problem.tokenizer.encode(words)
        start = classifier.context[t].detach()
        assert not start[: 12 - len(ids)].any()
        assert torch.equal(start[12 - len(ids) :], problem.text.embed(torch.tensor([ids]))[0])


def test_where_words_fill_the_context_it_starts_at_zero_shot(problem, streams):
    one = alone(problem, template="a leaf with {}.")
    n_words = len(problem.tokenizer.encode("a leaf with"))
    classifier = build(one, "prograd", streams, context_length=n_words)
    made = classifier.class_features().detach()
    assert torch.allclose(made / made.norm(dim=1, keepdim=True), classifier.teacher, rtol=0, atol=1e-12)


def test_every_template_too_long_for_the_context_is_told(problem, streams):
    with pytest.raises(ConfigError, match="set context_length to") as caught:
        build(problem, "prograd", streams, context_length=1)
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(("suite", "published"), [("general-10", 81_920), ("plant-6", 49_152)])
def test_counts_are_the_published_ones(resnet50_sized, streams, suite, published):
    assert count(resnet50_sized, "prograd", streams, n_tasks=SUITES[suite][0]) == published
