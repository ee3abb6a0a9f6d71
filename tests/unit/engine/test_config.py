"""Settings: order of origins, and every fault at once."""

import json

import pytest

from softcpt.core.errors import ConfigError
from softcpt.engine.config import parse_pairs, resolve, values_of
from softcpt.methods.registry import list_methods


def faults_of(given, **more):
    with pytest.raises(ConfigError) as caught:
        resolve(given, **more)
    return {fault.where: fault for fault in caught.value.faults}


def test_defaults_are_those_of_the_published_configuration():
    settings = resolve({})
    run, train, own = settings.run, settings.training(), settings.own
    assert (run.method, run.recipe, run.shots, run.seed, run.device) == (
        "softcpt-nata",
        "paper",
        16,
        1,
        "auto",
    )
    assert (train.epochs, train.lr, train.batch_size) == (50, 0.002, 32)
    assert (train.momentum, train.weight_decay, train.warmup_epochs, train.warmup_lr) == (0.9, 5e-4, 1, 1e-5)
    assert (own.context_length, own.task_context_length, own.position, own.meta) == (16, 4, "end", "lin")
    assert settings.data.split_seed == 0
    assert set(settings.origins.values()) == {"default"}


def test_the_command_line_goes_before_the_file_and_the_file_before_the_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nlr: 1e-3\nviews: 3\nmethod: softcpt-cata\nrecipe: published\n")
    settings = resolve({"lr": "0.5"}, file=file)
    assert settings.training().lr == 0.5
    assert settings.training().epochs == 7
    assert settings.training().views == 3
    assert settings.training().repeated_steps == 4
    assert settings.origins["lr"] == "command line"
    assert settings.origins["epochs"] == f"file {file}"
    assert settings.origins["repeated_steps"] == "recipe published"
    assert settings.origins["momentum"] == "default"


def test_a_runs_own_configuration_repeats_it(tmp_path):
    settings = resolve({"method": "coop-mt", "epochs": "3", "loss_weights": "a:2,b:0.5", "shots": "all"})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"format": 1, "settings": settings.stored()}))
    again = resolve({}, file=file)
    assert (again.run, again.data, again.train, again.own) == (
        settings.run,
        settings.data,
        settings.train,
        settings.own,
    )
    assert again.run.shots is None


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        *[("softcpt-nata", 3), ("softcpt-nats", 3), ("softcpt-cata", 4), ("softcpt-csts", 4)],
        *[("coop-mt", 1), ("coop-ca-joint", 1), ("coop-cs-joint", 1)],
    ],
)
def test_the_published_recipe_repeats_steps_as_often_as_the_published_code(method, steps):
    settings = resolve({"method": method, "recipe": "published"})
    assert settings.training().repeated_steps == steps
    assert settings.data.draw == "published"
    assert settings.training().views == settings.training().epochs == 50
    if method.startswith("softcpt"):
        assert settings.own.task_text == "name"


@pytest.mark.parametrize("word", ["true", "on", "1", "y", True])
def test_a_frozen_class_context_is_one_name_less_to_step(word):
    given = {"method": "softcpt-cata", "recipe": "published", "freeze_class_context": word}
    assert resolve(given).training().repeated_steps == 3


def test_the_published_recipe_draws_a_fresh_view_every_epoch_however_many():
    assert resolve({"recipe": "published", "epochs": "70"}).training().views == 70
    assert resolve({"recipe": "published", "epochs": "70", "views": "5"}).training().views == 5


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("softcpt-nata", "balance", "tasks"),
        ("coop-mt", "loss_weights", "tasks"),
        ("softcpt-nats", "init_words", "a photo"),
        ("softcpt-csta", "class_init_words", "an image"),
        ("coop-cs-joint", "init_words", "a photo"),
    ],
)
def test_the_published_recipe_refuses_what_its_code_cannot_or_does_otherwise(method, key, value):
    assert faults_of({"method": method, "recipe": "published", key: value})[key].fix
    assert resolve({"method": method, key: value})


@pytest.mark.parametrize("method", ["coop-ca", "coop-cs", "softcpt-star", "zero-shot"])
def test_the_published_recipe_is_refused_with_the_reason_where_no_such_code_is(method):
    fault = faults_of({"method": method, "recipe": "published"})["recipe"]
    assert fault.what
    assert "recipe paper" in fault.fix


def test_every_fault_comes_out_at_once_with_the_nearest_name():
    unknown = faults_of({"epoch": "3", "leraning_rate": "1", "class_sampling": "0.1"})
    assert '"epochs"' in unknown["epoch"].fix
    assert "softcpt-cata" in unknown["class_sampling"].fix
    bad = faults_of({"epochs": "x", "shots": "0", "lr": "-1", "views": "-2", "precision": "fp8", "rank": "2"})
    assert set(bad) >= {"epochs", "shots", "lr", "views", "precision", "rank"}


def test_an_unknown_key_or_method_does_not_hide_a_bad_value():
    assert set(faults_of({"epoch": "3", "shots": "x"})) == {"epoch", "shots"}
    wrong = {"method": "nada", "epoch": "3", "shots": "x", "lr": "fast", "recipe": "papr", "rank": "2"}
    assert set(faults_of(wrong)) == {"method", "epoch", "shots", "lr", "recipe"}


