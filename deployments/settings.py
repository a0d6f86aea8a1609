"""Every setting with its meaning, default and range. Settings are read from environment variables here only.

Settings that identify the application are in the config file's `args` (ServiceSettings); a change restarts every
deployment. Settings that can be tuned while the service runs are in a deployment's `user_config` (RequestParserConfig,
VideoReaderConfig, Sam2ModelConfig). Replicas, GPU fractions, autoscaling and queues are Ray Serve's own options, in the
config file's `deployments`.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

APP_NAME = "segment-anything-2"

BUNDLED_MODEL_ID = "sam2-demo"

HUB_MODEL_IDS = tuple(
    f"facebook/{version}-hiera-{size}"
    for version in ("sam2", "sam2.1")
    for size in ("tiny", "small", "base-plus", "large")
)

MEBIBYTE = 2**20


class Settings(BaseModel):
    """Base of all settings: they are immutable, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# Always includes 1: a batch that does not fit into memory is run in halves, down to a single image.
BatchSizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=256)], ...], AfterValidator(lambda sizes: tuple(sorted({1, *sizes})))
]


class ModelSettings(Settings):
    """One model: where its weights come from and what it runs on."""

    model_id: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[\w./-]+$",
        description="The id that requests name: one of the eight facebook/sam2… ids, sam2-demo (bundled), or your own.",
    )
    checkpoint: Path | None = Field(
        default=None,
        description="Your own weights, as a file on every node: a SAM 2 checkpoint (.pt holding `model`) or "
        ".safetensors.",
    )
    config: str | None = Field(
        default=None,
        description="The SAM 2 yaml that the checkpoint was trained with: a file, or a name inside the sam2 package.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` uses the GPU where Ray assigned one, else the CPU."
    )
    torch_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads that torch uses in each replica on the CPU. Default: all cores of the node; in a "
        "container as many as its CPU quota and its cpuset allow.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision of the image encoder. `float32` is exact; `bfloat16` is faster and takes half the "
        "memory; `auto` is bfloat16 on GPUs and on CPUs with AMX or AVX512-BF16, else float32.",
    )
    torch_compile: bool = Field(
        default=False,
        description="Compile the image encoder while the model loads, which takes minutes the first time.",
    )
    compile_batch_sizes: BatchSizes = Field(
        default=(1, 2, 4, 8),
        min_length=1,
        # torch does not compile a ninth shape; it runs that one uncompiled.
        max_length=8,
        description="Batch sizes to compile for: up to eight, each from 1 to 256. A batch is padded to the next larger "
        "size; a batch larger than all of them is split. On a CPU, where a batch is one image by default, `[1]` "
        "is enough.",
    )
    compile_cache: Path | None = Field(
        default=None,
        description="Folder, on every node, that keeps compiled code for later replicas. Default: "
        "TORCHINDUCTOR_CACHE_DIR, else torchinductor_<user> in the system's folder for temporary files.",
    )

    encoder_backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto",
        description="What runs the image encoder on the CPU. `openvino` needs the extra of this name; the encoder is "
        "converted in the background while torch answers, and torch stays if that fails. `auto` is openvino where it "
        "is installed and the precision is bfloat16 on a CPU that has it, without torch_compile; else torch.",
    )
    encoder_cache: Path | None = Field(
        default=None,
        description="Folder, on every node, that keeps converted image encoders for later replicas. Default: "
        ".cache/segment-anything-2-serve in the home folder.",
    )

    @model_validator(mode="after")
    def _check_source(self) -> "ModelSettings":
        if (self.checkpoint is None) != (self.config is None):
            raise ValueError(f"{self.model_id}: checkpoint and config must be given together")
        known = self.model_id in HUB_MODEL_IDS or self.model_id == BUNDLED_MODEL_ID
        if self.checkpoint is None and not known:
            raise ValueError(
                f"{self.model_id}: is neither {BUNDLED_MODEL_ID} nor one of {', '.join(HUB_MODEL_IDS)}; "
                "a model of your own needs checkpoint and config"
            )
        return self


