"""The deployments: RequestParser, which calls the others; a Sam2Model for each model; ResponseEncoder; VideoReader."""

from typing import Any

from ray import serve
from ray.serve import Application

from deployments.encoding.response_encoder import ResponseEncoder
from deployments.frames.video_reader import VideoReader
from deployments.model.sam2_model import Sam2Model
from deployments.page.routes import PageRoutes
from deployments.parsing.http.ingress import HttpRequestParser
from deployments.settings import (
    ModelSettings,
    RequestParserConfig,
    Sam2ModelConfig,
    ServiceSettings,
    VideoReaderConfig,
    model_deployment_name,
    parse_settings,
    with_auth_token,
)

FLOW_CONTROL = {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}
"""Behind HAProxy, makes RequestParser send no faster than its client reads: see docs/configuration.md#behind-haproxy.

Serve then runs RequestParser's code on Serve's event loop. The loop stays free, since heavy work runs in threads.
"""

KEEP_FREED_MEMORY = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
        "MALLOC_TOP_PAD_": str(512 * 2**20),
    }
}
"""On a CPU, lets a model's run reuse the memory of the one before it.

By default glibc's malloc returns each large tensor's memory to the system, which must clear it for the next tensor.
That takes about a fifth of the time of hiera-tiny's image encoder (`make bench`: batches). Keeping the memory costs a
replica some hundreds of MB between runs, 380 MB with hiera-tiny. The other deployments would gain nothing.
"""

SURGE = {"max_surge_percent": 100}
"""An update starts the new replicas before it stops the old ones: the cluster must have room for both."""

AFFINITY = {
    "request_router_class": "deployments.parsing.affinity_router.AffinityRouter",
    # Places of each replica on the ring. With Ray's 100, the busiest of eight replicas would have 16 % more than its
    # share.
    "request_router_kwargs": {"num_virtual_nodes": 1000},
}
"""Sends all requests for an image or a video to the same replica.

Consistent hashing gives replicas places on a ring: if the image's replica is full, the request goes to the next one.
"""

# Defaults; a config file's `deployments` entry of the same name overrides any of them.
PARSER_OPTIONS: dict[str, Any] = {
    "num_replicas": 1,
    # Most requests wait: for a model, for their share of the answer budget, or for a client that reads slowly.
    "max_ongoing_requests": 256,
    # Serve itself rejects further requests at once.
    "max_queued_requests": 64,
    "backpressure_config": {"retry_after_s": 1},
    "ray_actor_options": {"num_cpus": 1, "runtime_env": FLOW_CONTROL},
    **SURGE,
    "user_config": RequestParserConfig().model_dump(),
}
MODEL_OPTIONS: dict[str, Any] = {
    # Many requests cost little: they decode a prompt of a remembered image, or wait for another request's pixels.
    "max_ongoing_requests": 128,
    "max_queued_requests": 256,
    "ray_actor_options": {"num_cpus": 1, "runtime_env": KEEP_FREED_MEMORY},
    "user_config": Sam2ModelConfig().model_dump(),
    "request_router_config": AFFINITY,
    # A constructor that reads a large checkpoint from a slow disk, or downloads it, must not be killed.
    "health_check_timeout_s": 60,
    **SURGE,
}
ENCODER_OPTIONS: dict[str, Any] = {
    "num_replicas": 1,
    # Far more than an encoder has threads: callers of a full replica try again only after pauses of up to a second,
    # and by then the replica may be idle. With a limit of 4, sixteen clients of large answers got a third of today's
    # throughput.
    "max_ongoing_requests": 64,
    "max_queued_requests": 1024,
    "ray_actor_options": {"num_cpus": 1},
    **SURGE,
}
READER_OPTIONS: dict[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": 64,
    "max_queued_requests": 256,
    "ray_actor_options": {"num_cpus": 1},
    "request_router_config": AFFINITY,
    "user_config": VideoReaderConfig().model_dump(),
    **SURGE,
}
WARM = {"min_replicas": 1, "max_replicas": 1}
ON_DEMAND = {"min_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 900}


def build(args: dict[str, Any]) -> Application:
    """Builds the application from the config file's `args` (ServiceSettings).

    The default model is warm and the others are on demand, unless the config file's `deployments` say otherwise.

    Raises:
        ValueError: a setting is unknown, missing or out of range; the message names it.
    """
    # AUTH_TOKEN, if it is set here, goes into the settings: replicas on nodes without the variable require it too.
    settings = with_auth_token(parse_settings(args))
    models = {model.model_id: _model(model, settings) for model in settings.models}
    encoder = serve.deployment(**ENCODER_OPTIONS)(ResponseEncoder).bind()
    parser = serve.deployment(name="RequestParser", **PARSER_OPTIONS)(serve.ingress()(HttpRequestParser))
    reader = serve.deployment(**READER_OPTIONS)(VideoReader).bind(settings.limits)
    return parser.bind(settings, models, encoder, reader, PageRoutes())


def _model(model: ModelSettings, settings: ServiceSettings) -> Application:
    scaling = WARM if model.model_id == settings.default_model_id else ON_DEMAND
    name = model_deployment_name(model.model_id)
    return serve.deployment(name=name, autoscaling_config=scaling, **MODEL_OPTIONS)(Sam2Model).bind(model)
