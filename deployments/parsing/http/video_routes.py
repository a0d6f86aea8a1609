"""The HTTP routes for videos: one follows objects, one only keeps a video, one gives a frame, one deletes a video."""

import asyncio
import io
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, File, Form, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidRequest
from deployments.messages.answer_format import TrackFormat, VideoFormat
from deployments.messages.arrays import RgbArray
from deployments.messages.track import FrameMasks
from deployments.messages.video import VideoFacts
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.encoder_calls import EncoderCalls
from deployments.parsing.http import openapi
from deployments.parsing.http.form import form_route, parse_prompt
from deployments.parsing.http.request_context import context_of, deadline_of
from deployments.parsing.http.streaming import Delivery, StreamedAnswer
from deployments.parsing.http.upload_budget import UploadBudgets
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.segmenter import Segmenter
from deployments.parsing.video.job import when_free
from deployments.parsing.video.label_zip import LabelZip
from deployments.parsing.video.lines import EventStream, JsonLines, Lines, written
from deployments.parsing.video.plan import Direction, FrameRange
from deployments.parsing.video.prompts import TimedPrompt, parse_prompts, short_form
from deployments.parsing.video.video_calls import RequestedVideo, VideoCalls
from deployments.parsing.video.videos import Videos, held_bytes, video_by_id
from deployments.settings import Limits

VideoUpload = Annotated[
    UploadFile,
    File(
        description="The video: mp4, mov, webm, mkv, avi, gif, animated webp, png or avif, multi-page tiff, or a zip "
        "of images in the order of their names. Required without `video_id`."
    ),
]
VideoId = Annotated[
    str | None, Form(description="Given in place of `video`: the `X-Video-Id` of a video that the service keeps.")
]

PictureFormat = Annotated[
    Literal["jpeg", "png"] | None, Query(alias="format", description="`jpeg` if neither this nor Accept says `png`.")
]

JPEG_QUALITY = 95


