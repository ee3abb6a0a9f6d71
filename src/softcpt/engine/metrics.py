"""Scores of predictions, as fractions. Pure functions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from numpy import ndarray


def class_recalls(labels: Int[ndarray, " N"], predicted: Int[ndarray, " N"], n_classes: int) -> ndarray:
    """Share of right images of each class [C]; NaN where a class has no image.

    Example:
        >>> class_recalls(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
        array([0.5, 1. ])
    """
    counts = np.bincount(labels, minlength=n_classes)
    right = np.bincount(labels[labels == predicted], minlength=n_classes)
    recalls: ndarray = np.divide(right, counts, out=np.full(n_classes, np.nan), where=counts > 0)
    return recalls


def overall_accuracy(labels: Int[ndarray, " N"], predicted: Int[ndarray, " N"]) -> float:
    """Share of right images; NaN without images."""
    return float(np.mean(labels == predicted)) if len(labels) else float("nan")


def mean_class_accuracy(
    labels: Int[ndarray, " N"],
    predicted: Int[ndarray, " N"],
    n_classes: int,
    *,
    missing: Literal["leave out", "nan"] = "leave out",
) -> float:
    """Unweighted mean over classes of their share of right images.

    Args:
        labels: true classes.
        predicted: decisions.
        n_classes: of the task.
        missing: a class without images is left out of the mean, or makes it NaN (as published).

    Example:
        >>> mean_class_accuracy(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
        0.75
    """
    recalls = class_recalls(labels, predicted, n_classes)
    if missing == "leave out":
        recalls = recalls[~np.isnan(recalls)]
    return float(np.mean(recalls)) if len(recalls) else float("nan")


def task_score(
    metric: str,
    labels: Int[ndarray, " N"],
    predicted: Int[ndarray, " N"],
    n_classes: int,
    *,
    missing: Literal["leave out", "nan"] = "leave out",
) -> float:
    """The task's own metric: ``overall_acc`` or ``mean_acc``."""
    if metric == "mean_acc":
        return mean_class_accuracy(labels, predicted, n_classes, missing=missing)
    return overall_accuracy(labels, predicted)
