"""Methods of other packages: found by entry points, left out with a reason where they cannot be used."""

import logging
import sys

import pytest

from softcpt.core.errors import ConfigError
from softcpt.methods import registry
from softcpt.methods.outside import Package
from softcpt.methods.registry import get_method, list_methods, package_of

MODULE = """
from dataclasses import replace
from softcpt.methods.coop import COOP_MT

OWN = replace(COOP_MT, key="own")
OTHER = replace(COOP_MT, key="other")
COOP = replace(COOP_MT, key="coop-ca")
ODD = replace(COOP_MT, key="Odd:Key")
BARE = replace(COOP_MT, key="bare")
object.__setattr__(BARE, "config", dict)  # past the checker of types that tests run with
WORDS = "no method"
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path, with these entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outside_method.py").write_text(MODULE)
    registry._outside.cache_clear()

    def put(entries, name="outside-method", version="1.2"):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = ["[softcpt.methods]", *(f"{key} = {value}" for key, value in entries.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")

    yield put
    registry._outside.cache_clear()
    sys.modules.pop("outside_method", None)


def test_a_method_of_another_package_is_listed_behind_ours(install):
    ours = list_methods()
    registry._outside.cache_clear()
    install({"own": "outside_method:OWN"})
    assert [method.key for method in list_methods()] == [*(m.key for m in ours), "own"]
    assert get_method("own") is list_methods()[-1]
    assert package_of("own") == Package("outside-method", "1.2")
    assert package_of("coop-ca") is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("own", "outside_method:OTHER", "the entry point is called 'own', the method's own key is 'other'"),
        ("own", "outside_method:WORDS", "is a str, no softcpt.methods.base.Method"),
        ("own", "outside_method:NOTHING", "cannot be imported: AttributeError"),
        ("own", "no_such_module:OWN", "cannot be imported: ModuleNotFoundError"),
        ("bare", "outside_method:BARE", "its config is no subclass of MethodConfig"),
        ("Odd:Key", "outside_method:ODD", "a key is made of a-z"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_says_why(install, caplog, key, value, said):
    # An entry point's name ends at "="; a colon in it is allowed.
    install({key: value})
    with caplog.at_level(logging.WARNING, "softcpt"):
        assert key not in [method.key for method in list_methods()]
        list_methods()
    [record] = caplog.records
    assert said in record.getMessage()
    assert "outside-method 1.2" in record.getMessage()
    with pytest.raises(ConfigError, match=r"outside-method 1\.2") as error:
        get_method(key)
    [fault] = error.value.faults
    assert said in fault.what
    assert fault.fix


def test_a_key_of_ours_stays_ours(install, caplog):
    ours = get_method("coop-ca")
    install({"coop-ca": "outside_method:COOP"})
    with caplog.at_level(logging.WARNING, "softcpt"):
        assert [method for method in list_methods() if method.key == "coop-ca"] == [ours]
    assert "softcpt has a method of that key" in caplog.text
    assert get_method("coop-ca") is ours
    assert package_of("coop-ca") is None


def test_a_key_that_two_packages_offer_is_nobodys(install):
    install({"own": "outside_method:OWN"})
    install({"own": "outside_method:OWN"}, name="another", version="3")
    with pytest.raises(ConfigError, match=r"another 3 and outside-method 1\.2: both have"):
        get_method("own")


def test_nothing_outside_is_imported_for_a_method_of_ours(install):
    install({"own": "outside_method:OWN"})
    get_method("coop-ca")
    package_of("coop-ca")
    assert "outside_method" not in sys.modules
    get_method("own")
    assert "outside_method" in sys.modules