class VideoRoutes:
    """Serves the routes for videos.

    Args:
        limits: limits of one request.
        segmenter: knows models and deadlines, and decodes frames within the budget that images have.
        calls: has the time-outs in its config.
        videos: follows objects.
        video_calls: deletes videos.
        encoder_calls: writes frames' masks.
        budget: bounds the bytes that requests hold while they follow objects.
        uploads: bounds what bodies hold.
    """

    def __init__(
        self,
        limits: Limits,
        segmenter: Segmenter,
        calls: ModelCalls,
        videos: Videos,
        video_calls: VideoCalls,
        encoder_calls: EncoderCalls,
        budget: ByteBudget,
        uploads: UploadBudgets,
    ) -> None:
        self._limits = limits
        self._segmenter = segmenter
        self._calls = calls
        self._videos = videos
        self._video_calls = video_calls
        self._encoder_calls = encoder_calls
        self._budget = budget
        self._uploads = uploads

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes, as bound methods."""
        app.include_router(self._form_routes())
        video = "/segment-anything-2/video/{video_id}"
        app.add_api_route(
            f"{video}/frames/{{frame_index}}",
            self.get_frame,
            methods=["GET"],
            operation_id="videoFrame",
            tags=["generate"],
            response_class=Response,
            responses={
                200: {
                    "content": openapi.PICTURES,
                    "description": "The frame, upright.",
                    "headers": openapi.FRAME_HEADERS,
                },
                **openapi.error_responses(400, 401, 413, 422, 503),
                404: openapi.VIDEO_NOT_CACHED,
            },
        )
        app.add_api_route(
            video,
            self.delete_video,
            methods=["DELETE"],
            operation_id="forgetVideo",
            tags=["generate"],
            responses=openapi.error_responses(400, 401, 503),
        )

    def _form_routes(self) -> APIRouter:
        limits = self._limits
        files = {"video": limits.max_video_bytes}
        # The file and its prompts.
        multipart_bytes = limits.max_video_bytes + limits.max_form_field_bytes
        route_class = form_route(
            limits, files, lambda: self._calls.config.video_body_timeout_s, self._uploads, multipart_bytes
        )
        router = APIRouter(route_class=route_class)

        def add(path: str, route: Callable[..., Any], **options: Any) -> None:
            errors = openapi.error_responses(400, 401, 408, 413, 415, 422, 500, 503)
            responses = {200: options.pop("answer"), **errors, **options.pop("errors", {})}
            options |= {"methods": ["POST"], "tags": ["generate"], "responses": responses}
            router.add_api_route(path, route, **options)

        add(
            "/segment-anything-2/video",
            self.post_track,
            operation_id="trackObjects",
            summary="Follow objects through a video",
            description="Follows the objects that prompts point to, and answers each frame as soon as it is done.",
            response_class=Response,
            openapi_extra={"requestBody": {"required": True}},
            answer={
                "description": "NDJSON: a line with what is known of the video, a line for each frame, and a last line "
                "with `done` or `error`. With `Accept: text/event-stream` the same as events.",
                "headers": openapi.VIDEO_HEADERS,
                "content": openapi.TRACKS,
            },
            errors={404: openapi.VIDEO_NOT_CACHED},
        )
        add(
            "/segment-anything-2/video/embed",
            self.post_video,
            operation_id="keepVideo",
            summary="Keep a video",
            description="Reads and keeps a video; later requests can send its `video_id` instead.",
            answer={"headers": openapi.VIDEO_HEADERS},
        )
        return router

    # ---- routes

    async def post_track(
        self,
        request: Request,
        video: VideoUpload = None,  # type: ignore[assignment]
        video_id: VideoId = None,
        model_id: Annotated[str, Form(description="Model to use; empty for the default model.")] = "",
        prompts: Annotated[
            str | None,
            Form(
                description='JSON `[{"object_id": 1, "frame_index": 0, "point_coords": [[x,y],…], "point_labels": '
                '[1,…], "box": [x0,y0,x1,y1], "mask": RLE, "mask_input": …}, …]`. `time_s` may stand for '
                "`frame_index`; several prompts of an object are corrections."
            ),
        ] = None,
        frame_index: Annotated[
            int | None, Form(description="The frame of the prompt in the fields below; 0 if not given.")
        ] = None,
        point_coords: Annotated[str | None, Form(description="As for an image, in place of `prompts`.")] = None,
        point_labels: Annotated[str | None, Form(description="As for an image, in place of `prompts`.")] = None,
        box: Annotated[str | None, Form(description="As for an image, in place of `prompts`.")] = None,
        mask_input: Annotated[str | None, Form(description="As for an image, in place of `prompts`.")] = None,
        normalize_coords: Annotated[
            bool, Form(description="False if coordinates are already divided by the frame's width and height.")
        ] = True,
        direction: Annotated[
            Direction, Form(description="From each object's first prompt to the end, to the beginning, or both.")
        ] = "forward",
        start_frame: Annotated[
            int | None, Form(ge=0, description="Where to start; the first prompt if not given.")
        ] = None,
        max_frames: Annotated[
            int | None, Form(ge=1, description="How many frames at most in each direction, the first included.")
        ] = None,
        stride: Annotated[int, Form(ge=1, le=100_000, description="1 for every frame, n for every n-th.")] = 1,
        response_format: Annotated[VideoFormat, Form(description="How masks are written.")] = "rle",
        tolerance: Annotated[float | None, Form(description="For `polygons`: see the route for images.")] = None,
        return_logits: Annotated[bool, Form(description="Low-resolution logits too; `png` has none.")] = False,
        non_overlapping: Annotated[
            bool, Form(description="Whether each pixel belongs to one object at most. `png` is always so.")
        ] = False,
    ) -> Response:
        """Follows objects through a video."""
        context = context_of(request)
        context.response_format = response_format
        track_format = TrackFormat(response_format, return_logits, tolerance, non_overlapping)
        which = FrameRange(direction, start_frame, max_frames, stride)
        fields = {"point_coords": point_coords, "point_labels": point_labels, "box": box, "mask_input": mask_input}
        _check_given(video, video_id)
        with context.timing.measure("parse"):
            parsed = await asyncio.to_thread(self._prompts, prompts, fields, normalize_coords, frame_index)
        context.model_id = model_id = self._segmenter.known_model_id(model_id)
        deadline = deadline_of(request, self._segmenter, self._calls.config.video_timeout_s)
        self._videos.check_jobs()
        file = await self._identify(video, video_id, request)
        with context.timing.measure("parse"):
            tracked = await self._videos.prepare(file, parsed, which, model_id, track_format, deadline)
        # If the client leaves before the answer begins, nothing else ends the job.
        context.at_end.callback(tracked.replica.end)
        masks = self._videos.masks(tracked, deadline, context.timing)
        lines = _lines(request, response_format, tracked.facts)
        ids = sorted({one.object_id for one in tracked.prompts.prompts})
        head = {**_head(file, tracked.facts), "model_id": model_id, "objects": ids}

        async def encode(masks: FrameMasks) -> memoryview:
            step = deadline.step(self._calls.config.request_timeout_s)
            return await when_free(partial(self._encoder_calls.frame, masks, track_format, step), step)

        texts: Any = written(masks, encode, head, lines)
        headers = {
            "X-Video-Id": file.video_id,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Vary": "Accept",
        }
        delivery = Delivery.of_request(self._calls.config, self._budget, held_bytes(tracked), deadline)
        return StreamedAnswer(texts, delivery, context.timing, headers, lines.media_type)

    async def post_video(
        self,
        request: Request,
        response: Response,
        video: Annotated[UploadFile, File(description="The video, see the route that follows objects.")],
    ) -> openapi.VideoAnswer:
        """Reads and keeps a video."""
        file = await self._identify(video, None, request)
        with context_of(request).timing.measure("parse"):
            facts = await self._videos.facts(file, deadline_of(request, self._segmenter))
        response.headers["X-Video-Id"] = file.video_id
        return openapi.VideoAnswer(**_head(file, facts))

    async def get_frame(
        self, request: Request, video_id: str, frame_index: int, picture_format: PictureFormat = None
    ) -> Response:
        """Gives a frame as a picture: a JPEG, or a PNG, whose pixels are those that a model sees."""
        deadline, file, timing = (
            deadline_of(request, self._segmenter),
            video_by_id(video_id),
            context_of(request).timing,
        )
        with timing.measure("parse"):
            # Refuses an index that is not in the video.
            frame = await self._videos.frame(file, frame_index, deadline)
        context_of(request).image_id = frame.image_id
        name = picture_format or ("png" if "image/png" in request.headers.get("accept", "") else "jpeg")
        async with AsyncExitStack() as held:
            pixels = await self._segmenter.decode(frame, deadline, held, timing)
            with timing.measure("encode"):
                content = await self._segmenter.off_loop(_picture, pixels, name)
        headers = {"X-Image-Id": frame.image_id, "X-Video-Id": file.video_id, "Vary": "Accept"}
        # The id is that of the content, so the frame never changes.
        headers["Cache-Control"] = "private, max-age=3600, immutable"
        return Response(content, media_type=f"image/{name}", headers=headers)

    async def delete_video(self, video_id: str) -> openapi.VideoForgotten:
        """Deletes a video's file. What models have computed from its frames is forgotten as that of images is."""
        file = video_by_id(video_id)
        return openapi.VideoForgotten(video_id=video_id, forgotten=await self._video_calls.forget(file.video_id))

    # ---- the request

    async def _identify(self, video: UploadFile | None, video_id: str | None, request: Request) -> RequestedVideo:
        context = context_of(request)
        with context.timing.measure("parse"):
            file = await self._videos.identify(None if video is None else video.file, video_id or "")
        context.image_id = file.video_id
        return file

    def _prompts(
        self, prompts: str | None, fields: dict[str, str | None], normalize_coords: bool, frame_index: int | None
    ) -> list[TimedPrompt]:
        if prompts is None or not prompts.strip():
            if frame_index is not None and frame_index < 0:
                raise InvalidRequest(f"frame_index: must be at least 0, is {frame_index}")
            prompt = parse_prompt(fields, False, normalize_coords, self._limits)
            return short_form(prompt, frame_index or 0, self._limits)
        given = [name for name, text in fields.items() if text]
        given += [] if frame_index is None else ["frame_index"]
        if given:
            raise InvalidRequest(f"{given[0]}: is given as well as prompts; put it into a prompt")
        return parse_prompts(prompts, self._limits)


def _lines(request: Request, response_format: VideoFormat, facts: VideoFacts) -> Lines:
    if response_format == "png":
        # Five, as DAVIS has them, or more: names have the order of frames.
        return LabelZip(max(5, len(str(facts.num_frames - 1))))
    return EventStream() if "text/event-stream" in request.headers.get("accept", "") else JsonLines()


def _head(video: RequestedVideo, facts: VideoFacts) -> dict[str, Any]:
    return {
        "video_id": video.video_id,
        "width": facts.width,
        "height": facts.height,
        "fps": facts.fps,
        "num_frames": facts.num_frames,
    }


def _picture(pixels: RgbArray, name: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if name == "jpeg" else {"compress_level": 1}
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def _check_given(video: UploadFile | None, video_id: str | None) -> None:
    if video is None and not video_id:
        # The error that FastAPI itself raises if a required field is missing.
        raise RequestValidationError([{"type": "missing", "loc": ("body", "video"), "msg": "Field required"}])
