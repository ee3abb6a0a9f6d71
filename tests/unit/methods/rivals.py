"""What the tests of single methods share: building, published sizes, gradients by both text paths."""

from dataclasses import replace

import torch

from softcpt.methods.base import Problem, TaskNames
from softcpt.methods.registry import get_method

SUITES = {"general-10": (10, 1191), "plant-6": (6, 116), "rs-8": (8, 208), "fashion-20": (20, 78)}
"""Tasks and classes of the published suites."""


def build(problem, key, streams, **options):
    method = get_method(key)
    return method.build(problem, method.config(**options), streams)


def alone(problem, **changes):
    """A problem of its first task, changed."""
    one = problem.only(0)
    return replace(one, tasks=(replace(one.tasks[0], **changes),))


def count(backbone, key, streams, *, n_tasks=1, **options):
    """Numbers that a method learns, task by task where it is trained so; classes play no part."""
    tasks = tuple(TaskNames(f"task {t}", ("a", "b")) for t in range(n_tasks))
    problem = Problem(tasks, backbone.text, backbone.tokenizer, 100.0)
    parts = [problem.only(t) for t in range(n_tasks)] if get_method(key).separate else [problem]
    return sum(p.numel() for part in parts for p in build(part, key, streams, **options).parameters())


def gradients(classifier, batch):
    """The loss, and the gradients as a step would take them."""
    classifier.zero_grad(set_to_none=True)
    losses = classifier.losses(*batch, rng=torch.Generator())
    classifier.backward(losses)
    return losses[0].detach(), {name: p.grad.clone() for name, p in classifier.named_parameters()}


def assert_both_text_paths_agree(problem, key, streams, batch, **options):
    found = [
        gradients(build(replace(problem, text_path=path), key, streams, **options), batch)
        for path in ("fast", "plain")
    ]
    (loss, ours), (other, theirs) = found
    assert torch.allclose(loss, other, rtol=1e-11, atol=0)
    for name, gradient in theirs.items():
        assert gradient.any(), name
        assert float((ours[name] - gradient).abs().max()) <= 1e-10 * float(gradient.abs().max()), name
