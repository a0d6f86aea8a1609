"""The JSON documents that the routes answer with, and their descriptions in the OpenAPI document."""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field

PIPELINE = "segment-anything-2"


class SegmentationAnswer(BaseModel):
    """Three strings that each hold JSON; masks, scores and logits are all ordered by descending score."""

    masks: str = Field(description="`C×H×W` masks at the image's size; `B×C×H×W` if the prompt has an object axis.")
    scores: str = Field(description="`C` (`B×C`) estimated IoUs.")
    logits: str = Field(description="`C×256×256` (`B×C×256×256`) logits, for the `mask_input` of a later request.")


class Rle(BaseModel):
    """COCO's compressed run lengths, as `pycocotools.mask.decode` reads them."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class MultiPolygon(BaseModel):
    """GeoJSON in pixels or in WGS 84: polygons, each an outer ring and the rings of its holes, closed."""

    type: Literal["MultiPolygon"]
    coordinates: list[list[list[list[int | float]]]]


class Record(BaseModel):
    """One mask; `response_format` determines the keys of `segmentation`."""

    segmentation: Rle | MultiPolygon
    area: int = Field(description="Pixels.")
    bbox: list[int] = Field(description="x, y, width, height in pixels.")
    logits: list[list[list[float]]] | None = Field(
        default=None, description="`1×256×256`, of the image or of the mask's crop, if the request has `return_logits`."
    )


class MaskRecord(Record):
    """One mask of an object."""

    score: float = Field(description="Estimated IoU.")


class AutomaticRecord(Record):
    """One mask found by segmenting everything, with the keys of SAM 2's generator."""

    predicted_iou: float
    stability_score: float
    point_coords: list[list[float]] = Field(description="The point of the grid that the mask comes from.")
    crop_box: list[int] = Field(description="The crop that the mask comes from: x, y, width, height.")


class MaskRecords(BaseModel):
    """Masks as `rle` or `polygons`, by descending score."""

    image_id: str
    model_id: str
    size: list[int] = Field(description="Height and width of the image.")
    masks: list[MaskRecord] | list[list[MaskRecord]] = Field(
        description="A list for each object, if the prompt has an object axis."
    )


class AutomaticRecords(BaseModel):
    """All masks found by segmenting everything, as `rle` or `polygons`."""

    image_id: str
    model_id: str
    size: list[int] = Field(description="Height and width of the image.")
    masks: list[AutomaticRecord]


class CocoDataset(BaseModel):
    """A dataset file of COCO, as `coco` with polygons, as `coco_rle` with run lengths."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


class CocoResult(BaseModel):
    """An entry of a results file of COCO: `coco_results`."""

    image_id: int
    category_id: int
    segmentation: Rle
    score: float


class LabelStudioTask(BaseModel):
    """A task of Label Studio with one prediction: `labelstudio` and `labelstudio_polygons`."""

    data: dict[str, str]
    predictions: list[dict[str, Any]]


class LabelMeFile(BaseModel):
    """A file of LabelMe: `labelme` and `labelme_polygons`."""

    version: str
    shapes: list[dict[str, Any]]
    image_path: str = Field(alias="imagePath")
    image_height: int = Field(alias="imageHeight")
    image_width: int = Field(alias="imageWidth")


ToolFile: TypeAlias = CocoDataset | list[CocoResult] | LabelMeFile | list[LabelStudioTask]


class EmbedAnswer(BaseModel):
    """The image is embedded: prompts may name it by its `image_id` for as long as the model remembers it."""

    image_id: str
    width: int
    height: int
    model_id: str


class Forgotten(BaseModel):
    """An image is forgotten."""

    image_id: str
    forgotten: bool = Field(description="Whether any replica remembered the image.")


class VideoAnswer(BaseModel):
    """A video is kept: requests may name it by its `video_id` until it was not used for `video_ttl_s`."""

    video_id: str
    width: int = Field(description="Of an upright frame, in pixels.")
    height: int
    fps: float | None = Field(description="The average number of frames a second; null where frames have no times.")
    num_frames: int


class VideoForgotten(BaseModel):
    """A video is deleted."""

    video_id: str
    forgotten: bool = Field(description="Whether any replica kept the video.")


class ObjectRecord(BaseModel):
    """One object on one frame."""

    object_id: int
    segmentation: Rle | MultiPolygon | None = Field(default=None, description="Left out with `none`.")
    score: float = Field(description="Estimated IoU.")
    present: bool = Field(description="False if the model takes the object to be absent; its mask is then empty.")
    presence: float = Field(description="The probability that the object is to be seen.")
    area: int = Field(description="Pixels.")
    bbox: list[int] = Field(description="x, y, width, height in pixels.")
    logits: list[list[list[float]]] | None = Field(
        default=None, description="`1×256×256`, if the request has `return_logits`."
    )


class TrackLine(BaseModel):
    """A line of an answer about a video: its keys tell whether it is the first, a frame's or the last."""

    video_id: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    model_id: str | None = None
    objects: list[int] | list[ObjectRecord] | None = None
    frame_index: int | None = None
    time_s: float | None = None
    done: bool | None = None
    frames: int | None = Field(default=None, description="In the last line: how many frames were answered.")
    error: "ErrorMessage | None" = Field(default=None, description="Why the answer ends early.")


