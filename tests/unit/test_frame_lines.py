"""A video's answer: each frame's masks in every format, and the lines, events and zips around them."""

import asyncio
import io
import itertools
import json
import zipfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import shapely.geometry
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from deployments.encoding.davis import davis_palette
from deployments.encoding.frame_lines import write
from deployments.errors import DeadlineExceeded, InvalidVideo, Overloaded, VideoNotCached
from deployments.messages.answer_format import TrackFormat
from deployments.messages.rle import decode_rle
from deployments.messages.track import FrameMasks
from deployments.parsing.video import lines as lines_module
from deployments.parsing.video.label_zip import LabelZip
from deployments.parsing.video.lines import EventStream, JsonLines, Lines, written
from tests.loops import settled

SIZE = (40, 56)


def frame(
    index: int = 3, object_ids: Sequence[int] = (1, 4, 9), time_s: float | None = 0.3, absent: Sequence[int] = (2,)
) -> FrameMasks:
    """Overlapping discs; those at the places in `absent` are not to be seen."""
    y, x = np.mgrid[:256, :256]
    logits = np.stack([
        60 - np.hypot(y - 100, x - 70 - 40 * place).astype(np.float32) + 3 * place for place in range(len(object_ids))
    ])  # fmt: skip
    logits[list(absent)] = -1024
    presence = np.linspace(0.99, 0.9, len(object_ids), dtype=np.float32)
    presence[list(absent)] = 0.01
    scores = np.linspace(0.5, 1, len(object_ids), dtype=np.float32)
    return FrameMasks(index, tuple(object_ids), SIZE, logits, scores, presence, time_s)


