"""The loop's own bookkeeping: what it fetches, when it reads losses, and that neither shows in a result."""

import json

import pytest
import torch
from safetensors.torch import load_file

from softcpt.core.errors import RunError
from softcpt.engine import epoch_features, loop
from softcpt.engine.epoch_features import EpochFeatures, ViewOrder
from softcpt.engine.features import ImageFeatures
from softcpt.methods.base import PromptClassifier


def stored(run):
    return (run.path / "adapter.safetensors").read_bytes()


def steps(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture
def asked(monkeypatch):
    """Images and views that were asked for, a list each time."""
    seen = []
    views = ImageFeatures.views

    def spy(self, records, numbers, on_done=None):
        seen.append([(record.relative, view) for record, view in zip(records, numbers, strict=True)])
        return views(self, records, numbers, on_done)

    monkeypatch.setattr(ImageFeatures, "views", spy)
    return seen


def test_all_features_are_fetched_before_the_first_step_and_only_views_that_are_used(quick, asked):
    run = quick(epochs=3, views=16, split="all")
    [of_training] = asked
    images = [entry["image"] for entry in run.adapter.facts["samples"]["train"]]
    assert len(of_training) == len(set(of_training)) == 3 * len(images)
    assert {image for image, _ in of_training} == set(images)
    assert {view for _, view in of_training} <= set(range(16))


def test_with_fewer_views_than_epochs_each_is_fetched_once(quick, asked):
    run = quick(epochs=5, views=2, split="all")
    assert len(asked[0]) == len(set(asked[0])) == 2 * len(run.adapter.facts["samples"]["train"])


@pytest.mark.parametrize("keys", [{"views": 3, "epochs": 4}, {"views": 0}, {"balance": "tasks"}])
def test_a_pool_too_large_for_the_device_is_fetched_by_epoch_and_learns_the_same(
    quick, asked, monkeypatch, keys
):
    whole = quick(split="all", **keys)
    del asked[:]
    monkeypatch.setattr(epoch_features, "WHOLE_BYTES", 1000)
    by_epoch = quick(split="all", **keys)
    n_images = len(whole.adapter.facts["samples"]["train"])
    assert {len(request) for request in asked} == {n_images}
    assert len(asked) == (1 if keys.get("views") == 0 else keys.get("epochs", 2))
    assert stored(by_epoch) == stored(whole)
    assert steps(by_epoch) == steps(whole)


def test_an_epoch_s_features_are_those_of_its_views(suite, toy):
    records = suite.records[:5]
    features, order = ImageFeatures(toy), ViewOrder(records, 3, seed=1)
    shown = EpochFeatures(records, features, order, 7)
    for epoch in (0, 1, 2, 3, 6):
        assert torch.equal(shown.at(epoch), features.views(records, order.at(epoch, range(5))))


@pytest.mark.parametrize("keys", [{}, {"epochs": "auto"}, {"method": "coop-ca"}])
def test_when_losses_are_read_changes_no_result(quick, monkeypatch, keys):
    at_once = quick(**keys)
    monkeypatch.setattr(loop, "STEPS_READ_AT_ONCE", {"cpu": 3})
    in_blocks = quick(**keys)
    assert steps(in_blocks) == steps(at_once)
    assert stored(in_blocks) == stored(at_once)


def test_losses_are_read_in_blocks_that_end_with_an_epoch(quick, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_READ_AT_ONCE", {"cpu": 2})
    read = []
    stack = torch.stack

    def spy(tensors, *rest):
        tensors = list(tensors)
        if tensors[0].ndim == 0:
            read.append(len(tensors))
        return stack(tensors, *rest)

    monkeypatch.setattr(loop.torch, "stack", spy)
    run = quick(batch_size=4, shots=1, epochs=3)
    assert sum(read) == len(steps(run))
    per_epoch = len(steps(run)) // 3
    assert read == 3 * ([2] * (per_epoch // 2) + [1] * (per_epoch % 2))


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_loss_that_is_no_number_names_its_epoch(quick, monkeypatch, at_once):
    monkeypatch.setattr(loop, "STEPS_READ_AT_ONCE", {"cpu": at_once})
    told = []
    loss = PromptClassifier.loss

    def broken(self, features, columns, **rest):
        return loss(self, features, columns, **rest) * (torch.nan if len(told) == fails_at else 1)

    write = loop.StepReader.took

    def count(self, epoch, *rest):
        told.append(epoch)
        return write(self, epoch, *rest)

    fails_at = 4
    monkeypatch.setattr(PromptClassifier, "loss", broken)
    monkeypatch.setattr(loop.StepReader, "took", count)
    with pytest.raises(RunError, match="the loss is nan") as caught:
        quick(batch_size=4, shots=1, epochs=6, method="coop-ca-joint")
    assert told[fails_at] in (1, 2)
    assert caught.value.faults[0].where == f"all tasks, epoch {told[fails_at]}"
    assert told[-1] == told[fails_at]  # no epoch is begun after it


@pytest.mark.parametrize(("kind", "in_force"), [("full", "highest"), ("fast", "medium")])
def test_matrix_products_are_short_in_steps_and_nowhere_else(quick, monkeypatch, kind, in_force):
    steps_, elsewhere = set(), set()
    loss, views, scorer = PromptClassifier.loss, ImageFeatures.views, PromptClassifier.scorer

    def in_step(self, *args, **keys):
        steps_.add(torch.get_float32_matmul_precision())
        return loss(self, *args, **keys)

    def of_images(self, *args, **keys):
        elsewhere.add(torch.get_float32_matmul_precision())
        return views(self, *args, **keys)

    def of_scores(self):
        elsewhere.add(torch.get_float32_matmul_precision())
        return scorer(self)

    monkeypatch.setattr(PromptClassifier, "loss", in_step)
    monkeypatch.setattr(ImageFeatures, "views", of_images)
    monkeypatch.setattr(PromptClassifier, "scorer", of_scores)
    quick(matmul=kind, keep="best", cache=False)
    assert steps_ == {in_force}
    assert elsewhere == {"highest"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_fast_matrix_products_train_nearly_the_same(quick):
    full, fast = (load_file(quick(matmul=kind).path / "adapter.safetensors") for kind in ("full", "fast"))
    for name, tensor in full.items():
        assert (fast[name] - tensor).norm() <= 0.02 * tensor.norm()