class ErrorMessage(BaseModel):
    """The cause of an error."""

    msg: str
    code: str | None = Field(
        default=None, description="For programs: `deadline_exceeded` with status 503; otherwise left out."
    )


class ErrorAnswer(BaseModel):
    """The shape of all errors but 422."""

    detail: ErrorMessage


class NotCachedMessage(ErrorMessage):
    """The cause, with a code that programs may act on: upload the image, or upload it again."""

    code: Literal["image_not_cached"]


class NotCachedAnswer(BaseModel):
    """The shape of 404 where the model does not remember an image_id."""

    detail: NotCachedMessage


class VideoNotCachedMessage(ErrorMessage):
    """The cause, with a code that programs may act on: upload the video, or upload it again."""

    code: Literal["video_not_cached"]


class VideoNotCachedAnswer(BaseModel):
    """The shape of 404 where the service does not keep a video."""

    detail: VideoNotCachedMessage


class FieldFault(BaseModel):
    """One missing or ill-typed field."""

    type: str
    loc: list[str | int]
    msg: str


class ValidationAnswer(BaseModel):
    """The shape of 422: a field is missing or of the wrong type."""

    detail: list[FieldFault]


class Health(BaseModel):
    """OK: alive. IDLE: alive, the default model sleeps until a request comes. ERROR: the default model did not load."""

    status: Literal["OK", "IDLE", "ERROR"]


class Ready(BaseModel):
    """The default model can answer."""

    status: Literal["READY"]
    model_id: str


class Version(BaseModel):
    """The service's version."""

    pipeline: str = PIPELINE
    model_id: str
    version: str


class Model(BaseModel):
    """A configured model and the state of its replicas."""

    model_id: str
    default: bool = Field(description="Whether this model serves requests that name none.")
    state: Literal["asleep", "loading", "ready", "failed"]
    detail: str = Field(description="What is being loaded, or why loading failed.")
    done_bytes: int = Field(description="Bytes downloaded so far.")
    total_bytes: int = Field(description="Size of the download; 0 where nothing is downloaded.")
    encoder_backend: Literal["", "torch", "openvino"] = Field(
        description="What runs the image encoder; empty unless the model is ready."
    )


class Models(BaseModel):
    """All configured models."""

    models: list[Model]


class Gpu(BaseModel):
    """One GPU; memory in bytes."""

    id: str
    name: str
    memory_total: int
    memory_free: int


class GpuInfo(Gpu):
    """The kind of a GPU."""

    major: int = Field(description="CUDA compute capability.")
    minor: int


class GpuStats(Gpu):
    """How busy a GPU is, in percent."""

    utilization_compute: int | None = Field(description="None for a slice of a GPU, which does not measure it.")
    utilization_memory: int | None


class Node(BaseModel):
    """A node of the cluster; memory in bytes, utilisation in percent."""

    node_id: str
    hostname: str = ""
    cpu_count: int = Field(default=0, description="Processors of the machine, whatever a container may use of them.")
    cpu_utilization: float = 0.0
    memory_total: int = Field(default=0, description="Of the machine.")
    memory_free: int = Field(default=0, description="Of the machine.")
    usable_cores: int = Field(
        default=0, description="Cores that the service may use there: its affinity, and its CPU quota rounded up."
    )
    cpu_quota: float | None = Field(
        default=None, description="CPU seconds a second that the container's limits allow; null if they set none."
    )
    memory_limit: int = Field(default=0, description="The container's limit, or the machine's memory where it is less.")
    memory_available: int = Field(
        default=0,
        description="What can be taken now below the limit; file pages that can be dropped count as free.",
    )
    gpu_count: int = 0
    error: str = Field(default="", description="Why the node did not answer.")


