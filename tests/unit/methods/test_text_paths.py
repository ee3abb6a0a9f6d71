"""Every method by the fast text encoder and by the plain one; absent tasks; features known already."""

import copy
from dataclasses import replace

import pytest
import torch

from softcpt.clip import text_shared
from softcpt.clip.text_shared import SharedTextEncoder
from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods import prompts
from softcpt.methods.base import Problem
from softcpt.methods.registry import get_method, list_methods

EXACT = 1e-11
SOFT = {"context_length": 3, "task_context_length": 2}
AWARE = {**SOFT, "class_context_length": 2}

KINDS = {
    "zero-shot": ("zero-shot", {}),
    "zero-shot-ensemble": ("zero-shot-ensemble", {}),
    **{
        key: (key, {"context_length": 3})
        for key in ("coop-mt", "coop-ca", "coop-ca-joint", "coop-cs", "coop-cs-joint", "softcpt-star")
    },
    **{f"softcpt-{kind}": (f"softcpt-{kind}", SOFT) for kind in ("nata", "nats", "nata-separate", "dual")},
    "softcpt-basis": ("softcpt-basis", {**SOFT, "context_length": 4}),
    "softcpt-residual": ("softcpt-residual", {"context_length": 3}),
    "softcpt-rho": ("softcpt-rho", {"context_length": 3}),
    "softcpt-span": ("softcpt-span", {"context_length": 3, "span_size": 2}),
    "a span for each task": ("softcpt-span", {"context_length": 3, "span": "own"}),
    **{f"softcpt-{variant}": (f"softcpt-{variant}", AWARE) for variant in ("cata", "cats", "csta", "csts")},
    "kgcoop": ("kgcoop", {}),
    "kgcoop by squares": ("kgcoop", {"init_words": "", "context_length": 3, "distance": "l2"}),
    "prograd": ("prograd", {"context_length": 12}),
    "words": ("coop-mt", {"init_words": "a photo of"}),
    "names first": ("coop-cs-joint", {"context_length": 4, "position": "front"}),
    "all in the middle": (
        "softcpt-csts",
        {**AWARE, "position": "middle", "task_position": "middle", "class_position": "middle"},
    ),
    "all names first": (
        "softcpt-csta",
        {**AWARE, "position": "front", "task_position": "front", "class_position": "front"},
    ),
    "no task context": ("softcpt-nats", {**SOFT, "task_context_length": 0}),
    "no class context": ("softcpt-cats", {**SOFT, "class_context_length": 0}),
    "a frozen class context": ("softcpt-csta", {**AWARE, "freeze_class_context": True}),
    "low rank": ("softcpt-cata", {**AWARE, "meta": "lowrank", "rank": 2}),
    "a hidden layer": ("softcpt-nata", {**SOFT, "meta": "mlp", "hidden": 4}),
    "a mean context": ("softcpt-cata", {**AWARE, "mean_context": "zeros"}),
    "random vectors": ("softcpt-nata", {"context_length": 3, "task_text": "vectors"}),
    "a kernel of centred features": ("softcpt-dual", {**SOFT, "kernel": "centred"}),
    "a learned kernel": ("softcpt-dual", {**SOFT, "kernel": "learned"}),
    "mean": ("softcpt-cats", {**AWARE, "meta": "linmean"}),
    "class features alone": ("softcpt-csts", {**AWARE, "meta": "lincls"}),
    "a class sample": ("softcpt-csts", {**AWARE, "class_sampling": 0.4}),
    "a class sample with the published offset": (
        "softcpt-cata",
        {**AWARE, "class_sampling": 0.5, "class_sampling_offset": 1e-6},
    ),
}


@pytest.fixture(params=KINDS)
def build(request, streams):
    key, options = KINDS[request.param]
    method = get_method(key)
    return lambda problem: method.build(problem, method.config(**options), streams)


@pytest.fixture
def few(problem):
    """A batch without images of the middle one of three tasks."""
    columns = torch.tensor([2, 6, 0, 8, 5])
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(len(columns), problem.text.embed_dim, generator=generator, dtype=torch.float64)
    return features, columns


OF_THEIR_OWN = {"cocoop", "plot", "mvlpt", "softcpt-plus"}
"""Methods with other features, of several trainings, or with a head on prompts that are here."""


