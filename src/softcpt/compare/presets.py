"""Comparisons known by name: the paper's ablations, controls, and its main table beside the published one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from softcpt.compare.rows import Row
from softcpt.engine.config import keys_of
from softcpt.methods.registry import list_methods


@dataclass(frozen=True)
class Preset:
    """What a name stands for.

    Attributes:
        rows: of the table.
        shots: where none are given.
        settings: for all methods that know them, where nothing else is given.
    """

    rows: Callable[[], list[Row]]
    shots: str
    settings: Mapping[str, str] = field(default_factory=dict)


def ablation_rows() -> list[Row]:
    """The paper's ablations, one thing changed at a time."""
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
        # A rank of as many as there are tasks loses nothing, so that only small ones say something.
        *((f"low rank, {r}", "softcpt-nata", {"meta": "lowrank", "rank": r}) for r in ("1", "2", "8")),
        ("one hidden layer", "softcpt-nata", {"meta": "mlp"}),
        ("CATA, lin", "softcpt-cata", {}),
        ("CATA, linmean", "softcpt-cata", {"meta": "linmean"}),
        ("CATA, lincls", "softcpt-cata", {"meta": "lincls"}),
    ]
    rows = [Row(method, tuple(sorted(settings.items())), name=name) for name, method, settings in asked]
    together = [
        Row("softcpt-nata", name=f"{n} tasks together" if n > 1 else "each task alone", together=n)
        for n in (1, 2, 4)
    ]
    return [*rows, *together]


CONTROL_FACTORS = ("1", "3", "10", "30", "100")
"""Of the published rate, for every method of the controls."""


def control_rows() -> list[Row]:
    """What a gain of SoftCPT could come from instead of sharing (docs/beyond-the-paper.md)."""
    rates = [
        ("softcpt-nata", "SoftCPT-NATA"),
        ("softcpt-nata-separate", "SoftCPT-NATA, each task alone"),
        ("coop-mt", "CoOp-MT"),
        ("coop-ca-joint", "CoOp-CA, joint"),
        ("coop-ca", "CoOp-CA, each task alone"),
    ]
    asked: list[tuple[str, str, dict[str, str]]] = [
        (f"{name}, rate x{factor}" if factor != "1" else name, method, {"lr_factor": factor})
        for method, name in rates
        for factor in CONTROL_FACTORS
    ]
    asked += [
        ("CoOp-CA, joint, at SoftCPT's |z|^2", "coop-ca-joint", {"lr_factor": "task-norms"}),
        ("CoOp-CA, joint, at K's top eigenvalue", "coop-ca-joint", {"lr_factor": "top-eigenvalue"}),
        ("CoOp-CA, alone, as many steps as joint", "coop-ca", {"joint_steps": "true"}),
        ("CoOp-CA, joint, start x10", "coop-ca-joint", {"init_scale": "10"}),
        ("CoOp-CA, each task alone, start x10", "coop-ca", {"init_scale": "10"}),
        ("CoOp-MT, start x10", "coop-mt", {"init_scale": "10"}),
        ("SoftCPT-NATA, start x0.1", "softcpt-nata", {"init_scale": "0.1"}),
        ("SoftCPT-NATA, start x10", "softcpt-nata", {"init_scale": "10"}),
        ("SoftCPT-dual", "softcpt-dual", {"kernel": "published"}),
        ("SoftCPT-dual, K's diagonal", "softcpt-dual", {"kernel": "diagonal"}),
        ("SoftCPT-dual, K's top eigenvalue", "softcpt-dual", {"kernel": "diagonal-top"}),
        *(
            (f"SoftCPT-NATA, {text} task texts", "softcpt-nata", {"task_text": key})
            for text, key in _OTHER_TEXTS
        ),
        ("SoftCPT-NATA, published repeated steps", "softcpt-nata", {"repeated_steps": "published"}),
        *_OUR_CONTROLS,
    ]
    # A factor of 1 is the row itself.
    return [
        Row(method, tuple((k, v) for k, v in sorted(keys.items()) if (k, v) != ("lr_factor", "1")), name=name)
        for name, method, keys in asked
    ]


def rate_rows() -> list[Row]:
    """Every method that trains prompts: its rate times the factors, and its random start times ten."""
    rows = []
    for method in list_methods():
        if not method.trains or "lr_factor" not in keys_of(method):
            continue
        rows += [Row(method.key, () if f == "1" else (("lr_factor", f),)) for f in CONTROL_FACTORS]
        own = method.config.model_fields
        if "init_scale" in own:
            # Words are no random start: without them the method has one, and that alone is a row too.
            words = "init_words" in own and own["init_words"].default is not None and "task_text" not in own
            no_words = (("init_words", ""),) if words else ()
            rows += [Row(method.key, no_words)] if words else []
            rows.append(Row(method.key, (("init_scale", "10"), *no_words)))
    return rows


_OUR_CONTROLS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("CoOp-CA, joint, AdamW", "coop-ca-joint", {"optimizer": "adam"}),
    ("CoOp-CS, joint, AdamW", "coop-cs-joint", {"optimizer": "adam"}),
    ("CoOp-MT, AdamW", "coop-mt", {"optimizer": "adam"}),
    ("SoftCPT-NATA, AdamW at 0.00003", "softcpt-nata", {"optimizer": "adam", "lr": "0.00003"}),
    ("SoftCPT-rho", "softcpt-rho", {}),
    ("SoftCPT-rho, nothing shared", "softcpt-rho", {"share": "0"}),
    ("SoftCPT-rho, every step shared", "softcpt-rho", {"share": "1"}),
    ("SoftCPT+", "softcpt-plus", {}),
    ("SoftCPT+'s head on hand-written text", "logistic", {"tune": "task"}),
    ("SoftCPT-span", "softcpt-span", {}),
    ("SoftCPT-span, directions for each task", "softcpt-span", {"span": "own"}),
)
"""What a gain of our own methods could come from: the optimizer, the head, what is not shared."""


_OTHER_TEXTS = (
    ("other tasks'", "shuffled"),
    ("equal", "identical"),
    ("random words as", "words"),
    ("random vectors as", "vectors"),
)


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
    """The methods of the published table."""
    return [
        Row(key, tuple(sorted(PUBLISHED_SETTINGS.get(key, {}).items())), name=name)
        for key, name in PUBLISHED.items()
    ]


PRESETS = {
    "ablation": Preset(ablation_rows, "4"),
    "controls": Preset(control_rows, "4"),
    "rates": Preset(rate_rows, "4"),
    # The recipe would take images and views of its own: these are every row's.
    PUBLISHED_TABLE: Preset(published_rows, "1,2,4,8,16", {"draw": "product", "views": "16"}),
}
