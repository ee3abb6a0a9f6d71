"""``softcpt demo``: the main job without anything from outside, and a report that a browser opens."""

import json
import re
from dataclasses import replace

import pytest

import softcpt.app.demo as room
from softcpt.app.cli.demo import demo
from softcpt.app.demo_page import NEXT_STEPS


@pytest.fixture
def small(monkeypatch, world):
    """A demo that takes seconds, on a backbone that needs no training."""
    plan = replace(
        room.PLAN,
        backbone=str(world.backbone),
        tasks=("size", "weather"),
        images_per_class=6,
        shots=(1, 2),
        seeds=(1,),
        epochs=1,
        views=1,
    )
    monkeypatch.setattr(room, "PLAN", plan)
    return plan


def test_demo_compares_methods_writes_a_report_and_is_the_same_when_repeated(softcpt, tmp_path, small):
    folder = tmp_path / "demo"
    ended = softcpt("demo", "--output", folder)
    assert ended.code == 0, ended.err
    for label in ("Zero-shot CLIP", "CoOp-CA", "CoOp-MT", "SoftCPT-NATA", "1 shot", "2 shots"):
        assert label in ended.out
    assert f"report: {folder / 'report.html'}" in ended.out
    assert "trainings 7/7" in ended.err
    for step in NEXT_STEPS:
        assert step in ended.err
    html = (folder / "report.html").read_text()
    for step in NEXT_STEPS:
        assert step in html
    for said in (f"softcpt demo --output {folder}", "One seed", "chosen on other pictures", "1 epoch ("):
        assert said in html
    features = re.findall(r"image features|test images", ended.err)
    assert features == []  # one bar for all trainings, not one a training

    again = softcpt("demo", "--output", folder, "--json", "--quiet")
    assert again.code == 0, again.err
    assert again.err == ""
    found = json.loads(again.out)
    assert found["suite"]["tasks"] == {"size": 4, "weather": 5}
    assert found["suite"]["images"] == 54
    assert [(row["method"], row["shots"]) for row in found["rows"]] == [
        ("zero-shot", 0),
        *((method, shots) for method in small.rates for shots in small.shots),
    ]
    for row in found["rows"]:
        assert f"{row['score']:.1f}" in ended.out
    assert found["report"] == str(folder / "report.html")
    assert softcpt("evaluate", folder / "runs" / "softcpt-nata-2-shots-seed-1").code == 0


def test_stopped_demo_says_so_leaves_no_report_and_starts_again(softcpt, tmp_path, small, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "make_suite", stop)
    folder = tmp_path / "demo"
    ended = softcpt("demo", "--output", folder)
    assert ended.code == 130
    assert "holds an unfinished demo" in ended.err
    assert [entry.name for entry in folder.iterdir()] == [room.MARK]
    with room.open_demo(folder):
        pass


def test_an_earlier_demo_is_replaced_its_killed_parts_too(tmp_path):
    folder = tmp_path / "demo"
    with room.open_demo(folder):
        pass
    (folder / "suite" / "shape").mkdir(parents=True)
    (folder / ".suite.12ab34cd.part").mkdir()
    (folder / ".report.html.x.part").write_text("")
    (folder / "report.html").write_text("of an earlier demo")
    with room.open_demo(folder):
        assert [entry.name for entry in folder.iterdir()] == [room.MARK]


@pytest.mark.parametrize("spoil", ["no mark", "strange file", "a file"])
def test_demo_never_replaces_what_it_did_not_make(softcpt, tmp_path, small, spoil):
    folder = tmp_path / "demo"
    if spoil == "strange file":
        with room.open_demo(folder):
            pass
    precious = folder if spoil == "a file" else folder / "precious"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("data")
    ended = softcpt("demo", "--output", folder)
    assert ended.code == 5
    assert str(folder) in ended.err
    assert precious.read_text() == "data"


def test_two_demos_do_not_share_a_folder(softcpt, tmp_path, small):
    with room.open_demo(tmp_path / "demo"):
        ended = softcpt("demo", "--output", tmp_path / "demo")
    assert ended.code == 5
    assert "another demo" in ended.err


def test_an_earlier_demo_stays_where_the_backbone_is_missing(softcpt, tmp_path, small, monkeypatch):
    folder = tmp_path / "demo"
    with room.open_demo(folder):
        (folder / "report.html").write_text("of an earlier demo")
    monkeypatch.setattr(room, "PLAN", replace(small, backbone=str(tmp_path / "missing")))
    assert softcpt("demo", "--output", folder).code == 4
    assert (folder / "report.html").exists()


def test_the_plan_trains_what_help_and_docs_promise():
    plan = room.PLAN
    assert plan.backbone == "mini"
    assert plan.shots == (1, 4)
    assert list(plan.rates) == ["coop-ca", "coop-mt", "softcpt-nata"]
    assert "1 and 4 images" in demo.help
