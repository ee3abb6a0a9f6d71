"""The family of errors: every fault kept, every one told."""

import pickle

import pytest

from softcpt.core.errors import (
    AdapterError,
    Collector,
    ConfigError,
    Fault,
    ImageError,
    RunError,
    SoftCPTError,
    SuiteError,
    nearest,
)

ONE = Fault("here", "broken", "mend it")
TWO = Fault("there", "missing")


def test_text_of_an_error_holds_every_fault():
    error = SuiteError([ONE, TWO], about="suite.yaml")
    assert str(error) == "2 faults in suite.yaml\n  here: broken (mend it)\n  there: missing"


def test_one_fault_may_be_given_bare():
    error = ConfigError(ONE, about="the options")
    assert error.faults == (ONE,)
    assert error.headline == "1 fault in the options"


def test_errors_survive_the_way_between_processes():
    back = pickle.loads(pickle.dumps(RunError([ONE, TWO], about="run")))
    assert type(back) is RunError
    assert (back.faults, back.about, back.exit_code) == ((ONE, TWO), "run", 5)


def test_every_error_is_of_one_family_with_an_exit_code_of_its_own():
    assert issubclass(ImageError, SuiteError)
    assert all(issubclass(kind, SoftCPTError) for kind in (ConfigError, SuiteError, AdapterError, RunError))
    assert [kind.exit_code for kind in (ConfigError, SuiteError, AdapterError, RunError)] == [2, 3, 4, 5]


def failing(kind, *faults, about="it"):
    def step():
        raise kind(faults, about=about)

    return step


def test_collector_keeps_results_and_tells_all_faults_of_what_failed():
    collector = Collector()
    assert collector.keep(lambda: 3) == 3
    assert collector.keep(failing(ConfigError, ONE, about="options")) is None
    assert collector.keep(failing(SuiteError, TWO, about="suite")) is None
    with pytest.raises(ConfigError) as caught:
        collector.raise_any()
    assert caught.value.faults == (ONE, TWO)
    assert caught.value.about == "options and suite"


def test_collector_without_faults_raises_nothing():
    collector = Collector()
    collector.keep(lambda: None)
    collector.raise_any()


def test_collector_lets_bugs_through():
    with pytest.raises(ZeroDivisionError):
        Collector().keep(lambda: 1 / 0)


def test_nearest_names_what_is_near_else_what_is_known_else_nothing():
    assert nearest("epoch", ["epochs", "lr"]) == 'did you mean "epochs"?'
    assert nearest("xyz", ["epochs", "lr"]) == "known: epochs, lr"
    assert nearest("xyz", []) == ""
