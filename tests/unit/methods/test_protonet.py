"""Class means: by hand, against distances computed otherwise, and mixed with the text."""

import pytest
import torch

from softcpt.methods.heads import pooled, unit
from softcpt.methods.protonet import GAMMAS, TAUS, ProtoNet, ProtoNetConfig, prototypes


def scores(head, data, g=0, features=None):
    trials = head.explore(data, head.grid())
    return head.logits(
        trials.state(g), data.support.val if features is None else features, data.text, data.scale
    )


def test_a_prototype_is_the_mean_of_its_class_and_with_one_image_that_image():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    one_hot = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(prototypes(features, one_hot), torch.tensor([[0.5, 0.5], [3.0, 4.0]]))


def test_an_image_is_the_normalised_mean_of_its_views_as_they_are():
    views = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    assert torch.allclose(pooled(views), torch.tensor([[3.0, 1.0]]) / 10**0.5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_scores_are_nearness_to_the_means_computed_otherwise(task, distance, centred):
    data = task()
    head = ProtoNet(ProtoNetConfig(distance=distance, centred=centred))
    trained = unit(data.support.all_views.mean(1))
    origin = trained.mean(0) if centred else torch.zeros(8, dtype=torch.float64)
    means = torch.stack([(trained - origin)[data.labels == c].mean(0) for c in range(3)])
    images = unit(data.support.val) - origin
    if distance == "cosine":
        wanted = torch.nn.functional.cosine_similarity(images[:, None], means[None], dim=-1)
    else:
        wanted = -torch.cdist(images, means).square()
    assert torch.allclose(scores(head, data), TAUS[0] * wanted, atol=1e-9)


def test_with_wrong_labels_the_means_move_and_separable_images_are_guessed(task, support, given):
    own = support(noise=0.05)
    right = task(given=own)
    head = ProtoNet(ProtoNetConfig())
    shuffled = given(own.all_views, own.labels.roll(2), own.val, own.val_labels, own.centres)

    def accuracy(data):
        return float((scores(head, data).argmax(1) == own.val_labels).double().mean())

    assert accuracy(right) == 1
    moved = given(own.all_views, (own.labels + 1) % 3, own.val, own.val_labels, own.centres)
    assert accuracy(task(given=moved)) == 0
    assert not torch.equal(
        head.explore(right, [{"tau": 1.0}]).state(0)["prototypes"],
        head.explore(task(given=shuffled), [{"tau": 1.0}]).state(0)["prototypes"],
    )


def test_the_temperature_is_the_likeliest_on_val_and_changes_no_decision(task):
    data = task(noise=1.5)
    head = ProtoNet(ProtoNetConfig())
    trials = head.explore(data, head.grid())
    assert len(set(trials.scores[:, 0].tolist())) == 1
    rows = torch.arange(len(data.val_labels))
    for g in (0, 3):
        log_p = scores(head, data, g).log_softmax(1)[rows, data.val_labels]
        assert float(trials.scores[g, 1]) == pytest.approx(float(log_p.mean()))
    assert len({round(float(s), 6) for s in trials.scores[:, 1]}) == len(TAUS)


def test_mixed_with_no_weight_it_is_zero_shot_and_with_some_it_is_not(task):
    data = task(noise=1.5)
    head = ProtoNet(ProtoNetConfig(mix=True))
    grid = head.grid()
    assert len(grid) == len(GAMMAS) * len(TAUS)
    zero_shot = data.scale * data.val @ data.text.unit.T
    assert grid[0]["gamma"] == 0
    assert torch.allclose(scores(head, data, 0), zero_shot)
    some = next(g for g, setting in enumerate(grid) if setting == {"gamma": 3.0, "tau": 8.0})
    alone = ProtoNet(ProtoNetConfig())
    at_8 = next(g for g, setting in enumerate(alone.grid()) if setting["tau"] == 8.0)
    assert torch.allclose(scores(head, data, some), zero_shot + 3 * scores(alone, data, at_8))