def record(masks: FrameMasks, *arguments: Any, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(write(masks, TrackFormat(*arguments, **options)))
    return found


def decoded(segmentation: Any) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = coco.decode({**segmentation, "counts": segmentation["counts"].encode()}).astype(bool)
    return mask


# ---- a frame


@pytest.mark.parametrize("name", ["rle", "polygons", "none"])
def test_every_record_says_what_is_known_of_its_object(name: str) -> None:
    masks = frame()
    line = record(masks, name)
    assert list(line) == ["frame_index", "time_s", "objects"]
    assert (line["frame_index"], line["time_s"]) == (3, 0.3)
    fields = {"object_id", "score", "present", "presence", "area", "bbox"}
    fields |= set() if name == "none" else {"segmentation"}
    for place, one in enumerate(line["objects"]):
        assert set(one) == fields
        mask = masks.mask(place)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert one["object_id"] == (1, 4, 9)[place]
        assert one["score"] == pytest.approx(float(masks.scores[place]))
        assert one["presence"] == pytest.approx(float(masks.presence[place]))
        assert one["present"] is (place != 2)
        assert one["area"] == mask.sum()
        if mask.any():
            assert one["bbox"] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        else:
            assert (place, one["bbox"]) == (2, [0, 0, 0, 0])


def test_run_lengths_are_the_masks() -> None:
    masks = frame()
    for place, one in enumerate(record(masks)["objects"]):
        assert one["segmentation"]["size"] == list(SIZE)
        assert np.array_equal(decoded(one["segmentation"]), masks.mask(place))
        # So they can be sent as a prompt.
        assert np.array_equal(decode_rle(one["segmentation"], 10_000), masks.mask(place))


def test_polygons_have_the_masks_area_and_their_tolerance() -> None:
    masks = frame()
    exact, default, rough = (record(masks, "polygons", tolerance=tolerance) for tolerance in (0, None, 3))
    for place, one in enumerate(exact["objects"]):
        assert shapely.geometry.shape(one["segmentation"]).area == masks.mask(place).sum()
    assert exact["objects"][2]["segmentation"] == {"type": "MultiPolygon", "coordinates": []}
    corners = [
        len(line["objects"][0]["segmentation"]["coordinates"][0][0]) for line in (exact, default, rough)
    ]  # fmt: skip
    assert corners[0] > corners[1] >= corners[2]
    assert default == record(masks, "polygons", tolerance=1)


def test_frames_without_times_or_objects() -> None:
    assert record(frame(time_s=None))["time_s"] is None
    nothing = FrameMasks(0, (), SIZE, np.zeros((0, 256, 256), np.float32), *np.zeros((2, 0), np.float32))
    assert record(nothing) == {"frame_index": 0, "time_s": None, "objects": []}
    assert not np.asarray(Image.open(io.BytesIO(write(nothing, TrackFormat("png"))))).any()


def test_logits_are_clamped_and_can_be_sent_back() -> None:
    masks = frame()
    masks.logits[0] *= 10
    for name in ("rle", "polygons", "none"):
        for place, one in enumerate(record(masks, name, return_logits=True)["objects"]):
            logits = np.array(one["logits"], np.float32)
            assert logits.shape == (1, 256, 256)
            assert np.array_equal(logits[0], masks.logits[place].clip(-32, 32))
    assert masks.logits[0].max() > 32
    assert "logits" not in record(masks)["objects"][0]


def test_masks_that_do_not_overlap_go_to_the_highest_logit() -> None:
    masks = frame(absent=())
    apart = np.stack([decoded(one["segmentation"]) for one in record(masks, non_overlapping=True)["objects"]])
    free = np.stack([decoded(one["segmentation"]) for one in record(masks)["objects"]])
    assert free.sum(0).max() == 3
    assert apart.sum(0).max() == 1
    assert np.array_equal(apart.any(0), free.any(0))
    assert all(mask.any() for mask in apart)
    for one in record(masks, "none", non_overlapping=True)["objects"]:
        assert one["area"] == apart[(1, 4, 9).index(one["object_id"])].sum()
    labels = np.asarray(Image.open(io.BytesIO(write(masks, TrackFormat("png")))))
    for mask, object_id in zip(apart, (1, 4, 9), strict=True):
        assert np.array_equal(labels == object_id, mask)


def test_a_label_image_has_the_objects_ids_and_the_palette_of_davis() -> None:
    for object_ids in ((1, 4, 9), (255, 1, 200)):
        masks = frame(object_ids=object_ids)
        image = Image.open(io.BytesIO(write(masks, TrackFormat("png"))))
        assert (image.format, image.mode, image.size) == ("PNG", "P", (56, 40))
        assert set(np.unique(np.asarray(image))) == {0, *object_ids[:2]}
        palette = image.getpalette()
        assert palette is not None
        assert bytes(palette)[: 3 * 256] == davis_palette()[: len(palette)]
        colours = image.convert("RGB").getcolors()
        assert colours is not None
        assert len(colours) == 3
    # As they are published.
    first = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    table = np.frombuffer(davis_palette(), np.uint8).reshape(256, 3)
    assert table[:7].tolist() == first
    assert table[[8, 16, 255]].tolist() == [[64, 0, 0], [0, 64, 0], [224, 224, 192]]
    assert len({tuple(colour) for colour in table.tolist()}) == 256


# ---- the answer

FACTS = {"video_id": "a" * 64, "width": 56, "height": 40, "fps": None, "num_frames": 9, "objects": [1]}


class Job:
    """Gives masks, and notes whether it was closed and how much was taken."""

    def __init__(
        self, frames: Sequence[int], error: Exception | None = None, pause_s: dict[int, float] | None = None
    ) -> None:
        self.given = 0
        self.closed = self.cancelled = False
        self._frames, self._error, self._pauses = frames, error, pause_s or {}

    async def __call__(self) -> AsyncGenerator[FrameMasks, None]:
        try:
            for index in self._frames:
                await asyncio.sleep(self._pauses.get(index, 0))
                self.given += 1
                yield frame(index)
            if self._error is not None:
                raise self._error
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.closed = True


async def encode(masks: FrameMasks) -> memoryview:
    return memoryview(b'{"frame_index":%d}' % masks.frame_index)


async def answer(job: Job, lines: Lines, encode: Any = encode) -> list[bytes]:
    return [part async for part in written(job(), encode, FACTS, lines)]


async def test_ndjson_has_a_line_for_the_video_each_frame_and_the_end() -> None:
    job = Job([3, 4, 2])
    parts = await answer(job, JsonLines())
    assert all(part.endswith(b"\n") and part.count(b"\n") == 1 for part in parts)
    frames = [{"frame_index": index} for index in (3, 4, 2)]
    assert [json.loads(part) for part in parts] == [FACTS, *frames, {"done": True, "frames": 3}]
    assert job.closed


async def test_events_hold_the_same_objects() -> None:
    parts = await answer(Job([3, 4, 2]), EventStream())
    assert all(part.startswith(b"data: ") and part.endswith(b"\n\n") and part.count(b"\n") == 2 for part in parts)
    lines = await answer(Job([3, 4, 2]), JsonLines())
    assert [json.loads(part[6:]) for part in parts] == [json.loads(line) for line in lines]


async def test_lines_come_as_soon_as_they_are_known() -> None:
    for lines in (JsonLines(), EventStream(), LabelZip()):
        job = Job(range(5))
        async with aclosing(written(job(), encode, FACTS, lines)) as parts:
            await anext(parts)
            assert job.given == 0
            for count in range(1, 5):
                assert await anext(parts)
                assert job.given == count


async def test_a_pause_in_events_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PAUSE_S", 0.02)
    job = Job(range(3), pause_s={1: 0.09})
    parts = await answer(job, EventStream())
    kinds = [is_comment for is_comment, _ in itertools.groupby(part.startswith(b":") for part in parts)]
    assert kinds == [False, True, False]
    comments = [part for part in parts if part.startswith(b":")]
    assert 2 <= len(comments) <= 5
    assert all(comment.endswith(b"\n\n") for comment in comments)
    # Nothing is lost by waiting.
    assert [json.loads(part[6:]) for part in parts if part.startswith(b"data")][-1] == {"done": True, "frames": 3}
    # A zip has no room for them.
    assert len(await answer(Job(range(3), pause_s={1: 0.05}), LabelZip())) == 5


async def test_a_pause_in_ndjson_is_filled_with_spaces_that_change_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PAUSE_S", 0.02)
    parts = await answer(Job(range(3), InvalidVideo("video: damaged"), pause_s={1: 0.09}), JsonLines())
    assert 2 <= parts.count(b" ") <= 5
    lines = b"".join(parts).decode().splitlines()
    assert [json.loads(line).get("frame_index") for line in lines] == [None, 0, 1, 2, None]
    assert json.loads(lines[0]) == FACTS


async def test_a_frame_that_takes_long_to_write_is_a_pause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PAUSE_S", 0.02)

    async def slow(masks: FrameMasks) -> memoryview:
        await asyncio.sleep(0.07)
        return await encode(masks)

    for lines in (JsonLines(), EventStream()):
        parts = await answer(Job([3]), lines, slow)
        assert 1 <= parts.count(lines.comment) <= 4
        assert len(parts) == 3 + parts.count(lines.comment)


async def test_who_leaves_while_a_frame_is_written_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PAUSE_S", 0.01)
    cancelled = []

    async def endless(masks: FrameMasks) -> memoryview:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(masks.frame_index)
            raise
        return await encode(masks)

    job = Job([3, 4])
    parts = written(job(), endless, FACTS, JsonLines())
    await anext(parts)
    assert await anext(parts) == b" "
    await parts.aclose()
    assert (cancelled, job.closed) == ([3], True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidVideo("video: frame 5 cannot be decoded"), "invalid_video"),
        (VideoNotCached("video_id: is not kept"), "video_not_cached"),
        (Overloaded("overloaded: full"), "overloaded"),
        (DeadlineExceeded("too late"), "deadline_exceeded"),
    ],
)
async def test_an_error_is_the_last_line(error: Any, code: str) -> None:
    end = {"error": {"msg": error.message, "code": code}, "frames": 2}
    job = Job([3, 4], error)
    assert [json.loads(part) for part in await answer(job, JsonLines())][-2:] == [{"frame_index": 4}, end]
    assert job.closed
    assert json.loads((await answer(Job([3, 4], error), EventStream()))[-1][6:]) == end
    assert json.loads((await answer(Job([], error), JsonLines()))[-1]) == {**end, "frames": 0}


