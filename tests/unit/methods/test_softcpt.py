"""SoftCPT's idea, case by case: each test fails if the part it names is left out."""

from dataclasses import replace
from math import prod

import pytest
import torch
from pydantic import ValidationError

from softcpt.core.errors import ConfigError
from softcpt.engine.optim import OptimSpec, build_optimizer, take_step
from softcpt.methods.base import Problem, TaskNames
from softcpt.methods.class_sampling import sample_classes
from softcpt.methods.registry import get_method, list_methods
from softcpt.methods.softcpt import ClassAwareConfig, GeneratorConfig, SoftCPTConfig

VARIANTS = ("nata", "nats", "cata", "cats", "csta", "csts")


def build(problem, key, streams, **options):
    method = get_method(key)
    return method.build(problem, method.config(**options), streams)


def small(**options):
    return {"context_length": 3, "task_context_length": 2, **options}


def only_linear(classifier):
    """Train the meta network alone, so that task features stay where they are."""
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(name == "meta.proj")
    return classifier


def mean_norm(features):
    return features.detach().norm(dim=1).mean().item()


def rng():
    return torch.Generator().manual_seed(0)


def test_renaming_one_task_changes_only_that_tasks_context(problem, renamed, streams):
    before = build(problem, "softcpt-nata", streams, **small()).contexts()
    after = build(renamed(1, "shoe"), "softcpt-nata", streams, **small()).contexts()
    changed = ((before - after).abs() > 1e-9).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def test_tasks_of_one_name_share_a_context_under_nata_but_not_once_nats_has_learned(problem, streams, batch):
    twins = replace(
        problem, tasks=(problem.tasks[1], replace(problem.tasks[2], name="garment", description=None))
    )
    columns = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    for key, same in (("softcpt-nata", True), ("softcpt-nats", False)):
        classifier = build(twins, key, streams, **small())
        optimizer = build_optimizer(classifier.parameters(), OptimSpec(lr=0.1))
        take_step(optimizer, classifier.loss(batch[0], columns, rng=rng()), OptimSpec())
        contexts = classifier.contexts()
        assert torch.allclose(contexts[0], contexts[1], atol=1e-12) is same


def test_training_on_one_task_moves_the_others_by_the_products_of_their_features(problem, streams, batch):
    """With task features fixed, ctx_s moves by <z_s, z_t> times task t's own gradient."""
    classifier = only_linear(build(problem, "softcpt-nata", streams, **small()))
    features, columns = batch[0][:2], batch[1][:2]
    assert problem.task_of_class[columns].tolist() == [0, 0]
    z = classifier.task_features().detach()
    before = classifier.contexts()
    before.retain_grad()
    lr = 0.01
    spec = OptimSpec(lr=lr, weight_decay=0)
    optimizer = build_optimizer(classifier.parameters(), spec)
    loss = _loss_of_contexts(classifier, before, features, columns)
    gradient = torch.autograd.grad(loss, before)[0][0]
    take_step(optimizer, classifier.loss(features, columns, rng=rng()), spec)
    moved = (classifier.contexts() - before).detach()
    for s in range(3):
        assert torch.allclose(moved[s], -lr * (z[s] @ z[0]) * gradient, atol=1e-12)
    assert moved[2].abs().max() > 0


def _loss_of_contexts(classifier, contexts, features, columns):
    from softcpt.methods.loss import cosine_logits, multitask_cross_entropy
    from softcpt.methods.prompts import encode_prompts

    problem = classifier.problem
    weights = encode_prompts(problem, classifier.prompts, contexts, problem.task_of_class)
    logits = cosine_logits(features, weights, problem.logit_scale)
    return multitask_cross_entropy(logits, columns, problem.task_of_class)


