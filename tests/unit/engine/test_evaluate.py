"""Scores: on the run's own test images, on another suite's, and one by one through the predictor."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from softcpt.clip.toy import write_toy_backbone
from softcpt.core.errors import AdapterError, ConfigError, RunError, SuiteError
from softcpt.data.drawn import draw_suite
from softcpt.deploy.predictor import Predictor
from softcpt.engine.evaluate import evaluate
from softcpt.engine.runs import FILES, open_run
from softcpt.engine.train import train
from softcpt.methods.registry import list_methods

FITTED = [method.key for method in list_methods() if method.fits]


@pytest.fixture(scope="module")
def scored(finished):
    return evaluate(finished)


def test_scores_follow_from_the_predictions(scored):
    for task in scored.tasks:
        own = [p for p in scored.predictions if p.task == task.name]
        right = np.array([p.label == p.predicted for p in own])
        assert task.overall_acc == pytest.approx(right.mean())
        classes = sorted({p.label for p in own})
        recalls = [np.mean([r for r, p in zip(right, own, strict=True) if p.label == c]) for c in classes]
        assert task.mean_acc == pytest.approx(np.mean(recalls))
        assert task.score == (task.mean_acc if task.metric == "mean_acc" else task.overall_acc)
    assert scored.score == pytest.approx(np.mean([task.score for task in scored.tasks]))


def test_both_metrics_are_told_under_their_own_names(own_suite, toy, tmp_path):
    """Classes of unequal size tell them apart."""
    for path in sorted(own_suite.glob("*/*/*.png")):
        if path.parent == min(path.parent.parent.iterdir()) and int(path.stem) >= 4:
            path.unlink()
    scored = evaluate(train(own_suite, toy, tmp_path / "run", method="zero-shot", device="cpu"))
    assert {task.metric for task in scored.tasks} == {"overall_acc", "mean_acc"}
    told = scored.to_json()
    apart = 0
    for task in scored.tasks:
        own = [(p.label, p.label == p.predicted) for p in scored.predictions if p.task == task.name]
        overall = np.mean([right for _, right in own])
        mean = np.mean([np.mean([r for c, r in own if c == name]) for name in {c for c, _ in own}])
        apart += abs(overall - mean) > 0.01
        assert (task.overall_acc, task.mean_acc) == (pytest.approx(overall), pytest.approx(mean))
        assert task.score == pytest.approx(mean if task.metric == "mean_acc" else overall)
        assert told["overall_acc"]["tasks"][task.name] == pytest.approx(100 * overall)
        assert told["mean_acc"]["tasks"][task.name] == pytest.approx(100 * mean)
    assert apart


def test_json_holds_percent_and_what_programs_need(scored, suite):
    content = json.loads(json.dumps(scored.to_json()))
    assert {"suite", "method", "shots", "seed", "score", "tasks"} <= set(content)
    assert content["suite"] == suite.name
    assert content["tasks"] == {t.name: pytest.approx(100 * t.score) for t in scored.tasks}
    assert content["score"] == pytest.approx(100 * scored.score)


@pytest.mark.parametrize(
    "method", ["softcpt-nata", "softcpt-csts", "coop-ca", "coop-mt", "zero-shot", *FITTED]
)
def test_predict_gives_evaluates_predictions(quick, method):
    run = quick(method, **({"iterations": 40} if method == "cross-modal" else {}))
    scored = evaluate(run)
    predictor = Predictor(run)
    root = run.split["root"]
    for prediction in scored.predictions[::7]:
        (row,) = predictor.predict(f"{root}/{prediction.image}", tasks=[prediction.task], top=None)
        assert row.predictions[0][0] == prediction.predicted
        classes = next(t.classes for t in predictor.tasks if t.name == prediction.task)
        ours = [dict(row.predictions)[c] for c in classes]
        assert np.allclose(ours, prediction.probabilities, atol=1e-5)
        assert sum(ours) == pytest.approx(1, abs=1e-5)


def test_what_was_chosen_on_val_is_reported_in_percent_and_stored_as_fractions(quick):
    run = quick("tip-adapter", views=2)
    told = evaluate(run).to_json()["tuned"]
    assert list(told) == [task.name for task in run.adapter.tasks]
    for name, own in run.result["tuned"].items():
        assert set(own) == {"alpha", "beta", "val_accuracy"}
        assert told[name] == {**own, "val_accuracy": pytest.approx(100 * own["val_accuracy"])}
        tensors = run.adapter.tensors
        at = list(told).index(name)
        assert float(tensors[f"tasks.{at}.alpha"]) == pytest.approx(own["alpha"])


def test_zero_shot_beside_a_run_is_what_a_zero_shot_run_scores(quick, scored):
    alone = evaluate(quick("zero-shot"))
    assert alone.score == pytest.approx(scored.zero_shot)
    assert alone.shots == 0


def test_another_suite_with_the_same_tasks_in_another_order_is_scored_by_name(own_run, own_suite):
    """Tasks are matched by name, whatever their order; the run's split seed draws the test part."""
    text = (own_suite / "suite.yaml").read_text()
    assert text.index("shape") < text.index("number")
    (own_suite / "suite.yaml").unlink()
    for old in sorted(own_suite.glob("*/*")):
        readable = old.name.replace("_", " ")
        if readable != old.name:
            old.rename(old.with_name(readable))
    own, other = evaluate(own_run), evaluate(own_run, own_suite)
    assert [task.name for task in own.tasks] == [task.name for task in other.tasks]
    assert all(p.image for p in other.predictions)
    digests = {
        e["digest"] for part in ("train", "val") for e in open_run(own_run).adapter.facts["samples"][part]
    }
    from softcpt.core.files import digest_of_file

    assert not digests & {digest_of_file(own_suite / p.image) for p in other.predictions}


