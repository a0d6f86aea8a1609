"""Objects are followed through videos as SAM 2's own predictor follows them."""

import io
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as coco

from deployments.messages.prompt import Prompt
from deployments.messages.track import FrameMasks, TrackPrompt
from deployments.model.engine import Engine
from harness.exported import Exported, scrape, scrape_until
from harness.video_reference import initial_state, video_predictor
from harness.videos import mp4, squares, zipped
from harness.weights import random_model
from tests.integration.conftest import DEMO, OWN, Service

ROUTE = "/segment-anything-2/video"
COUNT = 5
FRAMES = squares(COUNT)
HEIGHT, WIDTH = FRAMES[0].shape[:2]

PROMPTS = [
    {"object_id": 1, "frame_index": 0, "point_coords": [[25, 60]], "point_labels": [1]},
    {"object_id": 7, "frame_index": 1, "box": [90, 20, 110, 100]},
    {"object_id": 1, "frame_index": 3, "point_coords": [[35, 60], [100, 30]], "point_labels": [1, 0]},
]

TRACK_PROMPTS = [
    TrackPrompt(1, 0, Prompt([[25, 60]], [1])),
    TrackPrompt(7, 1, Prompt(box=[90, 20, 110, 100])),
    TrackPrompt(1, 3, Prompt([[35, 60], [100, 30]], [1, 0])),
]

Line = dict[str, Any]


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        # The model wakes.
        track(client, prompts=PROMPTS[:1], max_frames=1)
        yield client


def track(client: httpx.Client, video: bytes | None = None, prompts: Any = PROMPTS, **fields: Any) -> list[Line]:
    """The lines of an answer."""
    response = post(client, video, prompts, **fields)
    assert response.status_code == 200, response.text[:500]
    return [orjson.loads(line) for line in response.text.splitlines()]


def post(client: httpx.Client, video: bytes | None, prompts: Any, **fields: Any) -> httpx.Response:
    prompts_given = {} if prompts is None else {"prompts": orjson.dumps(prompts).decode()}
    texts = {"model_id": OWN, **prompts_given, **{name: str(value) for name, value in fields.items()}}
    parts: list[Any] = [(name, (None, text.encode())) for name, text in texts.items()]
    if "video_id" not in fields:
        parts.append(("video", ("clip", zipped(FRAMES) if video is None else video)))
    return client.post(ROUTE, files=parts)


def logits_of(lines: list[Line]) -> dict[tuple[int, int], NDArray[np.float32]]:
    return {
        (one["object_id"], line["frame_index"]): np.array(one["logits"][0], np.float32)
        for line in lines[1:-1]
        for one in line["objects"]
    }


def mask_of(one: Line) -> NDArray[np.bool_]:
    rle = {**one["segmentation"], "counts": one["segmentation"]["counts"].encode()}
    return coco.decode(rle).astype(bool)  # type: ignore[no-any-return]


def as_float32(_: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, "memory": kwargs["memory"].float(), "memory_pos": kwargs["memory_pos"].float()}


@pytest.fixture(scope="module")
def predicted(service: Service) -> dict[tuple[int, int], NDArray[np.float32]]:
    """What SAM2VideoPredictor answers, by object and frame: low-resolution logits."""
    config = OmegaConf.load(service.own_config)
    weights = random_model(service.own_config, seed=7)
    predictor = video_predictor(config, weights.state_dict(), add_all_frames_to_correct_as_cond=True)
    # Without object pointers, which the bundled model has none of, all that the predictor attends to is bfloat16.
    predictor.memory_attention.register_forward_pre_hook(as_float32, with_kwargs=True)
    images = Engine(weights, torch.device("cpu"))._batch(FRAMES)
    found: dict[tuple[int, int], NDArray[np.float32]] = {}
    # Objects are independent; a correction comes when the object has been followed to its frame.
    for object_id in (1, 7):
        state = initial_state(predictor, images, HEIGHT, WIDTH)
        own = [one for one in TRACK_PROMPTS if one.object_id == object_id]
        for prompt, until in zip(own, [*(one.frame_index for one in own[1:]), COUNT - 1], strict=True):
            assert prompt.prompt is not None
            predictor.add_new_points_or_box(
                state,
                prompt.frame_index,
                object_id,
                prompt.prompt.point_coords,
                prompt.prompt.point_labels,
                box=prompt.prompt.box,
            )
            for _ in predictor.propagate_in_video(state, prompt.frame_index, until - prompt.frame_index):
                pass
        outputs = state["output_dict_per_obj"][0]
        for kind in ("non_cond_frame_outputs", "cond_frame_outputs"):
            for index, output in outputs[kind].items():
                found[object_id, index] = output["pred_masks"][0, 0].numpy().clip(-32, 32)
    return found