async def test_an_unforeseen_error_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    end = {"error": {"msg": "internal error; the log has it", "code": "internal_error"}, "frames": 1}
    job = Job([3], ValueError("a secret"))
    parts = await answer(job, JsonLines())
    assert json.loads(parts[-1]) == end
    assert b"secret" not in b"".join(parts)
    assert job.closed


async def test_a_frame_that_cannot_be_written_ends_the_answer_and_the_job() -> None:
    async def fails(masks: FrameMasks) -> memoryview:
        if masks.frame_index == 4:
            raise Overloaded("overloaded: the encoders are full")
        return await encode(masks)

    for lines in (JsonLines(), EventStream()):
        job = Job([3, 4, 5])
        parts = await answer(job, lines, fails)
        assert len(parts) == 3
        end = json.loads(parts[-1].removeprefix(b"data: "))
        assert (end["error"]["code"], end["frames"]) == ("overloaded", 1)
        assert (job.closed, job.given) == (True, 2)


async def test_who_leaves_early_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PAUSE_S", 0.01)
    for lines, is_waiting in ((JsonLines(), False), (EventStream(), False), (EventStream(), True)):
        job = Job(range(9), pause_s={1: 10.0} if is_waiting else None)
        parts = written(job(), encode, FACTS, lines)
        await anext(parts)
        await anext(parts)
        if is_waiting:
            assert (await anext(parts)).startswith(b":")
        await parts.aclose()
        assert job.closed
        assert job.cancelled is is_waiting


