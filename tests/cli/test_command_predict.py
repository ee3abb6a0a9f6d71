"""``softcpt predict``: rows for images from files, folders and standard input."""

import csv
import json
import os

import pytest


@pytest.fixture
def image(world):
    return world.suite / "shape" / "circle" / "000.png"


@pytest.fixture
def bad(tmp_path, image):
    path = tmp_path / "bad.png"
    path.write_bytes(image.read_bytes()[:200])
    return path


def test_json_is_a_list_of_image_task_and_predictions(softcpt, world, image):
    ended = softcpt("predict", world.run, image, "--json")
    rows = json.loads(ended.out)
    assert [(row["image"], row["task"]) for row in rows] == [(str(image), "shape"), (str(image), "colour")]
    for row in rows:
        assert len(row["predictions"]) == 3
        probabilities = [p["probability"] for p in row["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert set(row) == {"image", "task", "predictions"}


def test_top_and_task_choose_what_is_shown(softcpt, world, image):
    ended = softcpt("predict", world.run, image, "--task", "colour", "--top", 4, "--json")
    [row] = json.loads(ended.out)
    assert row["task"] == "colour"
    assert {p["class"] for p in row["predictions"]} == {"red", "green", "blue", "yellow"}
    assert sum(p["probability"] for p in row["predictions"]) == pytest.approx(1)


def test_predictions_are_those_of_evaluate(softcpt, world, tmp_path):
    file = tmp_path / "predictions.jsonl"
    softcpt("evaluate", world.run, "--predictions", file)
    known = [json.loads(line) for line in file.read_text().splitlines()]
    images = [world.suite / row["image"] for row in known if row["task"] == "shape"]
    rows = json.loads(softcpt("predict", world.run, *images, "--task", "shape", "--top", 1, "--json").out)
    for row, scored in zip(rows, known, strict=False):
        assert row["predictions"][0]["class"] == scored["predicted"]
        assert row["predictions"][0]["probability"] == pytest.approx(scored["probability"], abs=1e-5)


def test_jsonl_is_one_object_a_line(softcpt, world, image):
    ended = softcpt("predict", world.run, image, "--jsonl")
    assert [json.loads(line)["task"] for line in ended.out.splitlines()] == ["shape", "colour"]


def test_csv_has_a_row_per_image_task_and_rank(softcpt, world, image, bad):
    ended = softcpt("predict", world.run, image, bad, "--csv", "--top", 2, "--task", "shape")
    rows = list(csv.DictReader(ended.out.splitlines()))
    assert list(rows[0]) == ["image", "task", "rank", "class", "probability", "fault"]
    assert [(row["rank"], bool(row["fault"])) for row in rows] == [("1", False), ("2", False), ("", True)]
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])


def test_two_forms_at_once_give_the_last(softcpt, world, image):
    ended = softcpt("predict", world.run, image, "--csv", "--json")
    assert json.loads(ended.out)


def test_a_folder_is_searched_recursively_and_sorted(softcpt, world):
    ended = softcpt("predict", world.run, world.suite / "shape", "--task", "shape", "--top", 1, "--json")
    images = [row["image"] for row in json.loads(ended.out)]
    assert images == sorted(images)
    assert len(images) == 40


def test_table_is_for_people(softcpt, world, image):
    ended = softcpt("predict", world.run, image, "--top", 1)
    assert str(image) in ended.out
    assert " %" in ended.out


def test_a_bad_image_is_a_row_with_its_fault_and_the_rest_goes_on(softcpt, world, image, bad):
    ended = softcpt("predict", world.run, bad, image, "--task", "shape", "--json")
    assert ended.code == 0
    first, second = json.loads(ended.out)
    assert first["image"] == str(bad)
    assert first["predictions"] == []
    assert "truncated" in first["fault"]
    assert second["predictions"]
    assert "1 of 2" in ended.err


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv", "--top=1"])
def test_nothing_but_bad_images_exits_3(softcpt, world, bad, tmp_path, form):
    ended = softcpt("predict", world.run, bad, tmp_path / "none.png", form)
    assert ended.code == 3
    assert "none.png" in ended.out


def test_an_empty_folder_is_a_row_with_a_fault(softcpt, world, image, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = softcpt("predict", world.run, tmp_path / "empty", image, "--task", "shape", "--json")
    assert ended.code == 0
    assert "no images" in json.loads(ended.out)[0]["fault"]


def test_an_image_comes_through_standard_input(softcpt, world, image):
    piped = softcpt("predict", world.run, "-", "--json", stdin=image.read_bytes())
    named = softcpt("predict", world.run, image, "--json")
    first, second = json.loads(piped.out), json.loads(named.out)
    assert [row["image"] for row in first] == ["-", "-"]
    assert [row["predictions"] for row in first] == [row["predictions"] for row in second]


def test_paths_come_through_standard_input(softcpt, world, image):
    lines = f"{image}\n\n{image.parent / '001.png'}\r\n".encode()
    ended = softcpt("predict", world.run, "-", "--task", "shape", "--jsonl", stdin=lines)
    assert [json.loads(line)["image"] for line in ended.out.splitlines()] == [
        str(image),
        str(image.parent / "001.png"),
    ]


def test_nothing_on_standard_input_is_nothing_read(softcpt, world):
    ended = softcpt("predict", world.run, "-", "--json")
    assert ended.code == 3
    assert json.loads(ended.out) == []
    assert "nothing to predict" in ended.err


def test_an_unknown_task_is_refused_with_the_nearest(softcpt, world, image):
    ended = softcpt("predict", world.run, image, "--task", "shap", "--json")
    assert ended.code == 2
    assert ended.out == ""
    assert '"shape"' in ended.err


def test_a_file_name_that_is_not_utf_8_is_written_with_a_mark_in_its_place(softcpt, world, image, tmp_path):
    odd = os.fsencode(tmp_path) + b"/odd\xff.png"
    with open(odd, "wb") as file:  # noqa: PTH123  pathlib knows no bytes
        file.write(image.read_bytes())
    ended = softcpt("predict", world.run, tmp_path, "--task", "shape", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)[0]["image"].endswith("odd\ufffd.png")
