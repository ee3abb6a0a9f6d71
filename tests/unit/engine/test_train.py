"""Runs on real files: what is written, what every option does, what is never touched."""

import json
from pathlib import Path

import pytest
import torch

from softcpt.core.errors import ConfigError, RunError, SoftCPTError, SuiteError
from softcpt.data.drawn import draw_suite
from softcpt.data.record import Record
from softcpt.engine import loop
from softcpt.engine.adapter import read_adapter
from softcpt.engine.epoch_features import ViewOrder
from softcpt.engine.evaluate import evaluate
from softcpt.engine.features import ImageFeatures
from softcpt.engine.runs import FILES, open_run
from softcpt.engine.train import train


def learned(run):
    return torch.cat([tensor.flatten() for tensor in run.adapter.tensors.values()])


def same(a, b):
    return learned(a).shape == learned(b).shape and torch.equal(learned(a), learned(b))


def steps(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_holds_what_it_says_and_no_pickle(finished):
    assert {path.name for path in finished.iterdir()} == set(FILES)
    facts = json.loads((finished / "adapter.json").read_text())
    assert {
        "method",
        "seed",
        "tasks",
        "backbone",
        "settings",
        "versions",
        "samples",
        "task_feature_norms",
    } <= set(facts)
    assert facts["settings"]["epochs"] == {"value": 2, "origin": "argument"}
    assert facts["settings"]["momentum"]["origin"] == "default"
    assert len(facts["samples"]["train"]) == 2 * sum(len(task["classes"]) for task in facts["tasks"])
    assert all(len(entry["digest"]) == 64 for entry in facts["samples"]["train"])
    assert set(facts["tensors"]) == {"task_context", "meta.proj"}
    for path in finished.iterdir():
        assert b"cnumpy" not in path.read_bytes()
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_metrics_hold_the_loss_and_the_rate_in_force_of_every_step(finished):
    lines = steps(open_run(finished))
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["learning_rate"] for line in lines if line["epoch"] == 0} == {1e-5}
    assert {line["learning_rate"] for line in lines if line["epoch"] == 1} == {0.02}
    assert all(line["loss"] > 0 for line in lines)


def test_the_same_seed_gives_the_same_numbers_to_the_last_bit(quick):
    assert same(quick(), quick())
    assert not same(quick(), quick(seed=2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shots", 1), ("epochs", 3), ("lr", 0.01), ("batch_size", 5), ("momentum", 0.5),
        ("optimizer", "adam"),
        ("weight_decay", 0.1), ("warmup_epochs", 0), ("warmup_lr", 1e-3), ("repeated_steps", 2),
        ("balance", "tasks"),
        ("loss_weights", "log-classes"), ("loss_weights", "tasks"), ("loss_weights", "shape:5"), ("views", 1),
        ("views", 0), ("precision", "bf16"), ("split", "all"), ("split_seed", 1), ("draw", "published"),
        ("draw", "published-per-task"), ("recipe", "published"), ("context_length", 8), ("position", "front"),
        ("position", "middle"), ("task_context_length", 2), ("task_text", "name"), ("task_position", "front"),
        ("meta", "lowrank"), ("init_words", "a photo of"), ("seed", 3),
    ],
)  # fmt: skip
def test_every_option_has_an_effect(quick, finished, toy, key, value):
    base = open_run(finished)
    other = quick(**{key: value})
    assert not same(base, other)
    if value != "all":
        assert evaluate(other, backbone=toy).predictions  # what it stored is enough to build it again


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_context_length", 2), ("class_position", "front"), ("class_init_words", "an image"),
        ("class_sampling", 0.3), ("freeze_class_context", True), ("meta", "linmean"), ("meta", "lincls"),
    ],
)  # fmt: skip
def test_every_option_of_the_class_aware_variants_has_an_effect(quick, toy, key, value):
    other = quick("softcpt-cata", **{key: value})
    assert not same(quick("softcpt-cata"), other)
    assert evaluate(other, backbone=toy).predictions


