"""``softcpt demo``: the main job without anything from outside."""

import pytest

from softcpt.app.cli import demo


@pytest.fixture
def small(monkeypatch):
    """A demo that takes seconds."""
    monkeypatch.setattr(demo, "IMAGES_PER_CLASS", 10)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "SHOTS", 1)


def test_demo_compares_the_methods_says_what_it_is_and_what_comes_next(softcpt, tmp_path, small):
    folder = tmp_path / "demo"
    ended = softcpt("demo", "--output", folder)
    assert ended.code == 0, ended.err
    for method in ("zero-shot", *demo.METHODS):
        assert method in ended.out
    assert "random" in ended.out
    for command in ("softcpt check", "softcpt train", "softcpt evaluate", "softcpt predict"):
        assert command in ended.out
    assert softcpt("evaluate", folder / "runs" / "softcpt-nata").code == 0


def test_an_earlier_demo_is_replaced(tmp_path):
    folder = tmp_path / "demo"
    demo._make_folder(folder)
    (folder / "left over").write_text("of an earlier demo")
    demo._make_folder(folder)
    assert [entry.name for entry in folder.iterdir()] == [demo.MARK]


def test_demo_never_replaces_what_it_did_not_make(softcpt, tmp_path):
    (tmp_path / "precious").write_text("data")
    ended = softcpt("demo", "--output", tmp_path)
    assert ended.code == 5
    assert (tmp_path / "precious").read_text() == "data"
