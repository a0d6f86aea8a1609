"""The Python client follows objects in videos: against a made-up server that breaks off wherever a test wants it to."""

import gc
import hashlib
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from deployments import client as module
from deployments.client import Client, ClientError, FrameOfVideo, KeptVideo, VideoFile
from tests.either_client import Connect, either
from tests.unit.test_client import archive

VIDEO = b"a video file"
VIDEO_ID = hashlib.sha256(VIDEO).hexdigest()
FACTS = {"video_id": VIDEO_ID, "width": 7, "height": 5, "fps": 25.0, "num_frames": 4}
CLICK: dict[str, Any] = {"point_coords": [[1, 2]], "point_labels": [1]}
NOT_CACHED = {"msg": "video_id: upload it", "code": "video_not_cached"}


def mask(index: int) -> NDArray[np.bool_]:
    return np.random.default_rng(index).random((5, 7)) < 0.4


def frame_line(index: int, object_id: int = 1, **more: Any) -> bytes:
    rle = coco.encode(np.asfortranarray(mask(index).view(np.uint8)))
    found = {
        "object_id": object_id,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "score": 0.5,
        "present": True,
        "presence": 0.9,
        "area": int(mask(index).sum()),
        "bbox": [0, 0, 7, 5],
        **more,
    }
    return json.dumps({"frame_index": index, "time_s": index / 25, "objects": [found]}).encode() + b"\n"


HEAD = json.dumps({**FACTS, "model_id": "m", "objects": [1]}).encode() + b"\n"
FRAMES = [frame_line(index) for index in range(4)]
DONE = b'{"done":true,"frames":4}\n'
WHOLE = [HEAD, *FRAMES, DONE]


def error_line(code: str) -> bytes:
    return json.dumps({"error": {"msg": f"it is {code}", "code": code}, "frames": 0}).encode() + b"\n"


class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer's body, which an error may end; notes whether it was closed, and how much was asked for."""

    def __init__(self, pieces: list[Any]) -> None:
        self.pieces = pieces
        self.taken = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self.taken += 1
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in iter(self):
            yield piece

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.is_closed = True


Outcome = list[Any] | httpx.Response | Exception


@dataclass
class Server:
    """Gives the outcomes one after the other, then the whole answer; notes how each request names its video."""

    outcomes: list[Outcome] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        self.requests.append(request)
        names = re.findall(rb'name="(\w+)"[^\0]*?\r\n\r\n([^\0]*?)\r\n--', body)
        self.forms.append({name.decode(): value.decode() for name, value in names})
        self.asked.append("upload" if VIDEO in body else "id" if VIDEO_ID in str(request.url) + body.decode() else "?")
        outcome = self.outcomes.pop(0) if self.outcomes else WHOLE
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, httpx.Response):
            # A response belongs to one request: a new one each time.
            return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)
        self.streams.append(Stream(outcome))
        headers = {"content-type": "application/x-ndjson; charset=utf-8"}
        return httpx.Response(200, headers=headers, stream=self.streams[-1])


async def indices(client: Any, video: Any = VIDEO, **options: Any) -> list[int]:
    return [frame.frame_index async for frame in client.track(video, **(options or CLICK))]


def rejection(status: int, detail: dict[str, str]) -> httpx.Response:
    return httpx.Response(status, json={"detail": detail})


# ---- frames


@either
async def test_frames_come_in_order_with_masks_as_pycocotools_reads_them(connect: Connect, pauses: list[float]) -> None:
    logits = np.full((1, 256, 256), 0.25)
    lines = [HEAD, FRAMES[0], frame_line(1, logits=logits.tolist(), later_field=1), b'{"later":"line"}\n', DONE]
    server = Server([lines])
    first, second = [frame async for frame in connect(server).track(VIDEO, **CLICK, return_logits=True)]
    assert (first.frame_index, first.time_s, second.frame_index, second.time_s) == (0, 0.0, 1, 0.04)
    (found,) = first.objects
    np.testing.assert_array_equal(found.mask, mask(0))
    assert (found.mask.dtype, found.mask.flags.c_contiguous) == (np.bool_, True)
    assert (found.object_id, found.score, found.present, found.presence) == (1, 0.5, True, 0.9)
    assert (found.area, found.bbox) == (mask(0).sum(), (0, 0, 7, 5))
    assert found.logits is None
    np.testing.assert_array_equal(second.objects[0].logits, logits)
    assert second.objects[0].logits.dtype == np.float32
    assert server.streams[0].is_closed
    assert pauses == []