def test_a_text_projection_a_times_as_large_gives_a_contexts_and_a_squared_steps(problem, streams, batch):
    """CLIP's own scores do not see the projection's scale; SoftCPT does."""
    a = 3.0
    larger = replace(problem, text=_scaled(problem.text, a))
    small_one = only_linear(build(problem, "softcpt-nata", streams, **small()))
    large_one = only_linear(build(larger, "softcpt-nata", streams, **small()))
    assert torch.allclose(large_one.contexts(), a * small_one.contexts())
    with torch.no_grad():  # the same contexts, so that the gradients on them agree
        large_one.meta.proj /= a
    start = small_one.contexts().detach()
    spec = OptimSpec(lr=1e-3, weight_decay=0)
    for classifier in (small_one, large_one):
        optimizer = build_optimizer(classifier.parameters(), spec)
        take_step(optimizer, classifier.loss(*batch, rng=rng()), spec)
    step, large_step = small_one.contexts() - start, large_one.contexts() - start
    assert torch.allclose(large_step, a**2 * step, atol=1e-10)


def _scaled(tower, factor):
    import copy

    scaled = copy.deepcopy(tower)
    scaled.projection = scaled.projection * factor
    return scaled


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_a_variant_gets_a_gradient(problem, streams, batch, variant):
    options = small(class_context_length=2) if variant[0] == "c" and variant[1] != "o" else small()
    classifier = build(problem, f"softcpt-{variant}", streams, **options)
    classifier.loss(*batch, rng=rng()).backward()
    shapes = {name: tuple(p.shape) for name, p in classifier.named_parameters()}
    width = problem.text.width
    assert shapes["task_context"] == ((3, 2, width) if variant.endswith("ts") else (2, width))
    if variant.startswith("c"):
        assert shapes["class_context"] == ((9, 2, width) if variant.startswith("cs") else (2, width))
    else:
        assert "class_context" not in shapes
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_lincls_leaves_the_task_context_to_weight_decay_alone(problem, streams, batch):
    classifier = build(problem, "softcpt-cata", streams, **small(class_context_length=2, meta="lincls"))
    before = classifier.task_context.detach().clone()
    spec = OptimSpec(lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(classifier.parameters(), spec)
    take_step(optimizer, classifier.loss(*batch, rng=rng()), spec)
    assert torch.allclose(classifier.task_context, before * (1 - 0.1 * 0.5))


def test_linmean_sees_the_mean_of_class_and_task_features(problem, streams):
    classifier = build(problem, "softcpt-cata", streams, **small(class_context_length=2, meta="linmean"))
    tasks = classifier.task_features()[problem.task_of_class]
    mean = (classifier.name_features() + tasks) / 2
    expected = (mean @ classifier.meta.proj).reshape(9, 3, -1)
    assert torch.allclose(classifier.contexts(), expected)


def test_lin_puts_the_class_feature_before_the_tasks(problem, streams):
    classifier = build(problem, "softcpt-csts", streams, **small(class_context_length=2))
    n = problem.text.embed_dim
    tasks = classifier.task_features()[problem.task_of_class]
    expected = classifier.name_features() @ classifier.meta.proj[:n] + tasks @ classifier.meta.proj[n:]
    assert torch.allclose(classifier.contexts().flatten(1), expected)


def test_low_rank_has_its_count_its_rank_and_the_full_networks_scale(problem, streams):
    classifier = build(
        problem, "softcpt-nata", streams, **small(meta="lowrank", rank=2, task_context_length=0)
    )
    inputs, outputs = problem.text.embed_dim, 3 * problem.text.width
    assert sum(p.numel() for p in classifier.meta.parameters()) == 2 * (inputs + outputs)
    assert torch.linalg.matrix_rank(classifier.contexts().flatten(1)) == 2
    wide = [
        build(
            problem, "softcpt-nata", lambda p, s=s: torch.Generator().manual_seed(s), meta="lowrank", rank=r
        )
        for r in (4, 32)
        for s in range(40)
    ]
    full = [
        build(problem, "softcpt-nata", lambda p, s=s: torch.Generator().manual_seed(s)) for s in range(40)
    ]

    def size(group):
        return torch.stack([c.contexts().detach() for c in group]).std().item()

    assert size(wide) == pytest.approx(size(full), rel=0.15)


def test_a_rank_without_low_rank_is_refused():
    with pytest.raises(ValidationError, match="rank has no effect with meta=lin"):
        SoftCPTConfig(rank=4)


@pytest.mark.parametrize("meta", ["linmean", "lincls"])
def test_networks_of_class_features_are_refused_without_them(meta):
    with pytest.raises(ValidationError, match="class-aware"):
        SoftCPTConfig(meta=meta)
    with pytest.raises(ValidationError, match="class-aware"):
        GeneratorConfig(meta=meta)
    assert ClassAwareConfig(meta=meta).meta == meta


def test_star_starts_at_the_norm_of_the_task_texts_and_learns_a_feature_per_task(problem, streams, batch):
    classifier = build(problem, "softcpt-star", streams, context_length=3)
    texts = build(problem, "softcpt-nata", streams, context_length=3, task_context_length=0).task_features()
    assert mean_norm(classifier.features) == pytest.approx(mean_norm(texts))
    classifier.loss(*batch, rng=rng()).backward()
    n_tasks, dim, width = 3, problem.text.embed_dim, problem.text.width
    assert classifier.features.grad.abs().sum(1).min() > 0
    assert sum(p.numel() for p in classifier.parameters()) == n_tasks * dim + dim * 3 * width


def test_sampling_every_class_is_the_full_loss(problem, streams, batch):
    full = build(problem, "softcpt-cata", streams, **small(class_context_length=2))
    sampled = build(problem, "softcpt-cata", streams, **small(class_context_length=2, class_sampling=1.0))
    assert torch.allclose(full.loss(*batch, rng=rng()), sampled.loss(*batch, rng=rng()), atol=1e-12)


def test_sampled_features_are_as_they_are_unless_the_published_offset_is_asked_for(problem, streams, batch):
    plain = build(problem, "softcpt-cata", streams, **small(class_context_length=2))
    selected = torch.tensor([0, 2, 4, 8])
    full = plain.logits(batch[0])[:, selected]
    exact = build(problem, "softcpt-cata", streams, **small(class_context_length=2, class_sampling=0.5))
    assert torch.allclose(exact.logits_among(selected, batch[0]), full, atol=1e-12)
    shifted = build(
        problem,
        "softcpt-cata",
        streams,
        **small(class_context_length=2, class_sampling=0.5, class_sampling_offset=0.1),
    )
    assert not torch.allclose(shifted.logits_among(selected, batch[0]), full, atol=1e-3)


def test_class_sampling_keeps_every_label_and_the_asked_share_of_the_rest():
    task_of_class = torch.tensor([0] * 10 + [1] * 21)
    chosen = sample_classes(torch.tensor([3, 3, 12]), task_of_class, 0.1, rng())
    of_first = [c for c in chosen.tolist() if c < 10]
    of_second = [c for c in chosen.tolist() if c >= 10]
    assert of_first[0] == 3
    assert len(of_first) == 1 + 1
    assert of_second[0] == 12
    assert len(of_second) == 1 + 2
    assert len(set(chosen.tolist())) == len(chosen)


def test_words_start_the_task_context_and_set_its_length(problem, streams):
    classifier = build(problem, "softcpt-nats", streams, init_words="a photo")
    ids = problem.tokenizer.encode("a photo")
    rows = problem.text.embed(torch.tensor(ids)[None])[0]
    assert classifier.task_context.shape == (3, len(ids), problem.text.width)
    assert torch.equal(classifier.task_context[2], rows)


def test_words_of_another_length_than_asked_are_refused(problem, streams):
    with pytest.raises(ConfigError, match="leave task_context_length out"):
        build(problem, "softcpt-nata", streams, init_words="a photo", task_context_length=7)


def test_a_frozen_class_context_is_not_learned_but_kept(problem, streams, batch):
    classifier = build(
        problem, "softcpt-cata", streams, **small(class_context_length=2, freeze_class_context=True)
    )
    names = [name for name, _ in classifier.named_parameters()]
    assert "class_context" not in names
    assert "class_context" in classifier.learned()
    before = classifier.class_context.clone()
    spec = OptimSpec(lr=0.1)
    take_step(build_optimizer(classifier.parameters(), spec), classifier.loss(*batch, rng=rng()), spec)
    assert torch.equal(classifier.class_context, before)


@pytest.mark.parametrize("position", ["front", "middle"])
def test_positions_of_all_three_prompts_have_an_effect(problem, streams, position):
    base = build(problem, "softcpt-cata", streams, **small(class_context_length=2)).class_features()
    for key in ("position", "task_position", "class_position"):
        other = build(problem, "softcpt-cata", streams, **small(class_context_length=2, **{key: position}))
        assert not torch.allclose(other.class_features(), base), key


PUBLISHED_SUITES = {"general-10": (10, 1191), "plant-6": (6, 116), "rs-8": (8, 208), "fashion-20": (20, 78)}
# Section 7 of the protocol: suite -> counts of NATA, NATS, CATA, CATS, CSTA, CSTS at D = 1024, lengths 4.
PUBLISHED_COUNTS = {
    "general-10": (8_390_656, 8_409_088, 16_781_312, 16_799_744, 19_218_432, 19_236_864),
    "plant-6": (8_390_656, 8_400_896, 16_781_312, 16_791_552, 17_016_832, 17_027_072),
    "rs-8": (8_390_656, 8_404_992, 16_781_312, 16_795_648, 17_205_248, 17_219_584),
    "fashion-20": (8_390_656, 8_429_568, 16_781_312, 16_820_224, 16_939_008, 16_977_920),
}
PUBLISHED_COOP = {
    "general-10": (81_920, 9_756_672, 8_192),
    "plant-6": (49_152, 950_272, 8_192),
    "rs-8": (65_536, 1_703_936, 8_192),
    "fashion-20": (163_840, 638_976, 8_192),
}


def named(backbone, n_tasks, n_classes):
    sizes = [n_classes // n_tasks + (t < n_classes % n_tasks) for t in range(n_tasks)]
    tasks = [TaskNames(f"task {t}", tuple(f"class {c}" for c in range(n))) for t, n in enumerate(sizes)]
    return Problem(tuple(tasks), backbone.text, backbone.tokenizer, 100.0)


def count(problem, key, streams, **options):
    return sum(p.numel() for p in build(problem, key, streams, **options).parameters())


@pytest.mark.parametrize("suite", PUBLISHED_SUITES)
def test_parameter_counts_are_the_published_ones(resnet50_sized, streams, suite):
    problem = named(resnet50_sized, *PUBLISHED_SUITES[suite])
    ours = tuple(count(problem, f"softcpt-{v}", streams) for v in VARIANTS)
    assert ours == PUBLISHED_COUNTS[suite]
    coop = tuple(count(problem, key, streams) for key in ("coop-ca-joint", "coop-cs-joint", "coop-mt"))
    assert coop == PUBLISHED_COOP[suite]


def test_the_result_tables_own_counts_come_out_at_the_lengths_that_fit_them(resnet50_sized, streams):
    rs8 = named(resnet50_sized, *PUBLISHED_SUITES["rs-8"])
    assert count(rs8, "softcpt-nata", streams, task_context_length=8) == 8_392_704
    assert count(rs8, "softcpt-nats", streams, task_context_length=8) == 8_421_376
    assert count(rs8, "softcpt-star", streams) == 8_396_800


OPTIONS = {"cocoop": {}, "kgcoop": {}, "prograd": {"context_length": 12}}


@pytest.mark.parametrize("method", [m.key for m in list_methods() if m.trains])
def test_every_method_learns_all_it_stores_and_leaves_the_backbone_alone(problem, streams, batch, method):
    frozen = {name: t.clone() for name, t in problem.text.state_dict().items()}
    entry = get_method(method)
    options = OPTIONS.get(method, {"context_length": 3})
    classifier = entry.build(problem, entry.config(**options), streams)
    assert sum(prod(t.shape) for t in classifier.learned().values()) == sum(
        p.numel() for p in classifier.parameters()
    )
    spec = OptimSpec(lr=0.05)
    features, columns = batch
    if entry.image_features == "tokens":
        features = torch.stack([features, features.roll(1, 1), features], dim=1)
    for stage in classifier.stages():
        stage.begin()
        trained, own = stage.classifier, slice(None)
        if stage.task is not None:
            own = problem.task_of_class[columns] == stage.task
        first = 0 if stage.task is None else problem.first_column[stage.task]
        optimizer = build_optimizer(trained.parameters(), spec)
        told = []
        for _ in range(4):
            losses = trained.losses(features[own], columns[own] - first, rng=rng())
            told.append(float(losses[0].detach()))
            take_step(optimizer, losses, spec, backward=trained.backward)
        assert told[-1] < told[0]
    assert all(torch.equal(frozen[name], t) for name, t in problem.text.state_dict().items())