@pytest.mark.parametrize("method", ["coop-mt", "coop-ca", "softcpt-nats"])
def test_a_run_that_starts_from_words_is_scored_and_repeated(quick, suite, toy, tmp_path, method):
    run = quick(method, init_words="a photo of")
    assert evaluate(run, backbone=toy).predictions
    assert same(run, train(suite, toy, tmp_path / "again", config=run.path / "config.json"))


def test_a_head_of_separate_trainings_is_chosen_for_each_task_and_the_run_repeated(
    quick, suite, toy, tmp_path
):
    run, said = quick("coop-ca", head="tip"), quick("coop-ca", head="tip", head_tune="task")
    assert same(run, said)
    assert evaluate(run, backbone=toy).predictions
    assert same(run, train(suite, toy, tmp_path / "again", config=run.path / "config.json"))


def test_the_rank_is_the_ranks(quick):
    run = quick(meta="lowrank", rank=3)
    assert run.adapter.tensors["meta.down"].shape[1] == 3
    assert quick(meta="lowrank").adapter.tensors["meta.down"].shape[1] == 8


def test_a_low_rank_run_differs_from_the_full_one_in_what_it_stores(quick):
    assert set(quick(meta="lowrank").adapter.tensors) == {"task_context", "meta.down", "meta.up"}


@pytest.mark.parametrize("method", ["coop-ca", "coop-cs"])
def test_training_apart_leaves_a_task_alone_whatever_the_others(quick, toy, tmp_path, method):
    """Adding tasks changes nothing about one that is trained on its own."""
    alone = draw_suite(tmp_path / "suite", tasks=["colour"], images_per_class=12, size_px=32)
    keys = {"shots": 2, "epochs": 2, "views": 2, "lr": 0.02, "batch_size": 8, "device": "cpu"}
    one = train(alone, toy, tmp_path / "alone", method=method, **keys)
    many = quick(method)
    assert torch.equal(one.adapter.tensors["tasks.0.context"], many.adapter.tensors["tasks.1.context"])
    joint = quick(f"{method}-joint")
    assert "context" in joint.adapter.tensors


def test_training_asks_for_drawn_images_only(quick, monkeypatch):
    asked = set()
    views = ImageFeatures.views

    def spy(self, records, numbers, on_done=None):
        asked.update(record.relative for record in records)
        return views(self, records, numbers, on_done)

    monkeypatch.setattr(ImageFeatures, "views", spy)
    for method in ("softcpt-nata", "coop-ca"):
        asked.clear()
        run = quick(method, epochs="auto" if method == "coop-ca" else 2)
        samples = run.adapter.facts["samples"]
        drawn = {entry["image"] for part in ("train", "val") for entry in samples[part]}
        test = {entry["image"] for entry in run.split["test"]}
        assert asked
        assert asked <= drawn
        assert not drawn & test


def test_another_seed_draws_other_shots_but_keeps_the_test_images(quick):
    first, second = quick(), quick(seed=2)
    assert first.split["test"] == second.split["test"]
    assert first.adapter.facts["samples"]["train"] != second.adapter.facts["samples"]["train"]
    other = quick(split_seed=5)
    assert other.split["test"] != first.split["test"]


def test_joint_batches_hold_several_tasks_and_separate_ones_are_named_by_task(quick, suite):
    assert {line["part"] for line in steps(quick())} == {"all tasks"}
    assert {line["part"] for line in steps(quick("coop-ca"))} == {task.name for task in suite.tasks}


def test_epochs_auto_keeps_the_best_epoch_on_val(quick, monkeypatch):
    scores = iter([0.1, 0.9, 0.2, 0.9] + [0.0] * 60)
    kept = []

    def suite_score(classifier, *_, **__):
        kept.append([p.detach().clone() for p in classifier.parameters()])
        return next(scores)

    monkeypatch.setattr("softcpt.engine.train.suite_score", suite_score)
    run = quick(epochs="auto")
    assert run.result["epochs"] == {"all tasks": {"epochs": 2 + loop.PATIENCE_EPOCHS, "kept": 1}}
    told = [line["val_score"] for line in steps(run) if "val_score" in line]
    assert told[:4] == [0.1, 0.9, 0.2, 0.9]
    best = torch.cat([p.flatten() for p in kept[1]])
    ours = torch.cat([run.adapter.tensors[name].flatten() for name in ("task_context", "meta.proj")])
    assert torch.equal(ours, best)


