"""The main job on real photographs with a trained backbone, where the shared folder is there."""

from pathlib import Path

import pytest

from softcpt import Predictor, evaluate, load_backbone, load_suite, train

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no shared folder beside the checkout")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(SHARED / "backbone")


@pytest.mark.parametrize(
    ("name", "tasks", "classes"),
    [("general", 6, 49), ("plants", 5, 28), ("aerial", 5, 41), ("fashion", 6, 41)],
)
def test_the_four_suites_load_whole(name, tasks, classes):
    suite = load_suite(SHARED / "data" / name, check_images=False)
    assert (len(suite.tasks), suite.n_classes) == (tasks, classes)
    assert not suite.notes


@pytest.mark.slow
def test_a_few_epochs_on_aerial_photographs_learn_more_than_chance(backbone, tmp_path):
    suite = load_suite(SHARED / "data" / "aerial")
    run = train(suite, backbone, tmp_path / "run", method="coop-mt", shots=2, epochs=4, views=2, lr=0.02)
    scored = evaluate(run, backbone=backbone)
    chance = sum(1 / len(task.classes) for task in suite.tasks) / len(suite.tasks)
    assert scored.score > 2 * chance
    assert 0.40 < scored.zero_shot < 0.50
    first = scored.predictions[0]
    (row,) = Predictor(run, backbone=backbone).predict(suite.root / first.image, tasks=[first.task])
    assert row.predictions[0][0] == first.predicted


@pytest.mark.slow
def test_plain_and_fast_text_encoder_train_to_the_same_predictions(backbone, tmp_path):
    """The same seeds: at most one test image a task is classified differently in fp32."""
    suite = load_suite(SHARED / "data" / "aerial")
    scored = {}
    for path in ("plain", "fast"):
        run = train(
            suite, backbone, tmp_path / path,
            method="softcpt-cata", shots=1, epochs=3, views=2, lr=0.02, text_encoder=path,
        )  # fmt: skip
        scored[path] = evaluate(run, backbone=backbone)
    for task in suite.tasks:
        both = [
            [row.predicted for row in scored[path].predictions if row.task == task.name]
            for path in ("plain", "fast")
        ]
        assert sum(a != b for a, b in zip(*both, strict=True)) <= 1
