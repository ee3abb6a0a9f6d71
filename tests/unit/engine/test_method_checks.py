"""The checks of the method contract: all our methods pass, and each check finds the method that breaks it."""

from dataclasses import replace
from weakref import WeakKeyDictionary

import pytest
import torch
from pydantic import ConfigDict, Field
from torch import nn

from softcpt.core.errors import ConfigError
from softcpt.engine.method_bench import Trial, open_bench
from softcpt.engine.method_checks import CHECKS, check_entry, check_method
from softcpt.methods.base import FittedClassifier, Method, MethodConfig, PromptClassifier
from softcpt.methods.registry import get_method, lend, list_methods
from softcpt.methods.zero_shot import ZeroShot

SHORT = {
    "cross-modal": {"iterations": 30},
    "clap": {"epochs": 5},
    "zs-lp": {"epochs": 5},
    "taskres": {"epochs": 5},
}


@pytest.fixture(scope="session")
def bench():
    with open_bench() as opened:
        yield opened


def results(method, bench, settings=None):
    return {outcome.name: outcome for outcome in check_method(method, settings, bench=bench)}


@pytest.mark.slow
@pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.key)
def test_every_method_passes_every_check(method, bench):
    found = results(method, bench, SHORT.get(method.key))
    assert {o.name: o.why for o in found.values() if o.result == "failed"} == {}
    skipped = [o.name for o in found.values() if o.result == "skipped"]
    assert skipped == ([] if method.separate else ["separate"])


class Options(MethodConfig):
    noise: float = Field(0.02, description="of the start")


class Gain(PromptClassifier):
    """A factor for each task and feature."""

    def __init__(self, problem, config, streams):
        super().__init__(problem)
        self.written = ZeroShot(problem)
        start = torch.randn(len(problem.tasks), problem.text.embed_dim, generator=streams("gain"))
        self.gain = nn.Parameter(1 + config.noise * start)

    def class_features(self, selected=None):
        tasks = self.problem.task_of_class
        return (
            self.written.class_features(selected) * self.gain[tasks if selected is None else tasks[selected]]
        )


class Means(FittedClassifier):
    """Mean images."""

    def __init__(self, problem, config, streams):
        super().__init__(problem)
        self.register_buffer("means", torch.zeros(len(problem.class_names), problem.text.embed_dim))

    def allocate(self, n_images):
        pass

    def fit(self, support, streams):
        for t, own in enumerate(support):
            of_class = self.means[self.problem.columns(t)]
            for c in range(len(of_class)):
                of_class[c] = own.centres[own.labels == c].mean(0)

    def scorer(self):
        return lambda features, task: features @ self.means[self.problem.columns(task)].T

    def tuned(self):
        return {}


GOOD = Method("own", "Own", "a method of the tests", Options, Gain)
FITTED = replace(GOOD, build=Means, trains=False, fits=True)


@pytest.mark.parametrize(
    "method", [GOOD, replace(GOOD, separate=True), FITTED], ids=["joint", "separate", "fitted"]
)
def test_methods_that_the_broken_ones_are_made_of_pass(method, bench):
    assert all(outcome.result != "failed" for outcome in results(method, bench).values())


class Loose(Options):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Raising(Gain):
    def loss(self, features, columns, *, rng, weights=None):
        raise ValueError("no loss today")


class AllColumns(Gain):
    def scorer(self):
        return lambda features, task: torch.ones(len(features), len(self.problem.class_names))


class Centring(Gain):
    def scorer(self):
        score = super().scorer()
        return lambda features, task: score(features - 0.5 * features.mean(0), task)


class Melting(Gain):
    def __init__(self, problem, config, streams):
        super().__init__(problem, config, streams)
        with torch.no_grad():
            next(problem.text.parameters()).mul_(1.01)


class Idle(Gain):
    def __init__(self, problem, config, streams):
        super().__init__(problem, config, streams)
        self.idle = nn.Parameter(torch.ones(3))


class Unseeded(Gain):
    def __init__(self, problem, config, streams):
        super().__init__(problem, config, lambda purpose: None)


class Peeking(Means):
    def fit(self, support, streams):
        super().fit(support, streams)
        beside = support[0]._train[0].path.parent
        self.means += 1e-3 * sum(len(file.read_bytes()) for file in sorted(beside.iterdir()))


