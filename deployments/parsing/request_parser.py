"""RequestParser: the calls on the application's handle, by which Python programs send an image and get masks."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, BinaryIO

from ray.serve.handle import DeploymentHandle

from deployments.errors import InvalidPrompt, InvalidRequest
from deployments.messages.answer_format import AnswerFormat, TrackFormat
from deployments.messages.calls import AutoCall, EmbedCall, EmbeddedImage, SegmentCall
from deployments.messages.everything import AutomaticMasks, AutomaticPrompt
from deployments.messages.picture_options import PictureOptions
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation
from deployments.messages.track import FrameMasks, TrackPrompt
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.encoder_calls import EncoderCalls
from deployments.parsing.images import ImageInput, image_by_id
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.model_states import ModelStates
from deployments.parsing.segmenter import Segmenter
from deployments.parsing.stage_times import StageTimes
from deployments.parsing.video.plan import FrameRange
from deployments.parsing.video.prompts import checked_prompts
from deployments.parsing.video.video_calls import VideoCalls
from deployments.parsing.video.videos import Videos
from deployments.settings import RequestParserConfig, ServiceSettings
from deployments.telemetry.metrics import RequestMetrics


class RequestParser:
    """Checks requests, and calls models and encoders.

    Args:
        settings: the application's settings.
        models: a handle of a Sam2Model deployment for each configured model id.
        encoder: the handle of ResponseEncoder.
        reader: the handle of VideoReader.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        models: dict[str, "DeploymentHandle[Any]"],
        encoder: "DeploymentHandle[Any]",
        reader: "DeploymentHandle[Any]",
    ) -> None:
        self._settings = settings
        self._model_states = ModelStates(list(models))
        self._metrics, config = RequestMetrics(), RequestParserConfig()
        self._calls = ModelCalls(models, self._model_states, config, self._metrics)
        self._encoder_calls = EncoderCalls(encoder, self._calls)
        self._pixels_budget = ByteBudget(config.pixels_budget_bytes, "too many images are on their way to models")
        self._segmenter = Segmenter(settings, self._calls, self._pixels_budget)
        self._video_calls = VideoCalls(reader, self._calls)
        self._videos = Videos(settings, self._calls, self._video_calls)

    # Async: Serve runs synchronous methods in a thread of their own, and the budget belongs to the event loop.
    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies the deployment's `user_config` (RequestParserConfig), at the start and whenever it changes."""
        self._calls.configure(RequestParserConfig.model_validate(user_config))
        self._pixels_budget.set_limit(self._calls.config.pixels_budget_bytes)

    # ---- handle calls

    async def segment(
        self,
        image: ImageInput | None = None,
        prompt: Prompt | None = None,
        model_id: str = "",
        image_id: str = "",
        options: PictureOptions | None = None,
    ) -> Segmentation:
        """Segments an image: the method that Python programs call on the application's handle.

        Args:
            image: an array of any numeric type, `H×W` or `H×W×C`, a PIL image, or the bytes of an image file.
            prompt: what to segment; None is the empty prompt.
            model_id: a configured model; "" is the default one.
            image_id: given in place of the image: the id of an image that the model remembers, from an earlier
                Segmentation or from `embed`.
            options: how the image is read: the window of values that is shown, bands, page, background; None is the
                defaults. Not with `image_id`.

        Raises:
            InvalidRequest: the image, the prompt or the model id is bad.
            ImageNotCached: the model does not remember the image of this id.
            TooLarge: the image has too many bytes or pixels, or the prompt has too many points or objects.
            Unavailable: the model is not ready or is overloaded, or the deadline has passed.
        """
        prompt = prompt if prompt is not None else Prompt()
        self._segmenter.check(prompt)
        deadline, model_id = self._segmenter.deadline(), self._segmenter.known_model_id(model_id)
        identified = await self._segmenter.identify(image, image_id, options=options, deadline=deadline)
        call = SegmentCall(identified.image_id, prompt)
        return await self._segmenter.ask(model_id, call, identified, deadline, StageTimes())

    async def auto(
        self,
        image: ImageInput | None = None,
        prompt: AutomaticPrompt | None = None,
        model_id: str = "",
        image_id: str = "",
        options: PictureOptions | None = None,
    ) -> AutomaticMasks:
        """Segments everything in an image.

        Args:
            image: see `segment`.
            prompt: the grid of points, and which masks to keep; None is SAM 2's default.
            model_id: see `segment`.
            image_id: see `segment`. Crops need the image itself, since crops are not remembered.
            options: see `segment`.

        Raises:
            InvalidRequest, ImageNotCached, TooLarge, Unavailable: as `segment`.
        """
        prompt = prompt if prompt is not None else AutomaticPrompt()
        deadline, model_id = self._segmenter.deadline(), self._segmenter.known_model_id(model_id)
        identified = await self._segmenter.identify(image, image_id, options=options, deadline=deadline)
        self._segmenter.check_grid(prompt, identified)
        call = AutoCall(identified.image_id, prompt, self._settings.limits.max_compact_numbers)
        return await self._segmenter.ask(model_id, call, identified, deadline, StageTimes())

    async def track(
        self,
        video: bytes | BinaryIO | None = None,
        prompts: Sequence[TrackPrompt] = (),
        model_id: str = "",
        video_id: str = "",
        which: FrameRange | None = None,
    ) -> AsyncGenerator[FrameMasks, None]:
        """Follows objects through a video: call it with `handle.options(stream=True).track.remote(…)`.

        Args:
            video: the bytes of a video file.
            prompts: what to follow: one for each object, and one for each correction.
            model_id: a configured model that can follow objects; "" is the default one.
            video_id: given in place of the video: SHA-256 of a file that the service keeps.
            which: the frames; None follows from the first prompt to the end.

        Yields:
            The masks of each frame, in the order in which frames are followed. Serve takes them in as fast as they
            come, so a caller that is slow holds them.

        Raises:
            InvalidRequest: the video, a prompt or the model id is bad, or a frame cannot be decoded.
            VideoNotCached: the service does not keep the video of this id.
            TooLarge: the video or the prompts are over a limit.
            Unavailable: the model is not ready or is overloaded, or the deadline has passed.
        """
        if not all(isinstance(one, TrackPrompt) for one in prompts):
            raise InvalidPrompt("prompts: must be a list of TrackPrompt")
        deadline = self._segmenter.deadline(timeout_s=self._calls.config.video_timeout_s)
        model_id, file = self._segmenter.known_model_id(model_id), await self._videos.identify(video, video_id)
        timed = checked_prompts(prompts, self._settings.limits)
        request = await self._videos.prepare(file, timed, which or FrameRange(), model_id, TrackFormat(), deadline)
        async with aclosing(self._videos.masks(request, deadline, StageTimes())) as masks:
            async for one in masks:
                yield one

    async def encode(self, masks: Segmentation | AutomaticMasks, answer_format: AnswerFormat) -> bytes:
        """Writes masks as the body of an HTTP answer.

        Args:
            masks: the result of `segment` or `auto`.
            answer_format: the format and its options; `json` and `mask_index` are for a Segmentation only.

        Raises:
            InvalidRequest: these masks cannot be written in this format.
            TooLarge: the answer would hold too many numbers, or more objects than the format can number.
            Unavailable: the encoders are overloaded, or the deadline has passed.
        """
        if not isinstance(masks, (Segmentation, AutomaticMasks)):
            raise InvalidRequest(f"masks: must be a Segmentation or AutomaticMasks, is {type(masks).__name__}")
        if not isinstance(answer_format, AnswerFormat):
            raise InvalidRequest(f"answer_format: must be an AnswerFormat, is {type(answer_format).__name__}")
        masks.check_format(answer_format)
        answer_format.check_place()
        self._segmenter.size(masks.num_objects, masks.num_masks, answer_format).check(masks.image_size)
        pieces = self._encoder_calls.pull(masks, answer_format, self._segmenter.deadline())
        return b"".join([piece async for piece in pieces])

    async def embed(
        self, image: ImageInput, model_id: str = "", options: PictureOptions | None = None
    ) -> EmbeddedImage:
        """Embeds an image ahead of its prompts, so that the first prompt is as quick as the second.

        Args:
            image: see `segment`.
            model_id: see `segment`.
            options: see `segment`.

        Raises:
            InvalidRequest, TooLarge, Unavailable: as `segment`.
        """
        deadline, model_id = self._segmenter.deadline(), self._segmenter.known_model_id(model_id)
        identified = await self._segmenter.identify(image, options=options, deadline=deadline)
        call = EmbedCall(identified.image_id)
        return await self._segmenter.ask(model_id, call, identified, deadline, StageTimes())

    async def forget(self, image_id: str) -> bool:
        """Makes every replica of every model forget an image; returns whether any replica remembered it.

        Args:
            image_id: SHA-256 of the image file as 64 hexadecimal digits, or `Segmentation.image_id`.

        Raises:
            InvalidRequest: the image_id is not 64 hexadecimal digits.
            Unavailable: a replica did not answer in time.
        """
        return await self._calls.forget(image_by_id(image_id).image_id)
