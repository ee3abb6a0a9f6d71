"""Heads of all tasks together: whom a setting is chosen for, what is stored, what another task changes."""

from dataclasses import replace

import pytest
import torch

from softcpt.methods.base import n_parameters
from softcpt.methods.heads import HeadClassifier, TaskStates, choose, first_best
from softcpt.methods.registry import get_method, list_methods
from softcpt.methods.tip_adapter import TipAdapter, TipAdapterConfig

FITTED = [method for method in list_methods() if method.fits]
QUICK = {
    "cross-modal": {"iterations": 60},
    "clap": {"epochs": 20},
    "zs-lp": {"epochs": 20},
    "taskres": {"epochs": 20},
}


def build(method, problem, streams, **keys):
    return method.build(problem, method.config(**{**QUICK.get(method.key, {}), **keys}), streams)


@pytest.fixture
def supports(problem, support):
    dim = problem.text.embed_dim
    return [
        support(classes=len(t.classes), dim=dim, seed=i, val=2, noise=1.0)
        for i, t in enumerate(problem.tasks)
    ]


@pytest.fixture
def named():
    """Streams that differ by purpose."""
    return lambda purpose: torch.Generator().manual_seed(sum(map(ord, purpose)))


def test_the_first_of_the_best_settings_is_taken():
    assert first_best(torch.tensor([[0.5], [0.9], [0.9]])) == 1
    assert first_best(torch.tensor([[0.9, -3.0], [0.9, -1.0], [0.5, 0.0]])) == 1


def test_a_setting_is_chosen_for_the_suite_or_for_each_task():
    scores = [torch.tensor([[0.5], [0.8], [0.6]]), torch.tensor([[0.5], [0.1], [0.6]])]
    assert choose(scores, [0, 1], "suite") == [2, 2]
    assert choose(scores, [0, 1], "task") == [1, 2]
    assert choose(scores, [0], "task") == [1, 0]
    assert choose(scores, [0], "suite") == [1, 1]
    assert choose(scores, [], "suite") == [0, 0]


@pytest.mark.parametrize("method", FITTED, ids=lambda m: m.key)
def test_what_is_stored_has_the_sizes_that_were_declared_and_scores_the_same(
    problem, supports, named, method
):
    fitted = build(method, problem, named)
    fitted.fit(supports, named)
    stored = {name: t.clone() for name, t in fitted.learned().items()}
    other = build(method, problem, named)
    other.allocate([len(s.labels) for s in supports])
    assert {n: (t.shape, t.dtype) for n, t in other.learned().items()} == {
        n: (t.shape, t.dtype) for n, t in stored.items()
    }
    other.load_state_dict(stored, strict=False)
    for t, own in enumerate(supports):
        ours, theirs = fitted.scorer()(own.val, t), other.scorer()(own.val, t)
        assert torch.equal(ours, theirs)
        assert ours.shape == (len(own.val), len(problem.tasks[t].classes))
    assert list(fitted.tuned()) == [task.name for task in problem.tasks]


@pytest.mark.parametrize("method", FITTED, ids=lambda m: m.key)
def test_every_head_learns_what_separable_images_show(problem, support, named, method):
    dim = problem.text.embed_dim
    supports = [
        support(classes=len(t.classes), dim=dim, seed=i, val=3, noise=0.05)
        for i, t in enumerate(problem.tasks)
    ]
    keys = {}
    if method.key in ("clap", "zs-lp", "taskres"):
        keys = {"epochs": 100, "lr": 1.0}
    if method.key == "cross-modal":
        keys = {"iterations": 1200, "start": "random"}
    fitted = build(method, problem, named, **keys)
    fitted.fit(supports, named)
    score = fitted.scorer()
    right = [
        float((score(s.val, t).argmax(1) == s.val_labels).double().mean()) for t, s in enumerate(supports)
    ]
    assert sum(right) / 3 > 0.8  # by chance 0.36; the toy's texts say nothing of these images


