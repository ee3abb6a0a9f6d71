"""Image features on disk, in one SQLite file, shared by all runs of a user.

An entry is the feature of one view of one image by one encoder. It bears a mark over its key and its bytes,
so that damage shows; what is damaged is dropped, and computed again by whoever asked. Several processes may
use the file at once. Nothing a run needs depends on it: whatever the disk does, the worst is a warning and
features that are computed again.

Imports neither torch nor numpy: the command that looks at the cache has to answer at once.
"""

from __future__ import annotations

import errno
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

Key = tuple[str, int]
"""An image's digest (SHA-256 in hexadecimal) and a view's number."""

FILE = "features.sqlite3"
ASIDE = "features.damaged.sqlite3"
"""A damaged file, or one that is not ours, until the next one takes its place or the cache is cleared."""
LOCK = "features.lock"

WAIT_S = 60.0
"""How long another process may keep the file to itself; a piece takes it for milliseconds."""

USE_IS_NEWS_S = 3600.0
"""The last use of an image is written when it is this much later: reading should not mean writing."""

_APPLICATION = 0x73435054  # "sCPT"
_FORMAT = 1
_PAGE_BYTES = 16384  # of 4096 a page would hold one feature of 512 numbers, and be half empty
_SCHEMA = """
CREATE TABLE encoders (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
CREATE TABLE images (
  id INTEGER PRIMARY KEY, encoder INTEGER NOT NULL, digest BLOB NOT NULL, used INTEGER NOT NULL,
  UNIQUE (encoder, digest)
);
CREATE INDEX images_by_use ON images (used);
CREATE TABLE features (
  image INTEGER NOT NULL, view INTEGER NOT NULL, vector BLOB NOT NULL, mark BLOB NOT NULL,
  UNIQUE (image, view)
);
"""

_FIND = """
SELECT i.id, f.vector, f.mark FROM images i JOIN features f ON f.image = i.id
WHERE i.encoder = ? AND i.digest = ? AND f.view = ?
"""
_LIST = """
SELECT e.key, e.name, count(*), sum(entries), max(used) FROM encoders e JOIN (
  SELECT i.encoder, i.used, (SELECT count(*) FROM features f WHERE f.image = i.id) AS entries FROM images i
) ON encoder = e.id GROUP BY e.id ORDER BY max(used) DESC, e.id
"""
_ENTRY_BYTES = 100  # of key, mark and index
_IMAGES_AT_ONCE = 256  # taken out in one transaction
_ATTEMPTS = 3

logger = logging.getLogger("softcpt")


