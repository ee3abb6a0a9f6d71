"""Before a run: counts, prompts and cost, and every fault at once."""

import pytest

from softcpt.core.errors import SoftCPTError
from softcpt.engine.check import check_suite, show_prompt
from softcpt.engine.loop import n_steps
from softcpt.engine.optim import OptimSpec


def test_a_report_counts_images_and_shows_prompts_as_they_will_be_built(suite, toy):
    report = check_suite(suite, backbone=toy, overrides={"shots": "3", "position": "middle"})
    task = report.tasks[0]
    assert (task.n_classes, task.n_images) == (len(suite.tasks[0].classes), 12 * len(suite.tasks[0].classes))
    assert sum(task.n_parts.values()) == task.n_images
    assert task.n_drawn == {"train": 3 * task.n_classes, "val": 2 * task.n_classes}
    first = suite.tasks[0].classes[0]
    assert task.class_prompt == f"[8 learned] {first} [8 learned] ."
    assert task.zero_shot_prompt == suite.tasks[0].template.replace("{}", first)
    assert task.task_prompt.startswith("[4 learned] ")


def test_the_cost_counts_steps_and_views(suite, toy):
    report = check_suite(suite, backbone=toy, overrides={"shots": "3", "epochs": "5", "batch_size": "4"})
    n = sum(task.n_drawn["train"] for task in report.tasks)
    assert report.cost.steps == 5 * (n // 4)
    assert report.cost.views == 5 * n
    assert report.cost.train_s > 0
    assert report.cost.memory_bytes > 0
    assert report.cost.n_learned == 4 * toy.text_width + toy.embed_dim * 16 * toy.text_width
    alone = check_suite(suite, backbone=toy, overrides={"method": "coop-ca", "shots": "3", "epochs": "5"})
    assert alone.cost.steps == 5 * len(suite.tasks)


def test_zero_shot_costs_no_training(suite, toy):
    cost = check_suite(suite, backbone=toy, overrides={"method": "zero-shot"}).cost
    assert (cost.steps, cost.train_s, cost.n_learned) == (0, 0, 0)


def test_a_fitted_method_costs_its_views_and_no_steps(suite, toy):
    cost = check_suite(
        suite, backbone=toy, overrides={"method": "tip-adapter-f", "shots": 2, "views": 3}
    ).cost
    n_images = 2 * sum(len(task.classes) for task in suite.tasks)
    assert (cost.steps, cost.views) == (0, 3 * n_images)
    assert cost.train_s > 0
    assert cost.n_learned == n_images * (toy.embed_dim + 1) + 2 * len(suite.tasks)
    assert cost.evaluate_s > 0


def test_faults_of_options_images_and_names_come_out_together(own_suite, toy):
    (own_suite / "suite.yaml").unlink()
    bad = sorted(own_suite.glob("colour/*/*.png"))[0]
    bad.write_bytes(b"nothing")
    for path in (own_suite / "number").glob("*/*.png"):
        path.unlink()
    with pytest.raises(SoftCPTError) as caught:
        check_suite(own_suite, backbone=toy, overrides={"epoch": "3"})
    text = str(caught.value)
    assert "epoch" in text
    assert bad.relative_to(own_suite).as_posix() in text
    assert "number" in text


@pytest.mark.parametrize(
    ("position", "n", "shown"),
    [
        ("end", 16, "[16 learned] apple scab."),
        ("middle", 5, "[2 learned] apple scab [3 learned] ."),
        ("front", 4, "apple scab [4 learned] ."),
        ("end", 0, "apple scab."),
    ],
)
def test_learned_tokens_are_shown_where_they_stand(position, n, shown):
    assert show_prompt("apple_scab", n, position) == shown


def test_the_last_partial_batch_is_dropped_unless_it_is_the_only_one():
    spec = OptimSpec(epochs=3)
    assert n_steps(spec, 70, 32) == 6
    assert n_steps(spec, 31, 32) == 3
