"""Comparisons known by name: the paper's ablations, and its main table beside the published figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from softcpt.compare.rows import Row
from softcpt.engine.config import keys_of
from softcpt.methods.registry import get_method, list_methods


@dataclass(frozen=True)
class Preset:
    """What a name stands for.

    Attributes:
        rows: of the table.
        shots: where none are given.
    """

    rows: Callable[[], list[Row]]
    shots: str


def ablation_rows() -> list[Row]:
    """The paper's ablations, one thing changed at a time, as far as there are settings for it."""
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("SoftCPT-NATA", "softcpt-nata", {}),
        ("context of 4", "softcpt-nata", {"context_length": "4"}),
        ("context of 8", "softcpt-nata", {"context_length": "8"}),
        ("name in the middle", "softcpt-nata", {"position": "middle"}),
        ("name in front", "softcpt-nata", {"position": "front"}),
        ("task names", "softcpt-nata", {"task_text": "name"}),
        ("random words for task texts", "softcpt-nata", {"task_text": "words"}),
        ("learned task features", "softcpt-star", {}),
        ("task context of 8", "softcpt-nata", {"task_context_length": "8"}),
        ("low rank", "softcpt-nata", {"meta": "lowrank"}),
        ("one hidden layer", "softcpt-nata", {"meta": "mlp"}),
        ("CATA, lin", "softcpt-cata", {}),
        ("CATA, linmean", "softcpt-cata", {"meta": "linmean"}),
        ("CATA, lincls", "softcpt-cata", {"meta": "lincls"}),
    ]
    known = {method.key for method in list_methods()}
    rows = [
        Row(method, tuple(sorted(settings.items())), name=name)
        for name, method, settings in asked
        if method in known and all(_takes(method, key, value) for key, value in settings.items())
    ]
    together = [
        Row("softcpt-nata", name=f"{n} tasks together" if n > 1 else "each task alone", together=n)
        for n in (1, 2, 4)
    ]
    return [*rows, *together]


def _takes(method: str, key: str, value: str) -> bool:
    entry = get_method(method)
    if key not in keys_of(entry):
        return False
    try:
        entry.config.model_validate({key: value})
    except ValueError:
        return False
    return True


PUBLISHED_TABLE = "published-table"

PUBLISHED = {
    "zero-shot": "ZS-CLIP",
    "protonet": "ProtoNet",
    "lp-clip": "LP-CLIP",
    "coop-ca": "CoOp-CA",
    "coop-cs": "CoOp-CS",
    "coop-mt": "CoOp-MT",
    "cocoop": "CoCoOp",
    "prograd": "ProGrad",
    "kgcoop": "KgCoOp",
    "plot": "PLOT",
    "softcpt-star": "SoftCPT*",
    "softcpt-nats": "SoftCPT-NATS",
    "softcpt-nata": "SoftCPT-NATA",
}
"""Method -> its name in the published table."""

PUBLISHED_SETTINGS = {
    "softcpt-nats": {"task_context_length": "8", "recipe": "published"},
    "softcpt-nata": {"task_context_length": "8", "recipe": "published"},
    "coop-mt": {"recipe": "published"},
}
"""What the published sizes and the published code's computation need."""


def published_rows() -> list[Row]:
    """The methods of the published table that there are."""
    known = {method.key for method in list_methods()}
    return [
        Row(key, tuple(sorted(PUBLISHED_SETTINGS.get(key, {}).items())), name=name)
        for key, name in PUBLISHED.items()
        if key in known
    ]


PRESETS = {
    "ablation": Preset(ablation_rows, "4"),
    PUBLISHED_TABLE: Preset(published_rows, "1,2,4,8,16"),
}
