"""FileStore: uploaded files by their SHA-256, on disk, bounded by bytes and by the time since their last use."""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.errors import InvalidVideo, Overloaded, TooLarge, VideoNotCached


@dataclass
class _Entry:
    """A file: its size so far, when it was used last, the hash of what has arrived, and whether that is all."""

    size: int
    used_at: float
    sha256: Any = field(default_factory=hashlib.sha256)
    is_whole: bool = False


class FileStore:
    """Files of one process, in a folder of its own. For one thread.

    A file arrives in parts, in order, which are hashed as they come. It can be read once its digest is checked. To make
    room, those whose last use is longest ago are deleted. A file that is open is read to its end even if it is deleted
    meanwhile.

    Args:
        folder: is made; what it holds already is deleted.
        max_bytes: of all files together, those that arrive included.
        ttl_s: seconds since its last use after which a file is deleted.
        now: the time in seconds.
    """

    def __init__(self, folder: Path, max_bytes: int, ttl_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._now = now
        # The first one is the one whose last use is longest ago.
        self._entries: dict[str, _Entry] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def configure(self, max_bytes: int, ttl_s: float) -> None:
        """Sets the limits, and deletes what is beyond them."""
        self._max_bytes, self._ttl_s = max_bytes, ttl_s
        self._make_room(0)

    def expire(self) -> list[str]:
        """Deletes what was not used for too long; returns the digests of what is left."""
        self._make_room(0)
        return list(self._entries)

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, digest: str, offset: int, part: bytes) -> int:
        """Appends a part to a file that arrives; a part that is there already is not written again.

        Args:
            digest: SHA-256 of the whole file, as hex.
            offset: where the part begins.
            part: of any size.

        Returns:
            How many bytes of the file are there. If that is less than `offset`, nothing was written, and the file must
            be sent from there on.

        Raises:
            TooLarge: the file alone has more bytes than all files may have.
            Overloaded: the disk is full; the file is deleted.
        """
        entry = self._entries.get(digest) or _Entry(0, self._now())
        if entry.is_whole or offset > entry.size:
            return entry.size
        new = part[entry.size - offset :]
        if entry.size + len(new) > self._max_bytes:
            self.forget(digest)
            raise TooLarge(f"video: has more than the {self._max_bytes} bytes that are kept of all videos")
        self._touch(digest, entry)
        self._make_room(len(new), digest)
        try:
            with self._path(digest).open("ab") as file:
                file.write(new)
        except OSError as error:
            # A part may have been written.
            self.forget(digest)
            raise Overloaded(f"overloaded: the disk for videos takes no more: {error.strerror}", 30.0) from error
        entry.sha256.update(new)
        entry.size += len(new)
        return entry.size

    def finish(self, digest: str) -> Path:
        """Checks a file that has arrived; from then on it can be read.

        Raises:
            InvalidVideo: the file is not the one that the digest is of, and is deleted.
            VideoNotCached: the file is not here any more.
        """
        entry = self._entries.get(digest)
        if entry is None:
            # Deleted to make room, after its last part had arrived.
            raise VideoNotCached("video: had to make room for others; send it again")
        if not entry.is_whole and entry.sha256.hexdigest() != digest:
            self.forget(digest)
            raise InvalidVideo("video: was damaged on its way through the service; send it again")
        entry.is_whole = True
        return self._path(digest)

    def get(self, digest: str) -> Path | None:
        """Returns a file that is there whole, and notes its use; otherwise None."""
        self._make_room(0)
        entry = self._entries.get(digest)
        if entry is None or not entry.is_whole:
            return None
        self._touch(digest, entry)
        return self._path(digest)

    def forget(self, digest: str) -> bool:
        """Deletes a file; returns whether it was there."""
        self._path(digest).unlink(missing_ok=True)
        return self._entries.pop(digest, None) is not None

    def _touch(self, digest: str, entry: _Entry) -> None:
        entry.used_at = self._now()
        self._entries.pop(digest, None)
        self._entries[digest] = entry

    def _make_room(self, size: int, but: str = "") -> None:
        too_old = self._now() - self._ttl_s
        for digest, entry in list(self._entries.items()):
            is_beyond = self.nbytes + size > self._max_bytes or entry.used_at < too_old
            if digest != but and is_beyond:
                self.forget(digest)

    def _path(self, digest: str) -> Path:
        return self._folder / digest