@either
async def test_lines_may_arrive_in_any_pieces(connect: Connect) -> None:
    # U+2028 ends a line for str.splitlines, and not in NDJSON.
    odd = '{"note":"\u2028"}\n'.encode()
    for size in (1, 7, 100_000):
        text = b"".join([HEAD, odd, *FRAMES, DONE])
        pieces: list[Any] = [text[start : start + size] for start in range(0, len(text), size)]
        assert await indices(connect(Server([pieces]))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 7), np.bool_),
        np.ones((5, 7), np.bool_),
        np.eye(6, 4, dtype=np.bool_),
        np.indices((9, 9)).sum(axis=0) % 2 == 0,
        np.random.default_rng(0).random((300, 200)) < 0.5,
        np.indices((1080, 1920))[0] // 300 % 2 == 1,
        np.pad(np.ones((1500, 1800), np.bool_), ((70, 430), (100, 4000))),
    ],
    ids=["zeros", "ones", "diagonal", "chessboard", "noise", "stripes", "large"],
)
def test_run_lengths_are_those_of_pycocotools(pixels: NDArray[np.bool_]) -> None:
    rle = coco.encode(np.asfortranarray(pixels.view(np.uint8)))
    read = module._mask_of({"size": rle["size"], "counts": rle["counts"].decode()})
    np.testing.assert_array_equal(read, pixels)
    runs = module._runs_of(pixels)
    assert coco.frPyObjects(json.loads(json.dumps(runs)), *pixels.shape) == rle


# ---- uploads


