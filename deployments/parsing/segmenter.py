"""Segmenter: the steps from an image and a prompt to a model's answer, which HTTP requests and handle calls share."""

import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, BinaryIO, TypeVar

from deployments.errors import InvalidImage, InvalidPrompt, InvalidRequest, TooLarge, UnknownModel
from deployments.messages.answer_format import AnswerFormat
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import AnswerSize, ModelCall
from deployments.messages.everything import AutomaticPrompt
from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.messages.prompt import Prompt
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.deadline import Deadline
from deployments.parsing.decoding_threads import DecodingThreads
from deployments.parsing.images import IdentifiedImage, ImageInput, identify, image_by_id, is_isolated
from deployments.parsing.model_calls import ModelCalls, Sources
from deployments.parsing.stage_times import StageTimes
from deployments.pictures.raster import Picture
from deployments.settings import ServiceSettings
from deployments.telemetry.tracing import span

T = TypeVar("T")
Result = TypeVar("Result")

MOST_REMEMBERED = 10_000
"""Pictures of more than 8 bits whose windows are remembered, and TIFF files whose georeferences are."""


class Segmenter:
    """Checks requests against the limits, reads images, and asks models.

    Args:
        settings: the application's settings.
        calls: sends calls to the models.
        pixels_budget: bounds the bytes of decoded images.
    """

    def __init__(self, settings: ServiceSettings, calls: ModelCalls, pixels_budget: ByteBudget) -> None:
        self._settings = settings
        self._calls = calls
        self._pixels_budget = pixels_budget
        self._threads = DecodingThreads()
        self._windows: dict[str, tuple[float, float] | None] = {}
        self._georeferences: dict[str, Georeference | NoGeoreference] = {}

    def deadline(self, asked: str = "", elapsed_s: float = 0.0, timeout_s: float | None = None) -> Deadline:
        """Returns the deadline of a request that has just been read.

        Args:
            asked: the client's `x-request-timeout-seconds`; a value that is no positive number is ignored, as in Serve.
            elapsed_s: seconds since the request arrived.
            timeout_s: the service's own limit; None is `request_timeout_s`.
        """
        own_s = self._calls.config.request_timeout_s if timeout_s is None else timeout_s
        return Deadline.of_request(own_s, _positive(asked), elapsed_s)

    # ---- checks

    def known_model_id(self, model_id: str) -> str:
        """Returns the id of a configured model; for "", the id of the default model.

        Raises:
            UnknownModel: no model of this id is configured.
        """
        known = [model.model_id for model in self._settings.models]
        if model_id and model_id not in known:
            raise UnknownModel(f"model_id: {model_id[:200]!r} is not configured; the models are {', '.join(known)}")
        return model_id or self._settings.default_model_id

    def check(self, prompt: Prompt) -> None:
        """Rejects a prompt that is over the limits, before any work.

        Raises:
            InvalidPrompt: the prompt is of another type.
            TooLarge: the prompt has too many points or objects.
        """
        limits = self._settings.limits
        _check_type(prompt, Prompt)
        for count, limit, message in (
            (prompt.num_points, limits.max_points, "point_coords: has {} points"),
            (prompt.num_objects, limits.max_objects, "prompt: has {} objects"),
        ):
            if count > limit:
                raise TooLarge(f"{message.format(count)}, more than the {limit} that are accepted")

    def check_grid(self, prompt: AutomaticPrompt, image: IdentifiedImage) -> None:
        """Rejects a grid of too many points or crops, and a grid with crops if the image is given by its id.

        Raises:
            InvalidPrompt: the prompt is of another type.
            InvalidRequest: crops need the image itself.
            TooLarge: there are too many points or crops.
        """
        _check_type(prompt, AutomaticPrompt)
        if prompt.num_points > (limit := self._settings.limits.max_grid_points):
            raise TooLarge(
                f"points_per_side: makes {prompt.num_points} points in all crops, more than the {limit} accepted"
            )
        if prompt.num_crops > (limit := self._settings.limits.max_crops):
            raise TooLarge(f"crop_n_layers: makes {prompt.num_crops} crops, more than the {limit} accepted")
        if prompt.crop_n_layers and not image.has_pixels:
            raise InvalidRequest("crop_n_layers: needs the image itself; only the whole image is remembered, not crops")

    def size(self, num_objects: int, num_masks: int, answer_format: AnswerFormat) -> AnswerSize:
        """Computes how much the answer to a prompt will hold, and how much it may hold.

        Args:
            num_objects: the number of the prompt's objects.
            num_masks: the number of the prompt's masks, over all objects.
            answer_format: how they are written.

        Raises:
            InvalidRequest: `mask_index` is out of range.
            TooLarge: there are more objects than the format can number.
        """
        answer_format.check_index(num_masks)
        answer_format.check_objects(num_objects)
        limits = self._settings.limits
        if answer_format.traits.is_full_text:
            fewer = "ask for fewer objects, for multimask_output=false, or for response_format rle"
            return AnswerSize(num_masks, limits.max_answer_numbers, fewer)
        return AnswerSize(answer_format.num_masks(num_objects, num_masks), limits.max_compact_numbers)

    # ---- steps

    async def identify(
        self,
        image: ImageInput | BinaryIO | None,
        image_id: str = "",
        size: AnswerSize | None = None,
        options: PictureOptions | None = None,
        deadline: Deadline | None = None,
    ) -> IdentifiedImage:
        """Identifies a request's image: computes the id of the image that was sent, or takes the id that was given.

        Raises:
            InvalidRequest: there are both an image and an id, or neither, or the image, the id or the options are
                malformed, or there are options beside an id.
            TooLarge: the image has too many bytes or pixels, or the answer would be too large.
            Unavailable: the decoders are busy, or the deadline has passed.
        """
        if image is not None and image_id:
            raise InvalidRequest("image_id: is given as well as image; send one of them")
        if image is None and not image_id:
            raise InvalidImage("image: is missing; send it, or the image_id of an image that the model remembers")
        if image_id:
            check_without_file(options, "image_id")
            return image_by_id(image_id)
        arguments = (image, self._settings.limits, size, options, deadline)
        if not await self.off_loop(is_isolated, image):
            return await self.off_loop(identify, *arguments)
        identified = await self._threads.run_isolated(deadline, identify, *arguments)
        if identified.kind == "tiff":
            # For prompts that name the image by its id.
            _remember(self._georeferences, identified.image_id, identified.georeference)
        return identified

    async def ask(
        self, model_id: str, call: ModelCall[Result], image: IdentifiedImage, deadline: Deadline, times: StageTimes
    ) -> Result:
        """Asks a model, with the image's pixels only if it wants them; see `ModelCalls.ask` for the errors.

        Args:
            model_id: a configured model.
            call: the question about this image.
            image: the image.
            deadline: when there must be an answer.
            times: receives the seconds of each stage.
        """
        decoding_s = 0.0

        async def pixels() -> RgbArray:
            nonlocal decoding_s
            started = time.perf_counter()
            try:
                return await self.decode(image, deadline, held, times)
            finally:
                decoding_s = time.perf_counter() - started

        started = time.perf_counter()
        sources: Sources = {"pixels": pixels} if image.has_pixels else {}
        async with AsyncExitStack() as held:
            answer = await self._calls.ask(model_id, call, sources, deadline)
        times.add_model(answer, time.perf_counter() - started - decoding_s)
        return answer.result

    async def window(self, image: IdentifiedImage, deadline: Deadline) -> tuple[float, float] | None:
        """Returns the window in which an image's samples are shown; None if they have 8 bits, or if it is not known.

        It is known once the image was decoded here. If the model remembered an image of more than 8 bits that was sent,
        and this replica does not, the image is decoded for this alone. The window of an image that is only named by its
        id is not known to a replica that never saw the image.

        Raises:
            InvalidImage, TooLarge: as `IdentifiedImage.read`.
            Unavailable: there is no room for the pixels in time.
        """
        if isinstance(image.source, Picture):
            return image.source.window
        if image.image_id in self._windows or image.source is None:
            return self._windows.get(image.image_id)
        if not isinstance(image.options.window, str):
            return image.options.window
        if image.is_deep:
            async with AsyncExitStack() as held:
                await self.decode(image, deadline, held, StageTimes())
        return self._windows.get(image.image_id)

    def georeference(self, image: IdentifiedImage) -> Georeference | NoGeoreference:
        """Returns where an image lies on a map, or why that is not known.

        It is known once the file was sent here: a replica that never saw the file of an `image_id` does not know it.
        """
        return self._georeferences.get(image.image_id, image.georeference)

    async def decode(
        self, image: IdentifiedImage, deadline: Deadline, held: AsyncExitStack, times: StageTimes
    ) -> RgbArray:
        """Decodes the image, or fetches the frame, within the budget for pixels.

        Args:
            image: has pixels.
            deadline: when there must be pixels; waiting for the budget takes `max_wait_s` at most.
            held: the pixels keep their share of the budget until it is closed.
            times: receives the seconds of each stage.

        Raises:
            InvalidImage, InvalidVideo, TooLarge, VideoNotCached: there are no pixels.
            Unavailable: the budget or the readers are overloaded, or the deadline has passed.
        """
        limits = self._settings.limits

        async def share() -> None:
            wait_s = deadline.step(self._calls.config.max_wait_s).remaining()
            with times.measure("queue"):
                await held.enter_async_context(self._pixels_budget.share(image.decoded_bytes, wait_s))

        if image.is_isolated:
            # A picture that waits for a helper must not keep others from being decoded, so its share comes after its
            # turn. Whoever holds a share waits for no turn: no two requests can wait for each other.
            with times.measure("parse", but="queue"), span("decode image"):
                picture = await self._threads.run_isolated(deadline, image.read, limits, deadline, before=share)
        else:
            await share()
            with times.measure("parse"), span("decode image"):
                if image.fetch is not None:
                    return await image.fetch(deadline)
                picture = await self.off_loop(image.read, limits, deadline)
        if image.is_deep:
            _remember(self._windows, image.image_id, picture.window)
        return picture.pixels

    async def off_loop(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a function in one of the decoding threads, so that it does not delay other requests."""
        return await self._threads.run(function, *args)


def check_without_file(options: PictureOptions | None, name: str) -> None:
    """Rejects options that say how a file is read, where there is none: what is named has been read already.

    Raises:
        InvalidRequest: an option is not the default; the message names the first.
    """
    if options is not None and (text := options.text()):
        field = text.partition("=")[0]
        raise InvalidRequest(f"{field}: goes with image, and not with {name}, which names a picture as it was read")


def _remember(memory: dict[str, T], image_id: str, value: T) -> None:
    """Keeps what is known of an image; what was noted first makes room."""
    while len(memory) >= MOST_REMEMBERED:
        memory.pop(next(iter(memory)))
    memory[image_id] = value


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _check_type(prompt: object, wanted: type) -> None:
    if not isinstance(prompt, wanted):
        raise InvalidPrompt(f"prompt: must be a {wanted.__name__}, is {type(prompt).__name__}")
