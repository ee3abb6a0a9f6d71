"""The file of features itself: what goes in comes out, whatever happens to the file in between."""

import logging
import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from softcpt.engine.feature_cache import ASIDE, FILE, Encoder, FeatureCache

DIM = 64
GENEROUS = 10**9


def encoder(name="toy", **changes):
    known = {"digest": "ab" * 32, "precision": "fp32", "size_px": 32, "dim": DIM, "details": {}}
    return Encoder(name=name, **{**known, **changes})


def key(image, view=0):
    return f"{image:064x}", view


def vector(seed=0):
    return bytes((seed + i) % 256 for i in range(4 * DIM))


def some(n, first=0, views=4):
    return {key(i, v): vector(i + v) for i in range(first, first + n) for v in range(views)}


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def cache(tmp_path):
    with FeatureCache(tmp_path / "cache", GENEROUS) as opened:
        yield opened


def again(cache, limit=GENEROUS):
    """As another process would see it."""
    cache.close()
    return FeatureCache(cache.folder, limit)


def entries(cache):
    return sum(row.entries for row in cache.contents())


def rows(path, query):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def change(path, statement):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def test_what_was_put_in_comes_out_in_another_process_too(cache):
    features = some(5)
    cache.put(encoder(), features)
    assert cache.get(encoder(), list(features)) == features
    with again(cache) as other:
        assert other.get(encoder(), [*features, key(99), key(0, 99)]) == features


def test_nothing_is_made_by_looking(tmp_path):
    with FeatureCache(tmp_path / "cache", GENEROUS) as cache:
        assert cache.get(encoder(), [key(0)]) == {}
        assert cache.contents() == []
        assert cache.bytes_on_disk() == 0
        cache.clear()
        cache.shrink(0)
        cache.put(encoder(), {})
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "cd" * 32},
        {"precision": "bf16"},
        {"size_px": 64},
        {"details": {"pixels": {"fill": 1}}},
        {"details": {"rules": [2, 1]}},
    ],
)
def test_everything_a_feature_depends_on_is_part_of_its_key(cache, changes):
    cache.put(encoder(), some(2))
    assert cache.get(encoder(**changes), list(some(2))) == {}
    assert cache.get(encoder(name="the same elsewhere"), list(some(2))) == some(2)


def test_an_entry_that_is_put_again_is_replaced_not_doubled(cache):
    cache.put(encoder(), {key(1): vector(1)})
    cache.put(encoder(), {key(1): vector(2)})
    assert cache.get(encoder(), [key(1)]) == {key(1): vector(2)}
    assert entries(cache) == 1


def test_only_the_user_can_read_it(cache):
    cache.put(encoder(), some(1))
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_failed_transaction_leaves_nothing_of_it(cache):
    cache.put(encoder(), some(1))
    with pytest.raises(TypeError):
        cache.put(encoder(), {key(7): vector(), key(8): "no bytes"})
    assert cache.get(encoder(), [key(7), key(8)]) == {}
    with again(cache) as other:
        assert entries(other) == 4


# Damage


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE features SET vector = zeroblob(256) WHERE rowid = 2",
        "UPDATE features SET vector = x'00' WHERE rowid = 2",
        "UPDATE features SET vector = 'text' WHERE rowid = 2",
        "UPDATE features SET mark = x'0011223344556677' WHERE rowid = 2",
        "UPDATE features SET view = view + 100 WHERE rowid = 2",
    ],
)
def test_a_damaged_entry_is_dropped_said_once_and_put_again(cache, caplog, statement):
    features = some(2)
    cache.put(encoder(), features)
    cache.close()
    change(cache.path, statement)
    bad = list(features)[1]
    wanted = [*features, (bad[0], bad[1] + 100)]
    assert cache.get(encoder(), wanted) == {k: v for k, v in features.items() if k != bad}
    assert cache.get(encoder(), wanted) == {k: v for k, v in features.items() if k != bad}
    said = [record for record in caplog.records if "damaged" in record.getMessage()]
    assert len(said) == 1
    assert entries(cache) == len(features) - 1
    cache.put(encoder(), {bad: features[bad]})
    assert cache.get(encoder(), list(features)) == features


