"""JSON files of ours: a format number to refuse what is newer, a digest to notice what was changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softcpt.core.errors import AdapterError, Fault
from softcpt.core.files import digest_of_json, to_json, write_whole

FORMAT = 1


def write_signed(path: Path, content: dict[str, Any]) -> str:
    """Write ``content`` whole, with its format and digest.

    Returns:
        The digest.
    """
    body = {"format": FORMAT, **content}
    digest = digest_of_json(body)
    write_whole(path, to_json({**body, "digest": digest}))
    return digest


def read_signed(path: Path) -> dict[str, Any]:
    """The content of a signed file.

    Raises:
        AdapterError: it is missing, truncated, newer than we can read, or was changed since it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _fault(path, "cannot be read: " + (error.strerror or str(error)), "train again") from error
    except (ValueError, RecursionError) as error:
        raise _fault(path, "is not JSON; it was truncated or edited", "restore it, or train again") from error
    if not isinstance(content, dict) or "digest" not in content:
        raise _fault(path, "is no file of a softcpt run", "restore it, or train again")
    if content.get("format") != FORMAT:
        what = f"has format {content.get('format')!r}; this version reads {FORMAT}"
        raise _fault(path, what, "use the version of softcpt that wrote it")
    digest = content.pop("digest")
    if digest_of_json(content) != digest:
        raise _fault(path, "was edited or damaged after the run wrote it", "restore it, or train again")
    return content


def _fault(path: Path, what: str, fix: str) -> AdapterError:
    return AdapterError(Fault(str(path), what, fix), about="the run's files")
