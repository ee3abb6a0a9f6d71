"""LP-CLIP's search against the published script's own log: C and test score of all rounds of every run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from reference import golden_folder, read_json
from safetensors.numpy import load_file

from softcpt.engine.metrics import mean_class_accuracy, overall_accuracy
from softcpt.methods.linear_probe import fit_logistic, search_c

PROBE = read_json("linear_probe.json")


def predict(features, model):
    weight, bias = model
    return (features.astype(np.float64) @ weight.T + bias).argmax(1)


@pytest.mark.parametrize("key", PROBE["draws"])
@pytest.mark.parametrize("suite", ["plant6", "fashion20"])
def test_the_search_takes_the_published_steps(suite, key):
    """The script exchanges the two metrics' names; what it computes is what is compared."""
    data = load_file(golden_folder() / "linear_probe.safetensors")
    draw = PROBE["draws"][key]
    seed, shots = (int(number) for number in re.findall(r"\d+", key))
    per_class = "per-class" in PROBE[suite]["metric_actually_computed"]

    def metric(labels, predicted):
        return mean_class_accuracy(labels, predicted, 3) if per_class else overall_accuracy(labels, predicted)

    train = data["train.x"][draw["train"]].astype(np.float64), data["train.y"][draw["train"]]
    val = data["val.x"][draw["val"]], data["val.y"][draw["val"]]
    known = {}

    def fit(c):
        if c not in known:
            known[c] = fit_logistic(*train, 3, c)
        return known[c]

    path = search_c(lambda c: metric(val[1], predict(val[0], fit(c))), "published")
    wanted = [row for row in PROBE[suite]["steps"] if (row["seed"], row["shots"]) == (seed, shots)]
    assert path == pytest.approx([row["C"] for row in wanted], rel=1e-3)
    scores = [100 * metric(data["test.y"], predict(data["test.x"], fit(c))) for c in path]
    assert scores == pytest.approx([row["test_acc"] for row in wanted], abs=0.006)
