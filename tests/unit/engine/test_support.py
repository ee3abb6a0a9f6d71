"""What fitted classifiers are given, and how they are stored and found again."""

from dataclasses import replace

import pytest
import torch

from softcpt.core.errors import AdapterError
from softcpt.data.draw import draw_samples
from softcpt.data.image import centre_pixels, open_image
from softcpt.data.record import Task
from softcpt.data.split import split_suite
from softcpt.deploy.predictor import Predictor
from softcpt.engine.adapter import problem_of, restore_classifier
from softcpt.engine.evaluate import evaluate, load_run_backbone
from softcpt.engine.features import CENTRE, MIRROR, ImageFeatures, encode_alike
from softcpt.engine.support import TaskSupport
from softcpt.methods import registry
from softcpt.methods.base import FittedClassifier, Method, MethodConfig, SeparateClassifiers, fitted_parts
from softcpt.methods.coop import COOP_MT, CoOpConfig


@pytest.fixture
def samples(suite):
    return draw_samples(suite, split_suite(suite, seed=0), shots=2, seed=1)


@pytest.fixture
def of_task(toy, samples):
    features = ImageFeatures(toy)

    def make(task):
        own = [[r for r in part if r.task == task] for part in (samples.train, samples.val)]
        return TaskSupport(*own, features), *own

    return make


def test_support_holds_the_features_of_a_task_s_samples(toy, of_task):
    support, train, val = of_task(1)
    features = ImageFeatures(toy)
    assert support.labels.tolist() == [record.label for record in train]
    assert support.val_labels.tolist() == [record.label for record in val]
    assert torch.equal(support.centres, features.centres(train))
    assert torch.equal(support.val, features.centres(val))
    three = support.views(3)
    assert three.shape == (len(train), 3, toy.embed_dim)
    for view in range(3):
        assert torch.equal(three[:, view], features.views(train, [view] * len(train)))
    assert torch.equal(support.views(0)[:, 0], support.centres)


@pytest.mark.parametrize("method", [m.key for m in registry.list_methods() if m.fits])
def test_without_val_images_everything_is_fitted_all_the_same(quick, method):
    few = {"iterations": 40} if method == "cross-modal" else {}
    run = quick(method, split="all", cache=False, **few)
    assert run.result["n_train"] > 0


def test_no_val_images_have_a_shape_too(toy, samples):
    support = TaskSupport([r for r in samples.train if r.task == 0], [], ImageFeatures(toy))
    assert support.val.shape == (0, toy.embed_dim)
    assert support.val_labels.shape == (0,)


def test_a_mirror_image_is_that_of_the_centre(toy, of_task):
    support, train, _ = of_task(0)
    pixels = torch.stack([centre_pixels(open_image(r.path), toy.pixels).flip(2) for r in train])
    assert torch.allclose(support.mirrors, encode_alike(toy, pixels, "fp32"), atol=1e-6)
    assert not torch.allclose(support.mirrors, support.centres, atol=1e-3)
    assert (CENTRE, MIRROR) == (-1, -2)


def test_nothing_is_encoded_that_is_not_asked_for(toy, of_task, monkeypatch):
    asked = []
    true = ImageFeatures.views

    def spy(self, records, views, on_done=None):
        asked.append(sorted(set(views)))
        return true(self, records, views, on_done)

    monkeypatch.setattr(ImageFeatures, "views", spy)
    support, *_ = of_task(0)
    assert len(support.labels) + len(support.val_labels) > 0
    assert asked == []
    assert len(support.centres) == len(support.centres)
    assert asked == [[CENTRE]]


class Means(FittedClassifier):
    """Scores by class means: the smallest thing that can be fitted."""

    def allocate(self, n_images):
        for t, task in enumerate(self.problem.tasks):
            shape = (len(task.classes), self.problem.text.embed_dim)
            self.register_buffer(f"mean_{t}", torch.zeros(shape))
            self.register_buffer(f"seen_{t}", torch.zeros(n_images[t]))

    def fit(self, support, streams):
        self.allocate([len(s.labels) for s in support])
        for t, s in enumerate(support):
            for c in range(len(self.problem.tasks[t].classes)):
                self.get_buffer(f"mean_{t}")[c] = s.centres[s.labels == c].mean(0)
            self.get_buffer(f"seen_{t}")[:] = torch.randn(len(s.labels), generator=streams("seen"))

    def tuned(self):
        return {task.name: {"numbers": len(task.classes)} for task in self.problem.tasks}

    def scorer(self):
        return lambda features, task: features @ self.get_buffer(f"mean_{task}").T


