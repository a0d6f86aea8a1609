"""The HTTP routes for images: three read a form (segment, segment everything, embed), one makes models forget."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, File, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidRequest
from deployments.messages.answer_format import TRAITS, AnswerFormat, AutomaticFormat, Coordinates, ResponseFormat
from deployments.messages.calls import AnswerSize, AutoCall, EmbedCall, SegmentCall
from deployments.messages.everything import AutomaticPrompt
from deployments.messages.mask_set import MaskSet
from deployments.messages.picture_options import PictureOptions, window_text
from deployments.messages.pieces import text_bytes
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.deadline import Deadline
from deployments.parsing.encoder_calls import EncoderCalls
from deployments.parsing.http import openapi
from deployments.parsing.http.compression import choose_coding, compress
from deployments.parsing.http.flow_control import is_request_flow_controlled
from deployments.parsing.http.form import form_of, form_route, parse_prompt
from deployments.parsing.http.request_context import RequestContext, context_of, deadline_of
from deployments.parsing.http.streaming import Delivery, StreamedAnswer
from deployments.parsing.http.upload_budget import UploadBudgets
from deployments.parsing.images import IdentifiedImage, image_by_id
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.segmenter import Segmenter, check_without_file
from deployments.parsing.video.videos import Videos, video_by_id
from deployments.settings import Limits

# Not "UploadFile | None": /docs would then show a text field, and a text sent here would be reported as two faults.
Image = Annotated[
    UploadFile,
    File(
        description="The image: any raster format, TIFF of any sample format and number of bands included; EXIF "
        "orientation is applied. Required without `image_id`."
    ),
]
ImageId = Annotated[
    str | None, Form(description="Given in place of `image`: the `X-Image-Id` of an image that the model remembers.")
]
VideoIdOfFrame = Annotated[
    str | None,
    Form(
        description="Given in place of `image`, with `frame_index`: the `X-Video-Id` of a video that the service keeps."
    ),
]
FrameIndex = Annotated[int | None, Form(description="With `video_id`: the frame, counted from 0.")]
ModelId = Annotated[str, Form(description="Model to use; empty for the default model.")]
Tolerance = Annotated[
    float | None,
    Form(
        description="For formats of polygons: how many pixels a contour may be away from the mask's own contour, 0 to "
        "100. If not given, 1 for `polygons` and 0 for the others."
    ),
]
CoordinatesOf = Annotated[
    Coordinates | None,
    Form(
        description="For `polygons`: `pixels`, the default; or `map`, longitudes and latitudes in WGS 84 (RFC 7946), "
        "of a GeoTIFF."
    ),
]
Label = Annotated[
    str | None, Form(description="For formats of annotation tools: the category of the objects; `object` if not given.")
]
FileName = Annotated[
    str | None,
    Form(
        description="For formats of annotation tools and `geotiff`: the name of the image's file that is written; "
        "that of the upload if not given."
    ),
]


def picture_options(
    window: Annotated[
        str | None,
        Form(
            description="How samples of more than 8 bits become 8-bit ones: `auto` (the default), a robust window of "
            "the image's own values; `full`, the whole range of the samples' type; or `low,high`, the values that "
            "become black and white."
        ),
    ] = None,
    bands: Annotated[
        str | None,
        Form(
            description="The bands that are shown, counted from 1: one as grey, such as `4`, or three as red, green "
            "and blue, such as `4,3,2`. The first three, or the one, if not given."
        ),
    ] = None,
    page: Annotated[
        str | None,
        Form(
            description="The page of a file with several, counted from 0; of an OME-TIFF also a plane, such as "
            "`c=1,z=4,t=0`, each counted from 0."
        ),
    ] = None,
    background: Annotated[
        str | None, Form(description="The colour behind transparent pixels, `#rrggbb`; white if not given.")
    ] = None,
) -> PictureOptions:
    """Reads how the image is to be read, from the form: a FastAPI dependency of all routes that take an image."""
    return PictureOptions.parse(window, bands, page, background)


Options = Annotated[PictureOptions, Depends(picture_options)]


class ImageRoutes:
    """Serves the routes that segment, embed and forget images.

    Args:
        limits: limits of one request.
        segmenter: checks requests and asks models.
        videos: identifies frames of videos.
        calls: makes models forget images, and has the time-outs in its config.
        encoder_calls: pulls answers from the encoders.
        budget: bounds the bytes of answers under way.
        uploads: bounds what bodies hold.
    """

    def __init__(
        self,
        limits: Limits,
        segmenter: Segmenter,
        videos: Videos,
        calls: ModelCalls,
        encoder_calls: EncoderCalls,
        budget: ByteBudget,
        uploads: UploadBudgets,
    ) -> None:
        self._limits = limits
        self._segmenter = segmenter
        self._videos = videos
        self._calls = calls
        self._encoder_calls = encoder_calls
        self._budget = budget
        self._uploads = uploads

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes, as bound methods."""
        app.include_router(self._form_routes())
        app.add_api_route(
            "/segment-anything-2/images/{image_id}",
            self.delete_image,
            methods=["DELETE"],
            operation_id="forgetImage",
            tags=["generate"],
            responses=openapi.error_responses(400, 401, 503),
        )

    def _form_routes(self) -> APIRouter:
        files = {"image": self._limits.max_image_bytes}
        router = APIRouter(
            route_class=form_route(self._limits, files, lambda: self._calls.config.body_timeout_s, self._uploads)
        )

        def add(path: str, route: Callable[..., Any], *also: int, answer: dict[str, Any], **options: Any) -> None:
            errors = openapi.error_responses(*sorted({400, 401, 408, 413, 415, 422, 500, 503, *also}))
            options |= {"methods": ["POST"], "tags": ["generate"], "responses": {200: answer, **errors}}
            router.add_api_route(path, route, **options)

        with_image: dict[str, Any] = {
            "response_class": Response,
            "openapi_extra": {"requestBody": {"required": True}},
        }
        add(
            "/segment-anything-2",
            self.post_segment,
            404,
            operation_id="genSegmentAnything2",
            summary="Segment Anything 2",
            description="Segments the objects in an image that the prompt points to.",
            answer={
                "model": openapi.SegmentationAnswer | openapi.MaskRecords | openapi.ToolFile,
                "description": "Masks, scores and logits, in the format that `response_format` names.",
                "headers": openapi.ANSWER_HEADERS | openapi.PNG_HEADERS | openapi.FILE_HEADERS,
                "content": openapi.BINARY,
            },
            **with_image,
        )
        add(
            "/segment-anything-2/auto",
            self.post_auto,
            404,
            operation_id="segmentEverything",
            summary="Segment everything",
            description="Segments everything in an image, as SAM 2's automatic mask generator does.",
            answer={
                "model": openapi.AutomaticRecords | openapi.ToolFile,
                "description": "Masks, in the format that `response_format` names; `png` is one label image.",
                "headers": openapi.ANSWER_HEADERS | openapi.FILE_HEADERS,
                "content": openapi.BINARY,
            },
            **with_image,
        )
        add(
            "/segment-anything-2/embed",
            self.post_embed,
            operation_id="embedImage",
            summary="Embed an image",
            description="Embeds an image ahead of its prompts; requests can then send its `image_id` instead.",
            answer={"headers": {name: openapi.ANSWER_HEADERS[name] for name in ("X-Image-Id", "X-Image-Window")}},
        )
        return router

    # ---- routes

    async def post_segment(
        self,
        request: Request,
        options: Options,
        image: Image = None,  # type: ignore[assignment]
        image_id: ImageId = None,
        video_id: VideoIdOfFrame = None,
        frame_index: FrameIndex = None,
        model_id: ModelId = "",
        point_coords: Annotated[
            str | None, Form(description="JSON `[[x,y],…]` in pixels, or a list of such lists for B objects.")
        ] = None,
        point_labels: Annotated[
            str | None, Form(description="JSON `[1,0,…]`, one for each point: 1 foreground, 0 background.")
        ] = None,
        box: Annotated[str | None, Form(description="JSON `[x0,y0,x1,y1]` in pixels, or a list of boxes.")] = None,
        mask_input: Annotated[
            str | None, Form(description="JSON `1×256×256` (or `B×1×256×256`): `logits` of an earlier answer.")
        ] = None,
        multimask_output: Annotated[bool, Form(description="True: three candidate masks. False: one.")] = True,
        return_logits: Annotated[
            bool,
            Form(
                description="For `json`: un-thresholded float masks if true, else 0 and 1. For the other formats: "
                "low-resolution logits too, if this field is sent and true; only `rle`, `polygons` and `npz` hold them."
            ),
        ] = True,
        normalize_coords: Annotated[
            bool, Form(description="False if coordinates are already divided by the image's width and height.")
        ] = True,
        response_format: Annotated[ResponseFormat, Form(description="How masks are written.")] = "json",
        tolerance: Tolerance = None,
        coordinates: CoordinatesOf = None,
        mask_index: Annotated[
            int | None,
            Form(
                description="For `png`, `geotiff` and formats of annotation tools: the only mask to write, numbered "
                "over all objects and their candidates; if not given, the best, for the tools the best of each object."
            ),
        ] = None,
        label: Label = None,
        file_name: FileName = None,
    ) -> Response:
        """Segments an image, and answers in the requested format."""
        context, deadline = context_of(request), deadline_of(request, self._segmenter)
        context.response_format = response_format
        # The contract's default, true, is for `json`. Other formats hold logits only if the client sent the field.
        logits = return_logits and (
            TRAITS[response_format].is_full_text or bool((await request.form()).get("return_logits"))
        )
        answer_format = AnswerFormat(response_format, logits, tolerance, mask_index, label, file_name, coordinates)
        fields = {
            "point_coords": point_coords,
            "point_labels": point_labels,
            "box": box,
            "mask_input": mask_input,
        }
        sent = SentImage(image, image_id, video_id, frame_index, options)
        with context.timing.measure("parse"):
            prompt = await asyncio.to_thread(parse_prompt, fields, multimask_output, normalize_coords, self._limits)
        self._segmenter.check(prompt)
        context.model_id = model_id = self._segmenter.known_model_id(model_id)
        size = self._segmenter.size(prompt.num_objects, prompt.num_masks, answer_format)
        identified = await self._identify(sent, context, deadline, size)
        answer_format = answer_format.placed(self._segmenter.georeference(identified))
        call = SegmentCall(identified.image_id, prompt, size)
        masks = await self._segmenter.ask(model_id, call, identified, deadline, context.timing)
        window = await self._segmenter.window(identified, deadline)
        return self._respond(masks, answer_format.for_upload(sent.file_name), deadline, request, window)

    async def post_auto(
        self,
        request: Request,
        prompt: Annotated[AutomaticPrompt, Depends(form_of(AutomaticPrompt))],
        options: Options,
        image: Image = None,  # type: ignore[assignment]
        image_id: ImageId = None,
        video_id: VideoIdOfFrame = None,
        frame_index: FrameIndex = None,
        model_id: ModelId = "",
        response_format: Annotated[AutomaticFormat, Form(description="How masks are written.")] = "rle",
        return_logits: Annotated[
            bool, Form(description="Low-resolution logits too; for `rle`, `polygons` and `npz`.")
        ] = False,
        tolerance: Tolerance = None,
        coordinates: CoordinatesOf = None,
        label: Label = None,
        file_name: FileName = None,
    ) -> Response:
        """Segments everything in an image, and answers in the requested format."""
        context, deadline = context_of(request), deadline_of(request, self._segmenter)
        context.response_format = response_format
        answer_format = AnswerFormat(
            response_format, return_logits, tolerance, label=label, file_name=file_name, coordinates=coordinates
        )
        sent = SentImage(image, image_id, video_id, frame_index, options)
        context.model_id = model_id = self._segmenter.known_model_id(model_id)
        identified = await self._identify(sent, context, deadline)
        self._segmenter.check_grid(prompt, identified)
        answer_format = answer_format.placed(self._segmenter.georeference(identified))
        call = AutoCall(identified.image_id, prompt, self._limits.max_compact_numbers)
        masks = await self._segmenter.ask(model_id, call, identified, deadline, context.timing)
        window = await self._segmenter.window(identified, deadline)
        return self._respond(masks, answer_format.for_upload(sent.file_name), deadline, request, window)

    async def post_embed(
        self,
        request: Request,
        response: Response,
        options: Options,
        image: Image = None,  # type: ignore[assignment]
        video_id: VideoIdOfFrame = None,
        frame_index: FrameIndex = None,
        model_id: ModelId = "",
    ) -> openapi.EmbedAnswer:
        """Embeds an image, and answers once that is done."""
        context, deadline = context_of(request), deadline_of(request, self._segmenter)
        context.model_id = model_id = self._segmenter.known_model_id(model_id)
        sent = SentImage(image, None, video_id, frame_index, options)
        identified = await self._identify(sent, context, deadline)
        call = EmbedCall(identified.image_id)
        embedded = await self._segmenter.ask(model_id, call, identified, deadline, context.timing)
        window = await self._segmenter.window(identified, deadline)
        response.headers.update(_image_headers(embedded.image_id, window))
        height, width = embedded.image_size
        return openapi.EmbedAnswer(image_id=embedded.image_id, width=width, height=height, model_id=model_id)

    async def delete_image(self, image_id: str) -> openapi.Forgotten:
        """Forgets an image: every replica of every model drops all that it has computed from the image."""
        return openapi.Forgotten(image_id=image_id, forgotten=await self._calls.forget(image_by_id(image_id).image_id))

    # ---- the request

    async def _identify(
        self, sent: "SentImage", context: RequestContext, deadline: Deadline, size: AnswerSize | None = None
    ) -> IdentifiedImage:
        with context.timing.measure("parse"):
            if sent.video_id:
                video = video_by_id(sent.video_id)
                check_without_file(sent.options, "video_id")
                identified = await self._videos.frame(video, sent.frame_index or 0, deadline)
            else:
                # The file is not read into memory: a large one stays on disk, where Starlette put it, until it is
                # decoded.
                file = None if sent.image is None else sent.image.file
                identified = await self._segmenter.identify(file, sent.image_id or "", size, sent.options, deadline)
        context.image_id = identified.image_id
        return identified

    # ---- the answer

    def _respond(
        self,
        masks: MaskSet,
        answer_format: AnswerFormat,
        deadline: Deadline,
        request: Request,
        window: tuple[float, float] | None,
    ) -> Response:
        """Returns the answer, compressed where that pays."""
        pieces: AsyncGenerator[bytes | memoryview, None] = self._encoder_calls.pull(masks, answer_format, deadline)
        headers = _image_headers(masks.image_id, window) | {"Vary": "Accept-Encoding"}
        index = masks.shown(answer_format.mask_index) if answer_format.traits.holds_one_mask else None
        if index is not None:
            headers |= {"X-Mask-Index": str(index), "X-Score": str(masks.facts(index)["score"])}
        headers |= _disposition(answer_format, masks)
        coding = choose_coding(request.headers.get("accept-encoding", ""), masks, answer_format)
        if coding is not None:
            headers["Content-Encoding"] = coding
            pieces = compress(pieces, coding)
        delivery = self._delivery(masks, answer_format, deadline)
        timing = context_of(request).timing
        return StreamedAnswer(pieces, delivery, timing, headers, answer_format.traits.media_type)

    def _delivery(self, masks: MaskSet, answer_format: AnswerFormat, deadline: Deadline) -> Delivery:
        at_a_time = self._encoder_calls.window_bytes if is_request_flow_controlled() else text_bytes
        share = at_a_time(masks, answer_format) + masks.low_res_logits.nbytes
        return Delivery.of_request(self._calls.config, self._budget, share, deadline)


