"""``softcpt check``: all faults at once, or what there is and what a run would take."""

import json

import pytest


def test_a_good_suite_shows_counts_prompts_and_cost(softcpt, world):
    ended = softcpt("check", world.suite, "--backbone", world.backbone, "--shots", 4)
    assert ended.code == 0
    # ten images a class: 5 train, 2 val, 3 test, of which 4 and 2 are drawn
    assert ["shape", "overall_acc", "4", "40", "20", "8", "12", "16", "8"] in map(
        str.split, ended.out.splitlines()
    )
    assert "a drawing of a circle." in ended.out
    assert "[16 learned] circle." in ended.out
    assert "[4 learned] a recognition task for simple shapes." in ended.out
    assert "expected time" in ended.out
    assert "MiB" in ended.out


def test_prompts_follow_the_settings(softcpt, world):
    ended = softcpt(
        "check",
        world.suite,
        "--backbone",
        world.backbone,
        "context_length=3",
        "position=front",
        "task_text=name",
    )
    assert "circle [3 learned] ." in ended.out
    assert "[4 learned] shape." in ended.out


def test_json_is_one_object(softcpt, world):
    ended = softcpt("check", world.suite, "--backbone", world.backbone, "--json")
    report = json.loads(ended.out)
    assert [task["name"] for task in report["tasks"]] == ["shape", "colour"]
    assert report["cost"]["n_learned"] > 0


def test_every_fault_of_options_and_data_is_listed_at_once(softcpt, world, own_suite):
    (own_suite / "shape" / "circle" / "000.png").write_bytes(b"no picture")
    for image in (own_suite / "colour" / "red").iterdir():
        image.unlink()
    ended = softcpt("check", own_suite, "--backbone", world.backbone, "epochs=0", "lr=fast")
    assert ended.code != 0
    assert ended.out == ""
    for place in ("shape/circle/000.png", "colour/red", "epochs", "lr"):
        assert place in ended.err
    assert "error: 4 faults" in ended.err
    assert "--skip-bad-images" in ended.err  # the remedy


def test_faults_of_the_data_exit_3(softcpt, world, own_suite):
    (own_suite / "shape" / "circle" / "000.png").write_bytes(b"no picture")
    assert softcpt("check", own_suite, "--backbone", world.backbone).code == 3


def test_bad_images_are_left_out_with_a_note_when_asked(softcpt, world, own_suite):
    (own_suite / "shape" / "circle" / "000.png").write_bytes(b"no picture")
    ended = softcpt("check", own_suite, "--backbone", world.backbone, "--skip-bad-images")
    assert ended.code == 0
    assert "shape/circle/000.png" in ended.err


def test_more_shots_than_images_are_allowed_and_said(softcpt, world):
    ended = softcpt("check", world.suite, "--backbone", world.backbone, "--shots", 9)
    assert ended.code == 0
    assert "9 shots" in ended.err
    assert "note:" in ended.err


@pytest.mark.parametrize("settings", [["--shots", "all"], ["--method", "zero-shot"], ["--method", "coop-cs"]])
def test_every_kind_of_run_can_be_checked(softcpt, world, settings):
    assert softcpt("check", world.suite, "--backbone", world.backbone, *settings).code == 0


def test_a_configuration_file_counts(softcpt, world, tmp_path):
    (tmp_path / "mine.yaml").write_text("context_length: 5\nshots: 2\n")
    ended = softcpt("check", world.suite, "--backbone", world.backbone, "--config", tmp_path / "mine.yaml")
    assert "[5 learned] circle." in ended.out
    assert "2 shots" in ended.out
