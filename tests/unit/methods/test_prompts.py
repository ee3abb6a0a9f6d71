"""Losses, prompts in pieces, zero-shot."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from softcpt.methods import prompts
from softcpt.methods.loss import cosine_logits, multitask_cross_entropy
from softcpt.methods.registry import get_method, list_methods


def test_the_loss_is_each_tasks_sum_divided_by_the_whole_batch():
    task_of_class = torch.tensor([0, 0, 0, 1, 1])
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, generator=generator)
    columns = torch.tensor([2, 3, 4, 0])
    by_hand = (
        F.cross_entropy(logits[[0, 3], :3], torch.tensor([2, 0]), reduction="sum")
        + F.cross_entropy(logits[[1, 2], 3:], torch.tensor([0, 1]), reduction="sum")
    ) / 4
    assert torch.allclose(multitask_cross_entropy(logits, columns, task_of_class), by_hand)


def test_no_logit_of_another_task_takes_part_in_the_loss():
    """A foreign logit that is multiplied by 0 would stay in the sum, as 1."""
    task_of_class = torch.tensor([0, 0, 0, 1, 1])
    logits = torch.full((1, 5), -20.0)
    alone = F.cross_entropy(logits[:, :3], torch.tensor([1]))
    for foreign in (-1e6, 0.0, 1e6):
        logits[0, 3:] = foreign
        assert torch.equal(multitask_cross_entropy(logits, torch.tensor([1]), task_of_class), alone)


def test_weights_scale_each_images_term():
    task_of_class = torch.tensor([0, 0])
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    columns = torch.tensor([0, 0])
    weighted = multitask_cross_entropy(logits, columns, task_of_class, weights=torch.tensor([2.0, 0.0]))
    alone = F.cross_entropy(logits[:1], columns[:1])
    assert torch.allclose(weighted, alone)


def test_cosine_logits_do_not_see_norms():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    assert torch.allclose(
        cosine_logits(features, weights, 7.0), cosine_logits(5 * features, 0.1 * weights, 7.0)
    )
    assert torch.allclose(
        cosine_logits(features, features, 7.0).diagonal(), torch.full((3,), 7.0, dtype=torch.float64)
    )


def test_prompts_encoded_in_pieces_are_the_same(problem, streams, monkeypatch):
    for key in ("coop-mt", "coop-cs-joint"):
        classifier = get_method(key).build(problem, get_method(key).config(context_length=3), streams)
        with torch.no_grad():
            whole = classifier.class_features()
            monkeypatch.setattr(prompts, "PROMPTS_AT_ONCE", 2)
            pieces = classifier.class_features()
        monkeypatch.undo()
        assert torch.allclose(whole, pieces, atol=1e-12)


def test_zero_shot_is_clip_on_the_written_prompt(problem, streams):
    classifier = get_method("zero-shot").build(problem, get_method("zero-shot").config(), streams)
    tokenizer, text = problem.tokenizer, problem.text
    ours = classifier.class_features()
    for column, prompt in (
        (1, "a leaf with black rot."),
        (4, "a photo of a long sleeved dress, a garment."),
        (7, "a photo of a crop land."),
    ):
        ids = torch.tensor([[tokenizer.sot, *tokenizer.encode(prompt), tokenizer.eot]])
        alone = text.encode(text.embed(ids), torch.tensor([ids.shape[1] - 1]))
        assert torch.allclose(ours[column], alone[0], atol=1e-12)


def test_text_behind_the_end_has_no_influence_and_full_length_changes_nothing(problem):
    text, tokenizer = problem.text, problem.tokenizer
    ids = [tokenizer.sot, *tokenizer.encode("a leaf."), tokenizer.eot]
    padded = torch.zeros(1, text.context_length, dtype=torch.long)
    padded[0, : len(ids)] = torch.tensor(ids)
    other = padded.clone()
    other[0, len(ids) :] = 5
    end = torch.tensor([len(ids) - 1])
    short = text.encode(text.embed(padded), end)
    assert torch.allclose(short, text.encode(text.embed(padded), end, full_length=True), atol=1e-12)
    assert torch.allclose(short, text.encode(text.embed(other), end, full_length=True), atol=1e-12)


@pytest.mark.parametrize("method", [m.key for m in list_methods() if m.trains])
def test_underscores_are_blanks_in_every_prompt_of_every_method(problem, streams, method):
    """In names of classes and of tasks, learned contexts before them or not."""

    def blank(name):
        return name.replace("_", " ")

    tasks = tuple(
        replace(t, name=blank(t.name), classes=tuple(map(blank, t.classes)), description=None)
        for t in problem.tasks
    )
    lined = tuple(
        replace(t, name=t.name.replace(" ", "_"), classes=tuple(c.replace(" ", "_") for c in t.classes))
        for t in tasks
    )
    assert lined != tasks
    entry = get_method(method)
    options = {"cocoop": {}, "kgcoop": {}, "prograd": {"context_length": 12}}.get(
        method, {"context_length": 3}
    )
    generator = torch.Generator().manual_seed(4)
    shape = (
        (2, 3, problem.text.embed_dim) if entry.image_features == "tokens" else (2, problem.text.embed_dim)
    )
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = (
            entry.build(replace(problem, tasks=own), entry.config(**options), streams).scorer()
            for own in (tasks, lined)
        )
        for t in range(3):
            assert torch.allclose(ours(features, t), theirs(features, t), rtol=0, atol=1e-9)
