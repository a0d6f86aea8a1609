"""VideoReader without Ray: small real files that arrive in parts, and frames in any order for several jobs."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.errors import InvalidVideo, TooLarge, VideoNotCached
from deployments.frames import video_reader
from deployments.frames.decode import open_video
from deployments.frames.video_reader import DECODING_THREADS, FOLDER_NAME, LOCK, VideoReader
from deployments.messages.video import FrameBatch
from deployments.settings import Limits
from harness.images import encoded, picture
from tests.unit.test_video_files import COUNT, animate, number_of, numbered, write, zipped

PART = 700


class Clip:
    """A file, its id, and its frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.id = hashlib.sha256(self.content).hexdigest()
        with open_video(path, Limits(), 1000) as video:
            self.frames = [frame.pixels for frame in video.frames(0, video.facts.num_frames)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """An mp4 with frames that are decoded in another order, a gif, and a zip."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [numbered(index) for index in range(COUNT)]
    write(str(folder / "a.mp4"), frames, bf="2", g="8")
    animate(folder / "a.gif", frames)
    zipped(folder / "a.zip", {f"{index:02}.png": encoded(Image.fromarray(one)) for index, one in enumerate(frames)})
    return [Clip(folder / name) for name in ("a.mp4", "a.gif", "a.zip")]


@pytest.fixture
def clip(clips: list[Clip]) -> Clip:
    return clips[0]


@pytest.fixture
def reader(tmp_path: Path) -> VideoReader:
    return VideoReader(Limits(), tmp_path)


async def upload(reader: VideoReader, clip: Clip) -> None:
    offset = 0
    while offset < len(clip.content):
        offset = await reader.append(clip.id, offset, clip.content[offset : offset + PART])
    await reader.finish(clip.id)


def files_in(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / FOLDER_NAME).glob("*/files/*"))


def check(batch: FrameBatch, clip: Clip, frames: range) -> None:
    assert batch.fault is None
    assert batch.indices == tuple(frames)
    for index, pixels in zip(batch.indices, batch.pixels, strict=True):
        assert np.array_equal(pixels, clip.frames[index]), index


# ---- files


async def test_a_file_arrives_in_parts_and_is_read_once_it_is_whole(reader: VideoReader, clip: Clip) -> None:
    size = len(clip.content)
    with pytest.raises(VideoNotCached, match=r"^video_id: .* upload it"):
        await reader.facts(clip.id)
    # Too early, in order, twice, and overlapping.
    assert await reader.append(clip.id, PART, clip.content[PART : 2 * PART]) == 0
    assert await reader.append(clip.id, 0, clip.content[:PART]) == PART
    assert await reader.append(clip.id, 0, clip.content[:PART]) == PART
    assert await reader.append(clip.id, PART // 2, clip.content[PART // 2 : 2 * PART]) == 2 * PART
    assert isinstance((await reader.read(clip.id, "job", range(3))).fault, VideoNotCached)
    assert await reader.append(clip.id, 2 * PART, clip.content[2 * PART :]) == size
    with pytest.raises(VideoNotCached):
        await reader.facts(clip.id)
    await reader.finish(clip.id)
    facts = await reader.facts(clip.id)
    assert (facts.width, facts.height, facts.num_frames, facts.is_cut) == (64, 48, COUNT, False)
    assert await reader.facts(clip.id) is facts
    check(await reader.read(clip.id, "job", range(COUNT)), clip, range(COUNT))


async def test_two_requests_send_the_same_file_at_the_same_time(reader: VideoReader, clip: Clip) -> None:
    async def send(part: int) -> None:
        offset = 0
        while offset < len(clip.content):
            offset = await reader.append(clip.id, offset, clip.content[offset : offset + part])
        await reader.finish(clip.id)

    await asyncio.gather(send(PART), send(PART // 3), send(2 * PART))
    check(await reader.read(clip.id, "job", range(COUNT)), clip, range(COUNT))


async def test_two_files_at_the_same_time(reader: VideoReader, clips: list[Clip], tmp_path: Path) -> None:
    await asyncio.gather(*(upload(reader, one) for one in clips))
    for one in clips:
        check(await reader.read(one.id, "job", range(5)), one, range(5))
    assert files_in(tmp_path) == sorted(one.id for one in clips)


async def test_a_file_that_is_not_what_its_id_says_is_deleted(reader: VideoReader, clip: Clip, tmp_path: Path) -> None:
    await reader.append("0" * 64, 0, clip.content)
    with pytest.raises(InvalidVideo, match=r"^video: was damaged on its way"):
        await reader.finish("0" * 64)
    with pytest.raises(VideoNotCached):
        await reader.facts("0" * 64)
    assert files_in(tmp_path) == []
    # It may come again, whole.
    await upload(reader, clip)
    assert (await reader.facts(clip.id)).num_frames == COUNT


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"max_video_frames": COUNT - 1}, TooLarge, r"^video: has more than the 23 frames"),
        ({"max_pixels": 64 * 48 - 1}, TooLarge, r"^video: .* 3071 "),
    ],
)
async def test_a_file_over_a_limit_is_refused_and_deleted(
    clips: list[Clip], tmp_path: Path, limits: dict[str, int], error: type[Exception], message: str
) -> None:
    reader = VideoReader(Limits(**limits), tmp_path)
    for one in clips:
        await upload(reader, one)
        batch = await reader.read(one.id, "job", range(3))
        assert (batch.indices, type(batch.fault)) == ((), error)
        with pytest.raises(error, match=message):
            await reader.facts(one.id)
    assert files_in(tmp_path) == []


async def test_what_is_no_video_is_refused_and_deleted(reader: VideoReader, tmp_path: Path) -> None:
    content = encoded(picture(40, 30))
    video_id = hashlib.sha256(content).hexdigest()
    await reader.append(video_id, 0, content)
    await reader.finish(video_id)
    with pytest.raises(InvalidVideo, match=r"^video: is a still picture"):
        await reader.facts(video_id)
    assert files_in(tmp_path) == []


async def test_files_make_room_and_are_limited_live(reader: VideoReader, clips: list[Clip], tmp_path: Path) -> None:
    for one in clips:
        await upload(reader, one)
    with pytest.raises(ValueError, match="video_cache_bytes"):
        await reader.reconfigure({"video_cache_bytes": 1})
    await reader.reconfigure({"video_ttl_s": 1e-9})
    assert files_in(tmp_path) == []
    for one in clips:
        with pytest.raises(VideoNotCached):
            await reader.facts(one.id)
        assert isinstance((await reader.read(one.id, "job", range(3))).fault, VideoNotCached)


async def test_a_file_that_is_gone_from_the_disk_is_asked_for_again(
    reader: VideoReader, clips: list[Clip], tmp_path: Path
) -> None:
    """Deleted to make room, between the look for it and its opening; or from outside."""
    for one in clips:
        await upload(reader, one)
        for path in (tmp_path / FOLDER_NAME).glob(f"*/files/{one.id}"):
            path.unlink()
        batch = await reader.read(one.id, "job", range(3))
        assert (batch.indices, type(batch.fault)) == ((), VideoNotCached)
        await upload(reader, one)
        check(await reader.read(one.id, "job", range(3)), one, range(3))
        await reader.forget(one.id)
        await upload(reader, one)
        for path in (tmp_path / FOLDER_NAME).glob(f"*/files/{one.id}"):
            path.unlink()
        with pytest.raises(VideoNotCached):
            await reader.facts(one.id)


async def test_forgetting_deletes_the_file_and_closes_what_reads_it(
    reader: VideoReader, clip: Clip, tmp_path: Path
) -> None:
    await upload(reader, clip)
    await reader.facts(clip.id)
    check(await reader.read(clip.id, "job", range(3)), clip, range(3))
    cursors = list(reader._cursors.values())
    assert await reader.forget(clip.id)
    assert not await reader.forget(clip.id)
    assert files_in(tmp_path) == []
    assert (reader._cursors, reader._facts) == ({}, {})
    assert [getattr(cursor.video, "_container", None) for cursor in cursors] == [None]
    assert isinstance((await reader.read(clip.id, "job", range(3))).fault, VideoNotCached)


async def test_facts_of_so_many_videos_are_remembered(
    reader: VideoReader, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_reader, "MAX_FACTS", 2)
    for one in clips:
        await upload(reader, one)
        assert (await reader.facts(one.id)).num_frames == COUNT
    assert list(reader._facts) == [one.id for one in clips[1:]]
    assert (await reader.facts(clips[0].id)).num_frames == COUNT


# ---- frames

READS: dict[str, list[range]] = {
    "all at once": [range(COUNT)],
    "some at a time": [range(3), range(3, 9), range(9, 10), range(10, 24)],
    "in steps": [range(1, 9, 3), range(10, 19, 3), range(19, 24, 3)],
    "backwards at once": [range(23, -1, -1)],
    "backwards, some at a time": [range(23, 15, -1), range(15, 14, -1), range(14, 3, -1), range(3, -1, -1)],
    "backwards in steps": [range(22, 10, -4), range(10, -1, -4)],
    "backwards in large steps": [range(20, 12, -7), range(6, -1, -7)],
    "again": [range(5, 9), range(5, 9), range(2, 6), range(12, 5, -1), range(12, 5, -1), range(6, 8)],
    "single ones": [range(23, 24), range(1), range(11, 12), range(10, 11)],
    "none": [range(0)],
}


@pytest.mark.parametrize("case", READS)
async def test_frames_in_any_order(reader: VideoReader, clips: list[Clip], case: str) -> None:
    for one in clips:
        await upload(reader, one)
        for frames in READS[case]:
            batch = await reader.read(one.id, "job", frames)
            check(batch, one, frames)
            assert [number_of(pixels) for pixels in batch.pixels] == list(frames)


async def test_backwards_so_many_are_decoded_ahead_as_fit(
    reader: VideoReader, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in clips:
        await upload(reader, one)
    for count in (0, 1, 2, 5):
        monkeypatch.setattr(video_reader, "BACKWARD_BYTES", DECODING_THREADS * count * 3 * 64 * 48)
        for one in clips:
            for step in (-1, -3):
                frames = range(23, -1, step)
                check(await reader.read(one.id, f"{count}{step}", frames[:4]), one, frames[:4])
                [ahead] = [cursor.ahead for key, cursor in reader._cursors.items() if key == (one.id, f"{count}{step}")]
                assert len(ahead) < max(1, count)
                check(await reader.read(one.id, f"{count}{step}", frames[4:]), one, frames[4:])


async def test_all_jobs_together_decode_no_more_ahead_than_fits(
    reader: VideoReader, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame_bytes = 3 * 64 * 48
    monkeypatch.setattr(video_reader, "BACKWARD_BYTES", DECODING_THREADS * 5 * frame_bytes)
    await upload(reader, clip)

    def held() -> dict[str, int]:
        return {job: len(cursor.ahead) for (_, job), cursor in reader._cursors.items()}

    for job in "abcdef":
        check(await reader.read(clip.id, job, range(23, 22, -1)), clip, range(23, 22, -1))
        assert reader._reserved == 0
    # A share is five frames; room for the last two was made by those whose use is longest ago.
    assert held() == {"a": 0, "b": 0, "c": 4, "d": 4, "e": 4, "f": 4}
    await reader.read(clip.id, "b", range(22, 18, -1))
    check(await reader.read(clip.id, "b", range(18, 17, -1)), clip, range(18, 17, -1))
    check(await reader.read(clip.id, "a", range(22, 20, -1)), clip, range(22, 20, -1))

    async def run(job: str) -> None:
        for index in range(23, -1, -1):
            check(await reader.read(clip.id, job, range(index, index - 1, -1)), clip, range(index, index - 1, -1))
            with reader._lock:
                most = reader._reserved + frame_bytes * sum(held().values())
            assert most <= DECODING_THREADS * 5 * frame_bytes

    await asyncio.gather(*map(run, "ghijklmnop"))
    assert reader._reserved == 0


async def test_a_decoder_that_is_at_work_when_its_job_ends_is_not_kept(
    reader: VideoReader, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a client leaves while a chunk is decoded: nobody would close it."""
    await upload(reader, clip)
    begun, ended = threading.Event(), threading.Event()

    def slow(path: Path, *arguments: Any) -> Any:
        begun.set()
        ended.wait(5)
        return open_video(path, *arguments)

    monkeypatch.setattr(video_reader, "open_video", slow)
    reading = asyncio.ensure_future(reader.read(clip.id, "job", range(3)))
    await asyncio.to_thread(begun.wait, 5)
    await reader.close(clip.id, "job")
    ended.set()
    check(await reading, clip, range(3))
    assert reader._cursors == {}
    check(await reader.read(clip.id, "another", range(3)), clip, range(3))
    assert list(reader._cursors) == [(clip.id, "another")]


async def test_jobs_read_the_same_file_each_at_its_own_place(reader: VideoReader, clips: list[Clip]) -> None:
    for one in clips:
        await upload(reader, one)

    async def run(one: Clip, job: str, frames: range, size: int) -> None:
        for start in range(0, len(frames), size):
            check(await reader.read(one.id, job, frames[start : start + size]), one, frames[start : start + size])

    await asyncio.gather(
        *(
            run(one, f"{number}", frames, size)
            for one in clips
            for number, (frames, size) in enumerate([(range(24), 1), (range(23, -1, -1), 5), (range(1, 24, 2), 3)])
        )
    )


async def test_one_job_may_ask_twice_at_once(reader: VideoReader, clip: Clip) -> None:
    """A call that was sent again while the first one was still at work."""
    await upload(reader, clip)
    parts = [range(4), range(4), range(4, 9), range(2, 3), range(9, 4, -1)]
    for batch, frames in zip(
        await asyncio.gather(*(reader.read(clip.id, "job", one) for one in parts)), parts, strict=True
    ):
        check(batch, clip, frames)
    assert len(reader._cursors) == 1


async def test_the_decoder_goes_on_where_it_stopped(
    reader: VideoReader, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upload(reader, clip)
    opened: list[Path] = []

    def noted(path: Path, *arguments: Any) -> Any:
        opened.append(path)
        return open_video(path, *arguments)

    monkeypatch.setattr(video_reader, "open_video", noted)
    for start in range(0, COUNT, 4):
        await reader.read(clip.id, "a", range(start, start + 4))
    await reader.read(clip.id, "b", range(4))
    assert len(opened) == 2
    await reader.close(clip.id, "a")
    await reader.close(clip.id, "never was")
    await reader.read(clip.id, "b", range(4, 8))
    assert len(opened) == 2
    await reader.read(clip.id, "a", range(4, 8))
    assert len(opened) == 3


async def test_the_decoder_unused_longest_is_closed(
    reader: VideoReader, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_reader, "MAX_OPEN", 2)
    await upload(reader, clip)
    await reader.read(clip.id, "a", range(2))
    first = reader._cursors[clip.id, "a"].video
    await reader.read(clip.id, "b", range(2))
    await reader.read(clip.id, "a", range(2, 4))
    await reader.read(clip.id, "c", range(2))
    assert [job for _, job in reader._cursors] == ["a", "c"]
    assert reader._cursors[clip.id, "a"].video is first
    # Whose decoder was closed gets a new one.
    check(await reader.read(clip.id, "b", range(2, 5)), clip, range(2, 5))
    assert [job for _, job in reader._cursors] == ["c", "b"]
    assert getattr(first, "_container", 0) is None


# ---- faults


def with_a_bad_picture(at: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        frames = {f"{index:02}.png": encoded(Image.fromarray(numbered(index))) for index in range(COUNT)}
        zipped(path, frames | {f"{at:02}.png": encoded(Image.fromarray(numbered(at, 50, 40)))})

    return make


async def test_a_fault_comes_after_the_frames_before_it_in_both_directions(reader: VideoReader, tmp_path: Path) -> None:
    with_a_bad_picture(9)(tmp_path / "a.zip")
    content = (tmp_path / "a.zip").read_bytes()
    video_id = hashlib.sha256(content).hexdigest()
    await reader.append(video_id, 0, content)
    await reader.finish(video_id)
    for job, frames, expected in (
        ("forward", range(6, 20), [6, 7, 8]),
        ("at once", range(9, 20), []),
        ("backward", range(20, 5, -1), list(range(20, 9, -1))),
        ("backward in steps", range(15, 2, -2), [15, 13, 11]),
        ("backward at once", range(9, 2, -1), []),
    ):
        batch = await reader.read(video_id, job, frames)
        assert list(batch.indices) == expected
        assert [number_of(pixels) for pixels in batch.pixels] == expected
        assert isinstance(batch.fault, InvalidVideo)
        assert batch.fault.message.startswith("video: frame 9 is 50×40")
    # What does not touch it is read.
    for frames in (range(8, 4, -1), range(10, 15), range(10, 7, -2)):
        batch = await reader.read(video_id, "again", frames)
        assert (list(batch.indices), batch.fault) == (list(frames), None)


async def test_backwards_a_picture_of_too_many_bytes_ends_no_frame_after_it(tmp_path: Path) -> None:
    pictures = {f"{index:02}.png": encoded(Image.fromarray(numbered(index))) for index in range(COUNT)}
    zipped(tmp_path / "a.zip", pictures | {"09.png": bytes(50_000)})
    content = (tmp_path / "a.zip").read_bytes()
    video_id = hashlib.sha256(content).hexdigest()
    reader = VideoReader(Limits(max_image_bytes=40_000), tmp_path)
    await reader.append(video_id, 0, content)
    await reader.finish(video_id)
    batch = await reader.read(video_id, "job", range(15, 5, -1))
    assert list(batch.indices) == [15, 14, 13, 12, 11, 10]
    assert isinstance(batch.fault, TooLarge)


# ---- folders


def test_a_process_deletes_what_ended_ones_left_and_nothing_else(tmp_path: Path) -> None:
    parent = tmp_path / FOLDER_NAME
    for name in ("ended", "ended without a lock", "alive"):
        (parent / name / "files").mkdir(parents=True)
        (parent / name / "files" / "video").write_bytes(b"content")
    for name in ("ended", "alive"):
        (parent / name / LOCK).touch()
    (parent / "a file").touch()
    alive = os.open(parent / "alive" / LOCK, os.O_WRONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    first = VideoReader(Limits(), tmp_path)
    second = VideoReader(Limits(), tmp_path)
    assert {path.parent.name for path in parent.glob("*/files")} == {
        "alive",
        *(reader._store._folder.parent.name for reader in (first, second)),
    }
    assert (parent / "alive" / "files" / "video").exists()
    assert (parent / "a file").exists()
    os.close(alive)
    VideoReader(Limits(), tmp_path)
    assert not (parent / "alive").exists()


def test_processes_that_start_at_the_same_time_leave_each_others_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has made its folder, and has not locked it yet, when another looks for what was left."""
    made, looked = threading.Event(), threading.Event()
    lock = fcntl.flock

    def slow_lock(file: Any, operation: int) -> None:
        if isinstance(file, int) and not made.is_set():
            made.set()
            looked.wait(0.2)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(video_reader._own_folder(tmp_path)))
    first.start()
    made.wait(5)
    found.append(video_reader._own_folder(tmp_path))
    looked.set()
    first.join()
    assert len(set(found)) == 2
    assert all((folder.parent / LOCK).exists() for folder in found)
    shutil.rmtree(tmp_path / FOLDER_NAME)