def _image_headers(image_id: str, window: tuple[float, float] | None) -> dict[str, str]:
    return {"X-Image-Id": image_id} | ({} if window is None else {"X-Image-Window": window_text(window)})


def _disposition(answer_format: AnswerFormat, masks: MaskSet) -> dict[str, str]:
    """Proposes a file's name, for formats that are files of tools: the image's own, with the format's suffix."""
    suffix = answer_format.traits.suffix
    if not suffix:
        return {}
    stem = (answer_format.file_name or masks.image_id).replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(stem or masks.image_id)}{suffix}"}


@dataclass(frozen=True)
class SentImage:
    """How a request names its image: by the file, by its id, or by a video's id and a frame.

    Raises:
        InvalidRequest: two of them are given, or only one of `video_id` and `frame_index`.
        RequestValidationError: none of them is given.
    """

    image: UploadFile | None
    image_id: str | None
    video_id: str | None
    frame_index: int | None
    options: PictureOptions

    @property
    def file_name(self) -> str | None:
        """The uploaded file's name, as the client sent it."""
        return None if self.image is None else self.image.filename

    def __post_init__(self) -> None:
        if self.video_id and (self.image is not None or self.image_id):
            raise InvalidRequest("video_id: is given as well as image or image_id; send one of them")
        if self.frame_index is not None and not self.video_id:
            raise InvalidRequest("frame_index: needs video_id, the video that the frame is of")
        if self.video_id and self.frame_index is None:
            raise InvalidRequest("frame_index: must be given together with video_id")
        if self.image is None and not self.image_id and not self.video_id:
            # The error that FastAPI itself raises if a required field is missing.
            raise RequestValidationError([{"type": "missing", "loc": ("body", "image"), "msg": "Field required"}])
