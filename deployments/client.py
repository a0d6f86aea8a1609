"""Calls the service from Python: uploads an image once, prompts it many times.

    client = Client("http://127.0.0.1:8000")
    image = client.image("photo.jpg")
    found = client.segment(image, point_coords=[[220, 240]], point_labels=[1])
    found.masks[0]  # H×W bool, the best mask

    video = client.video("clip.mp4")
    for frame in client.track(video, point_coords=[[220, 240]], point_labels=[1]):
        frame.objects[0].mask  # H×W bool

Needs httpx, numpy and pillow, and no other file of this project: the file may be copied. `AsyncClient` has the same
methods; those that call the service are awaited. Threads may share a Client, tasks an AsyncClient.
"""

import hashlib
import io
import json
import random
import struct
import time
import zipfile
import zlib
from asyncio import sleep, to_thread
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Generic, Self, TypeAlias, TypedDict, TypeVar, Unpack

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "EverythingResult",
    "FrameOfVideo",
    "ImageFile",
    "KeptVideo",
    "ReadingFields",
    "SegmentFields",
    "SegmentationResult",
    "TrackFields",
    "TrackedFrame",
    "TrackedObject",
    "VideoFile",
]

ROUTE = "/segment-anything-2"

TOOL_FORMATS = {
    "coco",
    "coco_rle",
    "coco_results",
    "cvat",
    "labelstudio",
    "labelstudio_polygons",
    "labelme",
    "labelme_polygons",
    "yolo",
    "qupath",
    "davis",
    "napari",
    "geotiff",
}
"""Formats of files, of annotation tools and of maps, in which an answer names the image's file."""

LONGEST_NAME = 200
"""Characters of a file's name that the service accepts."""

MAX_KNOWN = 10_000
"""Uploaded files that a client remembers."""

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
DEEP_MODES = {"I", "F", "I;16B", "I;16L", "I;16N"}
"""Pillow's modes of more than 8 bits that PNG does not have."""

SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}
"""TIFF's SampleFormat for each kind of numpy's types."""

CONNECT_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
JITTER = 0.25

LINE_TIMEOUT_S = 330.0
READ_BYTES = 2**20

REPEATED = {"", "unavailable", "model_unavailable", "overloaded", "shutting_down", "video_not_cached"}
"""Codes of errors amid an answer after which the same request may succeed; "" is an answer that was cut off."""

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


# ---- errors


class ClientError(Exception):
    """The service rejected a request, or could not be reached.

    Attributes:
        message: the service's explanation, or the fault of the connection.
        status: the HTTP status; 0 if there was no answer, or if the answer broke off after it had begun well.
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

ImageSource: TypeAlias = "str | Path | bytes | NDArray[Any] | Image.Image | ImageFile"
"""A file's path or bytes, an array of any numeric type, `H×W` or `H×W×C`, a PIL image, or the result of `Client.image`.

Arrays and PIL images are sent without loss, so that the service's own rule says how more than 8 bits are shown."""


class ReadingFields(TypedDict, total=False):
    """The keyword arguments of `image`: how the service reads the file.

    Attributes:
        window: `auto` (the default), `full`, or `(low, high)`: the values that become black and white.
        bands: one band, or three as red, green and blue, counted from 1.
        page: which page of a file, counted from 0; or of an OME-TIFF `{"c": 1, "z": 4, "t": 0}`.
        background: the colour behind transparent pixels, red, green and blue from 0 to 255; white by default.
    """

    window: str | tuple[float, float]
    bands: Iterable[int] | None
    page: int | Mapping[str, int]
    background: tuple[int, int, int]


@dataclass(frozen=True)
class ImageFile:
    """An image as it is uploaded.

    Attributes:
        data: the bytes of an image file.
        image_id: their SHA-256 in hexadecimal digits, the image's name at the service; with `reading`, the SHA-256 of
            that and of how the file is read.
        reading: the form fields that say how the file is read, those with default values left out.
        file_name: of the file that the bytes were read from; "" if they were not.
    """

    data: bytes = field(repr=False)
    image_id: str
    reading: tuple[tuple[str, str], ...] = ()
    file_name: str = field(default="", compare=False)

    @classmethod
    def of(cls, source: ImageSource, **reading: Unpack[ReadingFields]) -> "ImageFile":
        """Takes a file as it is; encodes an array or a PIL image as PNG or TIFF.

        Args:
            source: the image.
            reading: how the service reads it.

        Raises:
            TypeError: an ImageFile is given together with how it is read, or an array that is no picture.
        """
        if isinstance(source, ImageFile):
            if reading:
                raise TypeError("an ImageFile says already how it is read")
            return source
        data = source if isinstance(source, bytes) else _file_bytes(source)
        image_id, fields = hashlib.sha256(data).hexdigest(), _reading(reading)
        if fields:
            text = "&".join(f"{name}={value}" for name, value in fields)
            image_id = hashlib.sha256(f"{image_id}?{text}".encode()).hexdigest()
        name = Path(source).name if isinstance(source, (str, Path)) else ""
        return cls(data, image_id, fields, name)