@dataclass(frozen=True)
class Encoder:
    """Who made a feature.

    Attributes:
        name: the backbone's, for people; not part of the identity.
        digest: of its weights.
        precision: they ran at.
        size_px: of its pictures.
        dim: D, numbers of a feature; of an image with its regions, of all of them.
        details: whatever else decides about the numbers; JSON.
    """

    name: str = field(compare=False)
    digest: str
    precision: str
    size_px: int
    dim: int
    details: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """The identity as canonical JSON."""
        own = {name: value for name, value in asdict(self).items() if name != "name"}
        return json.dumps(own, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Kept:
    """What the cache holds of one encoder.

    Attributes:
        backbone: its name.
        digest: of its weights.
        precision: they ran at.
        size_px: of its pictures.
        device: type of what it ran on.
        images: different ones.
        entries: views of them.
        feature_bytes: of all entries.
        last_used: seconds since 1970, to the hour.
    """

    backbone: str
    digest: str
    precision: str
    size_px: int
    device: str
    images: int
    entries: int
    feature_bytes: int
    last_used: int


class FeatureCache:
    """The features in a folder; opened when first used, and to be closed.

    Args:
        folder: made if it is not there.
        limit_bytes: the most the file may take; the images used least recently go first, those of this
            process never.
        now: the time, in seconds since 1970.
    """

    def __init__(self, folder: Path, limit_bytes: int, now: Callable[[], float] = time.time) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._now = now
        self._open: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._reads = self._writes = True
        self._error: Exception | None = None
        self._told: set[str] = set()

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; the cache can be used again."""
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
        self._open = None

    def get(self, encoder: Encoder, keys: Sequence[Key]) -> dict[Key, bytes]:
        """Those features that are there and sound: 4 D bytes each, little-endian float32."""
        if not keys or (self._open is None and not self.path.exists()):
            return {}
        found: dict[Key, bytes] = {}
        bad: list[Key] = []

        def read(database: sqlite3.Connection) -> None:
            found.clear()
            bad.clear()
            with _transaction(database, "DEFERRED"):
                number = _number(database, encoder)
                for key in keys if number is not None else ():
                    row = database.execute(_FIND, (number, bytes.fromhex(key[0]), key[1])).fetchone()
                    if row is None:
                        continue
                    image, vector, mark = row
                    if not _is_sound(encoder, key, vector, mark):
                        bad.append(key)
                        continue
                    found[key] = vector
                    database.execute("INSERT OR IGNORE INTO mine VALUES (?)", (image,))

        if not self._do(read):
            return {}
        self.drop(encoder, bad)
        if found:
            self._do(self._note_use, writes=True)
        return found

    def put(self, encoder: Encoder, features: Mapping[Key, bytes]) -> None:
        """Keep features, in one transaction: all of them or, where the disk refuses, none."""

        def write(database: sqlite3.Connection) -> None:
            needed = sum(len(vector) + _ENTRY_BYTES for vector in features.values())
            if not self._make_room(database, self.limit_bytes - needed):
                self._writes = False
                self._tell(
                    f"{self.path} is full with what this run needs, and keeps no more of it "
                    "(SOFTCPT_CACHE_LIMIT sets its size)"
                )
                return
            with _transaction(database, "IMMEDIATE"):
                database.execute(
                    "INSERT OR IGNORE INTO encoders (key, name) VALUES (?, ?)", (encoder.key, encoder.name)
                )
                number = _number(database, encoder)
                for key, vector in features.items():
                    image = (number, bytes.fromhex(key[0]))
                    database.execute(
                        "INSERT OR IGNORE INTO images (encoder, digest, used) VALUES (?, ?, ?)",
                        (*image, int(self._now())),
                    )
                    [own] = database.execute(
                        "SELECT id FROM images WHERE encoder = ? AND digest = ?", image
                    ).fetchone()
                    database.execute("INSERT OR IGNORE INTO mine VALUES (?)", (own,))
                    database.execute(
                        "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)",
                        (own, key[1], vector, _mark(encoder, key, vector)),
                    )

        if features:
            self._do(write, writes=True)

    def drop(self, encoder: Encoder, keys: Sequence[Key]) -> None:
        """Take out entries that turned out to be damaged, and say so once."""

        def write(database: sqlite3.Connection) -> None:
            with _transaction(database, "IMMEDIATE"):
                number = _number(database, encoder)
                database.executemany(
                    "DELETE FROM features WHERE view = ? AND image = "
                    "(SELECT id FROM images WHERE encoder = ? AND digest = ?)",
                    [(view, number, bytes.fromhex(digest)) for digest, view in keys],
                )

        if keys:
            self._tell(f"{self.path} holds damaged features; they are computed again")
            self._do(write, writes=True)

    def contents(self) -> list[Kept]:
        """What is kept, by encoder; those used last come first.

        Raises:
            OSError: the file cannot be read.
        """
        found: list[Kept] = []

        def read(database: sqlite3.Connection) -> None:
            found.clear()
            found.extend(_kept(*row) for row in database.execute(_LIST).fetchall())

        if self.path.exists() and not self._do(read):
            raise self._refused()
        return found

    def bytes_on_disk(self) -> int:
        """Of the file, and of a damaged one that was put aside."""
        return _n_bytes(self.path) + _n_bytes(self.folder / ASIDE)

    def clear(self, encoders: Sequence[Kept] | None = None, unused_since: float | None = None) -> None:
        """Take out entries, and make the file smaller.

        Args:
            encoders: only theirs; None for all.
            unused_since: only of images that were not used since, in seconds since 1970.

        Raises:
            OSError: the file cannot be written.
        """
        before = self._now() + 1 if unused_since is None else unused_since
        digests = None if encoders is None else {(kept.digest, kept.backbone) for kept in encoders}

        def write(database: sqlite3.Connection) -> None:
            rows = database.execute("SELECT id, key, name FROM encoders").fetchall()
            for number, key, name in rows:
                if digests is not None and (_described(key)["digest"], name) not in digests:
                    continue
                while images := database.execute(
                    "SELECT id FROM images WHERE encoder = ? AND used < ? LIMIT ?",
                    (number, before, _IMAGES_AT_ONCE),
                ).fetchall():
                    _remove(database, images)
            with _transaction(database, "IMMEDIATE"):
                database.execute("DELETE FROM encoders WHERE id NOT IN (SELECT encoder FROM images)")

        if self.path.exists() and not self._do(write, writes=True):
            raise self._refused()
        if encoders is None and unused_since is None:
            (self.folder / ASIDE).unlink(missing_ok=True)

    def shrink(self, to_bytes: int) -> None:
        """Take out the images used least recently until no more than this is left on the disk.

        Raises:
            OSError: the file cannot be written.
        """
        if self.path.exists() and not self._do(lambda d: self._make_room(d, to_bytes), writes=True):
            raise self._refused()

    def _make_room(self, database: sqlite3.Connection, most_bytes: int) -> bool:
        """Take out what is not ours, the longest unused first; whether the file is then small enough."""
        while (size := _size(database) + _n_bytes(self.folder / ASIDE)) > most_bytes:
            if (self.folder / ASIDE).exists():
                (self.folder / ASIDE).unlink()
                continue
            [n_images] = database.execute("SELECT count(*) FROM images").fetchone()
            share = (size - most_bytes) / size
            images = database.execute(
                "SELECT id FROM images WHERE id NOT IN (SELECT id FROM mine) ORDER BY used, id LIMIT ?",
                (max(1, min(_IMAGES_AT_ONCE, int(n_images * share))),),
            ).fetchall()
            if not images:
                return False
            _remove(database, images)
        return True

    def _note_use(self, database: sqlite3.Connection) -> None:
        now = int(self._now())
        old = (now - USE_IS_NEWS_S,)
        [is_news] = database.execute(
            "SELECT EXISTS (SELECT 1 FROM images WHERE used < ? AND id IN (SELECT id FROM mine))", old
        ).fetchone()
        if is_news:
            with _transaction(database, "IMMEDIATE"):
                database.execute(
                    "UPDATE images SET used = ? WHERE used < ? AND id IN (SELECT id FROM mine)", (now, *old)
                )

    def _do(self, work: Callable[[sqlite3.Connection], object], *, writes: bool = False) -> bool:
        """Do something with the file, again if it had to be replaced; False where it cannot be done.

        After that nothing of the kind is tried again.
        """
        if not self._reads or (writes and not self._writes):
            return False
        for _ in range(_ATTEMPTS):
            error = self._tried(work)
            if error is None:
                return True
            self._error = error
            if not self._is_mended(error):
                break
        self._writes = False
        self._reads = self._reads and writes
        self._tell(
            f"{self.path} cannot be {'written' if writes else 'read'} ({self._error}); going on without"
        )
        return False

    def _tried(self, work: Callable[[sqlite3.Connection], object]) -> Exception | None:
        """What the disk said against it."""
        try:
            work(self._database())
        except sqlite3.ProgrammingError:
            raise  # ours, not the disk's
        except (sqlite3.Error, OSError) as error:
            return error
        return None

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A journal that is rolled back, not a write-ahead log: that needs memory which all processes
            # share, and there is none between machines that see one network folder.
            database = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
            self._inode = _inode(self.path)
            try:
                _prepare(database)
            except BaseException:
                database.close()
                raise
            self._open = database
        return self._open

    def _is_mended(self, error: Exception) -> bool:
        """Whether it is worth while to open the file again: it is another one by now."""
        opened, self._inode = self._inode, None
        self.close()
        if opened is None:
            return False
        try:
            if opened == _inode(self.path) and not _is_damage(error):
                return False
            with _alone(self.folder / LOCK):
                if opened == _inode(self.path):  # else another process was quicker
                    # A journal left behind would be rolled back into the next file.
                    self.path.with_name(f"{FILE}-journal").unlink(missing_ok=True)
                    self.path.replace(self.folder / ASIDE)
                    self._tell(f"{self.path} is damaged ({error}); it is put aside and built anew")
        except OSError:
            return False
        return True

    def _tell(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            logger.warning("the cache of image features: %s", warning)

    def _refused(self) -> OSError:
        return OSError(errno.EIO, str(self._error), str(self.path))


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables of a new file.

    Raises:
        sqlite3.Error: the file is damaged or not ours.
    """
    database.execute("PRAGMA synchronous = NORMAL")  # losing the last features with the power is no loss
    database.execute("PRAGMA temp_store = MEMORY")
    if _kind(database) != (_APPLICATION, _FORMAT):
        # Both only before anything is written; said again, the second would write.
        database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with _transaction(database, "IMMEDIATE"):
            kind = _kind(database)  # again: another process may have made them
            [n_tables] = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if kind == (0, 0) and not n_tables:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                database.execute(f"PRAGMA user_version = {_FORMAT}")
            elif kind != (_APPLICATION, _FORMAT):
                raise sqlite3.DatabaseError("it is of another kind")
    database.execute("CREATE TEMP TABLE mine (id INTEGER PRIMARY KEY)")


def _kind(database: sqlite3.Connection) -> tuple[int, int]:
    [application] = database.execute("PRAGMA application_id").fetchone()
    [version] = database.execute("PRAGMA user_version").fetchone()
    return application, version


@contextmanager
def _transaction(database: sqlite3.Connection, kind: str) -> Iterator[None]:
    database.execute(f"BEGIN {kind}")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time, where the system has such locks; elsewhere one of two new files stays."""
    with file.open("a") as lock:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield


def _number(database: sqlite3.Connection, encoder: Encoder) -> int | None:
    row = database.execute("SELECT id FROM encoders WHERE key = ?", (encoder.key,)).fetchone()
    return None if row is None else row[0]


def _mark(encoder: Encoder, key: Key, vector: bytes) -> bytes:
    """Ties bytes to what they are said to be; against accidents, not against forgers."""
    return blake2b(f"{encoder.key} {key[0]} {key[1]} ".encode() + vector, digest_size=8).digest()


def _is_sound(encoder: Encoder, key: Key, vector: object, mark: object) -> bool:
    if not isinstance(vector, bytes) or len(vector) != 4 * encoder.dim:
        return False
    return mark == _mark(encoder, key, vector)


def _remove(database: sqlite3.Connection, images: Sequence[tuple[int]]) -> None:
    """Take images out, and give their room back to the disk."""
    with _transaction(database, "IMMEDIATE"):
        database.executemany("DELETE FROM features WHERE image = ?", images)
        database.executemany("DELETE FROM images WHERE id = ?", images)
    # A page a step; only a script is stepped through to its end.
    database.executescript("PRAGMA incremental_vacuum")


def _size(database: sqlite3.Connection) -> int:
    [pages] = database.execute("PRAGMA page_count").fetchone()
    return int(pages) * _PAGE_BYTES


def _kept(key: str, name: str, images: int, entries: int, last_used: int) -> Kept:
    said = _described(key)
    return Kept(
        backbone=name,
        digest=said["digest"],
        precision=said["precision"],
        size_px=said["size_px"],
        device=said["details"].get("computed_by", ["?"])[0],
        images=images,
        entries=entries,
        feature_bytes=4 * said["dim"] * entries,
        last_used=last_used,
    )


def _described(key: str) -> dict[str, Any]:
    try:
        said = json.loads(key)
    except ValueError as error:
        raise sqlite3.DatabaseError("an encoder's description is damaged") from error
    if not isinstance(said, dict) or not {"digest", "precision", "size_px", "dim", "details"} <= set(said):
        raise sqlite3.DatabaseError("an encoder's description is damaged")
    return said


def _is_damage(error: Exception) -> bool:
    """Whether the file is at fault, and neither its disk, nor its permissions, nor who else uses it."""
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    said = str(error)
    signs = (
        "no such table",
        "no such column",
        "has no column",
        "columns but",
        "decode",
        "malformed",
        "format",
    )
    return not isinstance(error, sqlite3.OperationalError) or any(sign in said for sign in signs)


def _inode(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to now."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _n_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