class Limits(Settings):
    """What a single request may ask for. A request beyond a limit is rejected with 413 before a model runs.

    There are two exceptions. A request by image_id gives no image size, so the size of its answer is checked once the
    embedding is found. For a request to segment everything, max_compact_numbers is checked once its masks are found.
    """

    max_image_bytes: int = Field(default=64 * MEBIBYTE, ge=1, description="Size of the uploaded image file.")
    max_form_field_bytes: int = Field(
        default=32 * MEBIBYTE, ge=1024, description="Size of one text field; a mask_input takes 1.3 MB per object."
    )
    max_body_bytes: int = Field(default=128 * MEBIBYTE, ge=1024, description="Size of the whole request body.")
    max_pixels: int = Field(default=64_000_000, ge=1, description="Width × height of the image, read from its header.")
    max_points: int = Field(default=1_000, ge=1, description="Points of all objects together.")
    max_objects: int = Field(default=256, ge=1, description="Objects in one prompt (B).")
    max_answer_numbers: int = Field(
        default=100_000_000,
        ge=1,
        description="Numbers in an answer as `json`: objects × masks × (height × width + 256 × 256).",
    )
    max_compact_numbers: int = Field(
        default=2_000_000_000,
        ge=1,
        description="Numbers in an answer in another format. Such answers are small, but take about 15 ns per number.",
    )
    max_grid_points: int = Field(
        default=10_000,
        ge=1,
        description="Grid points of a request to segment everything, over all crops: `points_per_side` squared "
        "without crops.",
    )
    max_video_bytes: int = Field(default=1024 * MEBIBYTE, ge=1, description="Size of the uploaded video file.")
    max_video_frames: int = Field(
        default=200_000, ge=1, description="Frames in a video: nearly two hours at 30 frames a second."
    )
    max_video_objects: int = Field(
        default=64,
        ge=1,
        description="Objects that a request follows. Each takes 4 MB or more in a replica and in RequestParser.",
    )
    max_video_prompts: int = Field(
        default=256,
        ge=1,
        description="Prompts of a request that follows objects. Each adds 0.5 MB to what is remembered of its object, "
        "and takes time on every later frame.",
    )
    max_crops: int = Field(
        default=21,
        ge=1,
        description="Crops of a request to segment everything; each crop takes a run of the image encoder. "
        "`crop_n_layers` 0 makes 1 crop, 1 makes 5, 2 makes 21, 3 makes 85.",
    )


def _model_from_id(value: Any) -> Any:
    return {"model_id": value} if isinstance(value, str) else value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^/\s*?#@]+", value):
        raise ValueError("must be scheme://host or scheme://host:port without a path, or *")
    # Browsers send origins in lower case and without the default port.
    value = value.lower()
    return value.removesuffix(":443" if value.startswith("https:") else ":80")


class ServiceSettings(Settings):
    """The config file's `args`."""

    models: tuple[Annotated[ModelSettings, BeforeValidator(_model_from_id)], ...] = Field(
        default=(ModelSettings(model_id=BUNDLED_MODEL_ID),),
        min_length=1,
        description="The models that requests may name; a bare id stands for `{model_id: …}`.",
    )
    default_model: str = Field(
        default="", description="The model for requests without `model_id`. Default: the first of `models`."
    )
    limits: Limits = Field(default=Limits(), description="What one request may ask for.")
    auth_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that clients must send; better given as the environment variable AUTH_TOKEN.",
    )

    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(),
        description="Origins, such as `https://example.org`, whose pages may use the service from a browser; `*` for "
        "all. Default: none.",
    )

    @model_validator(mode="after")
    def _check_models(self) -> "ServiceSettings":
        ids = [model.model_id for model in self.models]
        repeated = {model_id for model_id in ids if ids.count(model_id) > 1}
        if repeated:
            raise ValueError(f"models: {', '.join(sorted(repeated))} is listed twice")
        if self.default_model and self.default_model not in ids:
            raise ValueError(f"default_model: {self.default_model} is not among models")
        return self

    @property
    def default_model_id(self) -> str:
        """The model for requests that name none."""
        return self.default_model or self.models[0].model_id


class RequestParserConfig(Settings):
    """`user_config` of RequestParser."""

    request_timeout_s: float = Field(
        default=300.0, gt=0, le=3600, description="A request's deadline; `x-request-timeout-seconds` may shorten it."
    )
    body_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="How long a client may take to send a request before it gets 408."
    )
    video_body_timeout_s: float = Field(
        default=900.0,
        gt=0,
        le=86_400,
        description="How long a client may take to send a video before it gets 408.",
    )
    model_wait_s: float = Field(
        default=60.0, gt=0, le=3600, description="How long a request waits for a model that is asleep or loading."
    )
    max_retries: int = Field(
        default=4, ge=0, le=10, description="How often a call is sent again after its replica has died."
    )
    band_bytes: int = Field(
        default=5_000_000,
        ge=10_000,
        le=100_000_000,
        description="Bytes of text that ResponseEncoder writes in one call; two such bands of an answer are in flight.",
    )
    answer_budget_bytes: int = Field(
        default=256 * MEBIBYTE,
        ge=MEBIBYTE,
        description="Bytes of answers that each replica holds until clients read them; further answers wait, then "
        "get 503.",
    )
    pixels_budget_bytes: int = Field(
        default=1024 * MEBIBYTE,
        ge=MEBIBYTE,
        description="Bytes of decoded images in each replica that are on their way to a model; further images wait.",
    )
    text_budget_bytes: int = Field(
        default=128 * MEBIBYTE,
        ge=MEBIBYTE,
        description="Bytes of text fields, and of small files, that each replica holds of all requests whose bodies "
        "arrive or that are being answered; the reading of further bodies waits, then they get 503.",
    )
    file_budget_bytes: int = Field(
        default=8192 * MEBIBYTE,
        ge=MEBIBYTE,
        description="Bytes on disk of the files of such requests, and as many again for videos; the reading of further "
        "bodies waits, then they get 503.",
    )
    max_arriving_bodies: int = Field(
        default=128,
        ge=1,
        description="Bodies of each replica that may arrive at a time; while there are more, the slowest of those that "
        "come at less than 16 kB/s get 408. Keep it well below `max_ongoing_requests` (256).",
    )
    max_wait_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long a body, an image, a video or an answer may wait for its share of the byte budgets. If "
        "the expected wait for an image, a video or an answer is longer, the request gets 503 at once.",
    )
    max_video_jobs: int = Field(
        default=16,
        ge=1,
        le=10_000,
        description="Requests of each replica that follow objects at the same time; further ones get 503 at once.",
    )
    video_budget_bytes: int = Field(
        default=1024 * MEBIBYTE,
        ge=MEBIBYTE,
        description="Bytes that requests that follow objects hold in each replica, 6 to 13 MB an object; further "
        "requests wait, then get 503.",
    )
    video_timeout_s: float = Field(
        default=14_400.0,
        gt=0,
        le=604_800,
        description="How long a request may follow objects; `x-request-timeout-seconds` may shorten it. "
        "`request_timeout_s` is the limit for each of its steps.",
    )
    answer_stall_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="A client that reads nothing of its answer for this long is disconnected.",
    )