@pytest.mark.parametrize("method", FITTED, ids=lambda m: m.key)
def test_another_task_and_the_seed_of_others_change_nothing(problem, supports, named, method):
    keys = {"tune": "task"} if "tune" in method.config.model_fields else {}
    whole = build(method, problem, named, **keys)
    whole.fit(supports, named)
    alone = build(method, problem.only(2), named, **keys)
    alone.fit(supports[2:], named)
    assert torch.allclose(whole.scorer()(supports[2].val, 2), alone.scorer()(supports[2].val, 0), atol=1e-9)


@pytest.mark.parametrize("method", FITTED, ids=lambda m: m.key)
def test_without_val_images_every_head_is_still_fitted(problem, supports, named, method, given):
    empty = [given(s.all_views, s.labels, s.val[:0], s.val_labels[:0], s.centres) for s in supports]
    fitted = build(method, problem, named)
    fitted.fit(empty, named)
    assert all("val_accuracy" not in own for own in fitted.tuned().values())
    assert fitted.scorer()(supports[0].val, 0).isfinite().all()


def test_ridge_chooses_by_leaving_out_where_there_is_no_val_image(problem, support, named, given):
    dim = problem.text.embed_dim
    whole = [
        support(classes=len(t.classes), dim=dim, seed=i, noise=0.05) for i, t in enumerate(problem.tasks)
    ]
    supports = [given(s.all_views, s.labels, s.val[:0], s.val_labels[:0], s.centres) for s in whole]
    by_loo, by_val = (build(get_method("ridge"), problem, named, choose=how) for how in ("loo", "val"))
    by_loo.fit(supports, named)
    chosen = next(iter(by_loo.tuned().values()))
    assert chosen["lambda"] < 1e3  # images that are told apart so well outvote the toy's random text
    assert chosen["loo_accuracy"] > 0.9
    by_val.fit(supports, named)
    nothing = next(iter(by_val.tuned().values()))
    assert (nothing["lambda"], nothing["gamma"], nothing["tau"]) == (1e3, 1.0, problem.logit_scale)
    assert not {"loo_accuracy", "val_accuracy"} & nothing.keys()


def test_one_setting_for_the_suite_is_the_same_in_every_task(problem, supports, named):
    method = get_method("tip-adapter")
    suite, each = (build(method, problem, named, tune=tune) for tune in ("suite", "task"))
    suite.fit(supports, named)
    each.fit(supports, named)
    pairs = [{(t["alpha"], t["beta"]) for t in c.tuned().values()} for c in (suite, each)]
    assert len(pairs[0]) == 1
    assert len(pairs[1]) > 1
    for own, other in zip(each.tuned().values(), suite.tuned().values(), strict=True):
        assert own["val_accuracy"] >= other["val_accuracy"]


def test_published_settings_look_at_no_val_image(problem, supports, named):
    method = get_method("taskres")
    one = build(method, problem, named, tune="published")
    one.fit(supports, named)
    assert {own["alpha"] for own in one.tuned().values()} == {0.5}
    blind = [replace_val(s) for s in supports]
    other = build(method, problem, named, tune="published")
    other.fit(blind, named)
    for name, tensor in one.learned().items():
        assert torch.equal(tensor, other.learned()[name])


@pytest.mark.parametrize("method", [m for m in FITTED if m.key != "lp-clip"], ids=lambda m: m.key)
def test_every_task_is_tried_on_the_same_grid_whatever_it_is_called(
    problem, supports, named, method, monkeypatch
):
    """Names that the published codes have grids of their own for; LP-CLIP has a search, the same for all."""
    known = ("OxfordFlowers", "EuroSAT", "ImageNet")
    tasks = tuple(replace(t, name=name) for t, name in zip(problem.tasks, known, strict=True))
    tried = []
    for world in (problem, replace(problem, tasks=tasks)):
        fitted = build(method, world, named)
        explore = fitted.head.explore

        def spy(data, grid, explore=explore):
            tried.append([dict(setting) for setting in grid])
            return explore(data, grid[:1])  # enough to go on

        monkeypatch.setattr(fitted.head, "explore", spy)
        fitted.fit(supports, named)
    assert len(tried) == 6
    assert all(grid == tried[0] for grid in tried)


