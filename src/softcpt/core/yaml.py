"""YAML 1.2 in: plain values only, nothing is constructed, a key that stands twice is an error.

Version 1.2 matters: under 1.1 a class called ``no`` would be read as false.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


class YamlError(ValueError):
    """The text is not YAML; the message says where."""


def read_yaml(path: Path) -> Any:  # noqa: ANN401  whatever the file holds
    """The content of a YAML (or JSON) file.

    Raises:
        OSError: it cannot be opened.
        YamlError: it is not YAML, or not UTF-8.
    """
    reader = YAML(typ="safe", pure=True)
    try:
        return reader.load(path.read_text(encoding="utf-8-sig"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise YamlError(f"{place}{problem}") from error
    except UnicodeDecodeError as error:
        raise YamlError(f"is not UTF-8 text: {error.reason}") from error
