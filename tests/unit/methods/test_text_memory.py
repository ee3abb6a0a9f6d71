"""``text_memory_gb``: what is not kept for the gradients is computed a second time, with the same result."""

from dataclasses import replace

import pytest
import torch

from softcpt.clip import text_shared
from softcpt.methods.registry import get_method


@pytest.fixture
def forwards(monkeypatch):
    """How many chunks went forward."""
    counted = []
    plain = text_shared.forward

    def counting(*args, **kwargs):
        counted.append(kwargs["save"])
        return plain(*args, **kwargs)

    monkeypatch.setattr(text_shared, "forward", counting)
    return counted


def test_less_memory_computes_again_and_changes_nothing(problem, streams, forwards):
    method = get_method("coop-ca-joint")
    features = torch.randn(6, problem.text.embed_dim, dtype=problem.dtype)
    columns = torch.arange(6) % len(problem.class_names)
    grads, counts = [], []
    for gigabytes in (3.0, 0.0):
        own = replace(problem, text_memory_gb=gigabytes)
        classifier = method.build(own, method.config(context_length=3), streams)
        forwards.clear()
        classifier.loss(features, columns, rng=torch.Generator()).backward()
        counts.append(len(forwards))
        grads.append(classifier.context.grad)
    assert counts[1] == 2 * counts[0]
    assert torch.equal(*grads)