def _reading(given: ReadingFields) -> tuple[tuple[str, str], ...]:
    """Writes how an image is read as the service does when it computes the image's name."""
    _check_keywords("image", given, ReadingFields.__optional_keys__)
    window, bands = given.get("window", "auto"), given.get("bands")
    page, background = given.get("page", 0), tuple(given.get("background", (255, 255, 255)))
    fields = []
    if window != "auto":
        text = window if isinstance(window, str) else ",".join(repr(float(one)).removesuffix(".0") for one in window)
        fields.append(("window", text))
    if bands is not None:
        fields.append(("bands", ",".join(str(int(band)) for band in bands)))
    if isinstance(page, Mapping):
        fields.append(("page", ",".join(f"{name}={int(page.get(name, 0))}" for name in "czt")))
    elif page:
        fields.append(("page", str(int(page))))
    if background != (255, 255, 255):
        fields.append(("background", "#" + bytes(background).hex()))
    return tuple(fields)


def _file_bytes(source: "str | Path | NDArray[Any] | Image.Image") -> bytes:
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    if isinstance(source, Image.Image):
        # The service turns the images in files upright, too.
        image = ImageOps.exif_transpose(source)
        if image.mode in DEEP_MODES:
            return _tiff_of(np.asarray(image))
        # PNG does not have all of Pillow's modes.
        return _png_of(image if image.mode in PNG_MODES else image.convert("RGB"))
    array = source.astype(np.uint8) * np.uint8(255) if source.dtype == np.bool_ else source
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        return _png_of(Image.fromarray(np.ascontiguousarray(array)))
    return _tiff_of(array)


def _png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _tiff_of(array: NDArray[Any]) -> bytes:
    """Writes an array as a TIFF file of one strip, compressed without loss; the tags are those of TIFF 6.0.

    Args:
        array: `H×W` or `H×W×C`, of any numeric type; the channels are bands.

    Raises:
        TypeError: it is another array.
    """
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in SAMPLE_FORMATS:
        shape = "×".join(map(str, array.shape))
        raise TypeError(f"an image must be an array of numbers, H×W or H×W×C, is one of {array.dtype}, {shape}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    height, width = array.shape[:2]
    samples = np.ascontiguousarray(array.reshape(height, width, -1), array.dtype.newbyteorder("<"))
    channels = samples.shape[2]
    # Differences of neighbours, modulo the type's range, compress better; the values are the same again at the end.
    has_differences = samples.dtype.kind in "ui" and samples.dtype.itemsize <= 4
    if has_differences:
        unsigned = samples.view(f"<u{samples.dtype.itemsize}")
        samples = unsigned.copy()
        samples[:, 1:] -= unsigned[:, :-1]
    strip = zlib.compress(samples.data, 1)
    colours = 3 if channels >= 3 else 1
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * array.dtype.itemsize] * channels),
        259: ("H", [8]),  # deflate
        262: ("H", [2 if colours == 3 else 1]),
        273: ("I", [8]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip)]),
        317: ("H", [2 if has_differences else 1]),
        339: ("H", [SAMPLE_FORMATS[array.dtype.kind]] * channels),
    }
    if channels > colours:
        tags[338] = ("H", [0] * (channels - colours))
    values, entries = bytearray(), []
    where = 8 + len(strip) + len(strip) % 2
    for code, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            values += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack("<I", where + len(values) - len(packed) - len(packed) % 2)
        entries.append(struct.pack("<HHI", code, 3 if kind == "H" else 4, len(numbers)) + packed.ljust(4, b"\0"))
    header = struct.pack("<2sHI", b"II", 42, where + len(values))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return header + strip + b"\0" * (len(strip) % 2) + bytes(values) + directory


VideoSource: TypeAlias = "str | Path | bytes | BinaryIO | VideoFile"
"""A file's path or bytes, an open binary file, or the result of `Client.video`."""


@dataclass(frozen=True)
class VideoFile:
    """A video as it is uploaded. A path's file is read whenever it is needed, and never held in memory as a whole.

    Attributes:
        source: the file's path or bytes, or an open binary file that can seek. An open file has to stay open, and one
            call at a time may use it; a path or bytes may be shared by threads and tasks.
        video_id: the SHA-256 of the file in hexadecimal digits, the video's name at the service.
    """

    source: Path | bytes | BinaryIO = field(repr=False)
    video_id: str

    @classmethod
    def of(cls, source: VideoSource) -> "VideoFile":
        """Computes a file's SHA-256, reading the file in pieces.

        Raises:
            OSError: the file cannot be read.
        """
        if isinstance(source, VideoFile):
            return source
        kept = Path(source) if isinstance(source, str) else source
        digest = hashlib.sha256()
        with cls(kept, "").opened() as file:
            if isinstance(file, bytes):
                digest.update(file)
            else:
                file.seek(0)
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
        return cls(kept, digest.hexdigest())

    @contextmanager
    def opened(self) -> Iterator[bytes | BinaryIO]:
        """Gives the bytes, or the open file; a file that was opened here is closed in the end."""
        if isinstance(self.source, Path):
            with self.source.open("rb") as file:
                yield file
        else:
            yield self.source


