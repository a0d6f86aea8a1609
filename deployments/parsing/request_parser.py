"""RequestParser, the ingress deployment: HTTP routes and handle calls, from image and prompt to an answer."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, File, Form, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidImage, InvalidPrompt, InvalidRequest, ServiceError, TooLarge, UnknownModel
from deployments.parsing import documents
from deployments.parsing.answers import AnswerBudget, BandedResponse, Delivery
from deployments.parsing.boundary import Boundary, on_http_exception, on_service_error, on_validation_error
from deployments.parsing.calls import Calls, Deadline
from deployments.parsing.compression import choose_coding, compressed
from deployments.parsing.control_plane import ControlPlane, is_flow_controlled
from deployments.parsing.form import form_route, parse_prompt
from deployments.parsing.images import IdentifiedImage, ImageInput, identify, named
from deployments.parsing.server_timing import ServerTiming
from deployments.parsing.side_routes import SideRoutes
from deployments.schema import EmbeddedImage, ModelAnswer, Prompt, RgbArray, Segmentation
from deployments.settings import RequestParserConfig, ServiceSettings, auth_token

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

DECODING_THREADS = 4

DESCRIPTION = """\
Segment Anything 2: an image and a prompt (points, box, mask) in; masks, scores and logits out.
"""


class RequestParser:
    """Reads requests, calls the model, streams the answer that ResponseEncoder writes.

    Args:
        settings: the application's settings.
        models: a handle of a Sam2Model deployment for each configured model id.
        encoder: the handle of ResponseEncoder.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        models: dict[str, "DeploymentHandle[Any]"],
        encoder: "DeploymentHandle[Any]",
    ) -> None:
        self._settings = settings
        control_plane = ControlPlane(list(models))
        self._calls = Calls(models, encoder, control_plane, RequestParserConfig())
        self._side_routes = SideRoutes(settings.default_model_id, control_plane)
        # Not asyncio's shared threads: a burst of large images must hold up neither health checks nor memory.
        self._decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        self._budget = AnswerBudget(self._calls.config.answer_budget_bytes)
        if not is_flow_controlled():
            logger.warning("answers do not wait for slow clients here; see README, Behind HAProxy")

    # Async, since Serve runs what is not in a thread of its own, and the budget is the event loop's.
    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the deployment's `user_config` (RequestParserConfig), at the start and whenever it changes."""
        self._calls.config = RequestParserConfig.model_validate(user_config)
        self._budget.set_limit(self._calls.config.answer_budget_bytes)

    # ---- handle calls

    async def segment(
        self, image: ImageInput | None = None, prompt: Prompt | None = None, model_id: str = "", image_id: str = ""
    ) -> Segmentation:
        """Segments an image: the method that Python programs call on the application's handle.

        Args:
            image: an `H×W×3` uint8 RGB array, a PIL image, or the bytes of an image file.
            prompt: what to segment; None is the empty prompt.
            model_id: a configured model; "" is the default one.
            image_id: in place of the image, the id of one that the model remembers: of an earlier Segmentation, or
                of `embed`.

        Raises:
            InvalidRequest: the image, the prompt or the model id is bad.
            ImageNotCached: the model does not remember the image of that id.
            TooLarge: the image has too many bytes or pixels, the prompt too many points or objects.
            Unavailable: the model is not ready, overloaded, or past the deadline.
        """
        prompt = prompt if prompt is not None else Prompt()
        model_id = self._check(prompt, model_id)
        identified = await self._identified(image, image_id)
        answer = await self._segment(model_id, identified, prompt, self._deadline(), ServerTiming())
        return answer.segmentation

    async def embed(self, image: ImageInput, model_id: str = "") -> EmbeddedImage:
        """Embeds an image ahead of its prompts, so that the first one is as quick as the second.

        Args:
            image: see `segment`.
            model_id: see `segment`.

        Raises:
            InvalidRequest, TooLarge, Unavailable: as `segment`.
        """
        model_id = self._known(model_id)
        return await self._embed(await self._identified(image), model_id, self._deadline())

    async def forget(self, image_id: str) -> bool:
        """Makes every replica of every model forget an image; whether any remembered it.

        Args:
            image_id: SHA-256 of the image file as 64 hexadecimal digits, or `Segmentation.image_id`.

        Raises:
            InvalidRequest: that is no image_id.
            Unavailable: a replica did not answer in time.
        """
        return await self._calls.forget(named(image_id).image_id)

    # ---- the HTTP application

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The FastAPI application. Bound methods are registered here, since the class is wrapped only in app.py."""
        app = FastAPI(
            title="Segment Anything 2",
            description=DESCRIPTION,
            version=version("segment-anything-2-serve"),
            middleware=[Middleware(Boundary, token=auth_token(self._settings))],
            dependencies=[Security(HTTPBearer(auto_error=False, description="AUTH_TOKEN, if the operator set one"))],
            exception_handlers={
                ServiceError: on_service_error,
                HTTPException: on_http_exception,
                RequestValidationError: on_validation_error,
            },
            redoc_url=None,
            redirect_slashes=False,
        )
        app.include_router(self._form_routes())
        app.add_api_route(
            "/segment-anything-2/images/{image_id}",
            self.delete_image,
            methods=["DELETE"],
            operation_id="forgetImage",
            tags=["generate"],
            responses=documents.error_responses(400, 401, 503),
        )
        self._side_routes.add_to(app)
        return app

    def _form_routes(self) -> APIRouter:
        router = APIRouter(route_class=form_route(self._settings.limits, lambda: self._calls.config.body_timeout_s))

        def add(path: str, route: Callable[..., Any], *also: int, answer: dict[str, Any], **options: Any) -> None:
            errors = documents.error_responses(*sorted({400, 401, 408, 413, 415, 422, 500, 503, *also}))
            options |= {"methods": ["POST"], "tags": ["generate"], "responses": {200: answer, **errors}}
            router.add_api_route(path, route, **options)
            router.add_api_route(f"{path}/", route, include_in_schema=False, **options)

        add(
            "/segment-anything-2",
            self.post_segment,
            404,
            operation_id="genSegmentAnything2",
            summary="Segment Anything 2",
            description="Segments the objects in an image that the prompt points to.",
            response_class=Response,
            openapi_extra={"requestBody": {"required": True}},
            answer={
                "model": documents.SegmentationAnswer,
                "description": "Masks, scores and logits.",
                "headers": documents.ANSWER_HEADERS,
            },
        )
        add(
            "/segment-anything-2/embed",
            self.post_embed,
            operation_id="embedImage",
            summary="Embed an image",
            description="Embeds an image ahead of its prompts, which can then name it by its `image_id`.",
            answer={"headers": {"X-Image-Id": documents.ANSWER_HEADERS["X-Image-Id"]}},
        )
        return router

    # ---- routes

    async def post_segment(
        self,
        request: Request,
        # Not "UploadFile | None": /docs would show a field for text, and a text would be two faults, not one.
        image: Annotated[
            UploadFile,
            File(description="The image: any raster format; EXIF orientation is applied. Required without `image_id`."),
        ] = None,  # type: ignore[assignment]
        image_id: Annotated[
            str | None, Form(description="In place of `image`: the `X-Image-Id` of one that the model remembers.")
        ] = None,
        model_id: Annotated[str, Form(description="Model to use; empty for the default one.")] = "",
        point_coords: Annotated[
            str | None, Form(description="JSON `[[x,y],…]`, or a list of those for B objects; pixels.")
        ] = None,
        point_labels: Annotated[
            str | None, Form(description="JSON `[1,0,…]`, one for each point: 1 foreground, 0 background.")
        ] = None,
        box: Annotated[str | None, Form(description="JSON `[x0,y0,x1,y1]`, or a list of those; pixels.")] = None,
        mask_input: Annotated[
            str | None, Form(description="JSON `1×256×256` (or `B×1×256×256`): `logits` of an earlier answer.")
        ] = None,
        multimask_output: Annotated[bool, Form(description="Three candidate masks, or one.")] = True,
        return_logits: Annotated[bool, Form(description="Un-thresholded float masks, or 0 and 1.")] = True,
        normalize_coords: Annotated[
            bool, Form(description="False if coordinates are already divided by the image's width and height.")
        ] = True,
    ) -> Response:
        """Answers the default JSON, streamed band by band."""
        if image is None and not image_id:
            # As FastAPI says it of a field that is always required.
            raise RequestValidationError([{"type": "missing", "loc": ("body", "image"), "msg": "Field required"}])
        deadline = self._deadline()
        fields = {
            "point_coords": point_coords,
            "point_labels": point_labels,
            "box": box,
            "mask_input": mask_input,
        }
        limits = self._settings.limits
        prompt = await asyncio.to_thread(parse_prompt, fields, multimask_output, normalize_coords, limits)
        model_id = self._check(prompt, model_id)
        uploaded = None if image is None else await image.read()
        identified = await self._identified(uploaded, image_id or "", prompt.num_masks)
        timing = ServerTiming()
        timing.add("parse", time.perf_counter() - request.state.arrived_at)
        answer = await self._segment(model_id, identified, prompt, deadline, timing, limits.max_answer_numbers)
        headers = {"X-Image-Id": identified.image_id}
        return self._respond(answer.segmentation, return_logits, deadline, timing, headers, request.headers)

    async def post_embed(
        self,
        response: Response,
        image: Annotated[UploadFile, File(description="The image: any raster format; EXIF orientation is applied.")],
        model_id: Annotated[str, Form(description="Model to use; empty for the default one.")] = "",
    ) -> documents.EmbeddedImage:
        """Answers once the image is embedded."""
        deadline = self._deadline()
        model_id = self._known(model_id)
        embedded = await self._embed(await self._identified(await image.read()), model_id, deadline)
        response.headers["X-Image-Id"] = embedded.image_id
        height, width = embedded.image_size
        return documents.EmbeddedImage(image_id=embedded.image_id, width=width, height=height, model_id=model_id)

    async def delete_image(self, image_id: str) -> documents.Forgotten:
        """Forgets an image: drops what every replica of every model has computed from it."""
        return documents.Forgotten(image_id=image_id, forgotten=await self.forget(image_id))

    # ---- checks

    def _check(self, prompt: Prompt, model_id: str) -> str:
        """The model's id, with the default put in; refuses what is over the limits before any work."""
        limits = self._settings.limits
        if not isinstance(prompt, Prompt):
            raise InvalidPrompt(f"prompt: must be a Prompt, is {type(prompt).__name__}")
        for count, limit, what in (
            (prompt.num_points, limits.max_points, "point_coords: has {} points"),
            (prompt.num_objects, limits.max_objects, "prompt: has {} objects"),
        ):
            if count > limit:
                raise TooLarge(f"{what.format(count)}, more than the {limit} that are accepted")
        return self._known(model_id)

    def _known(self, model_id: str) -> str:
        """The id of a configured model, the default one for ""."""
        known = [model.model_id for model in self._settings.models]
        if model_id and model_id not in known:
            raise UnknownModel(f"model_id: {model_id[:200]!r} is not configured; known are {', '.join(known)}")
        return model_id or self._settings.default_model_id

    # ---- steps

    async def _identified(self, image: ImageInput | None, image_id: str = "", num_masks: int = 0) -> IdentifiedImage:
        """The image that a request brings, or names."""
        if image is not None and image_id:
            raise InvalidRequest("image_id: is given beside image; send one of them")
        if image is None and not image_id:
            raise InvalidImage("image: is missing, and so is the image_id of one that the model remembers")
        if image_id:
            return named(image_id)
        return await self._off_loop(identify, image, self._settings.limits, num_masks)

    async def _embed(self, image: IdentifiedImage, model_id: str, deadline: Deadline) -> EmbeddedImage:
        pixels = partial(self._off_loop, image.decode, self._settings.limits)
        return await self._calls.embed(model_id, image.image_id, pixels, deadline)

    async def _segment(
        self,
        model_id: str,
        image: IdentifiedImage,
        prompt: Prompt,
        deadline: Deadline,
        timing: ServerTiming,
        max_answer_numbers: int | None = None,
    ) -> ModelAnswer:
        """Asks the model, with the pixels only if it wants them; notes where the time went."""
        decoding_s = 0.0

        async def pixels() -> RgbArray:
            nonlocal decoding_s
            started = time.perf_counter()
            try:
                return await self._off_loop(image.decode, self._settings.limits)
            finally:
                decoding_s = time.perf_counter() - started

        started = time.perf_counter()
        source = None if image.source is None else pixels
        answer = await self._calls.segment(model_id, image.image_id, prompt, source, deadline, max_answer_numbers)
        timing.add("parse", decoding_s)
        timing.add_model(answer, time.perf_counter() - started - decoding_s)
        return answer

    def _respond(
        self,
        segmentation: Segmentation,
        return_logits: bool,
        deadline: Deadline,
        timing: ServerTiming,
        headers: dict[str, str],
        request_headers: Headers,
    ) -> Response:
        """The default answer, compressed where that pays."""
        bands: AsyncGenerator[bytes | memoryview, None] = self._calls.bands(segmentation, return_logits, deadline)
        coding = choose_coding(request_headers.get("accept-encoding", ""), segmentation, return_logits)
        headers["Vary"] = "Accept-Encoding"
        if coding is not None:
            headers["Content-Encoding"] = coding
            bands = compressed(bands, coding)
        delivery = self._delivery(segmentation, return_logits, deadline)
        return BandedResponse(bands, delivery, timing, headers)

    async def _off_loop(self, function: Callable[..., T], *args: Any) -> T:
        """Runs what would hold up other requests in one of the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, partial(function, *args))

    def _delivery(self, segmentation: Segmentation, return_logits: bool, deadline: Deadline) -> Delivery:
        config = self._calls.config
        flow_controlled = is_flow_controlled()
        text = self._calls.answer_bytes(segmentation, return_logits)
        return Delivery(
            budget=self._budget,
            share=(min(text, self._calls.window_bytes) if flow_controlled else text)
            + segmentation.low_res_logits.nbytes,
            wait_s=deadline.remaining(),
            stall_timeout_s=config.answer_stall_timeout_s,
            read_timeout_s=config.request_timeout_s,
            flow_controlled=flow_controlled,
        )

    def _deadline(self) -> Deadline:
        return Deadline(self._calls.config.request_timeout_s)