class HardwareInfo(BaseModel):
    """The GPUs and nodes of the whole cluster; GPUs are numbered across all nodes."""

    pipeline: str = PIPELINE
    model_id: str
    gpu_info: dict[int, GpuInfo]
    nodes: list[Node]


class HardwareStats(BaseModel):
    """Utilisation of the GPUs and nodes of the whole cluster."""

    pipeline: str = PIPELINE
    model_id: str
    gpu_stats: dict[int, GpuStats]
    nodes: list[Node]


ANSWER_HEADERS: dict[str, Any] = {
    "X-Image-Id": {
        "schema": {"type": "string"},
        "description": "SHA-256 of the image file; later requests may send it as `image_id`.",
    },
    "X-Image-Window": {
        "schema": {"type": "string"},
        "description": "`low,high`: the values that are black and white, if the image has not 8 bits a sample. Not "
        "sent with `image_id` if the replica that answers has not read the image.",
    },
    "Server-Timing": {
        "schema": {"type": "string"},
        "description": "Milliseconds of parse, queue, embed, decode, and encode up to the first byte; `cache` is `hit` "
        "if the image was remembered, else `miss`.",
    },
}

FILE_HEADERS: dict[str, Any] = {
    "Content-Disposition": {
        "schema": {"type": "string"},
        "description": "With formats of annotation tools and `geotiff`: a name for the file, made of the image's.",
    },
}

PNG_HEADERS: dict[str, Any] = {
    "X-Mask-Index": {"schema": {"type": "integer"}, "description": "With `png`: the index of the mask."},
    "X-Score": {"schema": {"type": "number"}, "description": "With `png`: the mask's estimated IoU."},
}

BINARY: dict[str, Any] = {
    media_type: {"schema": {"type": "string", "format": "binary"}}
    for media_type in (
        "image/png",
        "application/zip",
        "application/xml",
        "application/geo+json",
        "text/plain",
        "image/tiff",
    )
}

VIDEO_HEADERS: dict[str, Any] = {
    "X-Video-Id": {
        "schema": {"type": "string"},
        "description": "SHA-256 of the video file; later requests may send it as `video_id`.",
    },
}

FRAME_HEADERS: dict[str, Any] = {**VIDEO_HEADERS, "X-Image-Id": ANSWER_HEADERS["X-Image-Id"]}

PICTURES: dict[str, Any] = {
    media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in ("image/jpeg", "image/png")
}

TRACKS: dict[str, Any] = {
    "application/x-ndjson": {"schema": {"$ref": "#/components/schemas/TrackLine"}},
    "text/event-stream": {"schema": {"type": "string"}},
    "application/zip": {"schema": {"type": "string", "format": "binary"}},
}

VIDEO_NOT_CACHED: dict[str, Any] = {
    "model": VideoNotCachedAnswer,
    "description": "The service does not keep the video with this `video_id`: upload the video.",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {
        "model": ErrorAnswer,
        "description": "The prompt, an option, the model id or the image is invalid; `msg` names the field.",
    },
    401: {"model": ErrorAnswer, "description": "AUTH_TOKEN is set and the bearer token is missing or wrong."},
    404: {
        "model": NotCachedAnswer,
        "description": "The model does not remember the image with this `image_id`: upload the image.",
    },
    408: {"model": ErrorAnswer, "description": "The request's body did not arrive within `body_timeout_s`."},
    413: {"model": ErrorAnswer, "description": "Too many bytes, pixels, points, objects, or numbers in the answer."},
    415: {"model": ErrorAnswer, "description": "The body's type or coding is none that is read."},
    422: {"model": ValidationAnswer, "description": "A field is missing or of the wrong type."},
    500: {"model": ErrorAnswer, "description": "A bug; find it in the log by the answer's X-Request-Id."},
    503: {
        "model": ErrorAnswer,
        "description": "Overloaded, past the deadline, or model not ready; try again after `Retry-After` seconds.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI entries of these statuses."""
    return {status: ERRORS[status] for status in statuses}