def test_the_same_suite_by_name_gives_the_same_scores(finished, drawn, scored):
    named = evaluate(finished, drawn)
    assert [p.image for p in named.predictions] == [p.image for p in scored.predictions]
    assert named.score == scored.score


def test_a_moved_or_renamed_suite_is_scored_on_the_same_images(own_suite, toy, tmp_path):
    run = train(own_suite, toy, tmp_path / "run", shots=2, epochs=1, views=1)
    before = evaluate(run)
    moved = own_suite.rename(tmp_path / "elsewhere")
    with pytest.raises(SuiteError, match="is no longer there") as caught:
        evaluate(run)
    assert len(caught.value.faults) == 1
    after = evaluate(run, moved)
    assert [p.image for p in after.predictions] == [p.image for p in before.predictions]
    assert after.score == before.score
    (moved / "suite.yaml").write_text(
        (moved / "suite.yaml").read_text().replace("name: drawn", "name: other", 1)
    )
    assert evaluate(run, moved).score == before.score
    for entry in run.split["test"][:3]:
        (moved / entry["image"]).unlink()
    fewer = evaluate(run, moved)
    assert any("not the test images of the run's own suite" in note for note in fewer.notes)


@pytest.mark.parametrize("odd", ["food: italian", "cafe\u0301 \u00fc", "back\\slash", "linked"])
def test_whatever_a_suite_may_be_called_its_run_can_be_evaluated(own_suite, toy, tmp_path, odd):
    (own_suite / "suite.yaml").unlink()
    if odd == "linked":
        outside = own_suite.rename(tmp_path / "outside")
        for path in sorted(outside.glob("*/*/*.png")):
            link = own_suite / path.relative_to(outside)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    else:
        (own_suite / "shape").rename(own_suite / odd)
        first = sorted((own_suite / "colour").glob("*/*.png"))[0]
        first.rename(first.with_name(f"{odd}.png"))
    run = train(own_suite, toy, tmp_path / "run", shots=1, epochs=1, views=1)
    assert len(evaluate(run).predictions) == len(run.split["test"])


def test_a_bf16_run_predicts_what_it_evaluates(quick):
    run = quick(precision="bf16")
    scored = evaluate(run)
    predictor = Predictor(run)
    for prediction in scored.predictions[::5]:
        (row,) = predictor.predict(f"{run.split['root']}/{prediction.image}", tasks=[prediction.task], top=1)
        assert row.predictions[0][0] == prediction.predicted
        assert row.predictions[0][1] == pytest.approx(max(prediction.probabilities), abs=1e-5)


def test_a_suite_with_other_tasks_or_classes_is_refused_with_all_differences(finished, own_suite, tmp_path):
    fewer = draw_suite(tmp_path / "fewer", tasks=["shape", "position"], images_per_class=4, size_px=32)
    with pytest.raises(SuiteError) as caught:
        evaluate(finished, fewer)
    places = " ".join(fault.where for fault in caught.value.faults)
    assert "colour" in places
    assert "number" in places
    assert "position" in places
    text = (own_suite / "suite.yaml").read_text().replace("circle: circle", "circle: ring")
    (own_suite / "suite.yaml").write_text(text)
    with pytest.raises(SuiteError, match="ring"):
        evaluate(finished, own_suite)


