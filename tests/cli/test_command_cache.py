"""``softcpt cache``, and the options that say where features are kept."""

import json
import os
import subprocess
import sys

import pytest

from softcpt.app.cli import cache as command
from softcpt.engine.feature_cache import ASIDE, FILE, Encoder, FeatureCache

DIM = 64
GENEROUS = 10**9


def fill(folder, name="toy", digest="ab" * 32, n=3, used=None, **rest):
    encoder = Encoder(name, digest, "fp32", 32, DIM, {"computed_by": ["cpu"]})
    features = {(f"{i:064x}", view): bytes(4 * DIM) for i in range(n) for view in (0, 1)}
    with FeatureCache(folder, GENEROUS, **({} if used is None else {"now": lambda: used})) as store:
        store.put(encoder, features)


def entries(folder):
    with FeatureCache(folder, GENEROUS) as store:
        return {row.backbone: row.entries for row in store.contents()}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache where the environment says: two backbones, one of them not used for long."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SOFTCPT_CACHE", str(folder))
    fill(folder, n=3)
    fill(folder, "old", "cd" * 32, n=300, used=1e9)
    return folder


def test_the_table_says_where_how_much_and_of_what(softcpt, kept):
    ended = softcpt("cache")
    assert ended.code == 0
    size = (kept / FILE).stat().st_size / 1000
    assert f"{kept}: {size:.1f} KB of at most 10.0 GB" in ended.out
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["toy", "ab" * 6, "fp32", "cpu", "32", "3", "6", "1.5", "KB"] in [row[:9] for row in rows]
    assert ["old", "cd" * 6, "fp32", "cpu", "32", "300", "600", "153.6", "KB"] in [row[:9] for row in rows]
    assert "2001-09-09" in ended.out


