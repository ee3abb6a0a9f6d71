"""Files: written whole or not at all, digested, and never outside their folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO


def write_whole(path: Path, content: bytes | str) -> None:
    """Write ``content`` so that a reader sees the old file or the whole new one, never a part."""

    def put(temporary: Path) -> None:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)

    write_whole_with(path, put)


def write_whole_with(path: Path, put: Callable[[Path], object]) -> None:
    """As :func:`write_whole`, for writers that want a path: ``put`` fills a temporary neighbour."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        put(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def to_json(value: object) -> str:
    """JSON for a file: indented, key order kept, non-ASCII readable, NaN refused."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def digest_of_bytes(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of_json(value: Mapping[str, object]) -> str:
    """SHA-256 of the canonical JSON of a mapping (keys sorted)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return digest_of_bytes(text.encode())


def _sha256(file: BinaryIO) -> str:
    # hashlib.file_digest needs Python 3.11
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


_digests: dict[tuple[str, int, int], str] = {}


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes; remembered while its size and time of change stay the same."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = _sha256(file)
    return _digests[key]


def relative_part(text: str) -> PurePosixPath | None:
    """A path inside a folder, or None where it would leave it (absolute, drive, ``..``) or is empty."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or not path.parts or ".." in path.parts or ":" in path.parts[0] or "\0" in text:
        return None
    return path


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, links followed, lies in ``folder``."""
    return path.resolve().is_relative_to(folder.resolve())


def lock_file(descriptor: int) -> bool:
    """Lock an open file until it is closed; False where another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system: two writers are then not noticed
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