def test_every_method_that_scores_by_prompts_is_among_the_kinds():
    by_prompts = {method.key for method in list_methods() if method.trains or not method.fits}
    assert {key for key, _ in KINDS.values()} | OF_THEIR_OWN == by_prompts


def loss_and_gradients(classifier, batch, weights=None):
    loss = classifier.loss(*batch, rng=torch.Generator().manual_seed(4), weights=weights)
    learned = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
    if not learned:
        return loss.detach(), {}
    found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(learned.items(), found, strict=True)
    }
    return loss.detach(), gradients


def assert_same(ours, reference):
    (loss, gradients), (other, expected) = ours, reference
    assert float(loss) == pytest.approx(float(other), rel=EXACT)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((gradients[name] - gradient).abs().max()) <= EXACT * scale, name


def watch(monkeypatch):
    """Prompts asked of the fast encoder, call by call."""
    asked = []
    true = SharedTextEncoder.encode

    def encode(self, prompts, context, owner=None, selected=None, **options):
        asked.append(len(prompts) if selected is None else len(selected))
        return true(self, prompts, context, owner, selected, **options)

    monkeypatch.setattr(SharedTextEncoder, "encode", encode)
    return asked


@pytest.mark.parametrize("which", ["all", "few"])
def test_both_paths_give_the_same_loss_and_gradients(problem, batch, few, build, which, monkeypatch):
    chosen = batch if which == "all" else few
    weights = torch.linspace(0.5, 2, len(chosen[1]), dtype=torch.float64) if which == "few" else None
    plain = build(replace(problem, text_path="plain"))
    fast = build(replace(problem, text_path="fast"))
    asked = watch(monkeypatch)
    reference = loss_and_gradients(plain, chosen, weights)
    assert not asked
    assert_same(loss_and_gradients(fast, chosen, weights), reference)
    assert asked
    with torch.no_grad():
        assert torch.allclose(fast.class_features(), plain.class_features(), rtol=0, atol=1e-10)
        for task in range(3):
            scores = [classifier.scorer()(chosen[0], task) for classifier in (fast, plain)]
            assert torch.allclose(*scores, rtol=0, atol=1e-10)


@pytest.mark.parametrize("text_path", ["fast", "plain"])
def test_tasks_without_images_change_nothing_and_learn_nothing(problem, few, build, text_path, monkeypatch):
    classifier = build(replace(problem, text_path=text_path))
    ours = loss_and_gradients(classifier, few)
    monkeypatch.setattr(Problem, "columns_in_play", lambda self, columns: None)
    reference = loss_and_gradients(classifier, few)
    assert_same(ours, reference)
    for name, gradient in ours[1].items():
        absent = {3: gradient[1:2], 9: gradient[3:5]}.get(len(gradient)) if is_owned(name, gradient) else None
        assert absent is None or not absent.any(), name


def is_owned(name, gradient):
    """Whether a tensor's first dimension is the tasks or the classes."""
    # A kernel hands gradients on to tasks that are absent: that is its idea.
    shared = name in ("source.mixed", "source.basis")
    return (gradient.dim() >= 3 and not shared) or name == "features"


def test_a_tensor_per_task_or_class_is_held_to_exact_zeros(problem, few, streams):
    """So that the test above looks at what it should."""
    method = get_method("softcpt-csts")
    classifier = method.build(problem, method.config(**AWARE), streams)
    _, gradients = loss_and_gradients(classifier, few)
    assert gradients["task_context"].flatten(1).any(1).tolist() == [True, False, True]
    present = [True] * 3 + [False] * 2 + [True] * 4
    assert gradients["class_context"].flatten(1).any(1).tolist() == present


@pytest.mark.parametrize(
    ("key", "options", "asked"),
    [
        ("coop-mt", {"context_length": 3}, [7]),
        ("softcpt-nata", SOFT, [2, 7]),
        ("softcpt-csts", AWARE, [2, 7, 7]),
        ("softcpt-star", {"context_length": 3}, [7]),
    ],
)
def test_only_prompts_of_tasks_with_images_are_encoded(
    problem, few, streams, monkeypatch, key, options, asked
):
    method = get_method(key)
    classifier = method.build(problem, method.config(**options), streams)
    calls = watch(monkeypatch)
    classifier.loss(*few, rng=torch.Generator())
    assert calls == asked


