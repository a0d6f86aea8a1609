"""Calls the service from Python: uploads an image once, prompts it many times.

    client = Client("http://127.0.0.1:8000")
    image = client.image("photo.jpg")
    found = client.segment(image, point_coords=[[220, 240]], point_labels=[1])
    found.masks[0]  # H×W bool, the best mask

Needs httpx, numpy and pillow, and no other file of this project: the file may be copied. `AsyncClient` has the same
methods; those that call the service are awaited. Threads may share a Client, tasks an AsyncClient.
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
from typing import Any, Generic, Self, TypeAlias, TypedDict, TypeVar, Unpack

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "EverythingResult",
    "ImageFile",
    "SegmentFields",
    "SegmentationResult",
]

ROUTE = "/segment-anything-2"

MAX_KNOWN = 10_000
"""Uploaded images that a client remembers."""

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

CONNECT_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
JITTER = 0.25

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


# ---- errors


class ClientError(Exception):
    """The service rejected a request, or could not be reached.

    Attributes:
        message: the service's explanation, or the fault of the connection.
        status: the HTTP status; 0 if there was no answer.
        code: the service's name of the error for programs, such as `image_not_cached`; mostly None.
    """

    def __init__(self, message: str, status: int = 0, code: str | None = None) -> None:
        super().__init__(message, status, code)
        self.message = message
        self.status = status
        self.code = code

    def __str__(self) -> str:
        return f"{self.status}: {self.message}" if self.status else self.message


# ---- arguments

ImageSource: TypeAlias = "str | Path | bytes | NDArray[np.uint8] | Image.Image | ImageFile"
"""A file's path or bytes, an `H×W×3` uint8 RGB array, a PIL image, or the result of `Client.image`."""


@dataclass(frozen=True)
class ImageFile:
    """An image as it is uploaded.

    Attributes:
        data: the bytes of an image file.
        image_id: their SHA-256 in hexadecimal digits, the image's name at the service.
    """

    data: bytes = field(repr=False)
    image_id: str

    @classmethod
    def of(cls, source: ImageSource) -> "ImageFile":
        """Takes a file as it is; encodes an array or a PIL image as PNG."""
        if isinstance(source, ImageFile):
            return source
        data = source if isinstance(source, bytes) else _file_bytes(source)
        return cls(data, hashlib.sha256(data).hexdigest())


def _file_bytes(source: "str | Path | NDArray[np.uint8] | Image.Image") -> bytes:
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    # The service turns the images in files upright, too.
    image = ImageOps.exif_transpose(image)
    # PNG does not have all of Pillow's modes.
    image = image if image.mode in PNG_MODES else image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class SegmentFields(TypedDict, total=False):
    """The keyword arguments of `segment`: a prompt, and how it is answered.

    Attributes:
        point_coords: `N×2`, or `B×N×2` for B objects; XY in pixels.
        point_labels: `N` or `B×N`; 1 foreground, 0 background.
        box: `[x0, y0, x1, y1]` or `B×4`; XY in pixels.
        mask_input: `1×256×256` or `B×1×256×256`: `logits` of an earlier answer.
        multimask_output: three candidate masks (the default), or one.
        normalize_coords: False if coordinates are already divided by the image's width and height; True by default.
        return_logits: True to get `logits`, too.
    """

    point_coords: ArrayLike | None
    point_labels: ArrayLike | None
    box: ArrayLike | None
    mask_input: ArrayLike | None
    multimask_output: bool
    normalize_coords: bool
    return_logits: bool


# ---- results


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """The masks of one prompt.

    Attributes:
        image_id: the image's name at the service.
        masks: `C×H×W` bool by descending score; `B×C×H×W` if the prompt was about B objects.
        scores: `C` (`B×C`) float32, estimated IoUs.
        logits: `C×256×256` (`B×C×256×256`) float32, for a later prompt's `mask_input`; None without `return_logits`.
    """

    image_id: str
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class EverythingResult:
    """The masks of everything in an image.

    Attributes:
        image_id: the image's name at the service.
        masks: `K×H×W` bool.
        predicted_iou: `K` float32.
        stability_score: `K` float32.
        point_coords: `K×2` float32, XY in pixels: the point of the grid that the mask comes from.
        crop_boxes: `K×4` int32, XYWH in pixels: the crop that the mask comes from.
    """

    image_id: str
    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    point_coords: NDArray[np.float32]
    crop_boxes: NDArray[np.int32]


