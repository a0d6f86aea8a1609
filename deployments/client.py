"""A client of the service: uploads an image once, prompts it many times.

    client = Client("http://127.0.0.1:8000")
    image = client.image("photo.jpg")
    found = client.segment(image, point_coords=[[220, 240]], point_labels=[1])
    found.masks[0]  # H×W bool, the best mask

Needs httpx, numpy and pillow, and nothing else of this project: the file may be copied. `AsyncClient` has the same
methods; those that ask the service are to be awaited. Both may be shared, by threads or tasks.
"""

import hashlib
import io
import json
import random
import time
import zipfile
from asyncio import sleep
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

__all__ = ["AsyncClient", "Client", "Everything", "ImageFile", "Segmentation", "ServiceError"]

ROUTE = "/segment-anything-2"

MAX_KNOWN = 10_000
"""Images whose upload a client keeps in mind."""

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

CONNECT_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
JITTER = 0.25

T = TypeVar("T")

ImageSource: TypeAlias = "str | Path | bytes | NDArray[np.uint8] | Image.Image | ImageFile"
"""A file's path or bytes, an `H×W×3` uint8 RGB array, a PIL image, or what `Client.image` returned."""


class ServiceError(Exception):
    """The service refused a request, or could not be reached.

    Attributes:
        status: the HTTP status; 0 if there was no answer.
        code: for programs, such as `image_not_cached`; mostly None.
    """

    def __init__(self, message: str, status: int = 0, code: str | None = None) -> None:
        super().__init__(message, status, code)
        self.message = message
        self.status = status
        self.code = code

    def __str__(self) -> str:
        return f"{self.status}: {self.message}" if self.status else self.message


@dataclass(frozen=True)
class ImageFile:
    """An image as it is uploaded.

    Attributes:
        data: the bytes of an image file.
        image_id: their SHA-256, by which the service remembers it.
    """

    data: bytes = field(repr=False)
    image_id: str

    @classmethod
    def of(cls, source: ImageSource) -> "ImageFile":
        """A file as it is; an array or PIL image as PNG."""
        if isinstance(source, ImageFile):
            return source
        data = source if isinstance(source, bytes) else _file_bytes(source)
        return cls(data, hashlib.sha256(data).hexdigest())


def _file_bytes(source: "str | Path | NDArray[np.uint8] | Image.Image") -> bytes:
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    # As the service does with a file; and PNG has not all of Pillow's modes.
    image = ImageOps.exif_transpose(image)
    image = image if image.mode in PNG_MODES else image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The masks of one prompt.

    Attributes:
        image_id: the image's name at the service.
        masks: `C×H×W` bool by descending score; `B×C×H×W` if the prompt spoke of B objects.
        scores: `C` (`B×C`) float32, estimated IoUs.
        logits: `C×256×256` (`B×C×256×256`) float32, for a later prompt's `mask_input`; None unless asked for.
    """

    image_id: str
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Everything:
    """The masks of everything in an image.

    Attributes:
        image_id: the image's name at the service.
        masks: `K×H×W` bool.
        predicted_iou: `K` float32.
        stability_score: `K` float32.
        point_coords: `K×2` float32, XY in pixels: the grid's point that a mask comes from.
        crop_boxes: `K×4` int32, XYWH in pixels: the crop that it comes from.
    """

    image_id: str
    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    point_coords: NDArray[np.float32]
    crop_boxes: NDArray[np.int32]


@dataclass(frozen=True)
class _Call:
    """One HTTP request to be sent."""

    method: str
    path: str
    timeout_s: float
    parts: tuple[tuple[str, tuple[str | None, bytes]], ...] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """httpx's, of `request`."""
        timeout = httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, CONNECT_TIMEOUT_S))
        return {"method": self.method, "url": self.path, "files": self.parts, "timeout": timeout}


@dataclass(frozen=True)
class _Pause:
    """So many seconds to be waited."""

    seconds: float


Steps: TypeAlias = Generator["_Call | _Pause", "httpx.Response | httpx.RequestError | None", T]
"""What is to be sent and waited for, one after the other. The two clients differ only in how they do that."""


