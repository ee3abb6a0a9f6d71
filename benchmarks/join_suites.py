"""Join suites to one of all their tasks, in a folder of its own.

    python benchmarks/join_suites.py plants fashion aerial general --output all

A task is called ``<suite>_<task>``; its description, template, metric and classes stay what they were.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from softcpt.data.record import Suite
from softcpt.data.suite import load_suite


def join(suites: list[Suite], folder: Path) -> None:
    """Copy the images and write ``suite.yaml``, in the subset of YAML that is JSON."""
    tasks = []
    if len({suite.name for suite in suites}) < len(suites):
        raise SystemExit(f"suites need names of their own: {', '.join(suite.name for suite in suites)}")
    for suite in suites:
        if any(record.part or record.group for record in suite.records):
            raise SystemExit(f"{suite.name} gives parts or groups of its own, which would be lost")
    folder.mkdir(parents=True)
    for suite in suites:
        for t, task in enumerate(suite.tasks):
            name = f"{suite.name}_{task.name}"
            folders = {f"{label:03d}": class_name for label, class_name in enumerate(task.classes)}
            for label, place in enumerate(folders):
                (folder / name / place).mkdir(parents=True)
                for i, record in enumerate(suite.of_class(t, label)):
                    shutil.copyfile(record.path, folder / name / place / f"{i:05d}{record.path.suffix}")
            # A task without a description is known by its name, which is longer now.
            said = task.description or task.name.replace("_", " ")
            about = {"description": said, "template": task.template, "metric": task.metric}
            tasks.append({"name": name, **about, "classes": folders})
    text = json.dumps({"name": folder.name, "tasks": tasks}, indent=1, ensure_ascii=False)
    (folder / "suite.yaml").write_text(text, encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--output", type=Path, required=True, help="folder that is not there yet")
    asked = parser.parse_args()
    join([load_suite(source) for source in asked.suites], asked.output)


if __name__ == "__main__":
    main()