Result = TypeVar("Result", SegmentationResult, EverythingResult)


# ---- from a call to HTTP requests

_Parts: TypeAlias = tuple[tuple[str, tuple[str | None, bytes]], ...]
"""The multipart form of a request, as httpx takes it: `(field, (file name, content))`."""


@dataclass(frozen=True)
class _Request:
    """One HTTP request, to be sent after a pause."""

    method: str
    path: str
    parts: _Parts | None
    ends_at: float
    pause_s: float = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of httpx's `request`, with the time that is left now."""
        left_s = max(self.ends_at - time.monotonic(), 0.001)
        timeout = httpx.Timeout(left_s, connect=min(left_s, CONNECT_TIMEOUT_S))
        return {"method": self.method, "url": self.path, "files": self.parts, "timeout": timeout}


_Steps: TypeAlias = Generator[_Request, httpx.Response | httpx.RequestError, T]
"""Yields the requests of a call one after the other, is sent their outcomes, and returns the call's result. The two
clients differ only in how they send a request."""


class _AnyClient(Generic[Http]):
    """The part that both clients share: the images that the service has seen, and the requests of each call."""

    _http_class: type[Http]

    def __init__(
        self,
        url: str,
        token: str | None = None,
        model_id: str = "",
        timeout_s: float = 300.0,
        max_retries: int = 7,
        **http: Any,
    ) -> None:
        self._model_id = model_id
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._known: dict[tuple[str, str], None] = {}
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        headers = {**bearer, **dict(http.get("headers") or {})}
        self._http: Http = self._http_class(**{**http, "base_url": url, "headers": headers})

    def image(self, source: ImageSource) -> ImageFile:
        """Reads or encodes an image once, for many prompts."""
        return ImageFile.of(source)

    def _segment(self, source: ImageSource, fields: SegmentFields, model_id: str | None) -> _Steps[SegmentationResult]:
        if unknown := fields.keys() - SegmentFields.__optional_keys__:
            raise TypeError(f"segment() got unexpected keyword arguments: {', '.join(sorted(unknown))}")
        image = ImageFile.of(source)
        answer = yield from self._post(ROUTE, image, {**fields, "response_format": "npz"}, model_id)
        return _result(SegmentationResult, image, answer)

    def _segment_as(
        self, source: ImageSource, response_format: str, fields: Mapping[str, Any], model_id: str | None
    ) -> _Steps[bytes]:
        form = {**fields, "response_format": response_format}
        return (yield from self._post(ROUTE, ImageFile.of(source), form, model_id)).content

    def _auto(
        self, source: ImageSource, options: Mapping[str, float], model_id: str | None
    ) -> _Steps[EverythingResult]:
        image = ImageFile.of(source)
        # The service caches no crops.
        needs_image = options.get("crop_n_layers", 0) > 0
        form = {**options, "response_format": "npz"}
        answer = yield from self._post(f"{ROUTE}/auto", image, form, model_id, needs_image)
        return _result(EverythingResult, image, answer)

    def _embed(self, source: ImageSource, model_id: str | None) -> _Steps[str]:
        image = ImageFile.of(source)
        yield from self._post(f"{ROUTE}/embed", image, {}, model_id, needs_image=True)
        return image.image_id

    def _forget(self, source: ImageSource) -> _Steps[bool]:
        image_id = ImageFile.of(source).image_id
        answer = yield from self._send("DELETE", f"{ROUTE}/images/{image_id}", None, self._deadline())
        for key in list(self._known):
            if key[0] == image_id:
                self._known.pop(key, None)
        return bool(answer.json()["forgotten"])

    def _post(
        self, path: str, image: ImageFile, form: Mapping[str, Any], model_id: str | None, needs_image: bool = False
    ) -> _Steps[httpx.Response]:
        """Names the image by its id if the service should know it; uploads it if not, or if the service forgot it."""
        model_id = self._model_id if model_id is None else model_id
        ends_at = self._deadline()
        texts = {"model_id": model_id} | {name: _text(value) for name, value in form.items() if value is not None}
        parts: _Parts = tuple((name, (None, text.encode())) for name, text in texts.items())
        key = image.image_id, model_id
        if key in self._known and not needs_image:
            by_id = (*parts, ("image_id", (None, image.image_id.encode())))
            try:
                return (yield from self._send("POST", path, by_id, ends_at))
            except ClientError as error:
                if error.code != "image_not_cached":
                    raise
                # Another thread or task may have removed the key at the same time.
                self._known.pop(key, None)
        answer = yield from self._send("POST", path, (*parts, ("image", ("image", image.data))), ends_at)
        while len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[key] = None
        return answer

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _send(self, method: str, path: str, parts: _Parts | None, ends_at: float) -> _Steps[httpx.Response]:
        """Sends a request, and again if the service was busy or unreachable: every request may be repeated."""
        pause_s: float | None = 0.0
        for attempt in range(self._max_retries + 1):
            answer = yield _Request(method, path, parts, ends_at, pause_s or 0.0)
            pause_s = _pause_s(answer, attempt)
            if pause_s is None or time.monotonic() + pause_s > ends_at:
                break
        if not isinstance(answer, httpx.Response):
            raise ClientError(f"{type(answer).__name__}: {answer}")
        if not answer.is_success:
            raise _error(answer)
        return answer


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(np.asarray(value).tolist())