class _Conversation:
    """What both clients have in common: which images the service has seen, what to send, what an answer means."""

    def __init__(self, model_id: str, timeout_s: float, max_retries: int) -> None:
        self._model_id = model_id
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._known: dict[tuple[str, str], None] = {}

    def segment(
        self, source: ImageSource, prompt: Mapping[str, Any], model_id: str | None, return_logits: bool
    ) -> Steps[Segmentation]:
        fields = (
            _prompt_fields(prompt) | {"response_format": "npz"} | ({"return_logits": "true"} if return_logits else {})
        )
        image = ImageFile.of(source)
        arrays = _arrays((yield from self._ask(ROUTE, image, fields, model_id)).content)
        return Segmentation(image.image_id, arrays["masks"], arrays["scores"], arrays.get("logits"))

    def auto(self, source: ImageSource, options: Mapping[str, Any], model_id: str | None) -> Steps[Everything]:
        fields = {name: str(value) for name, value in options.items()} | {"response_format": "npz"}
        image = ImageFile.of(source)
        # Of crops nothing is remembered.
        needs_image = int(options.get("crop_n_layers", 0)) > 0
        arrays = _arrays((yield from self._ask(f"{ROUTE}/auto", image, fields, model_id, needs_image)).content)
        return Everything(
            image.image_id,
            arrays["masks"],
            arrays["predicted_iou"],
            arrays["stability_score"],
            arrays["point_coords"],
            arrays["crop_boxes"],
        )

    def raw(
        self, source: ImageSource, response_format: str, prompt: Mapping[str, Any], model_id: str | None
    ) -> Steps[bytes]:
        fields = _prompt_fields(prompt) | {"response_format": response_format}
        return (yield from self._ask(ROUTE, ImageFile.of(source), fields, model_id)).content

    def embed(self, source: ImageSource, model_id: str | None) -> Steps[str]:
        image = ImageFile.of(source)
        yield from self._ask(f"{ROUTE}/embed", image, {}, model_id, needs_image=True)
        return image.image_id

    def forget(self, source: ImageSource) -> Steps[bool]:
        image_id = ImageFile.of(source).image_id
        answer = yield from self._send("DELETE", f"{ROUTE}/images/{image_id}", None, self._deadline())
        for key in list(self._known):
            if key[0] == image_id:
                self._known.pop(key, None)
        return bool(answer.json()["forgotten"])

    def _ask(
        self,
        path: str,
        image: ImageFile,
        fields: Mapping[str, str],
        model_id: str | None,
        needs_image: bool = False,
    ) -> Steps[httpx.Response]:
        """Asks by the image's id if the service should know it, and uploads it if it does not (any more)."""
        model_id = self._model_id if model_id is None else model_id
        ends_at = self._deadline()
        named = tuple((name, (None, text.encode())) for name, text in {"model_id": model_id, **fields}.items())
        key = image.image_id, model_id
        if key in self._known and not needs_image:
            by_id = (*named, ("image_id", (None, image.image_id.encode())))
            try:
                return (yield from self._send("POST", path, by_id, ends_at))
            except ServiceError as error:
                if error.code != "image_not_cached":
                    raise
                # Another thread, or task, may have found out too.
                self._known.pop(key, None)
        answer = yield from self._send("POST", path, (*named, ("image", ("image", image.data))), ends_at)
        while len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[key] = None
        return answer

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _send(
        self, method: str, path: str, parts: tuple[tuple[str, tuple[str | None, bytes]], ...] | None, ends_at: float
    ) -> Steps[httpx.Response]:
        """Sends a request; again, if the service was busy or unreachable: every request may be repeated."""
        for attempt in range(self._max_retries + 1):
            answer = yield _Call(method, path, max(ends_at - time.monotonic(), 0.001), parts)
            assert answer is not None
            pause = _pause_s(answer, attempt)
            if pause is None or attempt == self._max_retries or time.monotonic() + pause > ends_at:
                break
            yield _Pause(pause)
        if not isinstance(answer, httpx.Response):
            raise ServiceError(f"{type(answer).__name__}: {answer}")
        if not answer.is_success:
            raise _refusal(answer)
        return answer


