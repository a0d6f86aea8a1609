"""The routes for videos around a model and a reader that are made up: places of jobs, and the budget for frames."""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from deployments.errors import InvalidPrompt, InvalidRequest, Overloaded, ServiceError
from deployments.messages.answer_format import TrackFormat
from deployments.messages.arrays import RgbArray
from deployments.messages.prompt import Prompt
from deployments.messages.video import VideoFacts
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.deadline import Deadline
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.error_responses import on_service_error
from deployments.parsing.http.middleware import outer_layers
from deployments.parsing.http.slow_bodies import SlowBodies
from deployments.parsing.http.upload_budget import UploadBudget, UploadBudgets
from deployments.parsing.http.video_routes import VideoRoutes
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.segmenter import Segmenter
from deployments.parsing.stage_times import StageTimes
from deployments.parsing.video.job import TrackRequest
from deployments.parsing.video.plan import FrameRange
from deployments.parsing.video.prompts import TimedPrompt
from deployments.parsing.video.video_calls import RequestedVideo, VideoCalls
from deployments.parsing.video.videos import Videos
from deployments.settings import RequestParserConfig, ServiceSettings, parse_settings
from deployments.telemetry.metrics import RequestMetrics
from tests.loops import settled

UNBOUNDED = UploadBudget(lambda: 2**40, "full", lambda: 60.0)
UPLOADS = UploadBudgets(UNBOUNDED, UNBOUNDED, SlowBodies(lambda: 1000))
VIDEO_ID = "a" * 64
MODEL = "facebook/sam2-hiera-tiny"
ROUTE = "/segment-anything-2/video"
HASTY, PATIENT = (RequestParserConfig(max_wait_s=wait_s, max_video_jobs=1) for wait_s in (0.05, 60))
PROMPTS = [TimedPrompt("", 1, 0, None, Prompt(box=[1, 1, 9, 9]))]
FRAME = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)


def done(outcome: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


@dataclass
class Model:
    """A replica that takes jobs on, or refuses them; it can follow nothing."""

    refusal: ServiceError | None = None
    jobs: list[str] = field(default_factory=list)
    begun: int = 0

    @property
    def begin_tracking(self) -> Any:
        def begin(job: str) -> Any:
            self.begun += 1
            if self.refusal is not None:
                return done(self.refusal)
            self.jobs.append(job)
            return done(("replica", len(self.jobs) - 1))

        return SimpleNamespace(remote=begin)

    @property
    def end_tracking(self) -> Any:
        def end(job: str) -> Any:
            if job in self.jobs:
                self.jobs.remove(job)
            return done(None)

        return SimpleNamespace(remote=end)

    @property
    def track(self) -> Any:
        return SimpleNamespace(remote=lambda *_: done(InvalidPrompt("prompts: made up")))


class Reader:
    """Knows a video of nine frames, each of which is FRAME."""

    def __init__(self) -> None:
        self.fetched = 0

    async def facts(self, video: RequestedVideo, deadline: Deadline) -> VideoFacts:
        return VideoFacts(64, 48, 9, 10.0)

    async def frame(self, video: RequestedVideo, index: int, deadline: Deadline) -> RgbArray:
        self.fetched += 1
        return FRAME

    def frames(self, *_: Any) -> None:
        return None

    def close(self, *_: Any) -> None:
        return None


class Service:
    """The routes, with small budgets."""

    def __init__(self, model: Model) -> None:
        settings: ServiceSettings = parse_settings({"models": [MODEL]})
        self.model, self.reader = model, Reader()
        self.calls = calls = ModelCalls({MODEL: cast(Any, model)}, cast(Any, None), HASTY, RequestMetrics())
        calls.model = lambda *_: cast(Any, model)  # type: ignore[method-assign]

        async def awake(*_: Any) -> None:
            return

        calls.wake = awake  # type: ignore[method-assign, assignment]
        self.pixels = ByteBudget(10 * FRAME.nbytes, "too many images")
        self.jobs = ByteBudget(2**30, "too many objects")
        segmenter, reader = Segmenter(settings, calls, self.pixels), cast(VideoCalls, self.reader)
        self.videos = Videos(settings, calls, reader)
        routes = VideoRoutes(
            settings.limits, segmenter, calls, self.videos, reader, cast(Any, None), self.jobs, UPLOADS
        )
        app = FastAPI(
            middleware=outer_layers(None, (), RequestMetrics(), InFlightRequests()),
            exception_handlers={ServiceError: on_service_error},
        )
        routes.add_to(app)
        self.app = app

    async def prepare(self) -> TrackRequest:
        """Takes a job on."""
        video = RequestedVideo(VIDEO_ID)
        return await self.videos.prepare(video, PROMPTS, FrameRange(), MODEL, TrackFormat(), Deadline(5))


@pytest.fixture
def service() -> Service:
    return Service(Model())


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url="http://service") as client:
        yield client


