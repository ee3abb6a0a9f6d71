"""Traps of published repositories that any method here could fall into (docs/reference/traps.md)."""

import json
from math import cos, pi

import pytest

from softcpt.core.errors import SuiteError
from softcpt.data.suite import load_suite
from softcpt.engine.config import resolve
from softcpt.engine.evaluate import evaluate
from softcpt.engine.prepare import plan_run
from softcpt.engine.train import train
from softcpt.methods.registry import list_methods

CHOOSING = {
    **{method.key: {} for method in list_methods() if method.fits},
    "tip-adapter": {"views": 2},
    **{key: {"epochs": 3} for key in ("tip-adapter-f", "zs-lp", "clap", "taskres")},
    "cross-modal": {"iterations": 20},
    "mvlpt": {"context_length": 4, "epochs": 2, "views": 1},
    "coop-mt": {"keep": "best", "epochs": 2, "views": 1},
    "softcpt-dual": {"head": "ridge", "epochs": 1, "views": 1},
}
"""Every method that chooses something, by itself or because it is asked to."""


@pytest.mark.parametrize("method", CHOOSING)
def test_whatever_is_chosen_is_chosen_without_the_test_images(own_suite, toy, tmp_path, method):
    """Not one of them can be read: what is best on them cannot be known."""
    suite = load_suite(own_suite)
    keys = {"method": method, "shots": 2, "device": "cpu", **CHOOSING[method]}
    for i, record in enumerate(plan_run(suite, resolve(keys)).samples.test):
        record.path.write_bytes(f"no picture {i}".encode())
    run = train(suite, toy, tmp_path / "run", **keys)
    assert run.result["n_val"] > 0
    with pytest.raises(SuiteError):  # and here they are looked at
        evaluate(run, backbone=toy)


@pytest.mark.parametrize("method", [method.key for method in list_methods() if method.uses_images])
def test_every_method_sees_the_same_images(suite, method):
    """Whatever it is, and whatever its settings are."""

    def images(**keys):
        samples = plan_run(suite, resolve({"shots": 2, "seed": 3, **keys})).samples
        return [[record.digest for record in part] for part in (samples.train, samples.val, samples.test)]

    assert images(method=method) == images(method="coop-ca", epochs=7, lr=0.1, views=1)


@pytest.mark.parametrize("method", ["kgcoop", "coop-ca", "mvlpt"])
def test_with_one_batch_an_epoch_the_rate_is_the_cosine_at_every_step(quick, method):
    """It moves with epochs, not with looks at the loader: half of it is left in the middle."""
    epochs = 12
    options = {"keep": "last", "shared_epochs": 1.0, "context_length": 4} if method == "mvlpt" else {}
    run = quick(method, epochs=epochs, views=1, batch_size=128, **options)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    wanted = [1e-5, *(0.01 * (1 + cos(pi * (epoch - 1) / epochs)) for epoch in range(1, epochs))]
    for part in {line["part"] for line in lines}:
        rates = [line["learning_rate"] for line in lines if line["part"] == part]
        assert rates == pytest.approx(wanted, rel=1e-6)