async def test_who_is_cancelled_while_waiting_ends_the_job() -> None:
    for lines in (JsonLines(), EventStream()):
        job = Job([3], pause_s={3: 10.0})
        task = asyncio.ensure_future(answer(job, lines))
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (job.closed, job.cancelled) == (True, True)


# ---- zips


async def as_png(masks: FrameMasks) -> memoryview:
    return memoryview(write(masks, TrackFormat("png")))


async def test_a_zip_holds_the_label_images_in_order() -> None:
    parts = await answer(Job([3, 4, 2, 100_000]), LabelZip(), as_png)
    assert len(parts) == 6
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["video.json", "00003.png", "00004.png", "00002.png", "100000.png", "done.json"]
        assert json.loads(archive.read("video.json")) == FACTS
        assert json.loads(archive.read("done.json")) == {"done": True, "frames": 4}
        labels = np.asarray(Image.open(io.BytesIO(archive.read("00004.png"))))
        assert np.array_equal(labels > 0, frame(4).labels() > 0)


async def test_each_part_of_a_zip_is_a_whole_entry() -> None:
    """Who reads it while it comes has each frame at once."""
    parts = await answer(Job([3, 4]), LabelZip(), as_png)
    png = bytes(await as_png(frame(3)))
    assert parts[0].startswith(b"PK\x03\x04")
    assert json.dumps(FACTS, separators=(",", ":")).encode() in parts[0]
    for part in parts[1:3]:
        assert part.startswith(b"PK\x03\x04")
        assert png in part


async def test_names_have_the_order_of_frames_in_long_videos_too() -> None:
    parts = await answer(Job([99_999, 100_000]), LabelZip(digits=6), as_png)
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.namelist()[1:-1] == ["099999.png", "100000.png"]


async def test_a_zip_that_ends_with_an_error_can_be_read() -> None:
    parts = await answer(Job([3], InvalidVideo("video: frame 4 cannot be decoded")), LabelZip(), as_png)
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.namelist() == ["video.json", "00003.png", "error.json"]
        assert json.loads(archive.read("error.json"))["error"]["code"] == "invalid_video"
    # And one that was cut off cannot.
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(b"".join(parts[:-1])))
