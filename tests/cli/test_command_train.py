"""``softcpt train``: a run folder, or every reason why not."""

import json

from softcpt.app.cli.options import DEFAULTS
from softcpt.engine.config import RunConfig


def train(world, output, *more):
    return ["train", world.suite, "--backbone", world.backbone, "--output", output, "--shots", 2, *more]


QUICK = ("epochs=1", "views=1")


def test_a_run_ends_with_its_folder_on_stdout_and_hints_on_stderr(softcpt, world, tmp_path):
    ended = softcpt(*train(world, tmp_path / "run", *QUICK))
    assert ended.code == 0
    assert ended.out == f"{tmp_path / 'run'}\n"
    assert f"softcpt evaluate {tmp_path / 'run'}" in ended.err
    assert f"softcpt predict {tmp_path / 'run'}" in ended.err
    assert "loss" in ended.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["shots"] == 2


def test_quiet_says_nothing_but_the_folder(softcpt, world, tmp_path):
    ended = softcpt(*train(world, tmp_path / "run", "--quiet", *QUICK))
    assert (ended.out, ended.err) == (f"{tmp_path / 'run'}\n", "")


def test_settings_reach_the_run_with_their_origin(softcpt, world, tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 0.5\nbatch_size: 7\n")
    softcpt(
        *train(world, tmp_path / "run", "--config", tmp_path / "mine.yaml", "--seed", 3, "lr=0.25", *QUICK)
    )
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["lr"] == {"value": 0.25, "origin": "command line"}
    assert settings["seed"] == {"value": 3, "origin": "command line"}
    assert settings["batch_size"]["value"] == 7
    assert "mine.yaml" in settings["batch_size"]["origin"]
    assert settings["momentum"]["origin"] == "default"


def test_a_run_s_own_configuration_repeats_it(softcpt, world, tmp_path):
    again = softcpt(
        "train", world.suite, "--config", world.run / "config.json", "--output", tmp_path / "again"
    )
    assert again.code == 0, again.err
    weights = "adapter.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (world.run / weights).read_bytes()


def test_another_run_is_never_overwritten_unless_asked(softcpt, world, own_run):
    before = (own_run / "result.json").read_bytes()
    refused = softcpt(*train(world, own_run, *QUICK))
    assert refused.code == 5
    assert "--overwrite" in refused.err
    assert (own_run / "result.json").read_bytes() == before
    assert softcpt(*train(world, own_run, "--overwrite", "--seed", 9, *QUICK)).code == 0
    assert json.loads((own_run / "result.json").read_text())["seed"] == 9


def test_unknown_keys_are_refused_with_the_nearest_all_at_once(softcpt, world, tmp_path):
    ended = softcpt(*train(world, tmp_path / "run", "epoch=3", "learning=1", "class_sampling=0.1"))
    assert ended.code == 2
    assert '"epochs"' in ended.err
    assert "learning" in ended.err
    assert "softcpt-cata" in ended.err  # who knows class_sampling
    assert not (tmp_path / "run").exists()


def test_unknown_method_is_refused_with_the_nearest(softcpt, world, tmp_path):
    ended = softcpt(*train(world, tmp_path / "run", "--method", "softcpt-nat"))
    assert ended.code == 2
    assert '"softcpt-nata"' in ended.err


def test_words_that_are_no_pairs_are_refused(softcpt, world, tmp_path):
    ended = softcpt(*train(world, tmp_path / "run", "epochs", "=3"))
    assert ended.code == 2
    assert "'epochs'" in ended.err
    assert "'=3'" in ended.err


def test_a_key_given_as_an_option_too_is_refused(softcpt, world, tmp_path):
    ended = softcpt(*train(world, tmp_path / "run", "shots=3"))
    assert ended.code == 2
    assert "--shots" in ended.err


def test_a_missing_backbone_says_what_one_can_be(softcpt, world, tmp_path):
    ended = softcpt("train", world.suite, "--output", tmp_path / "run")
    assert ended.code == 2
    for form in ("ViT-B-16/openai", "hf-hub:", "open_clip_config.json"):
        assert form in ended.err


def test_a_backbone_that_does_not_exist_exits_4(softcpt, world, tmp_path):
    ended = softcpt("train", world.suite, "--backbone", tmp_path / "none", "--output", tmp_path / "run")
    assert ended.code == 4
    assert not (tmp_path / "run").exists()


def test_a_suite_that_does_not_exist_exits_3(softcpt, world, tmp_path):
    ended = softcpt("train", tmp_path / "none", "--backbone", world.backbone, "--output", tmp_path / "run")
    assert ended.code == 3


def test_a_class_name_too_long_for_the_context_is_refused_by_place(softcpt, world, own_suite, tmp_path):
    file = own_suite / "suite.yaml"
    file.write_text(file.read_text().replace("circle: circle", f"circle: {'very ' * 70} round"))
    ended = softcpt("train", own_suite, "--backbone", world.backbone, "--output", tmp_path / "run")
    assert ended.code == 3
    assert 'task "shape"' in ended.err
    assert "tokens" in ended.err
    assert not (tmp_path / "run").exists()


def test_the_defaults_that_the_help_names_are_those_of_the_settings():
    fields = RunConfig.model_fields
    assert {key: str(fields[key].default) for key in DEFAULTS} == DEFAULTS
    assert set(fields) - set(DEFAULTS) == {"backbone"}