class PromptsFirst(Means):
    """A learned context, then the means: both kinds in one."""

    def __init__(self, problem, prompts):
        super().__init__(problem)
        self.prompts = prompts
        self.was = None

    def loss(self, features, columns, *, rng, weights=None):
        return self.prompts.loss(features, columns, rng=rng, weights=weights)

    def fit(self, support, streams):
        self.was = self.prompts.context.detach().clone()
        super().fit(support, streams)


@pytest.fixture
def registered(monkeypatch):
    """The means as methods, known to the registry while a test runs."""

    def prompts_first(problem, config, streams):
        return PromptsFirst(problem, COOP_MT.build(problem, config, streams))

    def means(problem, config, streams):
        return Means(problem)

    entries = (
        Method("means", "Means", "class means", MethodConfig, means, trains=False, fits=True),
        Method("means-each", "Means", "of each", MethodConfig, means, trains=False, fits=True, separate=True),
        Method("prompts-means", "Both", "prompts, then means", CoOpConfig, prompts_first, fits=True),
    )
    monkeypatch.setattr(registry, "_METHODS", {**registry._METHODS, **{m.key: m for m in entries}})


@pytest.mark.parametrize("key", ["means", "means-each", "prompts-means"])
def test_a_fitted_classifier_runs_is_stored_and_predicts_as_it_evaluates(quick, registered, key):
    run = quick(key)
    scored = evaluate(run)
    assert scored.shots == 2
    assert run.result["tuned"] == scored.to_json()["tuned"]
    assert list(scored.tuned) == [task.name for task in run.adapter.tasks]
    predictor = Predictor(run)
    for seen in scored.predictions[::9]:
        (row,) = predictor.predict(f"{run.split['root']}/{seen.image}", tasks=[seen.task], top=1)
        assert row.predictions[0][0] == seen.predicted


def test_prompts_are_trained_before_the_head_is_fitted_on_them(quick, registered, monkeypatch):
    seen = []
    fit = PromptsFirst.fit

    def spy(self, support, streams):
        fit(self, support, streams)
        seen.append(self.was)

    monkeypatch.setattr(PromptsFirst, "fit", spy)
    run = quick("prompts-means")
    assert torch.equal(seen[0], run.adapter.tensors["prompts.context"])
    start = quick("coop-mt", epochs=1, lr=1e-9, warmup_lr=1e-9).adapter.tensors["context"]
    assert not torch.allclose(seen[0], start, atol=1e-6)


def test_the_loader_knows_the_shapes_from_the_samples_and_refuses_others(quick, registered):
    run = quick("means")
    backbone = load_run_backbone(run, None, "cpu")
    assert restore_classifier(run.adapter, backbone)
    grown = dict(run.adapter.tensors, seen_0=torch.zeros(1000))
    with pytest.raises(AdapterError, match="seen_0"):
        restore_classifier(replace(run.adapter, tensors=grown), backbone)
    strange = dict(run.adapter.tensors, other=torch.zeros(2))
    with pytest.raises(AdapterError, match="other"):
        restore_classifier(replace(run.adapter, tensors=strange), backbone)


def test_streams_of_a_fit_follow_the_seed_and_the_purpose(quick, registered):
    one, again, other = (quick("means", seed=seed).adapter.tensors for seed in (1, 1, 2))
    assert torch.equal(one["seen_0"], again["seen_0"])
    assert not torch.equal(one["seen_0"], other["seen_0"])


def test_parts_that_are_fitted_know_their_tasks(toy):
    tasks = (Task("one", ("a", "b")), Task("two", ("c", "d")))
    problem = problem_of(tasks, toy)
    whole = Means(problem)
    assert fitted_parts(whole) == [(whole, [0, 1])]
    each = SeparateClassifiers(problem, [Means(problem.only(0)), Means(problem.only(1))])
    assert [own for _, own in fitted_parts(each)] == [[0], [1]]
