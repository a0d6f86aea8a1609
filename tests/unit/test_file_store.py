"""Uploaded files on disk: parts in order, the digest, and what makes room for what."""

import hashlib
from pathlib import Path

import pytest

from deployments.errors import InvalidVideo, TooLarge, VideoNotCached
from deployments.frames.file_store import FileStore


class Clock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def __call__(self) -> float:
        return self.time_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(tmp_path / "files", max_bytes=100, ttl_s=60, now=clock)


def content_of(name: str, size: int) -> bytes:
    return (name * size).encode()[:size]


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def keep(store: FileStore, name: str, size: int = 40) -> str:
    content = content_of(name, size)
    store.append(digest_of(content), 0, content)
    store.finish(digest_of(content))
    return digest_of(content)


def test_a_file_arrives_in_parts_and_is_read_once_it_is_whole(store: FileStore) -> None:
    content = content_of("abc", 90)
    digest = digest_of(content)
    for start in range(0, 90, 20):
        assert store.get(digest) is None
        assert store.append(digest, start, content[start : start + 20]) == min(90, start + 20)
    path = store.finish(digest)
    assert path.read_bytes() == content
    assert store.get(digest) == path
    assert store.nbytes == 90


def test_parts_that_come_twice_or_too_early_do_no_harm(store: FileStore) -> None:
    content = content_of("abc", 60)
    digest = digest_of(content)
    assert store.append(digest, 30, content[30:60]) == 0
    assert store.append(digest, 0, content[:40]) == 40
    assert store.append(digest, 50, content[50:]) == 40
    assert store.append(digest, 20, content[20:60]) == 60
    assert store.append(digest, 0, content[:10]) == 60
    assert store.finish(digest).read_bytes() == content
    assert store.append(digest, 60, b"more") == 60
    assert store.finish(digest).read_bytes() == content


def test_parts_are_hashed_as_they_come(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the end nothing is read again, however large the file is."""
    content = content_of("abc", 60)
    digest = digest_of(content)
    for start, stop in ((0, 20), (10, 30), (0, 5), (30, 60)):
        store.append(digest, start, content[start:stop])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: pytest.fail("the file is read"))
        path = store.finish(digest)
    assert path.read_bytes() == content


def test_a_file_that_is_not_what_its_name_says_is_deleted(store: FileStore, tmp_path: Path) -> None:
    store.append("0" * 64, 0, b"something else")
    with pytest.raises(InvalidVideo, match=r"^video: was damaged"):
        store.finish("0" * 64)
    with pytest.raises(VideoNotCached, match=r"^video: had to make room"):
        store.finish("1" * 64)
    assert len(store) == 0
    assert list((tmp_path / "files").iterdir()) == []


def test_the_one_unused_longest_makes_room(store: FileStore, clock: Clock) -> None:
    first = keep(store, "a")
    second = keep(store, "b")
    clock.time_s += 1
    assert store.get(first)
    third = keep(store, "c")
    assert [store.get(digest) is not None for digest in (first, second, third)] == [True, False, True]
    assert store.nbytes == 80


def test_an_arriving_file_makes_room_too_and_is_not_deleted_by_itself(store: FileStore) -> None:
    first = keep(store, "a", 80)
    content = content_of("b", 90)
    for start in range(0, 90, 30):
        assert store.append(digest_of(content), start, content[start : start + 30]) == start + 30
        assert store.nbytes <= 100
    assert store.get(first) is None
    assert store.finish(digest_of(content))


def test_a_file_larger_than_all_may_be_is_refused(store: FileStore) -> None:
    kept = keep(store, "a", 10)
    store.append("0" * 64, 0, bytes(60))
    with pytest.raises(TooLarge, match=r"^video: has more than the 100 bytes"):
        store.append("0" * 64, 60, bytes(60))
    assert store.get(kept)
    assert len(store) == 1


def test_files_are_deleted_some_time_after_their_last_use(store: FileStore, clock: Clock, tmp_path: Path) -> None:
    first, second = keep(store, "a", 10), keep(store, "b", 10)
    clock.time_s += 50
    assert store.get(first)
    clock.time_s += 50
    assert store.get(first)
    assert store.get(second) is None
    assert [path.name for path in (tmp_path / "files").iterdir()] == [first]


def test_limits_can_be_changed(store: FileStore, clock: Clock) -> None:
    first, second = keep(store, "a"), keep(store, "b")
    store.configure(max_bytes=50, ttl_s=60)
    assert store.get(first) is None
    assert store.get(second)
    clock.time_s += 10
    store.configure(max_bytes=50, ttl_s=5)
    assert len(store) == 0


def test_an_open_file_is_read_to_its_end(store: FileStore) -> None:
    digest = keep(store, "a")
    path = store.get(digest)
    assert path
    with path.open("rb") as file:
        assert store.forget(digest)
        assert len(file.read()) == 40
    assert not store.forget(digest)


def test_a_new_store_begins_empty(tmp_path: Path) -> None:
    keep(FileStore(tmp_path / "files", 100, 60), "a")
    assert len(FileStore(tmp_path / "files", 100, 60)) == 0
    assert list((tmp_path / "files").iterdir()) == []