# ---- from an answer to a result or an error


def _pause_s(answer: httpx.Response | httpx.RequestError, attempt: int) -> float | None:
    """Returns the seconds to wait before a request is repeated; None if repeating it is of no use."""
    # Callers that were rejected at the same moment do not all come back at the same moment.
    backoff: float = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(1, 1 + JITTER)
    if isinstance(answer, httpx.RequestError):
        return backoff if isinstance(answer, httpx.TransportError) else None
    # A proxy that has just started answers 404 in plain text until it learns the routes; the service's own 404 is JSON.
    unrouted = answer.status_code == 404 and "/-/routes" in answer.text
    if answer.status_code not in (429, 500, 502, 503, 504) and not unrouted:
        return None
    # The service's own 500 is JSON and stands for a bug, which a repeat would meet again; a 500 in plain text is a
    # proxy's. A request that took longer than the service allows would do so again.
    if (answer.status_code == 500 and _detail(answer)) or _detail(answer).get("code") == "deadline_exceeded":
        return None
    # Retry-After says how long the queue is now; the pauses grow while it stays long.
    after = answer.headers.get("retry-after", "")
    return max(min(float(after), LONGEST_PAUSE_S), backoff) if after.isdecimal() else backoff


def _detail(answer: httpx.Response) -> dict[str, Any]:
    """Returns the service's description of an error: `msg` and perhaps `code`; {} if the answer is a proxy's."""
    try:
        detail = answer.json()["detail"]
        if isinstance(detail, list):
            # FastAPI lists the faults of single fields.
            faults = (f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in detail)
            return {"msg": "; ".join(faults)}
    except (ValueError, KeyError, TypeError):
        return {}
    return detail if isinstance(detail, dict) else {}


def _error(answer: httpx.Response) -> ClientError:
    detail = _detail(answer)
    message = str(detail.get("msg") or answer.text[:500] or answer.reason_phrase)
    return ClientError(message, answer.status_code, detail.get("code"))