def test_images_the_run_was_trained_on_are_left_out_of_another_suite(finished, drawn, tmp_path):
    copied = shutil.copytree(drawn, tmp_path / "copy")
    run = open_run(finished)
    rows = [("image", "task", "class", "split")]
    seen = {entry["image"] for part in ("train", "val") for entry in run.adapter.facts["samples"][part]}
    for path in sorted(copied.glob("*/*/*.png")):
        relative = path.relative_to(copied).as_posix()
        task, folder, _ = relative.split("/")
        rows.append((relative, task, folder.replace("_", " "), "test"))
    with (copied / "all.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    other = evaluate(finished, copied / "all.csv")
    assert not seen & {p.image for p in other.predictions}
    assert any(f"left out {len(seen)} test images" in note for note in other.notes)


def test_a_run_without_test_images_asks_for_a_suite(quick, drawn):
    run = quick(split="all")
    with pytest.raises(RunError, match="no test part"):
        evaluate(run)
    assert evaluate(quick(), drawn).predictions


def test_test_images_that_are_gone_or_changed_are_all_named(own_suite, toy, tmp_path):
    run = train(own_suite, toy, tmp_path / "run", shots=1, epochs=1, views=1)
    gone, changed = (own_suite / run.split["test"][i]["image"] for i in (0, 5))
    gone.unlink()
    Image.new("RGB", (32, 32)).save(changed)
    with pytest.raises(SuiteError) as caught:
        evaluate(run)
    assert {fault.where for fault in caught.value.faults} == {
        path.relative_to(own_suite).as_posix() for path in (gone, changed)
    }


def test_classes_without_test_images_are_reported_not_nan(own_suite, toy, tmp_path):
    few = sorted((own_suite / "number").glob("*"))[0]
    for path in sorted(few.glob("*.png"))[1:]:
        path.unlink()
    run = train(own_suite, toy, tmp_path / "run", shots=1, epochs=1, views=1)
    scored = evaluate(run)
    task = next(t for t in scored.tasks if t.name == "number")
    assert task.missing_classes == [few.name.replace("_", " ")]
    assert 0 <= scored.score <= 1
    assert any("no test images" in note for note in scored.notes)
    assert scored.to_json()["missing_classes"] == {"number": task.missing_classes}


def test_another_backbone_is_refused_and_a_moved_one_found_when_named(finished, toy_folder, tmp_path, scored):
    stranger = write_toy_backbone(tmp_path / "stranger", seed=9)
    with pytest.raises(AdapterError, match="other weights"):
        evaluate(finished, backbone=stranger)
    moved = shutil.copytree(toy_folder, tmp_path / "moved")
    assert evaluate(finished, backbone=moved).score == scored.score


@pytest.mark.parametrize("name", sorted(set(FILES) - {"log.txt", "metrics.jsonl", "run.lock"}))
@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_a_damaged_run_is_refused(own_run, name, harm):
    path = own_run / name
    content = bytearray(path.read_bytes())
    if harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises((AdapterError, RunError)) as caught:
        open_run(own_run)
    assert caught.value.faults[0].fix


def test_files_of_another_run_are_refused(own_run, quick):
    other = quick(seed=5)
    for name in ("adapter.json", "adapter.safetensors"):
        shutil.copy(other.path / name, own_run / name)
    with pytest.raises(RunError, match="another run"):
        open_run(own_run)


def test_an_edited_setting_is_noticed(own_run):
    path = own_run / "adapter.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(AdapterError, match="edited or damaged"):
        open_run(own_run)


def test_the_predictor_takes_files_bytes_and_pictures_and_reports_bad_ones(finished, drawn, tmp_path):
    path = sorted(drawn.glob("*/*/*.png"))[0]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    predictor = Predictor(finished)
    rows = list(predictor.predict([path, path.read_bytes(), Image.open(path), bad], top=2))
    n_tasks = len(predictor.tasks)
    assert len(rows) == 4 * n_tasks
    assert [r.predictions for r in rows[:n_tasks]] == [r.predictions for r in rows[n_tasks : 2 * n_tasks]]
    assert [r.predictions for r in rows[:n_tasks]] == [r.predictions for r in rows[2 * n_tasks : 3 * n_tasks]]
    assert all(len(r.predictions) == 2 for r in rows[: 3 * n_tasks])
    assert all(r.fault and not r.predictions for r in rows[3 * n_tasks :])


def test_an_opened_picture_goes_through_the_same_image_rule_as_its_file(finished, tmp_path):
    """Alpha is put on white, the orientation applied: a picture in memory is no exception."""
    path = tmp_path / "clear.png"
    pixels = np.zeros((40, 30, 4), dtype=np.uint8)
    pixels[:10, :, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    predictor = Predictor(finished)
    (from_file,) = predictor.predict(path, tasks=["shape"])
    (from_memory,) = predictor.predict(Image.open(path), tasks=["shape"])
    (plain,) = predictor.predict(Image.open(path).convert("RGB"), tasks=["shape"])
    assert from_file.predictions == from_memory.predictions
    assert from_file.predictions != plain.predictions


def test_a_task_named_twice_is_predicted_once_and_an_impossible_path_is_a_row(finished):
    rows = list(Predictor(finished).predict(["a\0b.png"], tasks=["shape", "shape"]))
    assert len(rows) == 1
    assert rows[0].fault


def test_unknown_tasks_name_the_nearest(finished):
    with pytest.raises(ConfigError, match='did you mean "colour"'):
        Predictor(finished).predict([], tasks=["color"])
    with pytest.raises(ConfigError, match="at least 1"):
        Predictor(finished).predict([], top=0)
