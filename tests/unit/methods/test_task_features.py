"""What tasks are called: texts, and the controls that take their meaning away."""

from dataclasses import replace

import pytest
import torch

from softcpt.core.errors import ConfigError
from softcpt.methods.registry import get_method
from softcpt.methods.task_features import SAME_TEXT, WORDS, task_texts

SIZES = {"context_length": 3, "task_context_length": 2}
OWN = ["a leaf disease task", "garment", "land seen from above"]


def build(problem, streams, key="softcpt-nata", **options):
    method = get_method(key)
    return method.build(problem, method.config(**{**SIZES, **options}), streams)


def seeded(number):
    return lambda purpose: torch.Generator().manual_seed(number + len(purpose))


def test_texts_are_the_tasks_own_or_take_their_meaning_away(problem, streams):
    assert task_texts(problem, "description", streams) == OWN
    assert task_texts(problem, "name", streams) == [task.name for task in problem.tasks]
    assert task_texts(problem, "identical", streams) == [SAME_TEXT] * 3
    words = task_texts(problem, "words", streams)
    assert len(set(words)) == 3
    assert all(set(text.split()) <= set(WORDS) and len(text.split()) == 4 for text in words)
    assert words == task_texts(problem, "words", streams)
    assert words != task_texts(problem, "words", seeded(50))


@pytest.mark.parametrize("seed", range(6))
def test_a_shuffle_leaves_no_task_its_own_text(problem, seed):
    shuffled = task_texts(problem, "shuffled", seeded(seed))
    assert sorted(shuffled) == sorted(OWN)
    assert all(a != b for a, b in zip(shuffled, OWN, strict=True))
    assert task_texts(problem.only(1), "shuffled", seeded(seed)) == ["garment"]


def test_identical_texts_make_one_context_and_shuffled_ones_swap_them(problem, streams):
    own = build(problem, streams).contexts()
    same = build(problem, streams, task_text="identical").contexts()
    assert torch.allclose(same[0], same[2], atol=1e-12)
    assert not torch.allclose(own[0], own[2], atol=1e-6)
    shuffled = build(problem, streams, task_text="shuffled").contexts()
    texts = task_texts(problem, "shuffled", streams)
    assert torch.allclose(shuffled, own[[OWN.index(text) for text in texts]], atol=1e-12)


def test_random_vectors_keep_the_norms_alone_and_are_not_learned(problem, streams, batch):
    texts = build(problem, streams, freeze_task_context=True)
    vectors = build(problem, streams, task_text="vectors")
    z, random = texts.task_features(), vectors.task_features()
    assert torch.allclose(z.norm(dim=1), random.norm(dim=1))
    assert torch.nn.functional.cosine_similarity(z, random).abs().max() < 0.9
    assert {name for name, _ in vectors.named_parameters()} == {"meta.proj"}
    assert set(vectors.learned()) == {"meta.proj"}
    vectors.loss(*batch, rng=torch.Generator()).backward()
    dual = build(problem, streams, key="softcpt-dual", task_text="vectors")
    assert torch.allclose(dual.source(), vectors.contexts(), atol=1e-12)


def test_a_frozen_task_context_is_kept_and_not_learned(problem, streams):
    frozen = build(problem, streams, freeze_task_context=True)
    assert {name for name, _ in frozen.named_parameters()} == {"meta.proj"}
    assert "task_context" in frozen.learned()
    assert torch.equal(frozen.task_context, build(problem, streams).task_context)


def test_new_tasks_are_served_by_name_where_names_mean_something(problem, streams):
    new = replace(problem, tasks=(problem.tasks[1], replace(problem.tasks[0], description="a rust task")))
    for key in ("softcpt-nata", "softcpt-cata", "coop-mt"):
        options = {} if key == "softcpt-nata" else {"class_context_length": 2} if "cata" in key else None
        if options is None:
            trained = get_method(key).build(problem, get_method(key).config(context_length=3), streams)
        else:
            trained = build(problem, streams, key=key, **options)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        features = torch.randn(4, problem.text.embed_dim, dtype=torch.float64)
        ours = trained.for_tasks(new).scorer()(features, 0)
        assert torch.allclose(ours, trained.scorer()(features, 1), atol=1e-8), key
    for key, options in (
        ("softcpt-nats", {}),
        ("softcpt-nata", {"task_text": "shuffled"}),
        ("softcpt-nata", {"task_text": "vectors"}),
    ):
        with pytest.raises(ConfigError, match="unseen task"):
            build(problem, streams, key=key, **options).for_tasks(new)
    for key in ("coop-ca-joint", "softcpt-star"):
        with pytest.raises(ConfigError, match="unseen task"):
            get_method(key).build(problem, get_method(key).config(), streams).for_tasks(new)


def test_step_factors_are_the_squares_of_what_the_matrix_sees(problem, streams):
    nata = build(problem, streams)
    assert torch.allclose(nata.step_factors(), nata.task_features().norm(dim=1) ** 2)
    cata = build(problem, streams, key="softcpt-cata", class_context_length=2)
    first = torch.cat([cata.name_features()[:3], cata.task_features()[:1].expand(3, -1)], dim=1)
    assert torch.allclose(cata.step_factors()[0], first.square().sum(1).mean())
    assert build(problem, streams, meta="lowrank", rank=2).step_factors() is None
    dual = build(problem, streams, key="softcpt-dual")
    frozen = build(problem, streams, freeze_task_context=True)
    assert torch.allclose(dual.step_factors(), frozen.step_factors())
    coop = get_method("coop-ca-joint").build(problem, get_method("coop-ca-joint").config(), streams)
    assert coop.step_factors().tolist() == [1, 1, 1]


def test_the_start_of_contexts_is_scaled_and_nothing_else(problem, streams):
    for key, of in (
        ("coop-ca-joint", lambda c: c.context),
        ("softcpt-nata", lambda c: c.contexts()),
        ("softcpt-star", lambda c: c.meta(c.features)),
        ("softcpt-dual", lambda c: c.source()),
        ("softcpt-residual", lambda c: c.source()),
    ):
        method = get_method(key)
        one, ten = (
            method.build(problem, method.config(context_length=3, init_scale=s), streams) for s in (1.0, 10.0)
        )
        assert torch.allclose(10 * of(one), of(ten), atol=1e-6), key
        if key == "softcpt-nata":
            assert torch.equal(one.task_context, ten.task_context)