def test_epochs_auto_without_val_images_is_refused(quick):
    with pytest.raises(SuiteError, match="no val images"):
        quick(epochs="auto", split="all")


def test_a_task_may_be_called_what_a_joint_training_is_called(toy, tmp_path):
    folder = draw_suite(tmp_path / "suite", tasks=["colour"], images_per_class=10, size_px=32)
    (folder / "suite.yaml").unlink()
    (folder / "colour").rename(folder / "all tasks")
    run = train(folder, toy, tmp_path / "run", method="coop-ca", shots=1, epochs="auto", views=1)
    assert set(run.result["epochs"]) == {"all tasks"}


def test_val_never_holds_more_than_four_images_of_a_class(own_suite, toy, tmp_path):
    more = draw_suite(tmp_path / "more", tasks=["colour"], images_per_class=50, size_px=32)
    run = train(more, toy, tmp_path / "run", shots=16, epochs=1, views=1)
    samples = run.adapter.facts["samples"]
    classes = [entry["class"] for entry in samples["val"]]
    assert {classes.count(name) for name in set(classes)} == {4}
    assert len(samples["train"]) == 16 * len(set(classes))


def test_the_seed_starts_contexts_of_separate_trainings_too(quick):
    first, second = quick("coop-ca", lr=1e-12), quick("coop-ca", lr=1e-12, seed=2)
    assert not torch.allclose(learned(first), learned(second), atol=1e-4)


def test_an_output_inside_the_suite_is_refused(own_suite, toy):
    with pytest.raises(RunError, match="lies in the suite's folder"):
        train(own_suite, toy, own_suite / "run1", epochs=1)
    assert not (own_suite / "run1").exists()


def test_an_output_beside_a_manifest_is_fine(own_suite, toy):
    rows = [path.relative_to(own_suite).as_posix() for path in sorted(own_suite.glob("*/*/*.png"))]
    lines = [",".join([row, *row.replace("_", " ").split("/")[:2]]) for row in rows]
    (own_suite / "all.csv").write_text("\n".join(["image,task,class", *lines]))
    run = train(own_suite / "all.csv", toy, own_suite / "runs" / "first", shots=1, epochs=1, views=1)
    assert evaluate(run, backbone=toy).predictions


def test_words_that_the_published_code_would_cut_are_refused(quick, toy):
    odd = "zyxw photo"
    assert len(toy.tokenizer.encode(odd)) > 2
    with pytest.raises(ConfigError, match="counts blanks"):
        quick(recipe="published", init_words=odd)
    assert quick(recipe="published", init_words="a photo").adapter.tensors["task_context"].shape[0] == 2


def test_a_template_that_is_too_long_is_found_before_training(own_suite, toy, tmp_path):
    text = (own_suite / "suite.yaml").read_text()
    line = next(line for line in text.splitlines() if "template:" in line)
    (own_suite / "suite.yaml").write_text(text.replace(line, line.replace("{}", "{} " + "very " * 90)))
    with pytest.raises(SuiteError, match=r"in their templates(.|\n)*the task's template"):
        train(own_suite, toy, tmp_path / "run", epochs=1)


def test_views_cycle_through_a_permutation_that_the_seed_alone_chooses(drawn):
    records = [Record(path, path.name, 0, 0) for path in sorted(drawn.glob("shape/*/*.png"))[:3]]
    order = ViewOrder(records, 4, seed=1)
    seen = [order.at(epoch, [0])[0] for epoch in range(8)]
    assert sorted(seen[:4]) == [0, 1, 2, 3]
    assert seen[4:] == seen[:4]
    assert any(order.at(e, [0, 1, 2]) != ViewOrder(records, 4, seed=2).at(e, [0, 1, 2]) for e in range(4))
    assert ViewOrder(records[1:], 4, seed=1).at(3, [0]) == order.at(3, [1])
    assert set(ViewOrder(records, 0, seed=1).at(5, [0, 2])) == {-1}