def _result(kind: type[Result], image: ImageFile, answer: httpx.Response) -> Result:
    try:
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
            # By name: a newer service may send more.
            arrays = {name: archive[name] for name in kind.__annotations__ if name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ClientError("the answer is no numpy archive; is this the service's URL?") from error
    return kind(image_id=image.image_id, **arrays)


# ---- the clients


class Client(_AnyClient[httpx.Client]):
    """Calls the service, and blocks until it has answered.

    Args:
        url: the service's address, such as `http://127.0.0.1:8000`.
        token: the bearer token, if the service asks for one.
        model_id: the model for calls that name none; "" is the service's default.
        timeout_s: seconds within which a call is repeated; the network may be silent for as long. Connecting gets 10 s.
        max_retries: how often a request is repeated when the service is busy or unreachable, after 0.5, 1, 2, … 30 s
            and up to a quarter more, or after `Retry-After` (at most 30 s) if that is longer. The default lasts about a
            minute; a proxy restarts in 15 s.
        http: more options of `httpx.Client`.

    All methods raise ClientError if the service rejects a request, or stays busy or unreachable.
    """

    _http_class = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def segment(
        self, image: ImageSource, *, model_id: str | None = None, **fields: Unpack[SegmentFields]
    ) -> SegmentationResult:
        """Segments the objects that the prompt points to.

        Args:
            image: uploaded the first time, and again when the service has forgotten it.
            model_id: the model; None is the client's.
            fields: the prompt, see SegmentFields.
        """
        return self._run(self._segment(image, fields, model_id))

    def segment_as(
        self, image: ImageSource, response_format: str, *, model_id: str | None = None, **fields: Any
    ) -> bytes:
        """Segments as `segment` does; returns the body of an answer in another format.

        Args:
            image: see `segment`.
            response_format: `json`, `rle`, `polygons`, `png` or `npz`.
            model_id: see `segment`.
            fields: those of `segment`, and `tolerance` and `mask_index`.
        """
        return self._run(self._segment_as(image, response_format, fields, model_id))

    def auto(self, image: ImageSource, *, model_id: str | None = None, **options: float) -> EverythingResult:
        """Segments everything in the image.

        Args:
            image: see `segment`.
            model_id: see `segment`.
            options: those of SAM 2's `SAM2AutomaticMaskGenerator`, such as `points_per_side`.
        """
        return self._run(self._auto(image, options, model_id))

    def embed(self, image: ImageSource, *, model_id: str | None = None) -> str:
        """Uploads an image ahead of its prompts, so that the first one is quick, too; returns its `image_id`."""
        return self._run(self._embed(image, model_id))

    def forget(self, image: ImageSource) -> bool:
        """Makes the service forget an image; returns whether the service had it."""
        return self._run(self._forget(image))

    def _run(self, steps: _Steps[T]) -> T:
        try:
            request = next(steps)
            while True:
                if request.pause_s:
                    time.sleep(request.pause_s)
                outcome: httpx.Response | httpx.RequestError
                try:
                    outcome = self._http.request(**request.options)
                except httpx.RequestError as error:
                    outcome = error
                request = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result


class AsyncClient(_AnyClient[httpx.AsyncClient]):
    """Calls the service as Client does, with methods to be awaited; the arguments and errors are Client's."""

    _http_class = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def segment(
        self, image: ImageSource, *, model_id: str | None = None, **fields: Unpack[SegmentFields]
    ) -> SegmentationResult:
        """Segments the objects that the prompt points to; see `Client.segment`."""
        return await self._run(self._segment(image, fields, model_id))

    async def segment_as(
        self, image: ImageSource, response_format: str, *, model_id: str | None = None, **fields: Any
    ) -> bytes:
        """Returns the body of an answer in another format; see `Client.segment_as`."""
        return await self._run(self._segment_as(image, response_format, fields, model_id))

    async def auto(self, image: ImageSource, *, model_id: str | None = None, **options: float) -> EverythingResult:
        """Segments everything in the image; see `Client.auto`."""
        return await self._run(self._auto(image, options, model_id))

    async def embed(self, image: ImageSource, *, model_id: str | None = None) -> str:
        """Uploads an image ahead of its prompts; see `Client.embed`."""
        return await self._run(self._embed(image, model_id))

    async def forget(self, image: ImageSource) -> bool:
        """Makes the service forget an image; see `Client.forget`."""
        return await self._run(self._forget(image))

    async def _run(self, steps: _Steps[T]) -> T:
        try:
            request = next(steps)
            while True:
                if request.pause_s:
                    await sleep(request.pause_s)
                outcome: httpx.Response | httpx.RequestError
                try:
                    outcome = await self._http.request(**request.options)
                except httpx.RequestError as error:
                    outcome = error
                request = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