class VideoReaderConfig(Settings):
    """`user_config` of VideoReader."""

    video_cache_bytes: int = Field(
        default=8 * 1024 * MEBIBYTE,
        ge=MEBIBYTE,
        description="Bytes of uploaded videos that each replica keeps on disk; those whose last use is longest ago "
        "make room.",
    )
    video_ttl_s: float = Field(default=3600.0, gt=0, description="How long a video is kept after its last use.")


class Sam2ModelConfig(Settings):
    """`user_config` of each Sam2Model deployment."""

    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Images embedded in one run of the image encoder. Default: 8 on a GPU, 1 on a CPU.",
    )
    batch_wait_timeout_s: float = Field(
        default=0.01, ge=0, le=10, description="How long an image waits for others to share its batch."
    )
    max_decode_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Prompts of different requests in one batch. The decoder takes 32 objects of a batch at a time on "
        "a GPU, 2 per thread on a CPU. Default: 16 on a GPU; on a CPU, as many as the decoder takes at a time.",
    )
    max_wait_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long an image or a prompt may wait for its batch. If the expected wait is longer, or ends "
        "after the request's deadline, the request gets 503 at once.",
    )
    cache_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Memory for embeddings in each replica; 0 remembers none. Default: on a GPU, half of the free "
        "memory of the replica's share; on a CPU, an eighth of the memory that is free on the node and in "
        "its container, at most 2 GiB.",
    )
    cache_ttl_s: float | None = Field(
        default=None,
        gt=0,
        description="How long an embedding is remembered. Default: until others need its memory.",
    )
    track_state_bytes: int = Field(
        default=512 * MEBIBYTE,
        ge=0,
        description="Memory in each replica for what it remembers of the objects that it follows: about 4 MB an "
        "object. Beyond it, requests send that along with each step.",
    )
    pixels_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Of the requests for a new image, one is elected to send the pixels. If it has not sent them after "
        "this time, another is elected.",
    )
    load_retry_s: float = Field(
        default=15.0,
        gt=0,
        le=3600,
        description="Pause before loading is tried again after a failure; it doubles with each failure.",
    )


def model_deployment_name(model_id: str) -> str:
    """Returns the name of a model's deployment, as it appears in a config file's `deployments`."""
    return f"Sam2Model:{model_id}"


def parse_settings(args: dict[str, Any]) -> ServiceSettings:
    """Reads ServiceSettings from a config file's `args`.

    Raises:
        ValueError: a setting is wrong; the message names it.
    """
    try:
        return ServiceSettings.model_validate(args)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, ('args', *fault['loc'])))}: {fault['msg']}" for fault in error.errors())
        raise ValueError("; ".join(faults)) from None


def auth_token(settings: ServiceSettings) -> str | None:
    """Returns the bearer token that clients must send: from the config file, else from AUTH_TOKEN, else None."""
    if settings.auth_token is not None:
        return settings.auth_token.get_secret_value().strip() or None
    # A secret made from a file often ends with a newline, which no header can carry.
    return os.environ.get("AUTH_TOKEN", "").strip() or None


def with_auth_token(settings: ServiceSettings) -> ServiceSettings:
    """Returns a copy of the settings that holds this machine's token, from AUTH_TOKEN or from the settings."""
    token = auth_token(settings)
    return settings.model_copy(update={"auth_token": SecretStr(token) if token else None})


def use_compile_cache(folder: Path | None) -> None:
    """Sets torch.compile's cache folder for this process, if one is given. Call before compiling."""
    if folder is not None:
        # Compiled graphs, C++ and Triton kernels all go below this folder; torch's own caches are on by default.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
