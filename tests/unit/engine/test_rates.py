"""Rates as they reach contexts, controls of them, lengths of separate trainings, task sampling."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from softcpt.core.errors import AdapterError, ConfigError
from softcpt.data.order import epoch_batches
from softcpt.engine.adapter import problem_of, restore_classifier
from softcpt.engine.config import resolve
from softcpt.engine.evaluate import evaluate
from softcpt.engine.rates import joint_length, kernel_at_start, rate_factor


def rates(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] for line in lines]


def test_a_run_says_what_its_rate_comes_to_on_each_tasks_context(quick):
    run = quick("softcpt-nata", lr=0.004)
    norms = run.adapter.facts["task_feature_norms"]["start"]
    told = run.result["effective_rates"]
    assert told["start"] == pytest.approx({name: 0.004 * n**2 for name, n in norms.items()}, rel=1e-4)
    assert told["end"] != told["start"]
    assert "effective rate on each task's context" in (run.path / "log.txt").read_text()
    coop = quick("coop-ca", lr=0.004).result["effective_rates"]["start"]
    assert set(coop.values()) == {0.004}
    assert coop.keys() == norms.keys()


def test_a_factor_multiplies_both_rates(quick):
    plain, ten = quick("coop-ca-joint"), quick("coop-ca-joint", lr_factor=10)
    assert rates(ten) == pytest.approx([10 * rate for rate in rates(plain)])
    by_hand = quick("coop-ca-joint", lr=0.2, warmup_lr=1e-4)
    same = (by_hand.path / "adapter.safetensors").read_bytes()
    assert (ten.path / "adapter.safetensors").read_bytes() == same


def test_softcpts_own_rates_can_be_given_to_another_method(quick, suite, toy):
    problem = problem_of(suite.tasks, toy)
    kernel = kernel_at_start(problem, 1)
    norms = quick("softcpt-nata").adapter.facts["task_feature_norms"]["start"]
    mean = sum(n**2 for n in norms.values()) / len(norms)
    train = resolve({"method": "coop-ca-joint", "lr_factor": "task-norms"}).training()
    assert rate_factor(train, problem, 1) == pytest.approx(mean, rel=1e-4)
    top = train.model_copy(update={"lr_factor": "top-eigenvalue"})
    assert rate_factor(top, problem, 1) == pytest.approx(float(torch.linalg.eigvalsh(kernel)[-1]))
    assert rate_factor(top, problem, 1) >= mean
    run = quick("coop-ca-joint", lr=0.002, lr_factor="task-norms")
    assert set(run.result["effective_rates"]["start"].values()) == {float(f"{0.002 * mean:.6g}")}
    assert run.adapter.settings.train.lr_factor == "task-norms"
    assert max(rates(run)) == pytest.approx(0.002 * mean, rel=1e-4)
    with pytest.raises(TypeError, match="needs the tasks"):
        train.optim(1)


def test_separate_trainings_can_take_as_many_steps_as_the_joint_one(quick):
    joint = quick("coop-ca-joint", batch_size=4)
    alike = quick("coop-ca", batch_size=4, joint_steps=True)
    lines = [json.loads(line) for line in (alike.path / "metrics.jsonl").read_text().splitlines()]
    per_task = Counter(line["part"] for line in lines)
    n_joint = len(rates(joint))
    counts = Counter(entry["task"] for entry in alike.adapter.facts["samples"]["train"])
    for task, n in per_task.items():
        per_epoch = max(1, counts[task] // 4)
        assert n_joint <= n < n_joint + per_epoch
    assert len(rates(quick("coop-ca", batch_size=4))) < sum(per_task.values())
    train = resolve({"method": "coop-ca", "joint_steps": "true", "batch_size": "8"}).training()
    assert joint_length(train, 4, 80, 20).epochs == math.ceil(50 * 10 / 2)


@pytest.mark.parametrize(
    ("method", "keys", "told"),
    [
        ("softcpt-nata", {"joint_steps": True}, "trains all tasks in one run"),
        ("coop-ca", {"weighting": "pcgrad"}, "trains each task on its own"),
        ("coop-ca", {"task_power": 0.5}, "trains each task on its own"),
        ("coop-mt", {"task_power": 0.5, "balance": "tasks"}, "with balance=tasks"),
        ("softcpt-nata", {"recipe": "published", "text_pull": 1.0}, "nothing of the kind"),
        ("softcpt-nata", {"recipe": "published", "meta": "mlp"}, "no meta network mlp"),
        ("softcpt-nata", {"task_context_length": 0, "freeze_task_context": True}, "no effect"),
    ],
)
def test_options_without_effect_or_precedent_are_refused(method, keys, told):
    with pytest.raises(ConfigError, match=told):
        resolve({"method": method, **keys})


def test_tasks_are_drawn_by_a_power_of_their_size():
    tasks = [0] * 60 + [1] * 30 + [2] * 10

    def shares(power):
        rng = np.random.default_rng(1)
        seen = np.concatenate(
            [batch for _ in range(60) for batch in epoch_batches(tasks, 10, rng, False, power)]
        )
        assert len(seen) == 60 * 100
        return np.bincount(np.asarray(tasks)[seen], minlength=3) / len(seen)

    assert shares(0.0) == pytest.approx([1 / 3] * 3, abs=0.03)
    assert shares(1.0) == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    roots = np.sqrt([60, 30, 10])
    assert shares(0.5) == pytest.approx(roots / roots.sum(), abs=0.03)
    [first, *_] = epoch_batches(tasks, 100, np.random.default_rng(2), False, 0.0)
    of_last = [i for i in first if tasks[i] == 2]
    assert max(Counter(of_last).values()) - min(Counter(of_last).values()) <= 1  # round its own images


def test_a_run_can_draw_its_tasks(quick):
    assert (quick(task_power=0.0).path / "adapter.safetensors").read_bytes() != (
        quick().path / "adapter.safetensors"
    ).read_bytes()


def test_the_dual_is_the_frozen_softcpt_from_the_same_command(quick, toy):
    keys = {"epochs": 3, "freeze_task_context": True, "lr": 0.002}
    linear = quick("softcpt-nata", **keys)
    del keys["freeze_task_context"]
    dual = quick("softcpt-dual", **keys)
    ours, theirs = (evaluate(run, backbone=toy) for run in (dual, linear))
    assert [p.predicted for p in ours.predictions] == [p.predicted for p in theirs.predictions]
    for a, b in zip(ours.predictions, theirs.predictions, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)
    n_tasks = len(ours.tasks)
    assert dual.result["n_learned"] == n_tasks * 16 * toy.text.width + 1
    assert linear.result["n_parameters"] == toy.embed_dim * 16 * toy.text.width
    assert dual.result["effective_rates"]["start"] == linear.result["effective_rates"]["start"]
    assert len(dual.result["report"]["kernel"]) == n_tasks


def test_a_seed_that_no_longer_gives_the_start_is_noticed(quick, toy):
    adapter = quick("softcpt-dual").adapter
    restore_classifier(adapter, toy)
    assert len(adapter.facts["regenerated"]["projection_sha256"]) == 64
    adapter.facts["regenerated"]["projection_sha256"] = "0" * 64
    with pytest.raises(AdapterError, match="made again from the seed"):
        restore_classifier(adapter, toy)


@pytest.mark.parametrize("head", ["ridge", "tip", "lp++"])
def test_prompts_with_a_head_train_and_come_back(quick, toy, head):
    run = quick("softcpt-nata", head=head)
    assert run.result["tuned"].keys() == {"shape", "colour", "number"}
    assert evaluate(run, backbone=toy).predictions
    assert run.result["effective_rates"]["start"]


@pytest.mark.parametrize("weighting", ["watch", "pcgrad", "gradnorm", "uncertainty"])
def test_a_run_reports_its_tasks_gradients(quick, weighting):
    report = quick("softcpt-nata", weighting=weighting, epochs=1).result["report"]["task_gradients"]
    key = {"gradnorm": "weights", "uncertainty": "log_variance"}.get(weighting, "cosines")
    assert len(report[key]) == 3


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("softcpt-basis", {}),
        ("softcpt-residual", {"residual_penalty": "inf"}),
        ("softcpt-span", {"span": "own", "span_size": 2}),
        ("softcpt-nata-separate", {}),
        ("softcpt-nata", {"meta": "mlp", "task_text": "vectors"}),
        ("softcpt-nata", {"meta": "lowrank", "freeze_down": True, "task_text": "shuffled"}),
        ("softcpt-dual", {"kernel": "rho", "share": 0.25, "text_pull": 1.0}),
    ],
)
def test_each_control_runs_is_stored_and_comes_back(quick, toy, method, keys):
    run = quick(method, epochs=1, **keys)
    assert evaluate(run, backbone=toy).predictions
    for key, value in keys.items():
        assert getattr(run.adapter.settings.own, key) == value
