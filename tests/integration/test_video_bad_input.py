"""Whatever is sent as a video, or as prompts for one, gets the right status and a message that names the field."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from harness.images import encoded, picture
from harness.videos import mp4, sound, squares, zipped
from tests.integration.conftest import DEMO, NOT_CACHED, OWN, Service
from tests.integration.test_bad_input import replicas

ROUTE = "/segment-anything-2/video"

CLIP = mp4(squares(6, 48, 64))
NO_TIMES = zipped(squares(2, 48, 64))

BOX = {"box": "[10,10,30,30]"}


def prompts(*values: Any) -> dict[str, str]:
    return {"prompts": json.dumps(values)}


def prompt(**fields: Any) -> dict[str, str]:
    """One prompt, good but for these fields; None takes a field away."""
    given = {"object_id": 1, "frame_index": 0, "box": [10, 10, 30, 30], **fields}
    return prompts({name: value for name, value in given.items() if value is not None})


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as output:
        for name, content in files.items():
            output.writestr(name, content)
    return buffer.getvalue()


def two_sizes() -> bytes:
    return zip_of(a=encoded(picture(64, 48)), b=encoded(picture(48, 64)))


def wide_header() -> bytes:
    """A GIF of two frames whose header says 60,000 × 60,000; it holds 8 × 8 of them."""
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 255)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    gif = bytearray(buffer.getvalue())
    gif[6:10] = (60_000).to_bytes(2, "little") * 2
    return bytes(gif)


# What is sent as `video`, with a good prompt.
NOT_VIDEOS: dict[str, tuple[int, str, bytes]] = {
    "nothing": (400, "video: the file is empty", b""),
    "text": (400, "video: ", b"this is no video\n" * 100),
    "zeros": (400, "video: ", bytes(5000)),
    "json": (400, "video: ", b'{"video": true}'),
    "a jpeg": (400, "video: is a still picture (JPEG)", encoded(picture(64, 48), "JPEG")),
    "a png": (400, "video: is a still picture (PNG)", encoded(picture(64, 48))),
    "a gif of one frame": (400, "video: is a still picture (GIF)", encoded(picture(64, 48).quantize(8), "GIF")),
    "sound alone": (400, "video: ", sound()),
    "the first bytes of an mp4": (400, "video: ", CLIP[:40]),
    "an mp4 without its index": (400, "video: ", CLIP[: CLIP.rfind(b"moov") - 4]),
    "the end of an mp4": (400, "video: ", CLIP[-500:]),
    "an empty zip": (400, "video: is a zip file that holds no pictures", zip_of()),
    "a zip of text": (400, "video: frame 0, 'a', ", zip_of(a=b"text")),
    "a cut off zip": (400, "video: is a zip file that is damaged", NO_TIMES[:-30]),
    "a zip in a zip": (400, "video: frame 0, 'a', ", zip_of(a=NO_TIMES)),
    "a zip of a picture that is too large": (413, "video: frame 0, ", zip_of(a=bytes(21 * 2**20))),
    "frames of 3.6 gigapixels": (413, "video: ", wide_header()),
    "a playlist": (400, "video: ", b"#EXTM3U\n#EXTINF:1,\nclip.ts\n"),
    "an svg": (400, "video: ", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
}

# Fields with a good video.
BAD_FIELDS: dict[str, tuple[int, str, dict[str, str]]] = {
    "no prompt": (400, "prompts: is missing", {}),
    "no list": (400, "prompts: must be a JSON array", {"prompts": '{"object_id": 1}'}),
    "an empty list": (400, "prompts: must be a JSON array", {"prompts": "[]"}),
    "no json": (400, "prompts: is not valid JSON", {"prompts": "[{"}),
    "NaN": (400, "prompts: is not valid JSON", {"prompts": '[{"box": [NaN,1,2,3]}]'}),
    "a list of lists": (400, "prompts[0]: must be a JSON object", {"prompts": "[[1,2]]"}),
    "an unknown field": (400, "prompts[0].points: is not a field", prompt(points=[[1, 2]])),
    "nothing in it": (400, "prompts[0].point_coords: is missing", prompt(box=None)),
    "an object of text": (400, "prompts[0].object_id: ", prompt(object_id="left")),
    "an object of half": (400, "prompts[0].object_id: ", prompt(object_id=1.5)),
    "object -1": (400, "prompts[0].object_id: ", prompt(object_id=-1)),
    "object true": (400, "prompts[0].object_id: ", prompt(object_id=True)),
    "frame -1": (400, "prompts[0].frame_index: ", prompt(frame_index=-1)),
    "frame 6 of 6": (400, "prompts[0].frame_index: is 6, but the video has 6 frames", prompt(frame_index=6)),
    "frame 1e9": (400, "prompts[0].frame_index: ", prompt(frame_index=10**9)),
    "frame of text": (400, "prompts[0].frame_index: ", prompt(frame_index="first")),
    "frame and time": (400, "prompts[0].time_s: ", prompt(time_s=0.1)),
    "a time after the end": (400, "prompts[0].time_s: is 60", prompt(frame_index=None, time_s=60)),
    "a negative time": (400, "prompts[0].time_s: ", prompt(frame_index=None, time_s=-1)),
    "a time of text": (400, "prompts[0].time_s: ", prompt(frame_index=None, time_s="0:01")),
    "points without labels": (400, "prompts[0].point_labels: ", prompt(box=None, point_coords=[[1, 2]])),
    "labels without points": (400, "prompts[0].point_coords: ", prompt(box=None, point_labels=[1])),
    "a label of 9": (400, "prompts[0].point_labels: ", prompt(point_coords=[[1, 2]], point_labels=[9])),
    "a point of three": (400, "prompts[0].point_coords: ", prompt(point_coords=[[1, 2, 3]], point_labels=[1])),
    "ragged points": (400, "prompts[0].point_coords: ", prompt(point_coords=[[1, 2], [3]], point_labels=[1, 1])),
    "points of text": (400, "prompts[0].point_coords: ", prompt(point_coords=[["a", "b"]], point_labels=[1])),
    "points as an object": (400, "prompts[0].point_coords: ", prompt(point_coords={"x": 1}, point_labels=[1])),
    "a point beyond float32": (400, "prompts[0].point_coords: ", prompt(point_coords=[[1e39, 1]], point_labels=[1])),
    "two boxes": (400, "prompts[0].object_id: ", prompt(box=[[1, 2, 3, 4], [1, 2, 3, 4]])),
    "a box of 3": (400, "prompts[0].box: ", prompt(box=[1, 2, 3])),
    "a box turned over": (400, "prompts[0].box: ", prompt(box=[30, 10, 10, 30])),
    "a mask and a box": (400, "prompts[0].mask: ", prompt(mask={"size": [48, 64], "counts": [48 * 64]})),
    "a mask of text": (400, "prompts[0].mask: ", prompt(box=None, mask="all")),
    "a mask without a size": (400, "prompts[0].mask: ", prompt(box=None, mask={"counts": [3072]})),
    "a mask with too few runs": (400, "prompts[0].mask: ", prompt(box=None, mask={"size": [48, 64], "counts": [5]})),
    "a mask of negative runs": (400, "prompts[0].mask: ", prompt(box=None, mask={"size": [2, 2], "counts": [-1, 5]})),
    "a mask of other text": (400, "prompts[0].mask: ", prompt(box=None, mask={"size": [48, 64], "counts": "é"})),
    "a mask of another size": (
        400,
        "prompts[0].mask: is 32×24; frames of this video are 64×48",
        prompt(box=None, mask={"size": [24, 32], "counts": [700, 68]}),
    ),
    "a mask of 10^12 pixels": (
        413,
        "prompts[0].mask: ",
        prompt(box=None, mask={"size": [10**6, 10**6], "counts": [10**12]}),
    ),
    "a mask_input of 128×128": (400, "prompts[0].mask_input: ", prompt(box=None, mask_input=[[[0.0] * 128] * 128])),
    "two prompts for an object on a frame": (
        400,
        "prompts[1].frame_index: ",
        prompts({"box": [1, 2, 3, 4]}, {"box": [1, 2, 3, 4]}),
    ),
    "a removal of what is not there": (
        400,
        "prompts: object 2 is removed on frame 3",
        prompts({"box": [1, 2, 3, 4]}, {"object_id": 2, "frame_index": 3, "remove": True}),
    ),
    "a removal with a box": (400, "prompts[0].remove: ", prompt(remove=True)),
    "removals alone": (400, "prompts: ", prompt(box=None, remove=True)),
    "remove maybe": (400, "prompts[0].remove: ", prompt(remove="maybe")),
    "normalize_coords of 1": (400, "prompts[0].normalize_coords: ", prompt(normalize_coords=1)),
    "257 prompts": (413, "prompts: has 257 prompts", prompts(*({"object_id": one} for one in range(257)))),
    "65 objects": (
        413,
        "prompts: has 65 objects",
        prompts(*({"object_id": o, "box": [1, 2, 3, 4]} for o in range(65))),
    ),
    "1001 points": (
        413,
        "prompts: has 1001 points",
        prompt(box=None, point_coords=[[1, 2]] * 1001, point_labels=[1] * 1001),
    ),
    "5 million numbers": (413, "prompts: ", {"prompts": "[" + "1," * 5_000_000 + "1]"}),
    "both forms": (400, "box: is given as well as prompts", {**BOX, **prompt()}),
    "frame_index beside prompts": (400, "frame_index: is given as well as prompts", {**prompt(), "frame_index": "1"}),
    "frame_index -1": (400, "frame_index: ", {**BOX, "frame_index": "-1"}),
    "frame_index of text": (422, "frame_index", {**BOX, "frame_index": "last"}),
    "the short form on frame 99": (400, "frame_index: is 99", {**BOX, "frame_index": "99"}),
    "a short form that is no json": (400, "box: is not valid JSON", {"box": "[1,2"}),
    "a video and its id": (400, "video_id: is given as well as video", {**BOX, "video_id": "0" * 64}),
    "direction sideways": (422, "direction", {**BOX, "direction": "sideways"}),
    "stride 0": (422, "stride", {**BOX, "stride": "0"}),
    "stride of half": (422, "stride", {**BOX, "stride": "0.5"}),
    "max_frames 0": (422, "max_frames", {**BOX, "max_frames": "0"}),
    "start_frame -1": (422, "start_frame", {**BOX, "start_frame": "-1"}),
    "start_frame after the end": (400, "start_frame: is 60", {**BOX, "start_frame": "60"}),
    "start_frame after the prompt": (400, "prompts: ", {**BOX, "start_frame": "3"}),
    "a prompt between strides": (
        400,
        "prompts: that for object 1 is on frame 3",
        {**prompts({"box": [1, 2, 3, 4]}, {"frame_index": 3, "box": [1, 2, 3, 4]}), "stride": "2"},
    ),
    "a prompt after max_frames": (
        400,
        "prompts: that for object 2 is on frame 4",
        {**prompts({"box": [1, 2, 3, 4]}, {"object_id": 2, "frame_index": 4, "box": [1, 2, 3, 4]}), "max_frames": "2"},
    ),
    "response_format json": (422, "response_format", {**BOX, "response_format": "json"}),
    "tolerance for rle": (400, "tolerance: ", {**BOX, "tolerance": "1"}),
    "tolerance 1000": (400, "tolerance: ", {**BOX, "response_format": "polygons", "tolerance": "1000"}),
    "logits in a png": (400, "return_logits: ", {**BOX, "response_format": "png", "return_logits": "true"}),
    "object 300 in a png": (400, "prompts: ", {**prompt(object_id=300), "response_format": "png"}),
    "an unknown model": (400, "model_id: ", {**BOX, "model_id": "sam3"}),
    "the bundled model": (400, "model_id: ", {**BOX, "model_id": DEMO}),
    "a model that is not there": (503, "model", {**BOX, "model_id": NOT_CACHED}),
}

BAD_IDS: dict[str, tuple[int, str, dict[str, str]]] = {
    "short": (400, "video_id: ", {"video_id": "abc"}),
    "upper case": (400, "video_id: ", {"video_id": "A" * 64}),
    "a path": (400, "video_id: ", {"video_id": "../" * 21 + "a"}),
    "unknown": (404, "video_id: the service does not keep", {"video_id": "0" * 64}),
}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def replicas_before(client: httpx.Client) -> dict[str, int]:
    # Every model that is asked is awake before: what wakes is not what was restarted.
    answer = post(client, {**BOX, "max_frames": "1", "model_id": OWN}, CLIP)
    assert answer.status_code == 200, answer.text
    return replicas()


def post(client: httpx.Client, fields: dict[str, str], video: bytes | None, route: str = ROUTE) -> httpx.Response:
    parts: list[Any] = [(name, (None, text)) for name, text in {"model_id": OWN, **fields}.items()]
    if video is not None:
        parts.append(("video", ("clip", video)))
    return client.post(route, files=parts)


def check(response: httpx.Response, status: int, named: str) -> None:
    assert response.status_code == status, response.text[:500]
    detail = response.json()["detail"]
    if status == 422:
        assert [fault["loc"] for fault in detail] == [["body", named]]
    else:
        assert detail["msg"].startswith(named), detail
    assert len(response.content) < 1500


@pytest.mark.parametrize(("status", "named", "video"), NOT_VIDEOS.values(), ids=NOT_VIDEOS)
def test_what_is_no_video_is_refused(status: int, named: str, video: bytes, client: httpx.Client) -> None:
    check(post(client, BOX, video), status, named)


@pytest.mark.parametrize(("status", "named", "fields"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_fields_are_refused(status: int, named: str, fields: dict[str, str], client: httpx.Client) -> None:
    check(post(client, fields, CLIP), status, named)


@pytest.mark.parametrize(("status", "named", "fields"), BAD_IDS.values(), ids=BAD_IDS)
def test_ids_of_no_video_are_refused(status: int, named: str, fields: dict[str, str], client: httpx.Client) -> None:
    check(post(client, {**BOX, **fields}, None), status, named)
    frame = {**BOX, **fields, "frame_index": "0"}
    check(post(client, frame, None, "/segment-anything-2"), status, named)
    if "/" not in fields["video_id"]:
        assert client.get(f"{ROUTE}/{fields['video_id']}/frames/0").status_code == status


def test_times_need_a_video_that_has_them(client: httpx.Client) -> None:
    check(post(client, prompt(frame_index=None, time_s=0.1), NO_TIMES), 400, "prompts[0].time_s: this video gives")


def test_a_video_that_is_missing_is_named(client: httpx.Client) -> None:
    check(post(client, BOX, None), 422, "video")
    check(post(client, {}, None, f"{ROUTE}/embed"), 422, "video")


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("frame_index: must be given together with video_id", {"video_id": "0" * 64}),
        ("frame_index: needs video_id", {"frame_index": "0"}),
        ("video_id: is given as well as image", {"video_id": "0" * 64, "frame_index": "0", "image_id": "1" * 64}),
    ],
)
def test_a_frame_is_named_whole_on_the_routes_for_images(
    named: str, fields: dict[str, str], client: httpx.Client
) -> None:
    check(post(client, {**BOX, **fields}, None, "/segment-anything-2"), 400, named)


def test_frames_of_two_sizes_end_the_answer_with_an_error(client: httpx.Client) -> None:
    answer = post(client, {**BOX, "response_format": "none"}, two_sizes())

    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line.get("frame_index") for line in lines] == [None, 0, None]
    assert lines[-1]["error"]["msg"].startswith("video: frame 1 is 48×64; the first one is 64×48")


def test_afterwards_the_same_replicas_still_answer(client: httpx.Client, replicas_before: dict[str, int]) -> None:
    answer = post(client, {**BOX, "max_frames": "1"}, CLIP)

    assert answer.text.endswith('{"done":true,"frames":1}\n')
    assert replicas_before.items() <= replicas().items()
