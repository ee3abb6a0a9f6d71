"""Every reference case of the published modules: logits, losses, gradients, intermediate values."""

from __future__ import annotations

import pytest
import torch
from reference import (
    PUBLISHED_OFFSET,
    assert_close,
    assert_scores,
    build,
    golden_folder,
    images,
    joined,
    problem,
    read_json,
    start_of,
    under,
)
from safetensors.torch import load_file

from softcpt.methods.base import TextPath
from softcpt.methods.class_sampling import sample_classes
from softcpt.methods.loss import cosine_logits
from softcpt.methods.softcpt import SoftCPT

CASES = read_json("cases.json")["cases"]


def batch_columns(world, tensors):
    first = torch.tensor(world.first_column)
    return first[tensors["task_ids"].long()] + tensors["class_ids"].long()


def check_case(name: str, file: str, dtype: torch.dtype, text_path: TextPath = "fast") -> None:
    folder, case = golden_folder(), CASES[name]
    reference = load_file(folder / "cases" / file)
    single = load_file(folder / "cases" / f"{name}.safetensors")
    classifier = build(folder, case, start_of(single), dtype, text_path)
    world = classifier.problem
    features = images(folder, case["clip"], dtype)[single["image_rows"].long()]
    columns = batch_columns(world, single)
    seed = case.get("sample_seed") or 0

    loss = classifier.loss(features, columns, rng=torch.Generator().manual_seed(seed))
    loss.backward()
    assert_scores(loss.detach(), reference["loss"].reshape(()), what=f"{name} loss")
    with torch.no_grad():
        if case.get("sample_seed") is not None:
            # Our own logits are those of the selected columns alone, in ascending order.
            selected = sample_classes(
                columns, world.task_of_class, classifier.sampling, torch.Generator().manual_seed(seed)
            )
            assert selected.tolist() == single["selected"].tolist()
            table = torch.full(
                (len(world.task_of_class), world.text.embed_dim), PUBLISHED_OFFSET, dtype=dtype
            )
            table[selected] += classifier.class_features(selected)
            logits = cosine_logits(features, table, world.logit_scale)
            ascending = selected.sort().values
            sampled = classifier.logits_among(ascending, features)
            assert_scores(sampled, reference["logits"][:, ascending], what="sampled logits")
            if "logits_full" in reference:
                assert_scores(classifier.logits(features), reference["logits_full"], what="logits_full")
        else:
            logits = classifier.logits(features)
        assert_scores(logits, reference["logits"], what=f"{name} logits")

    gradients = joined(under(reference, "grad."))
    assert gradients
    parameters = dict(classifier.named_parameters())
    for key, gradient in gradients.items():
        ours = parameters[key].grad
        ours = torch.zeros_like(parameters[key]) if ours is None else ours
        assert_close(ours, gradient, what=f"{name} gradient of {key}", scale=1e-4, floor=1e-7)
    check_intermediates(classifier, under(reference, "mid."))
    learned = sum(p.numel() for p in classifier.parameters())
    assert learned == case["n_learnable"]
    if "logits" in reference and dtype == torch.float64:
        assert float((logits - reference["logits"]).abs().max()) < 1e-10


def check_intermediates(classifier, mid) -> None:
    with torch.no_grad():
        assert_scores(classifier.class_features(), mid["text_features"], what="text features")
        if isinstance(classifier, SoftCPT):
            assert_scores(classifier.task_features(), mid["task_features"], what="task features")
            assert_scores(classifier.contexts(), mid["context"], what="contexts")
            if "class_features" in mid:
                assert_scores(classifier.name_features(), mid["class_features"], what="class features")


# A folder may hold no case in float64, or none with words: then there is nothing to compare, which is no
# reason to skip a test.
PRECISIONS = [(name, f"{name}.safetensors", torch.float32) for name in CASES]
PRECISIONS += [(name, case["float64"], torch.float64) for name, case in CASES.items() if "float64" in case]


@pytest.mark.parametrize(("name", "file", "dtype"), PRECISIONS)
def test_case_equals_the_published_modules(name, file, dtype):
    check_case(name, file, dtype)


@pytest.mark.parametrize(("name", "file", "dtype"), PRECISIONS[:1] + PRECISIONS[-1:])
def test_case_equals_the_published_modules_by_the_plain_encoder_too(name, file, dtype):
    check_case(name, file, dtype, "plain")


@pytest.mark.parametrize("name", CASES)
def test_words_start_contexts_as_published(name):
    folder, case = golden_folder(), CASES[name]
    start = under(load_file(folder / "cases" / f"{name}.safetensors"), "start.")
    keys = {"CTX_INIT": "context", "TASK_CTX_INIT": "task_context", "CLASS_CTX_INIT": "class_context"}
    world = problem(folder, case["clip"])
    for option, key in keys.items():
        words = case["options"].get(option)
        tensor = start.get(key, start.get(f"{key}.task0"))
        if words is None or tensor is None:
            continue
        ids = world.tokenizer.encode(words.replace("_", " "))
        if len(ids) != tensor.shape[-2]:
            continue  # the published code counts blanks, and cuts words of several tokens
        rows = world.text.embed(torch.tensor(ids)[None])[0]
        assert torch.equal(rows.expand_as(tensor), tensor)