@either
async def test_a_video_is_uploaded_once_for_all_models(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    server = Server()
    client = connect(server)
    for model_id in (None, "another"):
        assert await indices(client, tmp_path / "clip.mp4", **CLICK, model_id=model_id) == [0, 1, 2, 3]
    assert server.asked == ["upload", "id"]
    assert server.forms[0]["video"] == VIDEO.decode()
    assert "video_id" not in server.forms[0]
    assert server.forms[1]["video_id"] == VIDEO_ID
    assert server.requests[0].headers["content-length"] == str(len(server.requests[0].content))


@either
@pytest.mark.parametrize("max_retries", [0, 7])
async def test_a_video_that_the_service_does_not_keep_any_more_is_uploaded_again(
    max_retries: int, connect: Connect, pauses: list[float]
) -> None:
    server = Server([WHOLE, rejection(404, NOT_CACHED)])
    client = connect(server, max_retries=max_retries)
    await indices(client)
    assert await indices(client) == [0, 1, 2, 3]
    assert await indices(client) == [0, 1, 2, 3]
    assert server.asked == ["upload", "id", "upload", "id"]
    assert pauses == []


@either
async def test_a_video_that_is_unknown_even_after_its_upload_is_an_error(connect: Connect) -> None:
    server = Server([rejection(404, NOT_CACHED)])
    with pytest.raises(ClientError, match=r"^404: video_id: upload it$"):
        await indices(connect(server))
    assert server.asked == ["upload"]


@either
async def test_a_video_that_is_gone_is_not_asked_for_by_its_id_again(connect: Connect) -> None:
    server = Server([WHOLE, rejection(404, NOT_CACHED), rejection(400, {"msg": "prompts: wrong"})])
    client = connect(server)
    await indices(client)
    with pytest.raises(ClientError, match="prompts: wrong"):
        await indices(client)
    await indices(client)
    assert server.asked == ["upload", "id", "upload", "upload"]


@either
@pytest.mark.usefixtures("pauses")
async def test_an_upload_that_broke_off_is_sent_from_its_beginning(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    with (tmp_path / "clip.mp4").open("rb") as file:
        file.read(3)
        for source in (file, io.BytesIO(VIDEO), VIDEO, str(tmp_path / "clip.mp4")):
            server = Server([httpx.WriteError("reset"), rejection(503, {"msg": "busy"})])
            assert await indices(connect(server, max_retries=2), source) == [0, 1, 2, 3]
            assert server.asked == ["upload"] * 3


@either
async def test_a_file_that_has_changed_since_is_an_error(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"another")
    video = VideoFile.of(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    with pytest.raises(ClientError, match="has changed"):
        await indices(connect(Server()), video)
    with pytest.raises(ClientError, match="has changed"):
        await connect(Server([httpx.Response(200, json=FACTS)])).embed_video(video)


def test_a_videos_name_is_the_digest_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    monkeypatch.setattr(module, "READ_BYTES", 5)
    # A path's file is never read as a whole.
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the whole file was read"))
    client = Client("http://service")
    for source in (tmp_path / "clip.mp4", str(tmp_path / "clip.mp4"), VIDEO, io.BytesIO(VIDEO)):
        video = client.video(source)
        assert video.video_id == VIDEO_ID
        assert client.video(video) is video
    assert "a video file" not in repr(video)
    assert client.video(str(tmp_path / "clip.mp4")).source == tmp_path / "clip.mp4"
    with pytest.raises(FileNotFoundError):
        client.video(tmp_path / "missing.mp4")


# ---- answers that break off

LOST = httpx.RemoteProtocolError("closed in the middle")


@either
@pytest.mark.parametrize(
    "end",
    [
        [LOST],
        [httpx.ReadTimeout("silence")],
        [],
        [FRAMES[2][:40]],
        [error_line("unavailable")],
        [error_line("model_unavailable")],
        [error_line("overloaded")],
        [error_line("shutting_down")],
    ],
    ids=["lost", "silent", "cut", "cut in a line", "unavailable", "asleep", "overloaded", "ending"],
)
async def test_an_answer_that_breaks_off_goes_on_where_it_was(
    end: list[Any], connect: Connect, pauses: list[float]
) -> None:
    server = Server([[HEAD, *FRAMES[:2], *end]])
    frames = [frame async for frame in connect(server).track(VIDEO, **CLICK)]
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3]
    for frame in frames:
        np.testing.assert_array_equal(frame.objects[0].mask, mask(frame.frame_index))
    assert server.asked == ["upload", "id"]
    upload, by_id = server.forms
    assert {**upload, "video": "", "video_id": VIDEO_ID} == {**by_id, "video": ""}
    assert all(stream.is_closed for stream in server.streams)
    assert pauses == [0.5]


@either
async def test_frames_are_counted_since_they_can_come_twice(connect: Connect, pauses: list[float]) -> None:
    lines = [frame_line(index, object_id) for index, object_id in [(1, 1), (2, 2), (3, 1), (2, 1), (1, 2), (0, 1)]]
    for cut in range(len(lines) + 1):
        server = Server([[HEAD, *lines[:cut]], [HEAD, *lines, DONE]])
        found = [
            (frame.frame_index, frame.objects[0].object_id)
            async for frame in connect(server).track(VIDEO, **CLICK, direction="both")
        ]
        assert found == [(1, 1), (2, 2), (3, 1), (2, 1), (1, 2), (0, 1)]
    assert len(pauses) == len(lines) + 1


@either
async def test_an_answer_may_break_off_again_before_it_is_where_it_was(connect: Connect, pauses: list[float]) -> None:
    server = Server([[HEAD, *FRAMES[:3], LOST], [HEAD, FRAMES[0], LOST], httpx.ConnectError("refused"), [HEAD], WHOLE])
    assert await indices(connect(server, max_retries=4)) == [0, 1, 2, 3]
    assert pauses == [0.5, 1, 2, 4]


@either
async def test_what_is_left_is_uploaded_again_if_the_file_is_gone(connect: Connect, pauses: list[float]) -> None:
    server = Server([[HEAD, FRAMES[0], LOST], rejection(404, NOT_CACHED), [HEAD, *FRAMES[:2], LOST]])
    assert await indices(connect(server)) == [0, 1, 2, 3]
    assert server.asked == ["upload", "id", "upload", "id"]
    assert pauses == [0.5, 0.5]


@either
async def test_a_file_that_is_gone_amid_an_answer_is_uploaded_again(connect: Connect, pauses: list[float]) -> None:
    server = Server([WHOLE, [HEAD, FRAMES[0], error_line("video_not_cached")]])
    client = connect(server)
    await indices(client)
    assert await indices(client) == [0, 1, 2, 3]
    assert server.asked == ["upload", "id", "upload"]
    assert pauses == []


@either
async def test_a_file_that_is_gone_every_time_is_not_uploaded_for_ever(connect: Connect, pauses: list[float]) -> None:
    server = Server([[HEAD, error_line("video_not_cached")]] * 9)
    with pytest.raises(ClientError) as error:
        await indices(connect(server, max_retries=2))
    assert error.value.code == "video_not_cached"
    assert server.asked == ["upload"] * 3
    assert pauses == [0.5, 1]


@either
async def test_new_frames_reset_the_patience(connect: Connect, pauses: list[float]) -> None:
    outcomes: list[Outcome] = []
    for count in (1, 2, 3):
        outcomes += [[HEAD, *FRAMES[:count], LOST], httpx.ConnectError("refused")]
    assert await indices(connect(Server([*outcomes]), max_retries=2)) == [0, 1, 2, 3]
    assert pauses == [0.5, 1] * 3
    # Without new ones, it ends.
    server = Server([[HEAD, FRAMES[0], LOST]] * 9)
    with pytest.raises(ClientError, match=r"^RemoteProtocolError: closed in the middle$") as error:
        await indices(connect(server, max_retries=2))
    assert error.value.status == 0
    assert len(server.asked) == 3


@either
@pytest.mark.usefixtures("pauses")
async def test_frames_that_come_again_keep_up_the_patience(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service follows what the caller has once more, which may take longer than `timeout_s`."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Stream):
        def __iter__(self) -> Iterator[bytes]:
            for piece in super().__iter__():
                now[0] += 30
                yield piece

    class SlowServer(Server):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            answer = super().__call__(request)
            answer.stream = Slow(self.streams[-1].pieces)
            return answer

    server = SlowServer([[HEAD, *FRAMES[:3], LOST], [HEAD, FRAMES[0], LOST]])
    assert await indices(connect(server, timeout_s=50)) == [0, 1, 2, 3]
    assert len(server.asked) == 3


@either
async def test_patience_ends_at_the_time_out(connect: Connect, pauses: list[float]) -> None:
    busy = httpx.Response(503, json={"detail": {"msg": "overloaded"}}, headers={"Retry-After": "7"})
    with pytest.raises(ClientError, match="503: overloaded"):
        await indices(connect(Server([busy]), timeout_s=5))
    assert pauses == []
    assert await indices(connect(Server([busy]), timeout_s=8)) == [0, 1, 2, 3]
    assert pauses == [7]


@either
async def test_a_cut_answer_is_an_error_in_the_end(connect: Connect, pauses: list[float]) -> None:
    with pytest.raises(ClientError, match=r"^the answer was cut off$") as error:
        await indices(connect(Server([[HEAD]] * 2), max_retries=1))
    assert (error.value.status, error.value.code) == (0, None)
    assert pauses == [0.5]


@either
@pytest.mark.parametrize("code", ["invalid_video", "internal_error", "deadline_exceeded", "a_later_code"])
async def test_an_error_that_a_repeat_would_meet_again_is_raised(
    code: str, connect: Connect, pauses: list[float]
) -> None:
    server = Server([[HEAD, FRAMES[0], error_line(code)]])
    frames = connect(server).track(VIDEO, **CLICK)
    assert (await anext(frames)).frame_index == 0
    with pytest.raises(ClientError, match=f"^it is {code}$") as error:
        await anext(frames)
    assert (error.value.status, error.value.code, error.value.message) == (0, code, f"it is {code}")
    assert server.streams[0].is_closed
    assert pauses == []


@either
@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (rejection(400, {"msg": "prompts: is missing"}), "400: prompts: is missing"),
        (rejection(503, {"msg": "too late", "code": "deadline_exceeded"}), "503: too late"),
        (httpx.Response(200, text="<html>sign in"), "the answer is no stream of frames; is this the service's URL?"),
        ([b"<html>\n"], "a line of the answer is not JSON; is this the service's URL?"),
    ],
    ids=["bad prompt", "too slow", "a page", "a page in lines"],
)
async def test_a_rejected_request_is_not_repeated(
    outcome: Outcome, message: str, connect: Connect, pauses: list[float]
) -> None:
    server = Server([outcome])
    with pytest.raises(ClientError, match=f"^{re.escape(message)}$"):
        await indices(connect(server))
    assert len(server.asked) == 1
    assert pauses == []


@either
async def test_a_connection_that_is_lost_after_the_last_line_is_no_error(connect: Connect) -> None:
    server = Server([[*WHOLE, LOST]])
    assert await indices(connect(server, max_retries=0)) == [0, 1, 2, 3]
    assert len(server.asked) == 1


# ---- time


@either
async def test_the_network_may_be_silent_for_the_time_of_a_line(connect: Connect) -> None:
    server = Server()
    client = connect(server, timeout_s=7)
    await indices(client)
    await indices(client, line_timeout_s=3, **CLICK)
    first, second = (request.extensions["timeout"] for request in server.requests)
    assert first["read"] == pytest.approx(330, abs=5)
    assert first["connect"] == 10
    assert second["read"] == pytest.approx(3, abs=0.5)


def halves(text: bytes) -> list[bytes]:
    return [text[:20], text[20:]]


@either
@pytest.mark.parametrize(
    ("pieces", "requests"),
    [
        ([HEAD, FRAMES[0], *(bytes([byte]) for byte in FRAMES[1]), *FRAMES[2:], DONE], 2),
        ([*halves(HEAD), *(half for line in FRAMES for half in halves(line)), *halves(DONE)], 1),
    ],
    ids=["a line that trickles", "a slow caller"],
)
async def test_a_line_may_take_its_time_and_the_caller_longer(
    pieces: list[bytes], requests: int, connect: Connect, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Stream):
        def __iter__(self) -> Iterator[bytes]:
            for piece in super().__iter__():
                now[0] += 2
                yield piece

    class SlowServer(Server):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            answer = super().__call__(request)
            if len(self.asked) == 1:
                answer.stream = Slow(pieces)
            return answer

    server = SlowServer()
    found = []
    async for frame in connect(server).track(VIDEO, **CLICK, line_timeout_s=5):
        found.append(frame.frame_index)
        now[0] += 60
    assert found == [0, 1, 2, 3]
    assert len(server.asked) == requests
    assert len(pauses) == requests - 1


# ---- closing


@either
async def test_closing_the_generator_closes_the_connection(connect: Connect) -> None:
    server = Server()
    async with aclosing(connect(server).track(VIDEO, **CLICK)) as frames:
        assert (await anext(frames)).frame_index == 0
        assert not server.streams[0].is_closed
    assert server.streams[0].is_closed
    # Nothing was read ahead.
    assert server.streams[0].taken == 2


def test_leaving_the_loop_closes_the_connection_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    server = Server()
    with Client("http://service", transport=httpx.MockTransport(server)) as client:
        for frame in client.track(tmp_path / "clip.mp4", **CLICK):
            assert frame.frame_index == 0
            break
        gc.collect()
        assert server.streams[0].is_closed


# ---- what is sent


@either
async def test_the_short_form_is_written_as_the_contract_says(connect: Connect) -> None:
    server = Server()
    await indices(
        connect(server, model_id="m"),
        frame_index=np.int64(3),
        point_coords=np.array([[1.5, 2]]),
        point_labels=np.array([1]),
        box=np.array([1, 2, 3, 4]),
        direction="both",
        start_frame=2,
        max_frames=5,
        stride=2,
        return_logits=True,
        non_overlapping=True,
        normalize_coords=False,
    )
    expected = {
        "model_id": "m",
        "frame_index": "3",
        "point_coords": "[[1.5, 2.0]]",
        "point_labels": "[1]",
        "box": "[1, 2, 3, 4]",
        "direction": "both",
        "start_frame": "2",
        "max_frames": "5",
        "stride": "2",
        "return_logits": "true",
        "non_overlapping": "true",
        "normalize_coords": "false",
        "response_format": "rle",
        "video": VIDEO.decode(),
    }
    assert server.forms[0] == expected


@either
async def test_prompts_may_hold_arrays_and_masks(connect: Connect) -> None:
    server = Server()
    pixels = np.array([[True, False, False], [True, True, False]])
    rle = coco.encode(np.asfortranarray(pixels.view(np.uint8)))
    prompts = [
        {"object_id": np.int64(2), "frame_index": 1, "point_coords": np.array([[1.5, 2]]), "point_labels": (1,)},
        {"object_id": 3, "mask": pixels},
        {"object_id": 4, "mask": rle, "time_s": np.float32(0.5)},
        {"object_id": 2, "frame_index": 3, "remove": True, "box": None},
    ]
    await indices(connect(server), prompts=(one for one in prompts))
    assert json.loads(server.forms[0]["prompts"]) == [
        {"object_id": 2, "frame_index": 1, "point_coords": [[1.5, 2.0]], "point_labels": [1]},
        {"object_id": 3, "mask": {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}},
        {"object_id": 4, "mask": {"size": [2, 3], "counts": rle["counts"].decode()}, "time_s": 0.5},
        {"object_id": 2, "frame_index": 3, "remove": True, "box": None},
    ]


@either
async def test_wrong_arguments_are_type_errors(connect: Connect) -> None:
    server = Server()
    with pytest.raises(TypeError, match=r"track\(\) got unexpected keyword arguments: boxes"):
        await indices(connect(server), boxes=[])
    for wrong in (np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), np.bool_)):
        with pytest.raises(TypeError, match="mask: must be an H×W array of bool"):
            await indices(connect(server), prompts=[{"mask": wrong}])
    with pytest.raises(TypeError, match=r"prompts: \w*Path cannot be sent"):
        await indices(connect(server), prompts=[{"mask": Path("mask.png")}])
    assert server.asked == []


