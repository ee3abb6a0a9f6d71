"""``softcpt evaluate``: scores for people and for programs."""

import csv
import json
import shutil

import pytest

from softcpt.app.cli.main import main


def test_table_names_every_task_beside_zero_shot(softcpt, world):
    ended = softcpt("evaluate", world.run)
    assert ended.code == 0
    rows = [line.split() for line in ended.out.splitlines()]
    scores = json.loads(softcpt("evaluate", world.run, "--json").out)
    for name, images in (("shape", "12"), ("colour", "12")):
        [row] = [row for row in rows if row and row[0] == name]
        assert row[2:] == [
            images,
            f"{scores['zero_shot']['tasks'][name]:.1f}",
            f"{scores['tasks'][name]:.1f}",
        ]
    assert f"{scores['score']:.1f}" in ended.out


def test_json_is_exactly_one_object_with_percentages(softcpt, world):
    ended = softcpt("evaluate", world.run, "--json")
    value = json.loads(ended.out)
    assert value["suite"] == "drawn"
    assert value["method"] == "softcpt-nata"
    assert (value["shots"], value["seed"]) == (2, 1)
    assert list(value["tasks"]) == ["shape", "colour"]
    assert value["score"] == pytest.approx(sum(value["tasks"].values()) / 2)
    # 12 test images a task, four classes of three: every score is a multiple of 100/12
    assert all(
        score * 12 / 100 == pytest.approx(round(score * 12 / 100)) for score in value["tasks"].values()
    )


def test_nothing_but_the_object_reaches_stdout_from_any_library(world, capfd):
    assert main(["evaluate", str(world.run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["suite"] == "drawn"


def test_zero_shot_is_a_method_with_shots_0(softcpt, world, tmp_path):
    run = tmp_path / "zero"
    softcpt("train", world.suite, "--backbone", world.backbone, "--output", run, "--method", "zero-shot")
    value = json.loads(softcpt("evaluate", run, "--json").out)
    assert value["shots"] == 0
    assert value["tasks"] == value["zero_shot"]["tasks"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predictions_file_agrees_with_the_scores(softcpt, world, tmp_path, ending):
    file = tmp_path / f"predictions.{ending}"
    value = json.loads(softcpt("evaluate", world.run, "--json", "--predictions", file).out)
    lines = file.read_text().splitlines()
    rows = list(csv.DictReader(lines)) if ending == "csv" else [json.loads(line) for line in lines]
    own = [row for row in rows if row["task"] == "shape"]
    right = sum(row["label"] == row["predicted"] for row in own)
    assert len(own) == 12
    assert value["tasks"]["shape"] == pytest.approx(100 * right / 12)
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    if ending == "jsonl":
        assert all(sum(row["probabilities"]) == pytest.approx(1) for row in rows)


def test_an_unknown_ending_is_refused_before_any_work(softcpt, world, tmp_path):
    ended = softcpt("evaluate", tmp_path / "no run", "--predictions", tmp_path / "out.xlsx")
    assert ended.code == 2
    assert ".csv or .jsonl" in ended.err


def test_another_suite_with_the_same_tasks_is_scored_by_its_test_part(softcpt, world, own_suite):
    for image in own_suite.glob("shape/*/*.png"):
        image.write_bytes(image.read_bytes() + b"other bytes")  # else the run's own images would be left out
    value = json.loads(softcpt("evaluate", world.run, own_suite, "--json").out)
    assert value["n_images"]["shape"] == 12


def test_a_suite_with_another_class_is_refused(softcpt, world, own_suite):
    (own_suite / "suite.yaml").unlink()
    (own_suite / "shape" / "circle").rename(own_suite / "shape" / "circlet")
    ended = softcpt("evaluate", world.run, own_suite)
    assert ended.code == 3
    assert '"circlet"' in ended.err
    assert '"circle"' in ended.err


def test_classes_without_test_images_are_noted_and_no_number_is_missing(softcpt, world, own_suite, tmp_path):
    for image in sorted((own_suite / "colour" / "red").iterdir())[1:]:
        image.unlink()
    run = tmp_path / "run"
    softcpt(
        "train", own_suite, "--backbone", world.backbone, "--output", run, "--shots", 2, "epochs=1", "views=1"
    )
    ended = softcpt("evaluate", run)
    assert ended.code == 0
    assert "red" in ended.err
    assert "nan" not in ended.out.lower()
    assert json.loads(softcpt("evaluate", run, "--json").out)["missing_classes"] == {"colour": ["red"]}


def test_an_unfinished_run_exits_5(softcpt, own_run):
    (own_run / "result.json").unlink()
    ended = softcpt("evaluate", own_run)
    assert ended.code == 5
    assert "not finished" in ended.err


def test_a_folder_that_is_no_run_exits_5(softcpt, world):
    assert softcpt("evaluate", world.suite).code == 5


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json", "split.json", "result.json"])
def test_a_truncated_file_exits_4_and_is_named(softcpt, own_run, name):
    content = (own_run / name).read_bytes()
    (own_run / name).write_bytes(content[: len(content) // 2])
    ended = softcpt("evaluate", own_run)
    assert ended.code == 4
    assert name in ended.err


def test_another_backbone_exits_4(softcpt, world):
    ended = softcpt("evaluate", world.run, "--backbone", world.other_backbone)
    assert ended.code == 4
    assert "backbone" in ended.err


def test_a_backbone_that_has_moved_is_accepted_from_its_new_place(softcpt, world, tmp_path):
    moved = shutil.copytree(world.backbone, tmp_path / "moved")
    assert softcpt("evaluate", world.run, "--backbone", moved).code == 0
