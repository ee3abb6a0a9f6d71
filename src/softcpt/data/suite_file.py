"""``suite.yaml`` -> checked values: order, readable names, descriptions, templates and metrics."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import Node, ScalarNode

from softcpt.core.errors import Fault, nearest
from softcpt.core.names import normalise_name, prompt_words
from softcpt.data.record import DEFAULT_TEMPLATE, Metric

SUITE_FILE = "suite.yaml"
MAX_BYTES = 4_000_000  # a thousand classes need about 50 kB
MAX_DEPTH = 20  # ours need 4


def _shape_of_classes(value: object) -> str:
    return "list" if isinstance(value, list) else "mapping"


def _check_template(template: str) -> str:
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ValueError('needs exactly one "{}", where the class name goes')
    return template


class TaskEntry(BaseModel):
    """One task as ``suite.yaml`` describes it; ``classes`` maps folder names to readable names."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    description: str | None = None
    template: Annotated[str, AfterValidator(_check_template)] = DEFAULT_TEMPLATE
    metric: Metric = "overall_acc"
    classes: (
        Annotated[
            Annotated[dict[str, str | None], Tag("mapping")] | Annotated[list[str], Tag("list")],
            Discriminator(_shape_of_classes),
        ]
        | None
    ) = None

    def readable_names(self) -> dict[str, str] | None:
        """Folder name -> readable name in label order, or None where the folders are to be listed."""
        if self.classes is None:
            return None
        if isinstance(self.classes, list):
            return {name: name for name in self.classes}
        return {folder: folder if name is None else name for folder, name in self.classes.items()}


class SuiteFile(BaseModel):
    """The whole of ``suite.yaml``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str | None = None
    description: str | None = None
    tasks: Annotated[list[TaskEntry], Field(min_length=1)] | None = None
    source: Any = None  # where the pictures come from; for readers
    notes: Any = None

    def task_named(self, name: str) -> TaskEntry | None:
        """The entry of a task, if there is one."""
        return next((task for task in self.tasks or () if task.name == name), None)


def same_name_key(name: str) -> str:
    """Names with one key cannot be told apart once they stand in a prompt."""
    return " ".join(prompt_words(normalise_name(name)).split())


def read_suite_file(path: Path) -> tuple[SuiteFile | None, list[Fault]]:
    """The checked content of a ``suite.yaml``, and everything that is wrong with it.

    The content is None where any fault was found: half a description would reorder labels.
    """
    place = path.name
    try:
        if path.stat().st_size > MAX_BYTES:
            return None, [Fault(place, f"larger than {MAX_BYTES:,} bytes", "it should only hold names")]
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [Fault(place, f"not UTF-8 text (byte {error.start})", "save it as UTF-8")]
    except OSError as error:
        return None, [Fault(place, f"cannot be read: {error.strerror}", "check its permissions")]
    value, faults = _parse(text, place)
    if faults:
        return None, faults
    if not isinstance(value, dict):
        return None, [Fault(place, "holds no keys", f"known keys: {', '.join(SuiteFile.model_fields)}")]
    try:
        content = SuiteFile.model_validate(value)
    except ValidationError as error:
        return None, [_fault(entry, place) for entry in error.errors()]
    faults = list(_repeated_names(content, place))
    return (None, faults) if faults else (content, [])


class _TextConstructor(SafeConstructor):
    """YAML scalars as normalised text: a class may be called ``no``, ``007`` or ``1.10``; null stays None."""

    repeated: list[tuple[int, str]]

    def construct_text(self, node: ScalarNode) -> str:
        """The text of a scalar as it stands in the file."""
        return normalise_name(str(node.value))

    def check_mapping_key(
        self, node: Node, key_node: Node, mapping: dict[object, object], key: object, value: object
    ) -> bool:
        """Collect repeated keys instead of stopping at the first."""
        if isinstance(key, Hashable) and key in mapping:
            self.repeated.append((key_node.start_mark.line + 1, str(key)))
            return False
        return True


for _tag in ("str", "bool", "int", "float", "timestamp"):
    _TextConstructor.add_constructor(f"tag:yaml.org,2002:{_tag}", _TextConstructor.construct_text)


def _parse(text: str, place: str) -> tuple[object, list[Fault]]:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _TextConstructor
    yaml.constructor.repeated = []
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                # a few aliases of aliases describe more values than fit into memory
                line = event.start_mark.line + 1
                return None, [Fault(f"{place} line {line}", "an alias (*name)", "write the value out")]
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                return None, [Fault(place, f"nested deeper than {MAX_DEPTH} levels", "")]
        value = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{place} line {mark.line + 1}" if mark else place
        return None, [Fault(where, f"not YAML: {error.problem or error.context}", "mend the line")]
    except (YAMLError, ValueError) as error:
        return None, [Fault(place, f"not YAML: {str(error).splitlines()[0]}", "mend the file")]
    return value, [
        Fault(f"{place} line {line}", f'the key "{key}" stands twice', "remove or rename one")
        for line, key in yaml.constructor.repeated
    ]


_KNOWN = {
    "top": [*SuiteFile.model_fields],
    "task": [*TaskEntry.model_fields],
}


def _fault(error: ErrorDetails, place: str) -> Fault:
    """One pydantic error in our words."""
    steps = [step for step in error["loc"] if step not in ("mapping", "list", "[key]")]
    where = place
    if steps:
        where += ": " + re.sub(r"^\.", "", "".join(_step(step) for step in steps))
    match error["type"]:
        case "extra_forbidden":
            known = _KNOWN["task" if "tasks" in steps else "top"]
            return Fault(where, "unknown key", nearest(str(steps[-1]), known))
        case "missing":
            return Fault(where, "missing", "add it")
        case "literal_error":
            return Fault(where, f'unknown {steps[-1]} "{error["input"]}"', f"use {error['ctx']['expected']}")
        case "value_error":
            return Fault(
                where, f'"{error["input"]}": {error["ctx"]["error"]}', "for example: a photo of a {}."
            )
        case "too_short":
            return Fault(where, "no tasks", "name at least one, or leave the key out")
    quotes = "put it in quotes" if error["input"] is None else ""
    return Fault(where, f"{error['msg']}, not {_kind(error['input'])}", quotes)


def _step(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: f'"{value}"', type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _repeated_names(content: SuiteFile, place: str) -> Iterable[Fault]:
    """Faults of names: empty, or twice the same once they stand in a prompt."""
    if content.name == "":
        yield Fault(f"{place}: name", "empty", "give the suite a name, or leave the key out")
    first_place: dict[str, str] = {}
    for i, task in enumerate(content.tasks or ()):
        where = f"{place}: tasks[{i}]"
        key = same_name_key(task.name)
        if not key:
            yield Fault(f"{where}.name", "empty", "give the task the name of its folder")
        elif key in first_place:
            yield Fault(
                f"{where}.name", f'"{task.name}" is also the name of {first_place[key]}', "rename one of them"
            )
        first_place.setdefault(key, f"tasks[{i}]")
        yield from _repeated_folders(task, f"{where}.classes")


def _repeated_folders(task: TaskEntry, where: str) -> Iterable[Fault]:
    """Entries of ``classes`` that only differ in how their letters are encoded, or not at all."""
    entries: Iterable[str] = task.classes or ()
    seen: set[str] = set()
    for folder in entries:
        if folder in seen:
            yield Fault(where, f'"{folder}" stands twice', "remove one")
        seen.add(folder)
    if task.classes is not None and not task.classes:
        yield Fault(where, "no classes", "name at least two, or leave the key out")