def test_features_of_two_images_that_were_exchanged_are_noticed(cache):
    cache.put(encoder(), {key(1): vector(1), key(2): vector(2)})
    cache.close()
    change(cache.path, "UPDATE features SET image = 3 - image WHERE image = 1 AND 0")
    change(cache.path, "UPDATE features SET image = -image")
    change(cache.path, "UPDATE features SET image = 3 + image")
    assert cache.get(encoder(), [key(1), key(2)]) == {}


def test_a_flipped_bit_anywhere_never_gives_a_wrong_feature(cache):
    """Of every damaged copy each feature is right or missing, and the copy works again afterwards."""
    features = some(8)
    cache.put(encoder(), features)
    cache.close()
    whole = cache.path.read_bytes()
    folder = cache.folder.parent
    for place in range(0, len(whole), 1013):
        copy = folder / f"copy{place}"
        copy.mkdir()
        (copy / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with FeatureCache(copy, GENEROUS) as damaged:
            found = damaged.get(encoder(), list(features))
            assert found.items() <= features.items()
            damaged.put(encoder(), {k: v for k, v in features.items() if k not in found})
            assert damaged.get(encoder(), list(features)) == features, place


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20000]),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_bytes(b"not a database, but long enough to be read as one" * 1000),
        lambda path: change(path, "DROP TABLE features"),
        lambda path: change(path, "ALTER TABLE features RENAME COLUMN vector TO other"),
        lambda path: change(path, "PRAGMA user_version = 99"),
        lambda path: change(path, "PRAGMA application_id = 1"),
    ],
    ids=["truncated", "header cut", "garbage", "no table", "no column", "other format", "other program"],
)
def test_a_damaged_file_is_put_aside_and_built_anew(cache, caplog, spoil):
    features = some(200)
    cache.put(encoder(), features)
    cache.close()
    spoil(cache.path)
    found = cache.get(encoder(), list(features))
    assert found.items() <= features.items()
    cache.put(encoder(), features)
    assert cache.get(encoder(), list(features)) == features
    assert (cache.folder / ASIDE).exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "put aside" in caplog.text
    cache.clear()
    assert not (cache.folder / ASIDE).exists()


def test_a_database_of_someone_else_is_put_aside_whole(tmp_path):
    change(tmp_path / FILE, "CREATE TABLE diary (day TEXT)")
    theirs = (tmp_path / FILE).read_bytes()
    with FeatureCache(tmp_path, GENEROUS) as cache:
        assert cache.get(encoder(), [key(0)]) == {}
        cache.put(encoder(), some(1))
        assert cache.get(encoder(), list(some(1))) == some(1)
    assert (tmp_path / ASIDE).read_bytes() == theirs


def test_an_empty_file_is_a_new_one(tmp_path, caplog):
    (tmp_path / FILE).touch()
    with FeatureCache(tmp_path, GENEROUS) as cache:
        assert cache.get(encoder(), [key(0)]) == {}
        cache.put(encoder(), some(1))
        assert cache.get(encoder(), list(some(1))) == some(1)
    assert not caplog.records


def test_two_that_notice_the_same_damage_put_it_aside_once(cache):
    """The second must not put aside what the first has built."""
    cache.put(encoder(), some(3))
    with FeatureCache(cache.folder, GENEROUS) as other:
        assert other.get(encoder(), list(some(3))) == some(3)
        cache.close()
        content = cache.path.read_bytes()
        with cache.path.open("r+b") as file:  # the same file, which the other still has open
            file.write(b"\xff" * len(content))
        cache.put(encoder(), some(3))
        other.put(encoder(), some(3, first=10))
        wanted = some(3) | some(3, first=10)
        assert other.get(encoder(), list(wanted)) == wanted
        assert cache.get(encoder(), list(wanted)) == wanted


