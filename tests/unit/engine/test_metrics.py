"""Metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from softcpt.engine.metrics import class_recalls, mean_class_accuracy, overall_accuracy, task_score


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 5, 60), rng.integers(0, 5, 60)
    assert overall_accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    ours = mean_class_accuracy(labels, predicted, 5)
    assert ours == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_a_class_without_images_is_left_out_or_makes_nan():
    labels, predicted = np.array([0, 0, 2]), np.array([0, 1, 2])
    assert np.isnan(class_recalls(labels, predicted, 3)).tolist() == [False, True, False]
    assert mean_class_accuracy(labels, predicted, 3) == 0.75
    assert np.isnan(mean_class_accuracy(labels, predicted, 3, missing="nan"))


def test_the_metric_is_the_tasks_own():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert task_score("overall_acc", labels, predicted, 2) == 0.75
    assert task_score("mean_acc", labels, predicted, 2) == 0.5