@dataclass(frozen=True)
class FrameOfVideo:
    """A frame of a video, in place of an image.

    Attributes:
        video: uploaded if the service does not keep it.
        frame_index: counted from 0.
    """

    video: VideoFile
    frame_index: int


AnyImage: TypeAlias = "ImageSource | FrameOfVideo"
"""An image, or a frame of a video: what `segment`, `segment_as`, `auto` and `embed` take."""


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


class TrackFields(TypedDict, total=False):
    """The keyword arguments of `track`: what to follow, and through which frames.

    Attributes:
        prompts: dicts with `object_id` (1 by default), `frame_index` (0 by default) or `time_s`, and the prompt:
            `point_coords` (`N×2`) and `point_labels` (`N`), `box` (4 numbers), `mask_input` (`1×256×256`), or `mask`
            (`H×W` bool of the frame's size, or COCO run lengths); `normalize_coords`; or `remove`: True to follow the
            object no more from there on. Several prompts of an object are corrections.
        frame_index: without `prompts`: the frame of the prompt in the fields below; 0 by default.
        point_coords: as for an image, in place of `prompts`: object 1, or the objects 1 to B.
        point_labels: see `point_coords`.
        box: see `point_coords`.
        mask_input: see `point_coords`.
        normalize_coords: see SegmentFields.
        direction: `forward` (the default), `backward`, or `both`.
        start_frame: where to start; the first prompt by default.
        max_frames: how many frames at most in each direction, the first included.
        stride: 1 (the default) for every frame, n for every n-th.
        return_logits: True to get `logits`, too.
        non_overlapping: True if each pixel may belong to one object at most.
    """

    prompts: Iterable[Mapping[str, Any]] | None
    frame_index: int | None
    point_coords: ArrayLike | None
    point_labels: ArrayLike | None
    box: ArrayLike | None
    mask_input: ArrayLike | None
    normalize_coords: bool
    direction: str
    start_frame: int | None
    max_frames: int | None
    stride: int
    return_logits: bool
    non_overlapping: bool


