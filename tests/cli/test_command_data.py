"""``softcpt data make``: a suite from nothing, ready for ``softcpt check``."""

import json
import subprocess
import sys

import pytest

from softcpt.builtin import make as maker


@pytest.mark.parametrize(("name", "tasks"), [("scenes", "shape,count"), ("digits", "digit,loop")])
def test_what_was_made_passes_the_check(softcpt, world, tmp_path, name, tasks):
    folder = tmp_path / name
    ended = softcpt(
        "data", "make", name, folder, "--tasks", tasks, "--images-per-class", 10, "--size", 32, "--seed", 3
    )
    assert ended.code == 0, ended.err
    n_classes = {"scenes": 16, "digits": 12}[name]
    first, second = ended.out.splitlines()
    assert first == f"{folder}: {10 * n_classes} images of 32 px, 2 tasks, {n_classes} classes"
    assert len(second.removeprefix("pixels: ")) == 64
    assert f"pictures {10 * n_classes}/{10 * n_classes}" in ended.err
    assert f"softcpt check {folder}" in ended.err
    checked = softcpt("check", folder, "--backbone", world.backbone, "--shots", "2")
    assert checked.code == 0, checked.err
    assert "no faults" in checked.out


def test_json_is_one_object_and_quiet_says_nothing_else(softcpt, tmp_path):
    asked = ("--tasks", "size, quality", "--images-per-class", 1, "--json", "--quiet")
    ended = softcpt("data", "make", "scenes", tmp_path / "s", *asked)
    assert ended.err == ""
    made = json.loads(ended.out)
    digest = made.pop("digest")
    assert made == {
        "folder": str(tmp_path / "s"),
        "suite": "scenes",
        "seed": 0,
        "size_px": 64,
        "images": 10,
        "tasks": {"size": 4, "quality": 6},
    }
    again = json.loads(softcpt("data", "make", "scenes", tmp_path / "again", *asked).out)
    assert again["digest"] == digest


def test_faults_are_told_together_and_nothing_is_written(softcpt, tmp_path):
    (tmp_path / "mine").write_text("mine")
    ended = softcpt("data", "make", "scenes", tmp_path, "--tasks", "shap", "--size", 7)
    assert ended.code == 2
    for said in ('did you mean "shape"?', "from 32 to 1024", "is not an empty folder"):
        assert said in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make",), ("which suite to make", "a new folder, or an empty one")),
        (("make", "scene", "x"), ('did you mean "scenes"?',)),
        (("make", "scenes", "x", "--size", "big"), ("'big' is not a valid integer",)),
        (("mak",), ('did you mean "make"?',)),
    ],
)
def test_a_wrong_command_line_says_what_is_right(softcpt, arguments, said):
    ended = softcpt("data", *arguments)
    assert ended.code == 2
    for words in said:
        assert words in ended.err


def test_without_a_command_the_help_is_shown(softcpt):
    ended = softcpt("data")
    assert ended.code == 0
    assert "make" in ended.out


def test_stopped_work_leaves_nothing(softcpt, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(maker, "_write_description", stop)
    ended = softcpt("data", "make", "scenes", tmp_path / "s", "--tasks", "size", "--images-per-class", 2)
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "stopped")
    assert not any(tmp_path.iterdir())


def test_making_a_suite_imports_no_torch(tmp_path):
    words = ["data", "make", "scenes", str(tmp_path / "s"), "--tasks", "size", "--images-per-class", "1"]
    code = (
        "import sys\n"
        "from softcpt.app.cli.main import main\n"
        f"assert main({words}) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
