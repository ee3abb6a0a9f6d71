"""A method from outside, as the page on it says: its code and its entry point are taken from there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softcpt.engine.method_checks import CHECKS
from softcpt.engine.runs import open_run
from softcpt.methods import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "methods.md"
QUICK = ["--quiet", "--shots", "2", "epochs=2", "views=2"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def put_package(folder, version=None):
    """The page's package, installed in a folder."""
    project = tomllib.loads(blocks("toml")[0])["project"]
    name, version = project["name"], version or project["version"]
    (folder / "task_gain.py").write_text(blocks("python")[0])
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    entries = project["entry-points"]["softcpt.methods"].items()
    lines = ["[softcpt.methods]", *(f"{key} = {value}" for key, value in entries)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package on the path; gives its metadata's folder."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registry._outside.cache_clear()
    yield put_package(folder)
    registry._outside.cache_clear()
    sys.modules.pop("task_gain", None)


@pytest.fixture
def run(softcpt, world, tmp_path, package):
    """A finished run of the page's method."""
    where = [world.suite, "--backbone", world.backbone, "--output", tmp_path / "run"]
    ended = softcpt("train", *where, *QUICK, "--method", "task-gain")
    assert ended.code == 0, ended.err
    return tmp_path / "run"


def test_page_lists_the_checks():
    rows = re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(check.name, check.about) for check in CHECKS]


def test_its_keys_are_listed_with_its_package(softcpt, package):
    [entry] = [e for e in json.loads(softcpt("methods", "--json").out) if e["method"] == "task-gain"]
    assert entry["package"] == {"name": "task-gain", "version": "1.0"}
    assert entry["keys"]["gain_noise"]["default"] == 0.02
    assert (
        "TaskGain: hand-written prompts with a learned gain per task (task-gain 1.0)"
        in softcpt("methods").out
    )


def test_a_package_whose_defaults_are_refused_spoils_no_list(softcpt, package):
    file = package.parent / "task_gain.py"
    file.write_text(file.read_text().replace("tunes=", 'defaults={"epochs": 0}, tunes='))
    ended = softcpt("methods")
    assert ended.code == 0
    assert "TaskGain" in ended.out
    assert "softcpt methods --check task-gain" in ended.err


def test_the_example_passes_the_checks(softcpt, package):
    ended = softcpt("methods", "--check", "task-gain", "--json")
    assert ended.code == 0, ended.err
    assert {o["name"]: o["result"] for o in json.loads(ended.out)} == {
        check.name: "skipped" if check.name == "separate" else "passed" for check in CHECKS
    }


def test_a_failed_check_is_a_fault_and_no_traceback(softcpt, package):
    file = package.parent / "task_gain.py"
    file.write_text(file.read_text().replace(', generator=streams("gain")', ""))
    ended = softcpt("methods", "--check", "task-gain", "epochs=1")
    assert ended.code == 2
    assert re.search(r"repeated +failed +differs: gain", ended.out)
    assert "Scores are [images, classes of the task], and numbers." in ended.out
    assert "1 fault in the method task-gain" in ended.err
    assert "Traceback" not in ended.err


def test_settings_without_a_check_are_refused(softcpt):
    ended = softcpt("methods", "epochs=1")
    assert ended.code == 2
    assert "add --check KEY" in ended.err


def test_a_run_says_where_its_method_is_from(run):
    facts = open_run(run).adapter.facts
    assert facts["method_package"] == {"name": "task-gain", "version": "1.0"}


def test_a_run_of_our_own_method_names_no_package(world):
    assert "method_package" not in (world.run / "adapter.json").read_text()


def test_a_run_without_its_package_says_what_to_install(softcpt, run, package):
    for file in package.iterdir():
        file.unlink()
    package.rmdir()
    registry._outside.cache_clear()
    ended = softcpt("evaluate", run)
    assert ended.code == 4
    assert "'task-gain' is a method of task-gain 1.0, which is not installed here" in ended.err
    assert "pip install task-gain==1.0" in ended.err
    assert ended.err.startswith("error: 1 fault")


def test_a_run_whose_package_is_broken_says_why(softcpt, run, package):
    (package.parent / "task_gain.py").write_text("import no_such_module\n")
    sys.modules.pop("task_gain")
    registry._outside.cache_clear()
    ended = softcpt("evaluate", run)
    assert ended.code == 4
    assert "No module named 'no_such_module'" in ended.err


def test_another_version_of_the_package_is_warned_of(softcpt, run, package):
    metadata = package / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    registry._outside.cache_clear()
    ended = softcpt("evaluate", run)
    assert ended.code == 0
    assert "came from task-gain 1.0; here it comes from task-gain 1.1" in ended.err


@pytest.mark.slow
def test_an_installed_package_works_in_processes_of_their_own(tmp_path, world):
    put_package(tmp_path)
    paths = [str(tmp_path), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def softcpt(*words):
        command = [sys.executable, "-m", "softcpt", *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    on = [world.suite, "--backbone", world.backbone]
    assert "task-gain" in softcpt("methods")
    softcpt("train", *on, "--output", tmp_path / "run", *QUICK, "--method", "task-gain")
    assert json.loads(softcpt("evaluate", tmp_path / "run", "--json"))["method"] == "task-gain"
    rows = ["--methods", "zero-shot,task-gain", "--shots", "2", "--seeds", "1"]
    table = softcpt(
        "compare", *on, "--output", tmp_path / "study", *rows, *QUICK[:1], *QUICK[3:], "--jobs", "2"
    )
    assert "TaskGain" in table
    cells = [json.loads(file.read_text()) for file in (tmp_path / "study" / "cells").glob("*.json")]
    packages = {c["identity"]["settings"]["method"]: c["identity"].get("package") for c in cells}
    assert packages == {"zero-shot": None, "task-gain": ["task-gain", "1.0"]}