def _check_keywords(method: str, fields: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := fields.keys() - known:
        raise TypeError(f"{method}() got unexpected keyword arguments: {', '.join(sorted(unknown))}")


# ---- masks as run lengths


def _runs_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Writes a mask as COCO's run lengths, uncompressed: down the columns, beginning with a run of zeros.

    Args:
        mask: `H×W` bool.

    Raises:
        TypeError: it is another array.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise TypeError(f"mask: must be an H×W array of bool, is one of {mask.dtype} with the shape {mask.shape}")
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    begins = [0, 0] if pixels.size and pixels[0] else [0]
    return {"size": list(mask.shape), "counts": np.diff([*begins, *changes, pixels.size]).tolist()}


def _mask_of(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Reads a mask from COCO's compressed run lengths.

    A number has five bits a character, the lowest first, in two's complement; 32 says that more follow. From the fourth
    on, numbers are differences from the last run but one. The format is that of `rleFrString` in cocoapi's maskApi.c.

    Args:
        segmentation: `{"size": [h, w], "counts": "…"}`.

    Returns:
        `h×w` bool.
    """
    height, width = segmentation["size"]
    characters = np.frombuffer(segmentation["counts"].encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(characters < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((characters & 31) << shifts, starts)
    runs -= np.where(characters[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


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


@dataclass(frozen=True)
class KeptVideo:
    """What the service knows of a video.

    Attributes:
        video_id: the video's name at the service.
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        fps: the average number of frames a second; None if the frames have no times.
        num_frames: how many frames the file has.
    """

    video_id: str
    width: int
    height: int
    fps: float | None
    num_frames: int


@dataclass(frozen=True, eq=False)
class TrackedObject:
    """An object on one frame.

    Attributes:
        object_id: the caller's number for the object.
        segmentation: the mask as COCO's compressed run lengths, `{"size": [h, w], "counts": "…"}`.
        score: the mask's estimated IoU.
        present: False if the model takes the object to be absent; the mask is then empty.
        presence: the probability that the object is to be seen.
        area: pixels of the mask.
        bbox: x, y, width, height of the mask in pixels; zeros if it is empty.
        logits: `1×256×256` float32, for a later prompt's `mask_input`; None without `return_logits`.
    """

    object_id: int
    segmentation: dict[str, Any] = field(repr=False)
    score: float
    present: bool
    presence: float
    area: int
    bbox: tuple[int, int, int, int]
    logits: NDArray[np.float32] | None = field(default=None, repr=False)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """`H×W` bool of the frame's size; read from `segmentation` when it is first asked for."""
        return _mask_of(self.segmentation)


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """The objects on one frame.

    Attributes:
        frame_index: the frame, counted from 0.
        time_s: when it is shown, in seconds from the video's start; None if the video's frames have no times.
        objects: those that are followed here.
    """

    frame_index: int
    time_s: float | None
    objects: list[TrackedObject]


def _frame_of(line: Mapping[str, Any]) -> TrackedFrame:
    """Reads a frame's line."""
    # By name: a newer service may send more.
    names = TrackedObject.__annotations__.keys()
    found = [{name: value for name, value in record.items() if name in names} for record in line["objects"]]
    for record in found:
        record["bbox"] = tuple(record["bbox"])
        if (logits := record.get("logits")) is not None:
            record["logits"] = np.asarray(logits, np.float32)
    return TrackedFrame(line["frame_index"], line["time_s"], [TrackedObject(**record) for record in found])


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
    video: VideoFile | None = None
    """The form's last field, if any."""

    @contextmanager
    def options(self) -> Iterator[dict[str, Any]]:
        """Gives the arguments of httpx's `request`, with the time that is left now, and with the video's file open."""
        left_s = max(self.ends_at - time.monotonic(), 0.001)
        timeout = httpx.Timeout(left_s, connect=min(left_s, CONNECT_TIMEOUT_S))
        options = {"method": self.method, "url": self.path, "timeout": timeout}
        if self.video is None:
            yield {**options, "files": self.parts}
        else:
            with self.video.opened() as file:
                yield {**options, "files": (*(self.parts or ()), ("video", ("video", file)))}


_Steps: TypeAlias = Generator[_Request, httpx.Response | httpx.RequestError, T]
"""Yields the requests of a call one after the other, is sent their outcomes, and returns the call's result. The two
clients differ only in how they send a request."""


class _AnyClient(Generic[Http]):
    """The part that both clients share: the files that the service has seen, and the requests of each call."""

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
        # Pairs of an image_id and a model_id, and of a video_id and None.
        self._known: dict[tuple[str, str | None], None] = {}
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        headers = {**bearer, **dict(http.get("headers") or {})}
        self._http: Http = self._http_class(**{**http, "base_url": url, "headers": headers})

    def image(self, source: ImageSource, **reading: Unpack[ReadingFields]) -> ImageFile:
        """Reads or encodes an image once, for many prompts.

        Args:
            source: the image.
            reading: how the service reads it, see ReadingFields.
        """
        return ImageFile.of(source, **reading)

    def video(self, source: VideoSource) -> VideoFile:
        """Computes a video's SHA-256 once, for many calls; blocks while it reads the file."""
        return VideoFile.of(source)

    def frame_of(self, video: VideoSource, index: int) -> FrameOfVideo:
        """Names a frame of a video, as an image for `segment` and its like."""
        return FrameOfVideo(VideoFile.of(video), index)

    # ---- images

    def _segment(self, source: AnyImage, fields: SegmentFields, model_id: str | None) -> _Steps[SegmentationResult]:
        _check_keywords("segment", fields, SegmentFields.__optional_keys__)
        form = {**fields, "response_format": "npz"}
        return _result(SegmentationResult, *(yield from self._post(ROUTE, source, form, model_id)))

    def _segment_as(
        self, source: AnyImage, response_format: str, fields: Mapping[str, Any], model_id: str | None
    ) -> _Steps[bytes]:
        source, form = _named(source, response_format, fields)
        return (yield from self._post(ROUTE, source, form, model_id, _needs_file(form)))[1].content

    def _auto(self, source: AnyImage, options: Mapping[str, float], model_id: str | None) -> _Steps[EverythingResult]:
        # The service caches no crops.
        needs_image = options.get("crop_n_layers", 0) > 0
        form = {**options, "response_format": "npz"}
        return _result(EverythingResult, *(yield from self._post(f"{ROUTE}/auto", source, form, model_id, needs_image)))

    def _auto_as(
        self, source: AnyImage, response_format: str, options: Mapping[str, Any], model_id: str | None
    ) -> _Steps[bytes]:
        source, form = _named(source, response_format, options)
        needs_image = options.get("crop_n_layers", 0) > 0 or _needs_file(form)
        return (yield from self._post(f"{ROUTE}/auto", source, form, model_id, needs_image))[1].content

    def _embed(self, source: AnyImage, model_id: str | None) -> _Steps[str]:
        return (yield from self._post(f"{ROUTE}/embed", source, {}, model_id, needs_image=True))[0]

    def _forget(self, source: ImageSource) -> _Steps[bool]:
        image_id = ImageFile.of(source).image_id
        answer = yield from self._send("DELETE", f"{ROUTE}/images/{image_id}", None, self._deadline())
        for key in list(self._known):
            if key[0] == image_id:
                self._known.pop(key, None)
        return bool(answer.json()["forgotten"])

    def _post(
        self, path: str, source: AnyImage, form: Mapping[str, Any], model_id: str | None, needs_image: bool = False
    ) -> _Steps[tuple[str, httpx.Response]]:
        """Returns the image's id, and the answer to a request about the image."""
        model_id = self._model_id if model_id is None else model_id
        parts = _form({"model_id": model_id, **form})
        if isinstance(source, FrameOfVideo):
            parts += _form({"video_id": source.video.video_id, "frame_index": source.frame_index})
            answer = yield from self._about(source.video, "POST", path, parts)
            return answer.headers.get("x-image-id", ""), answer
        image = ImageFile.of(source)
        return image.image_id, (yield from self._post_image(path, image, parts, model_id, needs_image))

    def _post_image(
        self, path: str, image: ImageFile, parts: _Parts, model_id: str, needs_image: bool
    ) -> _Steps[httpx.Response]:
        """Names the image by its id if the service should know it; uploads it if not, or if the service forgot it."""
        ends_at = self._deadline()
        key = image.image_id, model_id
        if key in self._known and not needs_image:
            by_id = parts + _form({"image_id": image.image_id})
            try:
                return (yield from self._send("POST", path, by_id, ends_at))
            except ClientError as error:
                if error.code != "image_not_cached":
                    raise
                # Another thread or task may have removed the key at the same time.
                self._known.pop(key, None)
        upload = *parts, *_form(dict(image.reading)), ("image", ("image", image.data))
        answer = yield from self._send("POST", path, upload, ends_at)
        self._remember(key)
        return answer

    # ---- videos

    def _embed_video(self, video: VideoFile) -> _Steps[KeptVideo]:
        """Uploads a video."""
        answer = yield from self._send("POST", f"{ROUTE}/video/embed", None, self._deadline(), video)
        try:
            # By name: a newer service may send more.
            told = answer.json()
            facts = KeptVideo(**{name: told[name] for name in KeptVideo.__annotations__})
        except (ValueError, KeyError, TypeError) as error:
            raise ClientError("the answer says nothing of a video; is this the service's URL?") from error
        _check_id(video, facts.video_id)
        self._remember((video.video_id, None))
        return facts

    def _frame(self, video: VideoFile, index: int) -> _Steps[NDArray[np.uint8]]:
        path = f"{ROUTE}/video/{video.video_id}/frames/{index}?format=png"
        answer = yield from self._about(video, "GET", path, None)
        try:
            return np.array(Image.open(io.BytesIO(answer.content)).convert("RGB"))
        except OSError as error:
            raise ClientError("the answer is no picture; is this the service's URL?") from error

    def _about(self, video: VideoFile, method: str, path: str, parts: _Parts | None) -> _Steps[httpx.Response]:
        """Sends a request that names a video by its id; uploads the video if the service does not keep it."""
        try:
            return (yield from self._send(method, path, parts, self._deadline()))
        except ClientError as error:
            if error.code != "video_not_cached":
                raise
        yield from self._embed_video(video)
        # An upload may take long, so what follows has a deadline of its own.
        return (yield from self._send(method, path, parts, self._deadline()))

    def _tracking(
        self, video: VideoFile, fields: TrackFields, model_id: str | None, line_timeout_s: float
    ) -> "_Tracking":
        _check_keywords("track", fields, TrackFields.__optional_keys__)
        prompts = fields.get("prompts")
        form = {
            "model_id": self._model_id if model_id is None else model_id,
            **fields,
            "prompts": None if prompts is None else _prompts_text(prompts),
            "response_format": "rle",
        }
        return _Tracking(self, video, _form(form), line_timeout_s)

    # ---- requests

    def _remember(self, key: tuple[str, str | None]) -> None:
        while len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[key] = None

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _send(
        self, method: str, path: str, parts: _Parts | None, ends_at: float, video: VideoFile | None = None
    ) -> _Steps[httpx.Response]:
        """Sends a request, and again if the service was busy or unreachable: every request may be repeated."""
        pause_s: float | None = 0.0
        for attempt in range(self._max_retries + 1):
            answer = yield _Request(method, path, parts, ends_at, pause_s or 0.0, video)
            pause_s = _pause_s(answer, attempt)
            if pause_s is None or time.monotonic() + pause_s > ends_at:
                break
        if not isinstance(answer, httpx.Response) or not answer.is_success:
            raise _error(answer)
        return answer


def _named(source: AnyImage, response_format: str, fields: Mapping[str, Any]) -> tuple[AnyImage, dict[str, Any]]:
    """Reads the image, and makes the form of an answer in another format: a tool's has the name of the image's file."""
    image = source if isinstance(source, FrameOfVideo) else ImageFile.of(source)
    form = {**fields, "response_format": response_format}
    if response_format in TOOL_FORMATS and isinstance(image, ImageFile):
        # The service refuses longer names, and what no name can hold; the end of a name says more than its beginning.
        name = "".join(character for character in image.file_name if character.isprintable())[-LONGEST_NAME:].strip()
        if name:
            form.setdefault("file_name", name)
    return image, form


def _needs_file(form: Mapping[str, Any]) -> bool:
    """Whether an answer lies on a map: not every replica knows where the image of an id lies."""
    return form.get("coordinates") == "map" or form["response_format"] == "geotiff"


def _form(values: Mapping[str, Any]) -> _Parts:
    """Writes the fields that have a value."""
    return tuple((name, (None, _text(value).encode())) for name, value in values.items() if value is not None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(np.asarray(value).tolist())


def _prompts_text(prompts: Iterable[Mapping[str, Any]]) -> str:
    """Writes `prompts` as JSON, with masks as run lengths."""

    def written(name: str, value: Any) -> Any:
        return _runs_of(value) if name == "mask" and isinstance(value, np.ndarray) else value

    def plain(value: Any) -> Any:
        # What pycocotools writes has bytes.
        if isinstance(value, bytes):
            return value.decode("ascii")
        if (array := np.asarray(value)).dtype.hasobject:
            raise TypeError(f"prompts: {type(value).__name__} cannot be sent")
        return array.tolist()

    sent = [{name: written(name, value) for name, value in prompt.items()} for prompt in prompts]
    return json.dumps(sent, default=plain)


def _check_id(video: VideoFile, video_id: str) -> None:
    if video_id != video.video_id:
        raise ClientError("video: the file has changed since its SHA-256 was computed; call `video` again")


# ---- from an answer to a result or an error


class _BrokenAnswer(Exception):
    """An answer ended early: with an error, or without its last line.

    Attributes:
        message: says why.
        code: the error's; "" if the answer was cut off.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code


_Outcome: TypeAlias = httpx.Response | httpx.RequestError | _BrokenAnswer


def _pause_s(answer: _Outcome, attempt: int) -> float | None:
    """Returns the seconds to wait before a request is repeated; None if repeating it is of no use."""
    # Callers that were rejected at the same moment do not all come back at the same moment.
    backoff: float = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(1, 1 + JITTER)
    if isinstance(answer, httpx.RequestError):
        return backoff if isinstance(answer, httpx.TransportError) else None
    if isinstance(answer, _BrokenAnswer):
        return backoff if answer.code in REPEATED else None
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


def _error(answer: _Outcome) -> ClientError:
    if isinstance(answer, _BrokenAnswer):
        return ClientError(answer.message, 0, answer.code or None)
    if isinstance(answer, httpx.RequestError):
        return ClientError(f"{type(answer).__name__}: {answer}")
    detail = _detail(answer)
    message = str(detail.get("msg") or answer.text[:500] or answer.reason_phrase)
    return ClientError(message, answer.status_code, detail.get("code"))


def _result(kind: type[Result], image_id: str, answer: httpx.Response) -> Result:
    try:
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
            # By name: a newer service may send more.
            arrays = {name: archive[name] for name in kind.__annotations__ if name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ClientError("the answer is no numpy archive; is this the service's URL?") from error
    return kind(image_id=image_id, **arrays)


class _Tracking:
    """A call of `track` without its connection: which request comes next, what the lines say, when to give up.

    The service finds the same masks again, so a request that broke off is sent again, and the frames that the caller
    has are left out. They are counted, since with both directions a frame can come twice.

    Attributes:
        pause_s: seconds to wait before the next request.
        is_done: whether the last line has come.
    """

    def __init__(self, client: _AnyClient[Any], video: VideoFile, parts: _Parts, line_timeout_s: float) -> None:
        self.pause_s = 0.0
        self.is_done = False
        self._client = client
        self._video = video
        self._parts = parts
        self._line_timeout_s = line_timeout_s
        self._uploads = (video.video_id, None) not in client._known
        self._has_uploaded = False
        self._attempt = 0
        self._ends_at = client._deadline()
        # Frames: that the caller has, that it had before this request, and that this request's answer had so far.
        self._given = self._given_before = self._seen = 0
        self._rest = bytearray()
        self._late_at = 0.0

    def request(self) -> _Request:
        """Returns the next request; its deadline is that of each line."""
        self._given_before, self._seen, self._rest = self._given, 0, bytearray()
        self._has_uploaded = self._uploads
        parts = self._parts if self._uploads else self._parts + _form({"video_id": self._video.video_id})
        ends_at = time.monotonic() + self._line_timeout_s
        return _Request("POST", f"{ROUTE}/video", parts, ends_at, video=self._video if self._uploads else None)

    def begin(self, answer: httpx.Response) -> None:
        """Takes note that an answer begins.

        Raises:
            ClientError: it is not the service's.
        """
        if answer.headers.get("content-type", "").split(";")[0] != "application/x-ndjson":
            raise ClientError("the answer is no stream of frames; is this the service's URL?")
        self._client._remember((self._video.video_id, None))
        self._uploads = False
        self._late_at = time.monotonic() + self._line_timeout_s

    def frames(self, piece: bytes) -> Iterator[TrackedFrame]:
        """Yields the frames whose lines end in the next piece of the answer, but for those that the caller has.

        Raises:
            httpx.ReadTimeout: a line takes too long.
            _BrokenAnswer: the service sent an error.
            ClientError: the file is another one, or a line is not JSON.
        """
        self._rest += piece
        if b"\n" in piece:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                if (frame := self._line(line)) is not None:
                    yield frame
            # The time that the caller takes does not count.
            self._late_at = time.monotonic() + self._line_timeout_s
        elif time.monotonic() > self._late_at:
            raise httpx.ReadTimeout(f"a line took more than {self._line_timeout_s:g} s")

    def _line(self, text: bytes) -> TrackedFrame | None:
        try:
            line: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ClientError("a line of the answer is not JSON; is this the service's URL?") from error
        if "error" in line:
            raise _BrokenAnswer(str(line["error"]["msg"]), str(line["error"]["code"]))
        if "video_id" in line:
            _check_id(self._video, line["video_id"])
        self.is_done = self.is_done or "done" in line
        if "frame_index" not in line:
            return None
        self._seen += 1
        if self._seen <= self._given:
            return None
        self._given += 1
        return _frame_of(line)

    def end(self) -> None:
        """Takes note that the answer has ended.

        Raises:
            _BrokenAnswer: its last line is missing.
        """
        if not self.is_done:
            raise _BrokenAnswer("the answer was cut off")

    def failed(self, outcome: _Outcome) -> None:
        """Prepares the next request after one that failed.

        Raises:
            ClientError: it would be of no use, or there have been too many since the last new frame.
        """
        if self.is_done:
            return
        if self._seen:
            # Frames that the caller has are followed once more, which may take long.
            self._ends_at = self._client._deadline()
        if self._given > self._given_before:
            self._attempt = 0
        error = _error(outcome)
        if error.code == "video_not_cached":
            self._client._known.pop((self._video.video_id, None), None)
            self._uploads = True
            if not self._has_uploaded:
                self.pause_s = 0.0
                return
        pause_s = _pause_s(outcome, self._attempt)
        self._attempt += 1
        gives_up = self._attempt > self._client._max_retries
        if pause_s is None or gives_up or time.monotonic() + pause_s > self._ends_at:
            raise error
        self.pause_s = pause_s


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
        self, image: AnyImage, *, model_id: str | None = None, **fields: Unpack[SegmentFields]
    ) -> SegmentationResult:
        """Segments the objects that the prompt points to.

        Args:
            image: uploaded the first time, and again when the service has forgotten it; or a frame of a video. How a
                file is read, such as its bands, is said in `image`.
            model_id: the model; None is the client's.
            fields: the prompt, see SegmentFields.
        """
        return self._run(self._segment(image, fields, model_id))

    def segment_as(self, image: AnyImage, response_format: str, *, model_id: str | None = None, **fields: Any) -> bytes:
        """Segments as `segment` does; returns the body of an answer in another format.

        Args:
            image: see `segment`.
            response_format: `json`, `rle`, `polygons`, `png`, `npz`, `geotiff`, or a tool's, such as `coco`.
            model_id: see `segment`.
            fields: those of `segment`, and `tolerance`, `coordinates`, `mask_index`, `label` and `file_name`. For a
                tool, `file_name` is that of the path that the image was read from, if it was.
        """
        return self._run(self._segment_as(image, response_format, fields, model_id))

    def auto(self, image: AnyImage, *, model_id: str | None = None, **options: float) -> EverythingResult:
        """Segments everything in the image.

        Args:
            image: see `segment`.
            model_id: see `segment`.
            options: those of SAM 2's `SAM2AutomaticMaskGenerator`, such as `points_per_side`.
        """
        return self._run(self._auto(image, options, model_id))

    def auto_as(self, image: AnyImage, response_format: str, *, model_id: str | None = None, **options: Any) -> bytes:
        """Segments everything as `auto` does; returns the body of an answer in another format.

        Args:
            image: see `segment`.
            response_format: any of `segment_as` but `json`.
            model_id: see `segment`.
            options: those of `auto`, and `tolerance`, `coordinates`, `label` and `file_name`.
        """
        return self._run(self._auto_as(image, response_format, options, model_id))

    def embed(self, image: AnyImage, *, model_id: str | None = None) -> str:
        """Uploads an image ahead of its prompts, so that the first one is quick, too; returns its `image_id`."""
        return self._run(self._embed(image, model_id))

    def forget(self, image: ImageSource) -> bool:
        """Makes the service forget an image; returns whether the service had it."""
        return self._run(self._forget(image))

    def track(
        self,
        video: VideoSource,
        *,
        model_id: str | None = None,
        line_timeout_s: float = LINE_TIMEOUT_S,
        **fields: Unpack[TrackFields],
    ) -> Generator[TrackedFrame, None, None]:
        """Follows objects through a video, and yields each frame as soon as its masks are found.

        If the answer breaks off, the request is sent again, and the generator goes on where it was: the service follows
        the objects from the start once more, and the frames that were yielded are left out. `timeout_s` counts from the
        last attempt that brought a frame, `max_retries` from the last that brought a new one. Closing the generator
        closes the connection, and the service stops.

        Args:
            video: uploaded the first time, and again when the service does not keep it any more.
            model_id: the model; None is the client's.
            line_timeout_s: the longest wait for a frame, the first included, before the request is sent again.
            fields: what to follow, and through which frames, see TrackFields.

        Raises:
            ClientError: the service rejected the request, or ended with an error that a repeat would meet again (among
                them `deadline_exceeded`), or stays busy or unreachable.
            TypeError: a mask is not `H×W` bool, or a keyword is unknown.
        """
        call = self._tracking(self.video(video), fields, model_id, line_timeout_s)
        while not call.is_done:
            if call.pause_s:
                time.sleep(call.pause_s)
            try:
                with call.request().options() as options, self._http.stream(**options) as answer:
                    if answer.is_success:
                        call.begin(answer)
                        for piece in answer.iter_bytes():
                            yield from call.frames(piece)
                        call.end()
                    else:
                        answer.read()
                        call.failed(answer)
            except (httpx.RequestError, _BrokenAnswer) as error:
                call.failed(error)

    def embed_video(self, video: VideoSource) -> KeptVideo:
        """Uploads a video ahead of its prompts; returns its size and length."""
        return self._run(self._embed_video(self.video(video)))

    def frame(self, video: VideoSource, index: int) -> NDArray[np.uint8]:
        """Returns a frame as the models see it, `H×W×3` uint8 RGB; uploads the video if the service has it not."""
        return self._run(self._frame(self.video(video), index))

    def _run(self, steps: _Steps[T]) -> T:
        try:
            request = next(steps)
            while True:
                if request.pause_s:
                    time.sleep(request.pause_s)
                outcome: httpx.Response | httpx.RequestError
                try:
                    with request.options() as options:
                        outcome = self._http.request(**options)
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
        self, image: AnyImage, *, model_id: str | None = None, **fields: Unpack[SegmentFields]
    ) -> SegmentationResult:
        """Segments the objects that the prompt points to; see `Client.segment`."""
        return await self._run(self._segment(image, fields, model_id))

    async def segment_as(
        self, image: AnyImage, response_format: str, *, model_id: str | None = None, **fields: Any
    ) -> bytes:
        """Returns the body of an answer in another format; see `Client.segment_as`."""
        return await self._run(self._segment_as(image, response_format, fields, model_id))

    async def auto(self, image: AnyImage, *, model_id: str | None = None, **options: float) -> EverythingResult:
        """Segments everything in the image; see `Client.auto`."""
        return await self._run(self._auto(image, options, model_id))

    async def auto_as(
        self, image: AnyImage, response_format: str, *, model_id: str | None = None, **options: Any
    ) -> bytes:
        """Returns everything in another format; see `Client.auto_as`."""
        return await self._run(self._auto_as(image, response_format, options, model_id))

    async def embed(self, image: AnyImage, *, model_id: str | None = None) -> str:
        """Uploads an image ahead of its prompts; see `Client.embed`."""
        return await self._run(self._embed(image, model_id))

    async def forget(self, image: ImageSource) -> bool:
        """Makes the service forget an image; see `Client.forget`."""
        return await self._run(self._forget(image))

    async def track(
        self,
        video: VideoSource,
        *,
        model_id: str | None = None,
        line_timeout_s: float = LINE_TIMEOUT_S,
        **fields: Unpack[TrackFields],
    ) -> AsyncGenerator[TrackedFrame, None]:
        """Follows objects through a video; see `Client.track`.

        A caller that leaves the loop early closes the generator by `contextlib.aclosing`, or the connection stays open
        until the generator is collected as garbage.
        """
        call = self._tracking(await to_thread(self.video, video), fields, model_id, line_timeout_s)
        while not call.is_done:
            if call.pause_s:
                await sleep(call.pause_s)
            try:
                with call.request().options() as options:
                    async with self._http.stream(**options) as answer:
                        if answer.is_success:
                            call.begin(answer)
                            async for piece in answer.aiter_bytes():
                                for frame in call.frames(piece):
                                    yield frame
                            call.end()
                        else:
                            await answer.aread()
                            call.failed(answer)
            except (httpx.RequestError, _BrokenAnswer) as error:
                call.failed(error)

    async def embed_video(self, video: VideoSource) -> KeptVideo:
        """Uploads a video ahead of its prompts; see `Client.embed_video`."""
        return await self._run(self._embed_video(await to_thread(self.video, video)))

    async def frame(self, video: VideoSource, index: int) -> NDArray[np.uint8]:
        """Returns a frame as the models see it; see `Client.frame`."""
        return await self._run(self._frame(await to_thread(self.video, video), index))

    async def _run(self, steps: _Steps[T]) -> T:
        try:
            request = next(steps)
            while True:
                if request.pause_s:
                    await sleep(request.pause_s)
                outcome: httpx.Response | httpx.RequestError
                try:
                    with request.options() as options:
                        outcome = await self._http.request(**options)
                except httpx.RequestError as error:
                    outcome = error
                request = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