@pytest.fixture(scope="module")
def lines(client: httpx.Client) -> list[Line]:
    """The answer to PROMPTS."""
    return track(client, return_logits=True)


def test_masks_are_those_of_metas_predictor(
    lines: list[Line], predicted: dict[tuple[int, int], NDArray[np.float32]]
) -> None:
    found = logits_of(lines)

    assert set(found) == set(predicted) == {(1, index) for index in range(COUNT)} | {(7, i) for i in range(1, COUNT)}
    for key, logits in predicted.items():
        np.testing.assert_allclose(found[key], logits, atol=1e-3, err_msg=str(key))


def test_an_answer_says_what_the_video_is_and_that_it_is_whole(lines: list[Line]) -> None:
    assert {name: lines[0][name] for name in ("width", "height", "num_frames", "model_id", "objects")} == {
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": COUNT,
        "model_id": OWN,
        "objects": [1, 7],
    }
    assert [line["frame_index"] for line in lines[1:-1]] == list(range(COUNT))
    assert lines[-1] == {"done": True, "frames": COUNT}
    for line in lines[1:-1]:
        for one in line["objects"]:
            mask = mask_of(one)
            assert mask.shape == (HEIGHT, WIDTH)
            assert one["area"] == mask.sum()


def test_python_programs_get_the_same_numbers_from_a_handle(client: httpx.Client, lines: list[Line]) -> None:
    from ray import serve

    handle: Any = serve.get_app_handle("segment-anything-2").options(stream=True)
    frames: list[FrameMasks] = list(handle.track.remote(zipped(FRAMES), TRACK_PROMPTS, OWN))

    found = {
        (object_id, one.frame_index): one.logits[place].clip(-32, 32)
        for one in frames
        for place, object_id in enumerate(one.object_ids)
    }
    assert found.keys() == logits_of(lines).keys()
    for key, logits in logits_of(lines).items():
        np.testing.assert_allclose(found[key], logits, atol=1e-4)


def test_a_second_pass_over_a_kept_video_needs_no_file_and_no_encoder(
    service: Service, client: httpx.Client, lines: list[Line]
) -> None:
    def hits(exported: Exported) -> float:
        return exported.total("ray_sam2_embedding_cache_hits_total", model_id=OWN)

    # Replicas export each second.
    time.sleep(1.5)
    before = scrape(service.metrics_url)
    again = track(client, video_id=lines[0]["video_id"], return_logits=True)
    other = track(
        client,
        video_id=lines[0]["video_id"],
        prompts=None,
        box="[10, 40, 40, 80]",
        frame_index=COUNT - 1,
        direction="backward",
    )

    assert again == lines
    assert [line["frame_index"] for line in other[1:-1]] == list(range(COUNT))[::-1]
    # What has counted these passes' hits would have counted their misses too.
    after = scrape_until(service.metrics_url, lambda now: hits(now) >= hits(before) + 2 * COUNT)
    assert hits(after) >= hits(before) + 2 * COUNT
    misses = "ray_sam2_embedding_cache_misses_total"
    assert after.total(misses, model_id=OWN) == before.total(misses, model_id=OWN)


def test_both_directions_from_the_first_prompt_of_each_object(client: httpx.Client, lines: list[Line]) -> None:
    video_id = lines[0]["video_id"]
    found = track(client, video_id=video_id, prompts=PROMPTS[1:], direction="both", response_format="none")

    order = [(line["frame_index"], [one["object_id"] for one in line["objects"]]) for line in found[1:-1]]
    assert order == [(1, [7]), (2, [7]), (3, [7, 1]), (4, [7, 1]), (2, [1]), (1, [1]), (0, [7, 1])]


def test_a_click_on_a_frame_finds_its_embedding(client: httpx.Client, lines: list[Line]) -> None:
    video_id = lines[0]["video_id"]
    fields = {
        "video_id": video_id,
        "frame_index": "2",
        "model_id": OWN,
        "box": "[10,40,40,80]",
        "response_format": "rle",
    }

    by_frame = client.post("/segment-anything-2", files=[(name, (None, text)) for name, text in fields.items()])
    picture = io.BytesIO()
    Image.fromarray(FRAMES[2]).save(picture, "PNG")
    by_image = client.post(
        "/segment-anything-2",
        files=[
            *((name, (None, fields[name])) for name in ("model_id", "box", "response_format")),
            ("image", picture.getvalue()),
        ],
    )

    assert by_frame.status_code == by_image.status_code == 200, by_frame.text[:300]
    assert 'cache;desc="hit"' in by_frame.headers["server-timing"]
    assert by_frame.headers["x-image-id"].startswith(video_id[:32])
    assert by_frame.json()["masks"] == by_image.json()["masks"]