@pytest.mark.parametrize(
    ("key", "value", "switch"),
    [
        ("warmup_lr", "0.1", "warmup_epochs"),
        ("task_position", "front", "task_context_length"),
        ("class_position", "middle", "class_context_length"),
        ("freeze_class_context", "true", "class_context_length"),
        ("class_sampling_offset", "0.1", "class_sampling"),
    ],
)
def test_a_value_that_another_makes_idle_is_refused(key, value, switch):
    given = {"method": "softcpt-cata", key: value}
    assert switch in faults_of({**given, switch: "0"})[key].what
    assert resolve({**given, switch: "1"})
    assert resolve({"method": "softcpt-cata", switch: "0"})
    assert resolve({"method": "softcpt-cata", switch: "0", "recipe": "published"})


def test_text_memory_is_refused_where_nothing_is_kept():
    assert "plain" in faults_of({"text_encoder": "plain", "text_memory_gb": "1"})["text_memory_gb"].what
    assert (
        "trains nothing" in faults_of({"method": "zero-shot", "text_memory_gb": "1"})["text_memory_gb"].what
    )
    assert resolve({"text_memory_gb": "1"}).encoder.text_memory_gb == 1.0


def test_factors_of_gradients_are_refused_where_steps_do_not_follow_them():
    given = {"method": "coop-ca-joint", "optimizer": "adam"}
    [fault] = faults_of(given | {"lr_factor": "task-norms"}).values()
    assert "leave one of them out" in f"{fault.what} {fault.fix}"
    assert resolve(given | {"lr_factor": "3"}).training().optim(4).lr == pytest.approx(0.006)


def test_unknown_methods_and_recipes_name_the_nearest():
    assert "softcpt-nata" in faults_of({"method": "nata"})["method"].fix
    assert "published" in faults_of({"recipe": "publised"})["recipe"].fix


def test_a_fitted_method_takes_no_key_of_the_training_loop_but_its_own():
    assert "way of its own" in faults_of({"method": "lp-clip", "lr": "1"})["lr"].what
    assert "way of its own" in faults_of({"method": "clap", "momentum": "0"})["momentum"].what
    assert "text encoder" in faults_of({"method": "clap", "text_memory_gb": "1"})["text_memory_gb"].what
    assert "training steps" in faults_of({"method": "clap", "recipe": "published"})["recipe"].what
    settings = resolve({"method": "clap", "lr": "0.5", "epochs": "7", "views": "2"})
    assert settings.train is None
    assert (settings.own.lr, settings.own.epochs, settings.own.views) == (0.5, 7, 2)
    assert set(faults_of({"method": "cross-modal", "wise_ft": "2", "tune": "published"})) == {
        "wise_ft",
        "tune",
    }


def test_keys_without_effect_are_refused():
    assert "trains nothing" in faults_of({"method": "zero-shot", "epochs": "3"})["epochs"].what
    for key, value in (("balance", "tasks"), ("loss_weights", "log-classes")):
        assert "coop-ca-joint" in faults_of({"method": "coop-ca", key: value})[key].fix


@pytest.mark.parametrize("method", ["coop-ca", "coop-cs", "softcpt-nata-separate"])
def test_separate_trainings_choose_no_settings_of_heads_for_the_suite(method, tmp_path):
    given = {"method": method, "head": "tip"}
    [fault] = faults_of(given | {"head_tune": "suite"}).values()
    assert "each task on its own" in fault.what
    assert "write task" in fault.fix
    assert ("coop-ca-joint" in fault.fix) == (method == "coop-ca")
    for tune in ("task", "published"):
        assert resolve(given | {"head_tune": tune}).own.head_tune == tune
    settings = resolve(given)
    assert settings.own.head_tune == "suite"  # as it always was stored
    assert resolve(values_of(settings.stored())).own == settings.own
    assert resolve(given | {"method": "coop-mt", "head_tune": "suite"})


@pytest.mark.parametrize("words", [["lr"], ["lr=1", "lr=2"], ["=3"], ["Lr=1"]])
def test_words_that_are_no_pairs_are_refused(words):
    with pytest.raises(ConfigError):
        parse_pairs(words)


def test_pairs_may_hold_equal_signs_in_their_values():
    assert parse_pairs(["init_words=a=b", "lr = 1"]) == {"init_words": "a=b", "lr": "1"}


@pytest.mark.parametrize(
    ("shots", "epochs"),
    [("1", 50), ("2", 100), ("4", 100), ("5", 200), ("8", 200), ("16", 200), ("all", 200)],
)
def test_coops_own_lengths_follow_the_shots(shots, epochs):
    settings = resolve({"shots": shots, "epochs": "coop"})
    assert settings.training().optim(settings.run.shots).epochs == epochs


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    file = tmp_path / "bad.yaml"
    broken = '{"format": 1, "settings": {"lr": 0.1}}'
    for text in ("- a\n- b\n", "lr: [1\n", "lr: 1\nlr: 2\n", broken):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            resolve({}, file=file)


def test_every_key_of_every_method_says_what_it_means():
    from softcpt.engine.config import keys_of

    for method in list_methods():
        silent = [key for key, text in keys_of(method).items() if not text]
        assert set(silent) <= {"method", "recipe", "seed", "device"}, method.key