def _pause_s(answer: httpx.Response | httpx.RequestError, attempt: int) -> float | None:
    """How long to wait before a request is repeated; None if that is of no use."""
    # Not all who were refused at the same moment come back at the same moment.
    backoff: float = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(1, 1 + JITTER)
    if isinstance(answer, httpx.RequestError):
        return backoff if isinstance(answer, httpx.TransportError) else None
    # A proxy that has just started knows no route yet, and says so; the service's own 404 is JSON.
    unrouted = answer.status_code == 404 and "/-/routes" in answer.text
    if answer.status_code not in (429, 500, 502, 503, 504) and not unrouted:
        return None
    # A bug in the service answers JSON and would be met again; without it, what spoke was a proxy. What took longer
    # than the service allows would do so again.
    if (answer.status_code == 500 and _detail(answer)) or _detail(answer).get("code") == "deadline_exceeded":
        return None
    # The service says how long its queue is now. Who comes back to a longer one has to be more patient.
    after = answer.headers.get("retry-after", "")
    return max(min(float(after), LONGEST_PAUSE_S), backoff) if after.isdecimal() else backoff


def _detail(answer: httpx.Response) -> dict[str, Any]:
    """What the service says of an error; nothing if it was not the service that spoke, or of single fields."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return {}
    return detail if isinstance(detail, dict) else {}


def _refusal(answer: httpx.Response) -> ServiceError:
    detail = _detail(answer)
    message = str(detail.get("msg") or _faults(answer) or answer.text[:500] or answer.reason_phrase)
    return ServiceError(message, answer.status_code, detail.get("code"))


def _faults(answer: httpx.Response) -> str:
    """The faults of single fields, as FastAPI lists them."""
    try:
        faults = answer.json()["detail"]
        return "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in faults)
    except (ValueError, KeyError, TypeError):
        return ""


def _prompt_fields(prompt: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in prompt.items() if value is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(np.asarray(value).tolist())


def _arrays(data: bytes) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ServiceError("the answer is no numpy archive; is this the service's URL?") from error


class Client:
    """Calls the service, and blocks until it has answered.

    Args:
        url: where it is, such as `http://127.0.0.1:8000`.
        token: the bearer token, if it wants one.
        model_id: the model to use where a call names none; "" is the service's default.
        timeout_s: how long the network may be silent in a call, and how long it is repeated; connecting gets 10 s.
        max_retries: how often a request is repeated when the service is busy or unreachable, after 0.5, 1, 2, … 30 s
            and up to a quarter more, or what the service asks for: by default for a minute, of which a proxy needs a
            quarter to come back.
        http: more options of `httpx.Client`.

    All methods raise ServiceError if the service refuses a request, or stays busy or unreachable.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        model_id: str = "",
        timeout_s: float = 300.0,
        max_retries: int = 7,
        **http: Any,
    ) -> None:
        self._conversation = _Conversation(model_id, timeout_s, max_retries)
        self._http = httpx.Client(**_http_options(url, token, http))

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def image(self, source: ImageSource) -> ImageFile:
        """Reads or encodes an image once, for many prompts."""
        return ImageFile.of(source)

    def segment(
        self,
        image: ImageSource,
        *,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        normalize_coords: bool = True,
        return_logits: bool = False,
        model_id: str | None = None,
    ) -> Segmentation:
        """Segments what the prompt points to.

        Args:
            image: is uploaded the first time, and again by itself when the service has forgotten it.
            point_coords: `N×2`, or `B×N×2` for B objects; XY in pixels.
            point_labels: `N` or `B×N`; 1 foreground, 0 background.
            box: `[x0, y0, x1, y1]` or `B×4`; pixels.
            mask_input: `1×256×256` or `B×1×256×256`: `logits` of an earlier answer.
            multimask_output: three candidate masks, or one.
            normalize_coords: False if coordinates are already divided by the image's width and height.
            return_logits: fetch `logits` too.
            model_id: None is the client's.
        """
        prompt = _prompt(point_coords, point_labels, box, mask_input, multimask_output, normalize_coords)
        return self._run(self._conversation.segment(image, prompt, model_id, return_logits))

    def segment_as(
        self, image: ImageSource, response_format: str, *, model_id: str | None = None, **fields: Any
    ) -> bytes:
        """As `segment`, in another format: the body of the service's answer.

        Args:
            image: see `segment`.
            response_format: `json`, `rle`, `polygons`, `png` or `npz`.
            model_id: see `segment`.
            fields: the request's other fields, as `segment` takes them, and `tolerance`, `mask_index`, `return_logits`.
        """
        return self._run(self._conversation.raw(image, response_format, fields, model_id))

    def auto(self, image: ImageSource, *, model_id: str | None = None, **options: float) -> Everything:
        """Segments everything.

        Args:
            image: see `segment`.
            model_id: see `segment`.
            options: those of SAM 2's `SAM2AutomaticMaskGenerator`, such as `points_per_side`.
        """
        return self._run(self._conversation.auto(image, options, model_id))

    def embed(self, image: ImageSource, *, model_id: str | None = None) -> str:
        """Uploads an image ahead of its prompts, so that the first one is quick too; its `image_id`."""
        return self._run(self._conversation.embed(image, model_id))

    def forget(self, image: ImageSource) -> bool:
        """Makes the service forget an image; whether it remembered it."""
        return self._run(self._conversation.forget(image))

    def _run(self, steps: Steps[T]) -> T:
        outcome: httpx.Response | httpx.RequestError | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, _Pause):
                    time.sleep(step.seconds)
                    outcome = None
                    continue
                try:
                    outcome = self._http.request(**step.options)
                except httpx.RequestError as error:
                    outcome = error
        except StopIteration as end:
            result: T = end.value
            return result


