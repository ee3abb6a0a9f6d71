"""The published evaluator's metrics, NaN included."""

from __future__ import annotations

import math

import pytest
from reference import golden_folder, read_json
from safetensors.torch import load_file

from softcpt.engine.metrics import task_score

SETTINGS = read_json("metrics.json")
WORLD = read_json("world.json")["tasks"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_metrics_equal_the_published_evaluator(setting):
    entry = SETTINGS[setting]
    prefix = f"{setting}."
    tensors = {
        k.removeprefix(prefix): v
        for k, v in load_file(golden_folder() / "metrics.safetensors").items()
        if k.startswith(prefix)
    }
    scores = []
    start = 0
    for t, task in enumerate(WORLD):
        rows = tensors["task_ids"] == t
        n_classes = len(task["classes"])
        own = tensors["label_matrix"][rows] >= 0
        assert own[:, start : start + n_classes].all()  # the columns of a task stand together, in order
        predicted = tensors["logits"][rows][:, start : start + n_classes].argmax(1).numpy()
        labels = tensors["class_ids"][rows].numpy()
        scores.append(
            100 * task_score(entry["metric_of_task"][t], labels, predicted, n_classes, missing="nan")
        )
        start += n_classes
    for ours, reference in zip(scores, entry["per_task"], strict=True):
        assert (math.isnan(ours) and reference is None) or ours == pytest.approx(reference, abs=1e-9)
    average = sum(scores) / len(scores)
    assert math.isnan(average) == entry["average_is_nan"]
    if not entry["average_is_nan"]:
        assert average == pytest.approx(entry["average"], abs=1e-9)
