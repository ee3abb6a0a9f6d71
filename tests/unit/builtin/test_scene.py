"""Scenes by chance, and what can be seen of them."""

import dataclasses

import numpy as np
import pytest

from softcpt.builtin.chance import bell, shuffled, weighted
from softcpt.builtin.scene import ATTRIBUTES, COUNTS, RADIUS, Scene, attributes_of, sample_scene, visible
from softcpt.builtin.scenes import HELD_OUT_TASKS, SCENE_TASKS


def test_a_scene_has_the_listed_attributes_and_takes_their_values():
    assert [field.name for field in dataclasses.fields(Scene)] == list(ATTRIBUTES)
    rng = np.random.default_rng(0)
    for _ in range(200):
        for name, value in attributes_of(sample_scene(rng)).items():
            assert value in ATTRIBUTES[name]


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_what_a_task_asks_for_can_be_seen_for_every_class(task):
    rng = np.random.default_rng(0)
    for value in SCENE_TASKS[task].classes:
        for _ in range(5):
            scene = sample_scene(rng, {task: value}, SCENE_TASKS[task].among)
            assert getattr(scene, task) == value
            assert task in visible(scene)
            for name, values in SCENE_TASKS[task].among.items():
                assert getattr(scene, name) in values


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_other_attributes_vary_inside_a_class(task):
    rng = np.random.default_rng(0)
    value = next(iter(SCENE_TASKS[task].classes))
    scenes = [sample_scene(rng, {task: value}, SCENE_TASKS[task].among) for _ in range(40)]
    for name in ("colour", "background_colour", "outline"):
        assert name == task or len({getattr(scene, name) for scene in scenes}) > 2


def test_tasks_ask_for_every_value_but_that_of_no_letter():
    for task, described in SCENE_TASKS.items():
        assert set(described.classes) == set(ATTRIBUTES[task]) - {""}
    assert set(HELD_OUT_TASKS) < set(SCENE_TASKS)
    assert COUNTS == {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
    assert set(RADIUS) == set(ATTRIBUTES["size"])


def test_unknown_and_impossible_values_are_refused(monkeypatch):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="colour cannot be"):
        sample_scene(rng, {"colour": "beige"})
    with pytest.raises(ValueError, match="smell cannot be"):
        sample_scene(rng, {"smell": "sweet"})
    monkeypatch.setattr("softcpt.builtin.scene._TRIES", 500)
    with pytest.raises(ValueError, match="no scene can show all of this"):
        sample_scene(rng, {"size": "tiny", "material": "wood"})


def test_choices_follow_their_weights_and_noise_its_moments():
    rng = np.random.default_rng(0)
    drawn = [weighted(rng, {"often": 3.0, "rarely": 1.0, "never": 0.0}) for _ in range(4000)]
    # 0.75 with a deviation of 0.007
    assert abs(drawn.count("often") / 4000 - 0.75) < 0.03
    assert "never" not in drawn
    noise = bell(rng, (200, 200))
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert sorted(shuffled(rng, range(9))) == list(range(9))