def test_less_memory_computes_again_and_gives_the_same_bits(problem, batch, streams, monkeypatch):
    method = get_method("softcpt-csts")
    runs, counts = [], []
    true = text_shared.forward
    monkeypatch.setattr(text_shared, "forward", lambda *args, **how: counts.append(1) or true(*args, **how))
    n_forwards = []
    for gigabytes in (3.0, 0.0):
        own = replace(problem, text_memory_gb=gigabytes)
        counts.clear()
        runs.append(loss_and_gradients(method.build(own, method.config(**AWARE), streams), batch))
        n_forwards.append(len(counts))
    assert n_forwards[1] == 2 * n_forwards[0]
    (loss, gradients), (other, expected) = runs
    assert torch.equal(loss, other)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_columns_in_play(problem):
    def of(*columns, among=problem, device=None):
        found = among.columns_in_play(torch.tensor(columns, device=device))
        return None if found is None else found.tolist()

    assert of(0, 1, 2) == [0, 1, 2]
    assert of(4, 4) == [3, 4]
    assert of(8, 0) == [0, 1, 2, 5, 6, 7, 8]
    assert of(8, 0, 3) is None
    assert of(1, among=problem.only(0)) is None
    # Elsewhere than on the CPU nobody asks what a batch that could hold all tasks holds.
    assert of(0, 0, 0, device="meta") is None


def test_what_the_selected_columns_get_is_what_all_get(problem, build):
    classifier = build(problem)
    with torch.no_grad():
        everything = classifier.class_features()
        for selected in ([0, 1, 2], [3, 4], [1, 2, 5, 8], list(range(9))):
            some = classifier.class_features(torch.tensor(selected))
            assert torch.allclose(some, everything[selected], rtol=0, atol=1e-10)


def scores(classifier, features):
    scorer = classifier.scorer()
    return torch.cat([scorer(features, task) for task in range(3)], dim=1).detach()


def fresh(classifier, features):
    with torch.no_grad():
        return classifier.logits(features)


def test_scorers_encode_again_only_after_something_was_learned(problem, few, build, monkeypatch):
    classifier, features = build(problem), few[0]
    reference = fresh(classifier, features)
    asked = watch(monkeypatch)
    assert torch.allclose(scores(classifier, features), reference, rtol=0, atol=1e-10)
    assert asked
    asked.clear()
    for _ in range(3):
        assert torch.allclose(scores(classifier, features), reference, rtol=0, atol=1e-10)
    with torch.inference_mode():
        classifier.scorer()
    assert not asked

    if not list(classifier.parameters()):
        return
    before = copy.deepcopy(classifier.state_dict())
    spec = OptimSpec(lr=0.5)
    take_step(
        build_optimizer(classifier.parameters(), spec),
        classifier.loss(*few, rng=torch.Generator().manual_seed(4)),
        spec,
    )
    asked.clear()
    after = scores(classifier, features)
    assert asked
    assert not torch.allclose(after, reference, rtol=0, atol=1e-4)
    assert torch.allclose(after, fresh(classifier, features), rtol=0, atol=1e-10)

    asked.clear()
    classifier.load_state_dict(before)
    assert torch.allclose(scores(classifier, features), reference, rtol=0, atol=1e-10)
    assert asked


def test_scorers_notice_a_changed_tower_and_another_precision(problem, few, streams, monkeypatch):
    own = replace(problem, text=copy.deepcopy(problem.text))
    classifier = get_method("zero-shot").build(own, get_method("zero-shot").config(), streams)
    before = scores(classifier, few[0])
    with torch.no_grad():
        own.text.transformer.resblocks[0].ln_1.bias += 0.5
    after = scores(classifier, few[0])
    assert not torch.allclose(after, before, rtol=0, atol=1e-3)
    assert torch.allclose(after, fresh(classifier, few[0]), rtol=0, atol=1e-10)
    asked = watch(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        classifier.scorer()
        assert len(asked) == 1
    classifier.scorer()
    assert len(asked) == 2


@pytest.mark.parametrize("key", ["coop-cs-joint", "softcpt-csta", "softcpt-star"])
def test_a_tower_that_cannot_be_folded_goes_the_plain_way(problem, few, streams, monkeypatch, key):
    method = get_method(key)
    classifier = method.build(problem, method.config(context_length=3), streams)
    reference = loss_and_gradients(classifier, few)
    monkeypatch.setattr(prompts, "shared_encoder", lambda tower: None)
    asked = watch(monkeypatch)
    assert_same(loss_and_gradients(classifier, few), reference)
    assert not asked
