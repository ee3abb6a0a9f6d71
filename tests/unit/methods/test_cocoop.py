"""CoCoOp: every image has prompts of its own."""

import pytest
import torch
from rivals import SUITES, assert_both_text_paths_agree, build, count

from softcpt.clip.tokens import put_context
from softcpt.clip.toy import toy_backbone
from softcpt.methods import cocoop


def scores(classifier, features):
    scorer = classifier.scorer()
    return torch.cat([scorer(features, task) for task in range(3)], dim=1)


def test_an_image_is_compared_with_texts_that_it_shifted_itself(problem, streams, batch):
    """By the plain encoder, prompt by prompt, from the formula."""
    classifier = build(problem, "cocoop", streams)
    found = scores(classifier, batch[0])
    text = problem.text
    inner, outer = classifier.inner_weight, classifier.outer_weight
    for i, feature in enumerate(batch[0][:3]):
        image = feature / feature.norm()
        shift = outer @ (inner @ image + classifier.inner_bias).clamp(min=0) + classifier.outer_bias
        context = (classifier.context + shift)[None].expand(len(classifier.prompts), -1, -1)
        rows = put_context(text.embed(classifier.prompts.ids), classifier.prompts.slot, context)
        weights = text.encode(rows, classifier.prompts.end)
        expected = problem.logit_scale * (weights / weights.norm(dim=1, keepdim=True)) @ image
        assert torch.allclose(found[i], expected, rtol=0, atol=1e-10)


def test_two_images_have_different_contexts_whatever_their_norms(problem, streams, batch):
    classifier = build(problem, "cocoop", streams)
    contexts = classifier.contexts(batch[0])
    assert not torch.allclose(contexts[0], contexts[1], atol=1e-4)
    assert torch.allclose(classifier.contexts(7 * batch[0]), contexts, rtol=0, atol=1e-13)
    shift = contexts - classifier.context
    assert torch.allclose(
        shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-13
    )  # the same for every vector


def test_without_a_shift_it_is_coop_with_that_context(problem, streams, batch):
    classifier = build(problem, "cocoop", streams)
    with torch.no_grad():
        classifier.outer_weight.zero_()
        classifier.outer_bias.zero_()
    coop = build(problem, "coop-mt", streams, init_words="a photo of a")
    assert torch.equal(coop.context, classifier.context)
    expected = coop.logits(batch[0]).detach()
    assert torch.allclose(scores(classifier, batch[0]), expected, rtol=0, atol=1e-10)
    losses = [c.loss(*batch, rng=torch.Generator()) for c in (classifier, coop)]
    assert torch.allclose(*losses, rtol=1e-12)


def test_the_shift_is_not_zero_at_the_start(problem, streams, batch):
    classifier = build(problem, "cocoop", streams)
    assert float(classifier.shifts(batch[0]).detach().abs().mean()) > 0.01
    bound = 1 / problem.text.embed_dim**0.5
    assert float(classifier.inner_weight.detach().abs().max()) <= bound


def test_the_loss_is_the_cross_entropy_of_the_scores(problem, streams, batch):
    features, columns = batch
    classifier = build(problem, "cocoop", streams)
    logits = scores(classifier, features)
    terms = []
    for row, column in zip(logits, columns, strict=True):
        block = problem.columns(int(problem.task_of_class[column]))
        terms.append(-row[block].log_softmax(0)[column - block.start])
    loss = classifier.loss(features, columns, rng=torch.Generator())
    assert torch.allclose(loss, torch.stack(terms).mean(), rtol=1e-11)
    weights = torch.linspace(0, 2, len(columns), dtype=torch.float64)
    weighted = classifier.loss(features, columns, rng=torch.Generator(), weights=weights)
    assert torch.allclose(weighted, (torch.stack(terms) * weights).mean(), rtol=1e-11)


def test_both_text_paths_give_the_same_loss_and_gradients(problem, streams, batch):
    assert_both_text_paths_agree(problem, "cocoop", streams, batch)


def test_scores_in_pieces_are_those_of_all_images_together(problem, streams, batch, monkeypatch):
    classifier = build(problem, "cocoop", streams)
    whole = scores(classifier, batch[0])
    seen = []
    true = cocoop.encode_prompts

    def count_texts(problem, prompts, context, owner, selected):
        seen.append(len(selected))
        return true(problem, prompts, context, owner, selected)

    monkeypatch.setattr(cocoop, "TEXTS_AT_ONCE", 8)
    monkeypatch.setattr(cocoop, "encode_prompts", count_texts)
    assert torch.allclose(scores(classifier, batch[0]), whole, rtol=0, atol=1e-10)
    assert max(seen) <= 8
    assert sum(seen) == whole.numel()


@pytest.mark.parametrize(("suite", "published"), [("general-10", 1_009_280), ("rs-8", 807_424)])
def test_counts_are_the_published_ones(resnet50_sized, streams, suite, published):
    assert count(resnet50_sized, "cocoop", streams, n_tasks=SUITES[suite][0]) == published


def test_the_count_of_a_vit_b_is_the_formula_s(streams):
    assert count(toy_backbone(embed_dim=512, text_width=512, text_layers=1), "cocoop", streams) == 35_360
