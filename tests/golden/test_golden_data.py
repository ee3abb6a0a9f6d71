"""Drawn samples, splits, linear-probe draws and batches of the published code, exactly."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from reference import golden_folder, read_json
from safetensors.numpy import load_file

from softcpt.data.order import batches_in_order, epoch_batches
from softcpt.data.published import (
    draw_linear_probe,
    draw_one_list,
    draw_per_task,
    folder_sizes,
    published_batches,
    split_folders,
    split_trainval,
    trainval_sizes,
)

DRAWS = read_json("draws.json")
SPLITS = read_json("splits.json")
PROBE = read_json("linear_probe.json")
SAMPLER = read_json("sampler.json")["runs"]


def numbers(key):
    """The seed and, where there is one, the shots of a key such as ``seed1_shots4``."""
    return [int(number) for number in re.findall(r"\d+", key)]


def items_by_task(part):
    return [[[path, task, label] for path, label in rows] for task, rows in enumerate(DRAWS[part])]


def all_items(part):
    return [item for items in items_by_task(part) for item in items]


def task_and_label(item):
    return item[1], item[2]


def label_of(row):
    return row[1]


@pytest.mark.parametrize("key", DRAWS["one_list"])
def test_samples_drawn_from_one_list_equal_the_published_ones(key):
    seed, shots = numbers(key)
    drawn = draw_one_list(all_items("train"), all_items("val"), shots, seed=seed, class_of=task_and_label)
    assert drawn == (DRAWS["one_list"][key]["train"], DRAWS["one_list"][key]["val"])


@pytest.mark.parametrize("key", DRAWS["per_task_restart"])
def test_samples_drawn_with_a_restart_per_task_equal_the_published_ones(key):
    seed, shots = numbers(key)
    drawn = draw_per_task(
        items_by_task("train"), items_by_task("val"), shots, seed=seed, class_of=task_and_label
    )
    assert drawn == (DRAWS["per_task_restart"][key]["train"], DRAWS["per_task_restart"][key]["val"])


@pytest.mark.parametrize("key", SPLITS["trainval_split"])
def test_trainval_split_equals_the_published_one(key):
    (seed,) = numbers(key)
    split = split_trainval(SPLITS["rows"], seed=seed, class_of=label_of)
    assert split == (SPLITS["trainval_split"][key]["train"], SPLITS["trainval_split"][key]["val"])


@pytest.mark.parametrize("key", SPLITS["folder_split"])
def test_folder_split_equals_the_published_one(key):
    (seed,) = numbers(key)
    expected = SPLITS["folder_split"][key]
    assert expected["names"] == sorted(expected["names"])
    folders = {
        name: [f"ROOT/{name}/im{i:03d}.jpg" for i in range(SPLITS["folders"][name])]
        for name in expected["names"]
    }
    split = [[list(row) for row in part] for part in split_folders(folders, seed=seed)]
    assert split == [expected["train"], expected["val"], expected["test"]]


@pytest.mark.parametrize("n", SPLITS["rounding"])
def test_folder_rule_rounds_as_published(n):
    assert list(folder_sizes(int(n))) == SPLITS["rounding"][n]


@pytest.mark.parametrize("n", SPLITS["rounding_trainval"])
def test_trainval_rule_rounds_as_published(n):
    n_val = SPLITS["rounding_trainval"][n]
    assert trainval_sizes(int(n)) == (int(n) - n_val, n_val)


@pytest.mark.parametrize("key", PROBE["draws"])
def test_linear_probe_draws_equal_the_published_ones(key):
    seed, shots = numbers(key)
    labels = load_file(golden_folder() / "linear_probe.safetensors")
    drawn = draw_linear_probe(labels["train.y"].tolist(), labels["val.y"].tolist(), shots, seed=seed)
    assert drawn == (PROBE["draws"][key]["train"], PROBE["draws"][key]["val"])


def run_id(run):
    return f"n{run['n']}-batch{run['batch_size']}-seed{run['seed']}"


@pytest.mark.parametrize("run", SAMPLER, ids=run_id)
def test_published_batches_equal_the_recorded_ones(run):
    batches = published_batches(
        run["n"], run["batch_size"], seed=run["seed"], epochs=len(run["train_epochs"])
    )
    assert batches == run["train_epochs"]


@pytest.mark.parametrize("run", SAMPLER, ids=run_id)
def test_batches_of_a_test_pass_equal_the_recorded_ones(run):
    assert [list(batch) for batch in batches_in_order(run["n"], run["batch_size"])] == run["test_batches"]


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("run", SAMPLER, ids=run_id)
def test_our_epochs_have_as_many_batches_of_the_same_size_as_the_published_ones(run, balance):
    for epoch in run["train_epochs"]:
        ours = epoch_batches([0] * run["n"], run["batch_size"], np.random.default_rng(0), balance)
        assert [len(batch) for batch in ours] == [len(batch) for batch in epoch]
        assert max(Counter(int(i) for batch in ours for i in batch).values()) == 1