# ---- frames as images


@either
async def test_an_embedded_video_is_named_by_its_id(connect: Connect) -> None:
    server = Server([httpx.Response(200, json={**FACTS, "later": 1})])
    client = connect(server)
    assert await client.embed_video(VIDEO) == KeptVideo(VIDEO_ID, 7, 5, 25.0, 4)
    assert server.requests[0].url.path == "/segment-anything-2/video/embed"
    await indices(client)
    assert server.asked == ["upload", "id"]
    with pytest.raises(ClientError, match="says nothing of a video"):
        await connect(Server([httpx.Response(200, text="<html>")])).embed_video(VIDEO)


@either
async def test_a_frame_is_an_array(connect: Connect) -> None:
    pixels = np.arange(105, dtype=np.uint8).reshape(5, 7, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    server = Server([rejection(404, NOT_CACHED), httpx.Response(200, json=FACTS)])
    server.outcomes.append(httpx.Response(200, content=buffer.getvalue()))
    frame = await connect(server).frame(VIDEO, 3)
    np.testing.assert_array_equal(frame, pixels)
    assert frame.dtype == np.uint8
    assert frame.flags.writeable
    assert server.asked == ["id", "upload", "id"]
    assert server.requests[2].url == f"http://service/segment-anything-2/video/{VIDEO_ID}/frames/3?format=png"
    with pytest.raises(ClientError, match="no picture"):
        await connect(Server([httpx.Response(200, text="<html>")])).frame(VIDEO, 3)


@either
async def test_a_frame_is_prompted_as_an_image_is(connect: Connect) -> None:
    answer = archive(masks=np.ones((3, 5, 7), np.bool_), scores=np.ones(3, np.float32))
    segmented = httpx.Response(200, content=answer, headers={"X-Image-Id": "f" * 64})
    server = Server([rejection(404, NOT_CACHED), httpx.Response(200, json=FACTS), *[segmented] * 4])
    client = connect(server, model_id="m")
    frame = FrameOfVideo(VideoFile.of(VIDEO), 2)
    assert Client("http://service").frame_of(VIDEO, 2) == frame
    found = await client.segment(frame, **CLICK)
    assert found.masks.shape == (3, 5, 7)
    assert found.image_id == "f" * 64
    assert await client.embed(frame) == "f" * 64
    assert await client.segment_as(frame, "npz", **CLICK) == answer
    assert server.asked == ["id", "upload", "id", "id", "id"]
    assert server.forms[2] == {
        "model_id": "m",
        "point_coords": "[[1, 2]]",
        "point_labels": "[1]",
        "response_format": "npz",
        "video_id": VIDEO_ID,
        "frame_index": "2",
    }
    assert [request.url.path.removeprefix("/segment-anything-2") for request in server.requests] == [
        "",
        "/video/embed",
        "",
        "/embed",
        "",
    ]