def test_class_sampling_with_the_published_recipe_adds_the_published_offset(quick):
    run = quick("softcpt-cata", recipe="published", class_sampling=0.5)
    assert run.adapter.settings.own.class_sampling_offset == 1e-6


def test_weights_for_tasks_there_are_not_name_the_nearest(quick):
    with pytest.raises(ConfigError, match='did you mean "shape"'):
        quick(loss_weights="shapes:2")


def test_fp16_without_cuda_and_devices_there_are_not_are_refused(quick):
    with pytest.raises(ConfigError, match="fp16 needs CUDA"):
        quick(precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="this machine has no 'cuda'"):
            quick(device="cuda")


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_it_unfinished(quick, tmp_path):
    with pytest.raises(RunError, match="lower lr"):
        quick(lr=1e30, warmup_epochs=0)
    assert not (tmp_path / "run0" / "result.json").exists()
    with pytest.raises(RunError, match="was not finished"):
        open_run(tmp_path / "run0")


def test_faults_of_options_suite_and_output_come_out_together(own_suite, own_run, toy):
    (own_suite / "shape" / "circle").rename(own_suite / "gone")
    with pytest.raises(SoftCPTError) as caught:
        train(own_suite, toy, own_run, epoch=3)
    text = str(caught.value)
    assert "epoch" in text
    assert "circle" in text
    assert "holds a finished run" in text


def test_a_run_is_not_overwritten_unless_asked_and_strangers_files_never(own_run, suite, toy, tmp_path):
    before = {path.name: path.read_bytes() for path in own_run.iterdir()}
    with pytest.raises(RunError, match="finished run"):
        train(suite, toy, own_run, epochs=1, shots=1, views=1)
    assert {path.name: path.read_bytes() for path in own_run.iterdir()} == before
    run = train(suite, toy, own_run, epochs=1, shots=1, views=1, overwrite=True)
    assert run.result["shots"] == 1
    strange = tmp_path / "papers"
    strange.mkdir()
    (strange / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match="not a run's"):
        train(suite, toy, strange, epochs=1, overwrite=True)
    assert (strange / "thesis.txt").read_text() == "years"


def test_a_stopped_run_leaves_the_one_it_was_to_replace_whole(own_run, suite, toy):
    before = {path.name: path.read_bytes() for path in own_run.iterdir()}

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(suite, toy, own_run, epochs=1, shots=1, views=1, overwrite=True, on_progress=stop)
    assert {path.name: path.read_bytes() for path in own_run.iterdir()} == before
    assert open_run(own_run)
    assert not [path for path in own_run.parent.iterdir() if path.name.startswith(".")]


def test_what_a_killed_replacement_left_is_removed_by_the_next(own_run, suite, toy):
    left = own_run.with_name(f".{own_run.name}.abc.new")
    left.mkdir()
    (left / "log.txt").write_text("killed")
    train(suite, toy, own_run, epochs=1, shots=1, views=1, overwrite=True)
    assert not left.exists()


def test_a_backbone_must_be_named(suite, tmp_path):
    with pytest.raises(ConfigError, match="ViT-B-16/openai"):
        train(suite, None, tmp_path / "run")


def test_a_name_that_does_not_fit_is_a_fault_with_its_place(own_suite, toy, tmp_path):
    (own_suite / "suite.yaml").unlink()
    (own_suite / "shape" / "circle").rename(own_suite / "shape" / ("round " * 40).strip())
    with pytest.raises(SuiteError, match=r'task "shape", class "round.*shorten the name') as caught:
        train(own_suite, toy, tmp_path / "run")
    assert len(caught.value.faults) == 1
    assert not (tmp_path / "run").exists()


