"""The JSON documents that the routes answer with, and their texts in the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

PIPELINE = "segment-anything-2"


class SegmentationAnswer(BaseModel):
    """Three strings, each holding JSON; masks, scores and logits share their order: descending score."""

    masks: str = Field(description="`C×H×W` masks at the image's size; `B×C×H×W` if the prompt had an object axis.")
    scores: str = Field(description="`C` (`B×C`) estimated IoUs.")
    logits: str = Field(description="`C×256×256` (`B×C×256×256`) logits, for a later request's `mask_input`.")


class Rle(BaseModel):
    """COCO's compressed run lengths, as `pycocotools.mask.decode` reads them."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class MultiPolygon(BaseModel):
    """GeoJSON in pixels: polygons, each an outer ring and the rings of its holes, closed."""

    type: Literal["MultiPolygon"]
    coordinates: list[list[list[list[int]]]]


class Record(BaseModel):
    """One mask; which keys `segmentation` has follows from `response_format`."""

    segmentation: Rle | MultiPolygon
    area: int = Field(description="Pixels.")
    bbox: list[int] = Field(description="x, y, width, height in pixels.")
    logits: list[list[list[float]]] | None = Field(
        default=None, description="`1×256×256` of the image, or of its crop, if `return_logits` was asked for."
    )


class MaskRecord(Record):
    """One mask of an object."""

    score: float = Field(description="Estimated IoU.")


class AutomaticRecord(Record):
    """One mask of everything, with the keys of SAM 2's generator."""

    predicted_iou: float
    stability_score: float
    point_coords: list[list[float]] = Field(description="The point of the grid that it comes from.")
    crop_box: list[int] = Field(description="The crop that it comes from: x, y, width, height.")


class MaskRecords(BaseModel):
    """Masks as `rle` or `polygons`, by descending score."""

    image_id: str
    model_id: str
    size: list[int] = Field(description="Height and width of the image.")
    masks: list[MaskRecord] | list[list[MaskRecord]] = Field(
        description="A list for each object, if the prompt had an object axis."
    )


class AutomaticRecords(BaseModel):
    """Everything, as `rle` or `polygons`."""

    image_id: str
    model_id: str
    size: list[int] = Field(description="Height and width of the image.")
    masks: list[AutomaticRecord]


class EmbedAnswer(BaseModel):
    """The image is embedded: prompts may name it by its `image_id`, for as long as the model remembers it."""

    image_id: str
    width: int
    height: int
    model_id: str


class Forgotten(BaseModel):
    """An image is forgotten."""

    image_id: str
    forgotten: bool = Field(description="Whether any replica remembered it.")


class ErrorMessage(BaseModel):
    """What went wrong."""

    msg: str
    code: str | None = Field(default=None, description="For programs: `deadline_exceeded` of 503; mostly left out.")


class ErrorAnswer(BaseModel):
    """The shape of all errors but 422."""

    detail: ErrorMessage


class NotCachedMessage(ErrorMessage):
    """What went wrong, and what a program may act on: upload the image, or upload it again."""

    code: Literal["image_not_cached"]


class NotCachedAnswer(BaseModel):
    """The shape of 404 where an image_id is not remembered."""

    detail: NotCachedMessage


class FieldFault(BaseModel):
    """One missing or ill-typed field."""

    type: str
    loc: list[str | int]
    msg: str


class ValidationAnswer(BaseModel):
    """The shape of 422: a field is missing or of the wrong type."""

    detail: list[FieldFault]


class Health(BaseModel):
    """OK: alive. IDLE: alive, and the default model sleeps until a request comes. ERROR: it failed to load."""

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
    default: bool = Field(description="Serves requests that name no model.")
    state: Literal["asleep", "loading", "ready", "failed"]
    detail: str = Field(description="What is being loaded, or why loading failed.")
    done_bytes: int = Field(description="How far a download is.")
    total_bytes: int = Field(description="How large it is; 0 where there is nothing to count.")


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
    """What a GPU is."""

    major: int = Field(description="CUDA compute capability.")
    minor: int


class GpuStats(Gpu):
    """How busy a GPU is, in percent."""

    utilization_compute: int | None = Field(description="None where a slice of a GPU does not count it.")
    utilization_memory: int | None


class Node(BaseModel):
    """A node of the cluster; memory in bytes, utilisation in percent."""

    node_id: str
    hostname: str = ""
    cpu_count: int = 0
    cpu_utilization: float = 0.0
    memory_total: int = 0
    memory_free: int = 0
    gpu_count: int = 0
    error: str = Field(default="", description="Why the node did not answer.")


class HardwareInfo(BaseModel):
    """The GPUs and nodes of the whole cluster; GPUs are numbered through."""

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
    "Server-Timing": {
        "schema": {"type": "string"},
        "description": "Milliseconds of parse, queue, embed, decode, and encode up to the first byte; `cache` tells "
        "whether the image was remembered: `hit` or `miss`.",
    },
}

PNG_HEADERS: dict[str, Any] = {
    "X-Mask-Index": {"schema": {"type": "integer"}, "description": "Of `png`: which mask it is."},
    "X-Score": {"schema": {"type": "number"}, "description": "Of `png`: the mask's estimated IoU."},
}

BINARY: dict[str, Any] = {
    media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in ("image/png", "application/zip")
}

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {
        "model": ErrorAnswer,
        "description": "The prompt, an option, the model id or the image is bad; `msg` names the field.",
    },
    401: {"model": ErrorAnswer, "description": "AUTH_TOKEN is set and the bearer token is missing or wrong."},
    404: {
        "model": NotCachedAnswer,
        "description": "The model does not remember the image of that `image_id`: upload the image.",
    },
    408: {"model": ErrorAnswer, "description": "The request's body did not arrive within `body_timeout_s`."},
    413: {"model": ErrorAnswer, "description": "Too many bytes, pixels, points, objects, or numbers in the answer."},
    415: {"model": ErrorAnswer, "description": "The body is not multipart/form-data."},
    422: {"model": ValidationAnswer, "description": "A field is missing, or not what its type allows."},
    500: {"model": ErrorAnswer, "description": "A bug; the log has it under the answer's X-Request-Id."},
    503: {
        "model": ErrorAnswer,
        "description": "Overloaded, past the deadline, or model not ready; try again after `Retry-After` seconds.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses."""
    return {status: ERRORS[status] for status in statuses}