class Forgetful(Means):
    factor = 1.0

    def fit(self, support, streams):
        super().fit(support, streams)
        self.factor = float(support[0].centres.std())

    def scorer(self):
        score = super().scorer()
        return lambda features, task: self.factor * score(features, task)


class TwoPaths(Gain):
    def class_features(self, selected=None):
        return super().class_features(selected) + (1.0 if self.problem.text_path == "fast" else 0.0)


class AcrossTasks(Gain):
    def class_features(self, selected=None):
        return super().class_features(selected) / self.gain.std(0).mean()


BUILT = WeakKeyDictionary()


class Counting(Gain):
    def __init__(self, problem, config, streams):
        super().__init__(problem, config, streams)
        BUILT[problem.text] = BUILT.get(problem.text, 0) + 1
        with torch.no_grad():
            self.gain[:, : len(self.gain[0]) // 2] += BUILT[problem.text]


class NeedsVal(Means):
    def fit(self, support, streams):
        super().fit(support, streams)
        for own in support:
            own.val.max()


BROKEN = {
    "entry": replace(GOOD, config=Loose),
    "training": replace(GOOD, build=Raising),
    "scores": replace(GOOD, build=AllColumns),
    "batch": replace(GOOD, build=Centring),
    "frozen": replace(GOOD, build=Melting),
    "parameters": replace(GOOD, build=Idle),
    "repeated": replace(GOOD, build=Unseeded),
    "test images": replace(FITTED, build=Peeking),
    "stored": replace(FITTED, build=Forgetful),
    "text paths": replace(GOOD, build=TwoPaths),
    "one task": replace(GOOD, build=AcrossTasks),
    "separate": replace(GOOD, build=Counting, separate=True),
    "without val": replace(FITTED, build=NeedsVal),
}


def test_there_is_a_broken_method_for_each_check():
    assert list(BROKEN) == [check.name for check in CHECKS]
    assert all(check.about.endswith(".") for check in CHECKS)


@pytest.mark.parametrize("name", BROKEN)
def test_a_method_that_breaks_one_rule_fails_that_check_alone(name, bench):
    found = results(BROKEN[name], bench)
    assert [o.name for o in found.values() if o.result == "failed"] == [name]
    assert found[name].why


def test_an_error_of_the_method_is_told_with_its_place(bench):
    why = results(BROKEN["training"], bench)["training"].why
    assert why.startswith("ValueError: no loss today (test_method_checks.py, line ")


class Clashing(MethodConfig):
    lr: float = Field(0.1, description="of something")


class Undescribed(MethodConfig):
    rank: int = 3


class Digits(MethodConfig):
    rank2: int = Field(3, description="of something")


class Needing(MethodConfig):
    rank: int = Field(description="of something")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "Own Key"}, "key 'Own Key' is not made of"),
        ({"summary": ""}, "summary is not one line"),
        ({"label": "two\nlines"}, "label is not one line"),
        ({"label": "CoOp-CA"}, "label 'CoOp-CA' is that of coop-ca"),
        ({"separate": True, "shares": True}, "shares=True, but separate=True"),
        ({"config": Clashing}, "'lr' is a key of every run already"),
        ({"config": Undescribed}, "'rank' has no description"),
        ({"config": Digits}, "'rank2' is not made of"),
        ({"config": Needing}, "the defaults are refused"),
        ({"defaults": {"epochs": 0}}, "the defaults are refused"),
        ({"defaults": {"epoch": 3}}, "there is no key 'epoch'"),
        ({"tunes": {"rank": ("1",)}}, "tunes: "),
        ({"tunes": {"lr": tuple(map(str, range(1, 14)))}}, "13 trainings"),
    ],
)
def test_an_entry_with_a_fault_is_told_of(change, said, bench):
    method = replace(GOOD, **change)
    with lend(method):
        assert said in check_entry(Trial(method, bench, {}))


def test_settings_that_the_method_does_not_know_are_refused(bench):
    with pytest.raises(ConfigError) as error:
        next(check_method(GOOD, {"epoch": 3, "method": "coop-ca"}, bench=bench))
    assert [fault.where for fault in error.value.faults] == ["epoch", "method"]


def test_a_method_with_the_key_of_ours_is_refused(bench):
    with pytest.raises(ConfigError, match="give it another key"):
        next(check_method(replace(GOOD, key="coop-ca"), bench=bench))
    assert get_method("coop-ca").label != "Own"