def test_a_class_without_a_training_image_is_a_fault(own_suite, toy, tmp_path):
    for part in ("train", "test"):
        for path in sorted(own_suite.glob("shape/*/*.png")):
            target = tmp_path / "given" / part / path.relative_to(own_suite)
            lonely = part == "train" and path.parent.name == "circle"
            if not lonely and (int(path.stem) % 2 == 0) == (part == "train"):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    with pytest.raises(SuiteError, match=r"circle.*no image to train on"):
        train(tmp_path / "given", toy, tmp_path / "run", shots=1, epochs=1)


def test_a_split_seed_that_draws_nothing_is_said(own_suite, toy, tmp_path):
    for path in sorted(own_suite.glob("*/*/*.png")):
        part = "test" if int(path.stem) % 3 == 0 else "train"
        target = tmp_path / "given" / part / path.relative_to(own_suite)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    keys = {"shots": 1, "epochs": 1, "views": 1}
    plain = train(tmp_path / "given", toy, tmp_path / "plain", **keys)
    seeded = train(tmp_path / "given", toy, tmp_path / "seeded", split_seed=3, **keys)
    assert plain.split["test"] == seeded.split["test"]
    assert not any("split_seed" in note for note in plain.split["notes"])
    assert any("split_seed" in note for note in seeded.split["notes"])


def test_a_rate_that_no_epoch_trains_at_is_said(own_suite, toy, tmp_path):
    def said(**keys):
        run = train(own_suite, toy, tmp_path / "-".join(map(str, keys.values())), shots=1, views=1, **keys)
        return any("lr has no effect" in note for note in run.split["notes"])

    assert said(epochs=1)
    assert said(epochs=2, warmup_epochs=2)
    assert not said(epochs=1, warmup_epochs=0)
    assert not said(epochs=2)


def test_a_truncated_image_is_a_fault_by_path_or_left_out_when_asked(own_suite, toy, tmp_path):
    bad = sorted(own_suite.glob("colour/*/*.png"))[3]
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(SuiteError) as caught:
        train(own_suite, toy, tmp_path / "run", shots=1, epochs=1)
    assert bad.relative_to(own_suite).as_posix() in str(caught.value)
    run = train(own_suite, toy, tmp_path / "run", shots=1, epochs=1, views=1, skip_bad_images=True)
    listed = {entry["image"] for entry in run.split["test"]}
    assert bad.relative_to(own_suite).as_posix() not in listed
    assert any(bad.name in note for note in run.split["notes"])


def test_fewer_images_than_shots_are_all_taken_and_said(quick):
    run = quick(shots=100)
    train_entries = run.adapter.facts["samples"]["train"]
    assert len(train_entries) == len({entry["image"] for entry in train_entries})
    assert any("100" in note or "fewer" in note for note in run.split["notes"])


def test_zero_shot_is_a_run_without_anything_learned(quick):
    run = quick("zero-shot")
    assert run.adapter.tensors == {}
    assert run.result["shots"] == 0
    assert read_adapter(run.path).settings.train is None


def test_progress_tells_loss_rate_and_time_left(quick):
    told = []
    run = quick(on_progress=told.append)
    images = [p for p in told if p.stage == "image features"]
    assert told[: len(images)] == images
    assert [p.done for p in images] == sorted(p.done for p in images)
    assert images[-1].done == images[-1].total == 2 * len(run.adapter.facts["samples"]["train"])
    told = told[len(images) :]
    assert [p.done for p in told] == list(range(1, len(steps(run)) + 1))
    assert told[-1].done == told[-1].total
    assert told[-1].time_left_s == pytest.approx(0)
    assert told[0].loss > 0
    assert told[0].images_per_s > 0


def test_a_configuration_file_repeats_a_run_exactly(finished, suite, toy, tmp_path):
    again = train(suite, toy, tmp_path / "again", config=Path(finished) / "config.json")
    assert same(open_run(finished), again)
