"""Cut a small extract from a whole folder of reference numbers, for the tests that must never skip.

    python tests/golden/make_extract.py FULL_FOLDER

Keeps every JSON file's layout, with fewer entries, and the tensors those entries need.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

CASES = (
    "nata",
    "nats",
    "nata_words",
    "nata_no_task_context",
    "cata_linmean",
    "cata_frozen_class_context",
    "csta_middle_front",
    "cats_lincls",
    "cata_sampled",
    "coop_ca_two_tasks_in_batch",
    "coop_ca",
    "coop_cs_front",
    "coop_mt_words",
)
IN_DOUBLE = ("nata", "cata_sampled", "coop_ca")
TRAJECTORIES = ("nata.large", "cata.published", "coop_ca.published", "coop_mt.large")
COPIED = (
    "world.json",
    "clip_vit.safetensors",
    "encode_vit.safetensors",
    "metrics.json",
    "metrics.safetensors",
    "schedules.json",
    "sampler.json",
    "splits.json",
    "linear_probe.safetensors",
)
SEED_KEYS = ("seed1_shots1", "seed2_shots4", "seed3_shots16")


def main(full: Path, extract: Path) -> None:
    """Write the extract."""
    shutil.rmtree(extract, ignore_errors=True)
    for folder in ("cases", "trajectories"):
        (extract / folder).mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(full / name, extract / name)

    cases = read(full / "cases.json")
    cases["encode_texts"] = {"vit": cases["encode_texts"]["vit"]}
    cases["cases"] = {name: cases["cases"][name] for name in CASES}
    for name, case in cases["cases"].items():
        shutil.copyfile(full / "cases" / f"{name}.safetensors", extract / "cases" / f"{name}.safetensors")
        if name in IN_DOUBLE:
            shutil.copyfile(full / "cases" / case["float64"], extract / "cases" / case["float64"])
        else:
            case.pop("float64", None)
    write(extract / "cases.json", cases)

    trajectories = read(full / "trajectories.json")
    trajectories["runs"] = {name: trajectories["runs"][name] for name in TRAJECTORIES}
    for name in TRAJECTORIES:
        file = f"trajectories/{name}.safetensors"
        shutil.copyfile(full / file, extract / file)
    write(extract / "trajectories.json", trajectories)

    draws = read(full / "draws.json")
    for rule in ("one_list", "per_task_restart"):
        draws[rule] = {key: draws[rule][key] for key in SEED_KEYS}
    write(extract / "draws.json", draws)

    probe = read(full / "linear_probe.json")
    write(extract / "linear_probe.json", probe)
    write(extract / "text.json", read(full / "text.json")[::4])


def read(path: Path):
    return json.loads(path.read_text())


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "extract")
