"""What decides about a cell's result, and the key made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from softcpt.core.files import digest_of_json
from softcpt.data.record import Suite
from softcpt.engine.config import Settings
from softcpt.methods.registry import package_of

RESULTS_VERSION = 1
"""Counts changes of the package after which the same cell would score differently."""


def suite_digest(suite: Suite) -> str:
    """Of all that a suite's results depend on: names, texts, metrics, and every image with its place."""
    return digest_of_json(
        {
            "name": suite.name,
            "tasks": [asdict(task) for task in suite.tasks],
            "images": [
                [record.relative, record.task, record.label, record.part, record.group, record.digest]
                for record in suite.records
            ],
        }
    )


def cell_identity(
    *,
    suite: str,
    backbone: str,
    settings: Settings,
    together: int | None,
    threads: int,
    device: str,
) -> dict[str, Any]:
    """Everything that changes the result of a cell.

    Args:
        suite: digest of its content.
        backbone: digest of its weights; under which name or path it was found does not count.
        settings: resolved, defaults included.
        together: tasks in one training, None for all.
        threads: of the computation; the last bits depend on them.
        device: its type.
    """
    values = {key: entry["value"] for key, entry in settings.stored().items()}
    package = package_of(settings.run.method)
    # Only where there is one, so that cells of our own methods are found under the keys they always had.
    outside = {} if package is None else {"package": [package.name, package.version]}
    return {
        "results": RESULTS_VERSION,
        "suite": suite,
        "backbone": backbone,
        "settings": {key: values[key] for key in sorted(values) if key not in ("backbone", "device")},
        "together": together,
        "threads": threads,
        "device": device,
        **outside,
    }


def key_of(identity: Mapping[str, Any]) -> str:
    """A short name that stands for the identity; 128 bits of its digest."""
    return digest_of_json(identity)[:32]