def test_a_file_that_is_replaced_while_it_is_open_is_opened_again(cache):
    cache.put(encoder(), some(3))
    cache.path.rename(cache.folder / "elsewhere")
    cache.put(encoder(), some(3, first=10))
    with again(cache) as other:
        assert other.get(encoder(), list(some(3, first=10))) == some(3, first=10)


# Disks that refuse


def test_a_folder_that_cannot_be_made_is_said_once_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").touch()
    with FeatureCache(tmp_path / "file" / "cache", GENEROUS) as cache:
        for _ in range(3):
            assert cache.get(encoder(), [key(0)]) == {}
            cache.put(encoder(), some(1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be written" in caplog.text


@contextmanager
def as_nobody():
    """Without the rights of root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_still_read(caplog):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with FeatureCache(folder, GENEROUS) as cache:
            cache.put(encoder(), some(2))
        (folder / FILE).chmod(0o444)
        folder.chmod(0o555)
        try:
            with as_nobody(), FeatureCache(folder, GENEROUS, now=lambda: 9e9) as cache:
                assert cache.get(encoder(), list(some(2))) == some(2)
                cache.put(encoder(), some(2, first=5))
                cache.put(encoder(), some(2, first=7))
                assert cache.get(encoder(), list(some(2))) == some(2)
                assert cache.get(encoder(), list(some(2, first=5))) == {}
                with pytest.raises(OSError, match="readonly"):
                    cache.clear()
        finally:
            folder.chmod(0o755)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_full_disk_leaves_what_was_kept_before(cache, caplog, monkeypatch):
    cache.put(encoder(), some(2))
    [pages] = cache._open.execute("PRAGMA page_count").fetchone()
    cache._open.execute(f"PRAGMA max_page_count = {pages}")  # SQLite says the same as for a full disk
    cache.put(encoder(), some(500, first=10))
    cache.put(encoder(), some(500, first=600))
    assert cache.get(encoder(), list(some(2))) == some(2)
    assert cache.get(encoder(), list(some(5, first=10))) == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "full" in caplog.text


def test_a_file_that_another_keeps_to_itself_is_done_without(cache, caplog, monkeypatch):
    monkeypatch.setattr("softcpt.engine.feature_cache.WAIT_S", 0.01)
    cache.put(encoder(), some(1))
    cache.close()
    with closing(sqlite3.connect(cache.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert cache.get(encoder(), list(some(1))) == {}
        cache.put(encoder(), some(1, first=5))
    assert "locked" in caplog.text
    with again(cache) as later:
        assert later.get(encoder(), list(some(1))) == some(1)


# Size


def test_the_limit_holds_and_the_longest_unused_go_first(tmp_path):
    clock = Clock()
    limit = 600_000
    for first in range(0, 1000, 100):
        with FeatureCache(tmp_path, limit, now=clock) as cache:
            cache.put(encoder(), some(100, first=first, views=2))
        clock.now += 10
        assert (tmp_path / FILE).stat().st_size <= limit
    with FeatureCache(tmp_path, limit, now=clock) as cache:
        there = [first for first in range(0, 1000, 100) if cache.get(encoder(), [key(first + 99)])]
        assert there
        assert there == list(range(there[0], 1000, 100))
        assert 0 not in there


def test_use_counts_not_age(tmp_path):
    clock = Clock()
    with FeatureCache(tmp_path, GENEROUS, now=clock) as cache:
        cache.put(encoder(), some(300, views=1))
        clock.now += 10
        cache.put(encoder(), some(300, first=300, views=1))
    clock.now += 7200
    with FeatureCache(tmp_path, GENEROUS, now=clock) as cache:
        cache.get(encoder(), [key(i) for i in range(300)])
    with FeatureCache(tmp_path, GENEROUS, now=clock) as cache:
        cache.shrink(cache.bytes_on_disk() * 2 // 3)
        assert len(cache.get(encoder(), [key(i) for i in range(300)])) == 300
        assert len(cache.get(encoder(), [key(i) for i in range(300, 600)])) < 300


def test_what_this_run_needs_stays_whatever_the_limit(tmp_path, caplog):
    limit = 400_000
    with FeatureCache(tmp_path, limit) as cache:
        for first in range(0, 2000, 100):
            cache.put(encoder(), some(100, first=first, views=1))
        assert (tmp_path / FILE).stat().st_size <= limit
        assert len(cache.get(encoder(), [key(i) for i in range(100)])) == 100
        assert cache.get(encoder(), [key(1999)]) == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "SOFTCPT_CACHE_LIMIT" in caplog.text


def test_what_was_read_in_this_run_stays_too(tmp_path):
    clock = Clock()
    with FeatureCache(tmp_path, GENEROUS, now=clock) as cache:
        cache.put(encoder(), some(100, views=1))
        clock.now += 10
        cache.put(encoder(), some(900, first=100, views=1))
        size = cache.bytes_on_disk()
    with FeatureCache(tmp_path, size, now=clock) as cache:
        cache.get(encoder(), [key(i) for i in range(100)])  # the oldest
        cache.put(encoder(), some(300, first=2000, views=1))
        assert len(cache.get(encoder(), [key(i) for i in range(100)])) == 100
        assert len(cache.get(encoder(), [key(i) for i in range(2000, 2300)])) == 300
        assert cache.bytes_on_disk() <= size


def test_a_file_put_aside_counts_and_goes_first(tmp_path):
    with FeatureCache(tmp_path, GENEROUS) as cache:
        cache.put(encoder(), some(100))
        (tmp_path / ASIDE).write_bytes(bytes(1_000_000))
        cache.shrink(1_000_000)
        assert not (tmp_path / ASIDE).exists()
        assert entries(cache) == 400


# Looking and clearing


def test_contents_tell_what_is_there_by_encoder(tmp_path):
    clock = Clock()
    with FeatureCache(tmp_path, GENEROUS, now=clock) as cache:
        cache.put(encoder(), some(3))
        clock.now += 50
        cache.put(
            encoder("other", precision="bf16", details={"computed_by": ["cuda", "x"]}), some(2, views=1)
        )
        last, first = cache.contents()
    assert (first.backbone, first.precision, first.images, first.entries) == ("toy", "fp32", 3, 12)
    assert first.feature_bytes == 12 * 4 * DIM
    assert (last.backbone, last.precision, last.device, last.entries) == ("other", "bf16", "cuda", 2)
    assert last.last_used - first.last_used == 50


def test_clearing_empties_the_file_and_gives_the_room_back(cache):
    cache.put(encoder(), some(500))
    before = cache.bytes_on_disk()
    cache.clear()
    assert cache.contents() == []
    assert rows(cache.path, "SELECT count(*) FROM features") == [(0,)]
    assert cache.bytes_on_disk() < before / 3
    cache.put(encoder(), some(2))
    assert cache.get(encoder(), list(some(2))) == some(2)


def test_clearing_one_encoder_leaves_the_others(cache):
    cache.put(encoder(), some(2))
    cache.put(encoder("other", digest="cd" * 32), some(3))
    [other] = [row for row in cache.contents() if row.backbone == "other"]
    cache.clear([other])
    assert [row.backbone for row in cache.contents()] == ["toy"]
    assert cache.get(encoder(), list(some(2))) == some(2)


def test_clearing_by_age_leaves_what_was_used_since(tmp_path):
    clock = Clock()
    with FeatureCache(tmp_path, GENEROUS, now=clock) as cache:
        cache.put(encoder(), some(2))
        clock.now += 1000
        cache.put(encoder(), some(2, first=5))
        cache.clear(unused_since=clock.now - 500)
        assert cache.get(encoder(), list(some(2))) == {}
        assert cache.get(encoder(), list(some(2, first=5))) == some(2, first=5)


def test_clearing_a_damaged_file_leaves_nothing_of_it(tmp_path, caplog):
    (tmp_path / FILE).write_bytes(b"garbage" * 9999)
    with FeatureCache(tmp_path, GENEROUS) as cache, caplog.at_level(logging.ERROR):
        cache.clear()
        assert cache.contents() == []
    assert not (tmp_path / ASIDE).exists()
