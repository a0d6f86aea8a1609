"""LabelZip: a zip that is read from its beginning and from its end, and how little of it is held."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from deployments.parsing.video.label_zip import LabelZip

FACTS = {"video_id": "a" * 64, "num_frames": 3}


def whole(zipped: LabelZip, frames: dict[int, bytes]) -> list[bytes]:
    return [
        zipped.head(FACTS),
        *(zipped.frame(index, content) for index, content in frames.items()),
        zipped.end({"done": True, "frames": len(frames)}),
    ]


def test_each_entry_says_its_size_before_its_content() -> None:
    """By the local headers alone, as who cannot seek reads it."""
    frames = {0: b"first", 1: b"", 2: b"\x00" * 70_000}
    stream = io.BytesIO(b"".join(whole(LabelZip(), frames)))
    found = {}
    while (start := stream.read(4)) == b"PK\x03\x04":
        _, flags, method, _, _, crc, packed, size, name, extra = struct.unpack("<5H3L2H", stream.read(26))
        title = stream.read(name + extra).decode()
        found[title] = content = stream.read(size)
        assert (flags, method, packed, zlib.crc32(content)) == (0, 0, len(content), crc)
    assert start == b"PK\x01\x02"
    assert list(found) == ["video.json", "00000.png", "00001.png", "00002.png", "done.json"]
    assert [found[f"0000{index}.png"] for index in range(3)] == list(frames.values())


def test_the_same_answer_is_the_same_file() -> None:
    assert whole(LabelZip(), {0: b"a"}) == whole(LabelZip(), {0: b"a"})


@pytest.mark.parametrize("count", [65_532, 65_533, 65_600])
def test_a_zip_of_more_entries_than_two_bytes_count(count: int) -> None:
    """Of 65,535 entries, `video.json` and `done.json` among them, the old end record can tell 65,534 only."""
    parts = whole(LabelZip(), {index: b"%d" % index for index in range(count)})
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert len(archive.namelist()) == count + 2
        assert archive.read(f"{count - 1:05}.png") == b"%d" % (count - 1)
    assert (b"PK\x06\x06" in parts[-1]) is (count > 65_532)


@pytest.mark.parametrize("start", [2**32 - 200, 2**32 - 60, 2**32, 5 * 2**30])
def test_a_zip_beyond_four_gigabytes(tmp_path: Path, start: int) -> None:
    """After a hole in the file, which takes no room on the disk."""
    with (tmp_path / "a.zip").open("wb") as file:
        file.seek(start)
        for part in whole(LabelZip(start=start), {index: b"%d" % index for index in range(5)}):
            file.write(part)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.infolist()[0].header_offset == start
        assert [archive.read(f"0000{index}.png") for index in range(5)] == [b"%d" % index for index in range(5)]


def test_some_tens_of_bytes_a_frame_are_held() -> None:
    zipped, count, content = LabelZip(digits=6), 20_000, bytes(1000)
    zipped.head(FACTS)
    tracemalloc.start()
    try:
        for index in range(count):
            zipped.frame(index, content)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 46 and the name; what grows has up to an eighth in reserve.
    assert 56 * count <= held < 70 * count
