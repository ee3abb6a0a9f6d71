"""Hand-written templates, alone and averaged."""

from dataclasses import replace

import pytest
import torch
from open_clip import zero_shot_metadata

from softcpt.clip.templates import IMAGENET_TEMPLATES, SELECTED_TEMPLATES
from softcpt.methods.registry import get_method
from softcpt.methods.zero_shot import _MORE, TemplateTexts, ZeroShot, mean_direction

ENSEMBLE = get_method("zero-shot-ensemble")


def test_an_ensemble_is_the_normalised_mean_of_normalised_features():
    one, other = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 1.0])
    found = mean_direction(torch.stack([one, other])[:, None])
    assert torch.allclose(found, torch.full((1, 2), 0.5**0.5))
    raw = (one + other) / (one + other).norm()
    assert not torch.allclose(found[0], raw, atol=0.1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SELECTED_TEMPLATES, zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES),
        (IMAGENET_TEMPLATES, zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES),
    ],
)
def test_templates_are_the_released_ones(ours, theirs):
    assert sorted(t.format("cat") for t in ours) == sorted(make("cat") for make in theirs)


def test_the_ensemble_averages_the_task_s_template_with_the_others(problem, streams):
    classifier = ENSEMBLE.build(problem, ENSEMBLE.config(), streams)
    parts = [ZeroShot(problem), *(ZeroShot(problem, t) for t in SELECTED_TEMPLATES)]
    unit = [torch.nn.functional.normalize(p.class_features(), dim=1) for p in parts]
    mean = torch.nn.functional.normalize(sum(unit), dim=1)
    assert torch.allclose(classifier.class_features(), mean, atol=1e-12)
    some = classifier.class_features(torch.tensor([2, 5]))
    assert torch.allclose(some, classifier.class_features()[[2, 5]], atol=1e-12)
    more = ENSEMBLE.build(problem, ENSEMBLE.config(templates="imagenet"), streams)
    assert not torch.allclose(more.class_features(), classifier.class_features(), atol=1e-4)


def test_building_again_adds_no_templates(problem):
    sizes = [len(TemplateTexts(problem, "selected").of_task(0)) for _ in range(3)]
    assert sizes == [8, 8, 8]


def test_templates_are_tuples():
    """A list could grow from one call to the next."""
    assert isinstance(SELECTED_TEMPLATES, tuple)
    assert isinstance(IMAGENET_TEMPLATES, tuple)
    assert set(map(type, _MORE.values())) == {tuple}


def test_underscores_in_names_are_blanks_in_every_template(problem):
    blank = [
        replace(t, classes=tuple(c.replace("_", " ") for c in t.classes), name=t.name) for t in problem.tasks
    ]
    other = replace(problem, tasks=tuple(blank))
    assert any("_" in c for t in problem.tasks for c in t.classes)
    for t in range(len(problem.tasks)):
        ours, theirs = (TemplateTexts(p, "selected").of_task(t) for p in (problem, other))
        assert torch.equal(ours, theirs)