@pytest.mark.parametrize("method", FITTED, ids=lambda m: m.key)
def test_the_length_of_the_text_matters_to_those_that_say_so_and_to_no_other(
    problem, supports, named, method, monkeypatch
):
    """CLAP, ZS-LP and TaskRes start from the text as encoded, the others from its direction."""
    one = build(method, problem, named)
    one.fit(supports, named)
    encoded = TaskStates.text
    monkeypatch.setattr(TaskStates, "text", lambda self, task: 10 * encoded(self, task))
    ten = build(method, problem, named)
    ten.fit(supports, named)
    same = all(
        torch.allclose(one.scorer()(own.val, t), ten.scorer()(own.val, t), atol=1e-6)
        for t, own in enumerate(supports)
    )
    assert same is ("text_norm" not in method.config.model_fields)
    assert same is (method.key not in ("clap", "zs-lp", "taskres"))
    if not same:
        by_direction = build(method, problem, named, text_norm="unit")
        by_direction.fit(supports, named)
        monkeypatch.undo()
        again = build(method, problem, named, text_norm="unit")
        again.fit(supports, named)
        assert torch.allclose(
            by_direction.scorer()(supports[0].val, 0), again.scorer()(supports[0].val, 0), atol=1e-6
        )


def replace_val(support):
    support = type(support)(
        support.all_views, support.labels, -support.val, support.val_labels.flip(0), support.centres
    )
    return support


def test_only_what_was_learned_counts_as_parameters(problem, supports, named):
    dim, classes = problem.text.embed_dim, [len(t.classes) for t in problem.tasks]
    images = sum(len(s.labels) for s in supports)
    wanted = {
        "protonet": 0,
        "lp-clip": sum(classes) * (dim + 1),
        "tip-adapter": 0,
        "tip-adapter-f": images * dim,
        "cross-modal": sum(classes) * dim,
        "lp-plus-plus": sum(classes) * (dim + 2),
        "zs-lp": sum(classes) * dim,
        "clap": sum(classes) * dim,
        "taskres": sum(classes) * dim,
        "ridge": sum(classes) * dim,
        "logistic": sum(classes) * (dim + 1),
    }
    assert set(wanted) == {method.key for method in FITTED}
    for method in FITTED:
        classifier = build(method, problem, named)
        classifier.allocate([len(s.labels) for s in supports])
        assert n_parameters(classifier) == wanted[method.key], method.key


def test_learned_prompts_can_take_the_place_of_the_text(problem, supports, named):
    """A subclass gives a head other text features: prompts first, then a head."""

    class OnPrompts(HeadClassifier):
        def text(self, task):
            return super().text(task).flip(1)

    head = TipAdapter(TipAdapterConfig())
    plain, other = (kind(problem, head, tune="published") for kind in (HeadClassifier, OnPrompts))
    for classifier in (plain, other):
        classifier.fit(supports, named)
    ours, theirs = plain.scorer()(supports[0].val, 0), other.scorer()(supports[0].val, 0)
    assert not torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("templates", ["selected", "imagenet"])
def test_templates_change_the_text_of_a_head(problem, supports, named, templates):
    method = get_method("clap")
    own = build(method, problem.only(0), named, epochs=1)
    more = build(method, problem.only(0), named, epochs=1, templates=templates)
    for classifier in (own, more):
        classifier.fit(supports[:1], named)
    assert not torch.allclose(own.learned()["tasks.0.weight"], more.learned()["tasks.0.weight"], atol=1e-3)


def test_a_problem_in_single_precision_gives_single_precision(toy, problem, supports, named, given):
    single = replace(problem, text=toy.to(dtype=torch.float32).text)
    floats = [
        given(s.all_views.float(), s.labels, s.val.float(), s.val_labels, s.centres.float()) for s in supports
    ]
    for method in FITTED:
        fitted = build(method, single, named)
        fitted.fit(floats, named)
        assert fitted.scorer()(floats[0].val, 0).dtype == torch.float32, method.key