async def follow(client: httpx.AsyncClient) -> httpx.Response:
    fields = {"video_id": VIDEO_ID, "box": "[1,1,9,9]"}
    return await client.post(ROUTE, files=[(name, (None, text)) for name, text in fields.items()])


# ---- places


async def test_a_place_is_taken_from_the_checks_on_and_freed_once(service: Service) -> None:
    """Two requests whose files arrive at the same time do not both get the last place."""
    first = await service.prepare()
    with pytest.raises(Overloaded, match="1 requests follow objects"):
        await service.prepare()
    assert service.model.begun == 1
    first.replica.end()
    first.replica.end()
    await settled()
    assert service.model.jobs == []
    await service.prepare()
    with pytest.raises(Overloaded):
        await service.prepare()


async def test_a_refused_job_takes_no_place() -> None:
    service = Service(Model(InvalidRequest("model_id: has no memory")))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="has no memory"):
            await service.prepare()


async def test_a_job_that_fails_frees_its_place(service: Service) -> None:
    for _ in range(2):
        masks = service.videos.masks(await service.prepare(), Deadline(5), StageTimes())
        with pytest.raises(InvalidPrompt, match="made up"):
            await anext(masks)
        await settled()
        assert service.model.jobs == []


async def test_an_answer_that_never_begins_frees_the_place(service: Service, client: httpx.AsyncClient) -> None:
    """It finds no room in the byte budget: nothing of the job has run by then, so nothing of it can clean up."""
    service.jobs.set_limit(1)
    async with service.jobs.share(1, 1):
        answer = await follow(client)
    assert answer.status_code == 503, answer.text
    await settled()
    assert (service.model.begun, service.model.jobs) == (1, [])
    (await service.prepare()).replica.end()


async def test_a_client_that_leaves_before_the_answer_begins_frees_the_place(
    service: Service, client: httpx.AsyncClient
) -> None:
    service.jobs.set_limit(1)
    service.calls.configure(PATIENT)
    async with service.jobs.share(1, 1):
        waiting = asyncio.ensure_future(follow(client))
        while not service.model.jobs:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait({waiting})
        await settled()
        assert service.model.jobs == []
    (await service.prepare()).replica.end()


async def test_an_answer_to_its_end_frees_the_place(service: Service, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await follow(client)
        assert answer.status_code == 200, answer.text
        assert '"invalid_prompt"' in answer.text.splitlines()[-1]
        await settled()
        assert service.model.jobs == []


# ---- frames


async def test_a_frame_is_given_as_the_model_sees_it(service: Service, client: httpx.AsyncClient) -> None:
    png = await client.get(f"{ROUTE}/{VIDEO_ID}/frames/3?format=png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.content))), FRAME)
    jpeg = await client.get(f"{ROUTE}/{VIDEO_ID}/frames/3")
    assert (png.headers["content-type"], jpeg.headers["content-type"]) == ("image/png", "image/jpeg")
    assert png.headers["x-image-id"] == jpeg.headers["x-image-id"]
    assert png.headers["x-image-id"].startswith(VIDEO_ID[:32])
    beyond = await client.get(f"{ROUTE}/{VIDEO_ID}/frames/9")
    assert (beyond.status_code, service.reader.fetched) == (400, 2)


async def test_a_frame_waits_for_its_share_of_the_budget_for_pixels(
    service: Service, client: httpx.AsyncClient
) -> None:
    async with service.pixels.share(10 * FRAME.nbytes, 1):
        refused = await client.get(f"{ROUTE}/{VIDEO_ID}/frames/3")
        assert (refused.status_code, service.reader.fetched) == (503, 0)
        assert "too many images" in refused.text
    service.calls.configure(PATIENT)
    async with service.pixels.share(9 * FRAME.nbytes, 1):
        answers = await asyncio.gather(*(client.get(f"{ROUTE}/{VIDEO_ID}/frames/{index}") for index in range(9)))
    assert {answer.status_code for answer in answers} == {200}
    assert service.pixels._used == 0