def test_a_frame_is_given_as_a_picture(client: httpx.Client, lines: list[Line]) -> None:
    url = f"{ROUTE}/{lines[0]['video_id']}/frames"
    png, jpeg = client.get(f"{url}/3?format=png"), client.get(f"{url}/3")

    assert (png.headers["content-type"], jpeg.headers["content-type"]) == ("image/png", "image/jpeg")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.content))), FRAMES[3])
    assert client.get(f"{url}/{COUNT}").status_code == 400


def test_events_and_label_images_are_the_same_answer(client: httpx.Client, lines: list[Line]) -> None:
    fields = {"video_id": lines[0]["video_id"], "max_frames": 2}
    events = client.post(
        ROUTE,
        files=[
            ("model_id", (None, OWN)),
            ("prompts", (None, orjson.dumps(PROMPTS[:2]))),
            *((name, (None, str(value))) for name, value in fields.items()),
        ],
        headers={"Accept": "text/event-stream"},
    )
    pictures = post(client, None, PROMPTS[:2], **fields, response_format="png")

    data = [event.removeprefix("data: ") for event in events.text.strip().split("\n\n") if not event.startswith(":")]
    assert events.headers["content-type"].startswith("text/event-stream")
    assert [orjson.loads(one).get("frame_index") for one in data] == [None, 0, 1, None]
    with zipfile.ZipFile(io.BytesIO(pictures.content)) as files:
        assert files.namelist() == ["video.json", "00000.png", "00001.png", "done.json"]
        labels = np.asarray(Image.open(files.open("00000.png")))
    assert np.array_equal(labels == 1, mask_of(lines[1]["objects"][0]))


def test_a_client_that_leaves_ends_its_job(service: Service, client: httpx.Client) -> None:
    from ray import serve

    model: Any = serve.get_deployment_handle(f"Sam2Model:{OWN}", "segment-anything-2")

    def others() -> int:
        return int(model.begin_tracking.remote("a question").result()[1])

    parts: list[Any] = [
        ("model_id", (None, OWN)),
        ("box", (None, "[10,10,60,60]")),
        ("video", ("clip.mp4", mp4(squares(60)))),
    ]
    with service.client() as leaving, leaving.stream("POST", ROUTE, files=parts) as response:
        for line in response.iter_lines():
            if "frame_index" in line:
                assert others() == 1
                # This closes the connection.
                break
    gone_at = time.monotonic()
    while others():
        assert time.monotonic() - gone_at < 10
        time.sleep(0.1)
    model.end_tracking.remote("a question").result()


def test_what_can_be_read_of_a_cut_off_file_is_followed(client: httpx.Client) -> None:
    whole = mp4(squares(12, 48, 64), container={"movflags": "frag_keyframe+empty_moov"}, g="4", bf="0")
    found = track(client, whole[: len(whole) * 2 // 3], None, box="[10,10,30,30]", response_format="none")

    frames = [line["frame_index"] for line in found[1:-1]]
    assert 0 < len(frames) < 12
    assert frames == list(range(len(frames)))
    assert found[-1]["error"]["code"] == "invalid_video"
    assert f"frame {len(frames)} " in found[-1]["error"]["msg"]
    assert found[-1]["frames"] == len(frames)


def test_the_bundled_model_says_that_it_cannot(client: httpx.Client, lines: list[Line]) -> None:
    answer = post(client, None, PROMPTS, video_id=lines[0]["video_id"], model_id=DEMO)

    assert answer.status_code == 400
    assert answer.json()["detail"]["msg"].startswith("model_id: sam2-demo segments images only")


def test_a_deleted_video_is_gone(client: httpx.Client, lines: list[Line]) -> None:
    clip = mp4(squares(2))
    video_id = client.post(f"{ROUTE}/embed", files={"video": clip}).json()["video_id"]
    deleted = client.delete(f"{ROUTE}/{video_id}")

    assert deleted.json() == {"video_id": video_id, "forgotten": True}
    gone = post(client, None, PROMPTS[:1], video_id=video_id)
    assert gone.status_code == 404
    assert gone.json()["detail"]["code"] == "video_not_cached"
