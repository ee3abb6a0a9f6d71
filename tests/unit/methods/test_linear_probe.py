"""The search of C, and the regression it tries."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from softcpt.methods.linear_probe import COARSE, LinearProbe, LinearProbeConfig, fit_logistic, search_c


def nothing(purpose):
    raise AssertionError("nothing is drawn")


def test_the_search_goes_between_the_coarse_values():
    """A peak at 10^0.7 by a score that tells every two values apart."""
    path = search_c(lambda c: -abs(np.log10(c) - 0.7), "published")
    assert len(path) == 8
    assert path[-1] not in COARSE
    assert abs(np.log10(path[-1]) - 0.7) < 0.02
    assert path[0] == 10.0


def test_equal_ends_go_left_and_equal_coarse_values_to_the_first():
    flat = search_c(lambda c: 0.5, "published")
    assert flat == pytest.approx([1e5] * 8)
    assert search_c(lambda c: 0.5, "regularised") == pytest.approx([1e-7] * 8)


def test_an_end_of_the_bracket_is_not_fitted_again(problem, support):
    probe = LinearProbe(problem.only(1), LinearProbeConfig())
    probe.fit([support(classes=2, dim=problem.text.embed_dim)], nothing)
    [own] = probe.tuned().values()
    assert own["fits"] <= 7 + 2 + 7


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_and_bias_give_scikit_learns_probabilities(support, classes):
    own = support(classes=classes, noise=1.0)
    features, labels = own.centres.numpy(), own.labels.numpy()
    weight, bias = fit_logistic(features, labels, classes, 0.3)
    logits = torch.from_numpy(own.val.numpy() @ weight.T + bias)
    theirs = LogisticRegression(C=0.3, max_iter=1000).fit(features, labels).predict_proba(own.val.numpy())
    assert np.allclose(logits.softmax(1).numpy(), theirs, atol=1e-9)


def fitted(problem, supports, **keys):
    probe = LinearProbe(problem, LinearProbeConfig(**keys))
    probe.fit(supports, nothing)
    return probe


def test_where_a_weak_c_overfits_the_chosen_one_is_better_on_val(problem, support):
    own = support(classes=3, dim=32, noise=0.8, val=30, seed=0, shots=8)
    [chosen] = fitted(problem.only(0), [own]).tuned().values()

    def val_accuracy(c):
        weight, bias = fit_logistic(own.centres.numpy(), own.labels.numpy(), 3, c)
        return float(((own.val.numpy() @ weight.T + bias).argmax(1) == own.val_labels.numpy()).mean())

    assert chosen["C"] != 1
    assert chosen["val_accuracy"] == pytest.approx(val_accuracy(chosen["C"]))
    assert chosen["val_accuracy"] > max(val_accuracy(1.0), val_accuracy(1e6))


def test_features_are_taken_as_they_are_and_only_the_centres(problem, support, given):
    own = support(classes=3, dim=problem.text.embed_dim, noise=1.0)
    wild = given(torch.randn_like(own.all_views), own.labels, own.val, own.val_labels, own.centres)
    unit = given(
        own.all_views,
        own.labels,
        own.val,
        own.val_labels,
        own.centres / own.centres.norm(dim=1, keepdim=True),
    )
    first, same, other = (fitted(problem.only(0), [s]).learned()["tasks.0.weight"] for s in (own, wild, unit))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_one_c_for_the_suite_follows_the_mean_of_the_tasks(problem, support):
    dim = problem.text.embed_dim
    supports = [
        support(classes=len(t.classes), dim=dim, noise=0.6, val=20, seed=i, shots=8)
        for i, t in enumerate(problem.tasks)
    ]
    suite, each = (fitted(problem, supports, tune=tune).tuned() for tune in ("suite", "task"))
    assert len({own["C"] for own in suite.values()}) == 1
    assert len({own["C"] for own in each.values()}) > 1