class AsyncClient:
    """As Client, with methods to be awaited; see there."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        model_id: str = "",
        timeout_s: float = 300.0,
        max_retries: int = 7,
        **http: Any,
    ) -> None:
        self._conversation = _Conversation(model_id, timeout_s, max_retries)
        self._http = httpx.AsyncClient(**_http_options(url, token, http))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def image(self, source: ImageSource) -> ImageFile:
        """Reads or encodes an image once, for many prompts."""
        return ImageFile.of(source)

    async def segment(
        self,
        image: ImageSource,
        *,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        normalize_coords: bool = True,
        return_logits: bool = False,
        model_id: str | None = None,
    ) -> Segmentation:
        """Segments what the prompt points to; see `Client.segment`."""
        prompt = _prompt(point_coords, point_labels, box, mask_input, multimask_output, normalize_coords)
        return await self._run(self._conversation.segment(image, prompt, model_id, return_logits))

    async def segment_as(
        self, image: ImageSource, response_format: str, *, model_id: str | None = None, **fields: Any
    ) -> bytes:
        """As `segment`, in another format; see `Client.segment_as`."""
        return await self._run(self._conversation.raw(image, response_format, fields, model_id))

    async def auto(self, image: ImageSource, *, model_id: str | None = None, **options: float) -> Everything:
        """Segments everything; see `Client.auto`."""
        return await self._run(self._conversation.auto(image, options, model_id))

    async def embed(self, image: ImageSource, *, model_id: str | None = None) -> str:
        """Uploads an image ahead of its prompts; see `Client.embed`."""
        return await self._run(self._conversation.embed(image, model_id))

    async def forget(self, image: ImageSource) -> bool:
        """Makes the service forget an image; see `Client.forget`."""
        return await self._run(self._conversation.forget(image))

    async def _run(self, steps: Steps[T]) -> T:
        outcome: httpx.Response | httpx.RequestError | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, _Pause):
                    await sleep(step.seconds)
                    outcome = None
                    continue
                try:
                    outcome = await self._http.request(**step.options)
                except httpx.RequestError as error:
                    outcome = error
        except StopIteration as end:
            result: T = end.value
            return result


def _prompt(
    point_coords: ArrayLike | None,
    point_labels: ArrayLike | None,
    box: ArrayLike | None,
    mask_input: ArrayLike | None,
    multimask_output: bool,
    normalize_coords: bool,
) -> dict[str, Any]:
    return {
        "point_coords": point_coords,
        "point_labels": point_labels,
        "box": box,
        "mask_input": mask_input,
        "multimask_output": multimask_output,
        "normalize_coords": normalize_coords,
    }


def _http_options(url: str, token: str | None, more: Mapping[str, Any]) -> dict[str, Any]:
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    return {**more, "base_url": url, "headers": {**bearer, **dict(more.get("headers") or {})}}