def test_json_is_one_object_of_the_same(softcpt, kept, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE_LIMIT", "2GB")
    shown = json.loads(softcpt("cache", "--json").out)
    assert shown["folder"] == str(kept)
    assert shown["bytes"] == (kept / FILE).stat().st_size
    assert shown["limit_bytes"] == 2_000_000_000
    toy, old = shown["backbones"]
    assert toy["backbone"] == "toy"
    assert toy["digest"] == "ab" * 32
    assert old["last_used"] == 1_000_000_000
    assert (old["images"], old["entries"], old["feature_bytes"]) == (300, 600, 600 * 4 * DIM)


def test_a_cache_that_is_not_there_is_empty_and_stays_so(softcpt, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE", str(tmp_path / "none"))
    assert "0 B of at most" in softcpt("cache").out
    assert json.loads(softcpt("cache", "--json").out)["backbones"] == []
    assert softcpt("cache", "clear").code == 0
    assert softcpt("cache", "shrink", "--to", "1MB").code == 0
    assert not (tmp_path / "none").exists()


def test_off_is_said(softcpt, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE", "off")
    assert softcpt("cache").out == "SOFTCPT_CACHE is off: nothing is kept\n"
    assert json.loads(softcpt("cache", "--json").out)["folder"] is None
    for words in (["clear", "--yes"], ["shrink", "--to", "0"]):
        ended = softcpt("cache", *words)
        assert (ended.code, ended.err) == (0, "there is nothing to remove\n")


def test_cache_names_another_folder_before_the_action_or_after_it(softcpt, kept, tmp_path):
    fill(tmp_path / "other", "third")
    assert "third" in softcpt("cache", "--cache", tmp_path / "other").out
    assert softcpt("cache", "--cache", tmp_path / "other", "clear", "--yes").code == 0
    assert entries(tmp_path / "other") == {}
    fill(tmp_path / "other", "third")
    assert softcpt("cache", "shrink", "--cache", tmp_path / "other", "--to", "0").code == 0
    assert entries(tmp_path / "other") == {}
    assert set(entries(kept)) == {"toy", "old"}


def test_clear_removes_everything_after_yes(softcpt, kept):
    (kept / ASIDE).write_bytes(b"once damaged")
    before = (kept / FILE).stat().st_size
    ended = softcpt("cache", "clear", "--yes")
    assert ended.code == 0
    assert "removed" in ended.err
    assert entries(kept) == {}
    assert (kept / FILE).stat().st_size < before
    assert not (kept / ASIDE).exists()


def test_clear_does_nothing_where_nobody_can_be_asked(softcpt, kept):
    ended = softcpt("cache", "clear")
    assert ended.code == 2
    assert "--yes" in ended.err
    assert set(entries(kept)) == {"toy", "old"}


@pytest.mark.parametrize(("answer", "left"), [(True, set()), (False, {"toy", "old"})])
def test_clear_does_what_is_answered(softcpt, kept, monkeypatch, answer, left):
    asked = []
    monkeypatch.setattr(command, "_agreed", lambda question: asked.append(question) or answer)
    ended = softcpt("cache", "clear")
    assert ended.code == 0
    assert str(kept) in asked[0]
    assert ("nothing was removed" in ended.err) is not answer
    assert set(entries(kept)) == left


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 0), (b"\n", 606)])
def test_clear_asks_at_a_terminal(kept, answer, left):
    ours, theirs = os.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run(
            [sys.executable, "-m", "softcpt", "cache", "clear"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert f"Remove everything in {kept}" in done.stderr
    assert sum(entries(kept).values()) == left


@pytest.mark.parametrize("name", ["old", "cdcd", "CDCDCD", "cd" * 32])
def test_clear_can_be_of_one_backbone(softcpt, kept, name):
    assert softcpt("cache", "clear", "--yes", "--backbone", name).code == 0
    assert entries(kept) == {"toy": 6}


@pytest.mark.parametrize("name", ["", "cd", "olt"])
def test_a_backbone_of_which_nothing_is_kept_is_a_fault(softcpt, kept, name):
    ended = softcpt("cache", "clear", "--yes", "--backbone", name)
    assert ended.code == 2
    assert "nothing is kept" in ended.err
    assert set(entries(kept)) == {"toy", "old"}


def test_clear_can_be_of_what_was_not_used_for_long(softcpt, kept):
    assert softcpt("cache", "clear", "--yes", "--older-than", "100000").code == 0
    assert set(entries(kept)) == {"toy", "old"}
    assert softcpt("cache", "clear", "--yes", "--older-than", "30").code == 0
    assert entries(kept) == {"toy": 6}


def test_both_conditions_must_hold(softcpt, kept):
    assert softcpt("cache", "clear", "--yes", "--older-than", "30", "--backbone", "toy").code == 0
    assert set(entries(kept)) == {"toy", "old"}


def test_shrink_removes_the_longest_unused(softcpt, kept):
    size = (kept / FILE).stat().st_size
    assert softcpt("cache", "shrink", "--to", str(size - 50_000)).code == 0
    left = entries(kept)
    assert left["toy"] == 6
    assert 0 < left["old"] < 600
    assert (kept / FILE).stat().st_size <= size - 50_000


def test_faults_of_the_command_line_are_told(softcpt, kept, monkeypatch):
    assert "no size" in softcpt("cache", "shrink", "--to", "half").err
    assert "--to" in softcpt("cache", "shrink").err
    assert 'did you mean "clear"' in softcpt("cache", "claer").err
    assert "--json" in softcpt("cache", "--json", "clear", "--yes").err
    assert softcpt("cache", "clear", "--older-than", "-1").code == 2
    assert set(entries(kept)) == {"toy", "old"}
    monkeypatch.setenv("SOFTCPT_CACHE_LIMIT", "much")
    ended = softcpt("cache")
    assert ended.code == 2
    assert "SOFTCPT_CACHE_LIMIT" in ended.err


def test_a_damaged_file_is_said_and_replaced(softcpt, kept):
    (kept / FILE).write_bytes(b"no database" * 9999)
    ended = softcpt("cache")
    assert ended.code == 0
    assert ended.err.startswith("warning: the cache of image features")
    assert "put aside" in ended.err
    assert softcpt("cache").err == ""
    assert entries(kept) == {}
    assert (kept / ASIDE).exists()


def test_looking_imports_nothing_heavy(kept):
    code = (
        "import sys\n"
        "from softcpt.app.cli.main import main\n"
        "assert main(['cache']) == 0\n"
        "assert main(['cache', '--json']) == 0\n"
        "assert main(['cache', 'clear', '--yes', '--backbone', 'toy']) == 0\n"
        "assert main(['cache', 'shrink', '--to', '1']) == 0\n"
        "found = {'torch', 'numpy', 'pydantic', 'PIL', 'open_clip'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_cannot_be_written_is_said_once_by_whoever_wants_it(softcpt, world, tmp_path):
    (tmp_path / "file").touch()
    words = [world.suite, "--backbone", world.backbone, "--quiet", "--shots", "1", "epochs=1", "views=2"]
    ended = softcpt("train", *words, "--output", tmp_path / "run", "--cache", tmp_path / "file" / "cache")
    assert ended.code == 0
    assert ended.err.count("warning") == 1
    assert ended.out == f"{tmp_path / 'run'}\n"
    ended = softcpt("evaluate", tmp_path / "run", "--json", "--cache", tmp_path / "file" / "cache")
    assert ended.code == 0
    assert ended.err.count("warning") == 1
    assert json.loads(ended.out)["score"] >= 0


def test_train_and_evaluate_keep_features_where_they_are_told(softcpt, world, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE", str(tmp_path / "environment"))
    named = tmp_path / "named"
    words = [world.suite, "--backbone", world.backbone, "--quiet", "--shots", "1", "epochs=1"]
    assert softcpt("train", *words, "--output", tmp_path / "a", "--cache", named).code == 0
    of_training = sum(entries(named).values())
    assert of_training > 0
    assert softcpt("evaluate", tmp_path / "a", "--cache", named).code == 0
    assert sum(entries(named).values()) > of_training
    assert softcpt("train", *words, "--output", tmp_path / "b", "--no-cache").code == 0
    assert softcpt("evaluate", tmp_path / "b", "--no-cache").code == 0
    assert not (tmp_path / "environment").exists()
    assert softcpt("train", *words, "--output", tmp_path / "c").code == 0
    assert entries(tmp_path / "environment")
    for line in (["train", *words, "--output", tmp_path / "d"], ["evaluate", tmp_path / "a"]):
        ended = softcpt(*line, "--no-cache", "--cache", named)
        assert ended.code == 2
        assert "given beside --cache" in ended.err
