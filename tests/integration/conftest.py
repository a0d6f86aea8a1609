"""One real local Serve for the whole test session, deployed from a config as an operator would."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.environment import prepare_environment
from harness.browser import NoBrowser, Page, launch
from harness.serve import deploy, free_port, shut_down, wait_for_http
from harness.weights import fill_hub_cache, random_model, sam2_package, save_checkpoint
from tests.collector import Collector, collector

DEMO = "sam2-demo"
TINY = "facebook/sam2-hiera-tiny"
OWN = "tests/fine-tuned"
MISSING_FILE = "tests/missing-file"
WRONG_CHECKPOINT = "tests/wrong-checkpoint"
NOT_CACHED = "facebook/sam2.1-hiera-small"
MEMBERS = 2


@dataclass(frozen=True)
class Service:
    """Where the running service is, and what it was given."""

    url: str
    folder: Path
    tiny_checkpoint: Path
    own_checkpoint: Path
    own_config: Path
    metrics_url: str
    logs: Path
    collector: Collector
    fallback_url: str
    """Serve's own proxy, which HAProxy falls back to."""

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of the service."""
        return httpx.Client(base_url=self.url, timeout=120, **options)


def model_entry(model_id: str, **options: Any) -> dict[str, Any]:
    """A `deployments` entry: no CPU reserved, on demand."""
    from deployments.app import KEEP_FREED_MEMORY

    scaling = {"min_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 3600}
    return {
        "name": f"Sam2Model:{model_id}",
        "ray_actor_options": {"num_cpus": 0, "runtime_env": KEEP_FREED_MEMORY},
        "autoscaling_config": scaling,
        **options,
    }


def config_document(port: int, folder: Path, own_config: Path) -> dict[str, Any]:
    """The config of the shared service, and of a small application beside it."""
    # Here, since it imports Ray, which is to see what prepare_environment sets.
    from deployments.app import FLOW_CONTROL

    warm = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        # Only what a client asks to be traced: tests look at few requests.
        "tracing_config": {
            "enabled": True,
            "exporter_import_path": "deployments.telemetry.tracing:otlp",
            "sampling_ratio": 0.0,
        },
        "applications": [
            {
                "name": "segment-anything-2",
                "route_prefix": "/",
                "import_path": "deployments.app:build",
                "args": {
                    "default_model": DEMO,
                    "cors_origins": ["https://example.org"],
                    "limits": {"max_body_bytes": 40 * 2**20, "max_image_bytes": 20 * 2**20, "max_grid_points": 256},
                    "models": [
                        # Exact, also where the processor would make bfloat16 the default.
                        {"model_id": DEMO, "precision": "float32"},
                        {"model_id": TINY, "precision": "float32"},
                        NOT_CACHED,
                        {
                            "model_id": OWN,
                            "checkpoint": str(folder / "own.pt"),
                            "config": str(own_config),
                            # Nothing is converted beside the tests, also where the processor has bfloat16.
                            "encoder_backend": "torch",
                        },
                        {"model_id": MISSING_FILE, "checkpoint": str(folder / "later.pt"), "config": str(own_config)},
                        {
                            "model_id": WRONG_CHECKPOINT,
                            "checkpoint": str(folder / "own.pt"),
                            "config": "configs/sam2/sam2_hiera_t.yaml",
                        },
                    ],
                },
                "deployments": [
                    {
                        "name": "RequestParser",
                        "ray_actor_options": {"num_cpus": 0, "runtime_env": FLOW_CONTROL},
                        # Two cores that run several replicas wake a model slowly.
                        "user_config": {"model_wait_s": 150},
                    },
                    {"name": "ResponseEncoder", "ray_actor_options": {"num_cpus": 0}},
                    {"name": "VideoReader", "ray_actor_options": {"num_cpus": 0}},
                    # Batches, also on a CPU, where by default images take turns.
                    model_entry(DEMO, **warm, user_config={"max_batch_size": 8, "max_decode_batch_size": 16}),
                    *(model_entry(model_id) for model_id in (TINY, NOT_CACHED, OWN, MISSING_FILE, WRONG_CHECKPOINT)),
                ],
            },
            routing_application(),
        ],
    }


def routing_application(members: int = MEMBERS, max_ongoing_requests: int = 100) -> dict[str, Any]:
    """What test_affinity.py looks at; deployed with the service, so that its replicas start beside the others."""
    member = {
        "name": "Member",
        "num_replicas": members,
        "max_ongoing_requests": max_ongoing_requests,
        "ray_actor_options": {"num_cpus": 0},
    }
    return {
        "name": "routing",
        "route_prefix": "/routing",
        "import_path": "tests.routing_app:build",
        "deployments": [member],
    }


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The shared service."""
    folder = tmp_path_factory.mktemp("service")
    hub_cache = folder / "hub"
    tiny_checkpoint = fill_hub_cache(hub_cache, TINY)
    own_config = Path(__file__).parents[2] / "deployments" / "model" / "demo" / "sam2_demo.yaml"
    own_checkpoint = save_checkpoint(random_model(own_config, seed=7), folder / "own.pt")
    assert sam2_package().is_dir()
    os.environ.update(HF_HUB_CACHE=str(hub_cache), HF_HUB_OFFLINE="1")
    # What the launcher sets: without it, another proxy would be tested than the one that is served.
    prepare_environment()
    # Ray lowers its workers' priority by default; tests share the machine with nothing that would deserve more.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.pop("AUTH_TOKEN", None)

    import ray

    port, metrics_port, fallback_port = free_port(), free_port(), free_port()
    os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] = str(fallback_port)
    with collector() as spans:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = spans.endpoint
        context: Any = ray.init(
            address="local",
            namespace="serve",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _metrics_export_port=metrics_port,
            _system_config={"metrics_report_interval_ms": 1000},
        )
        deploy(config_document(port, folder, own_config))
        url = f"http://127.0.0.1:{port}"
        wait_for_http(url)
        metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        logs = Path(context.address_info["session_dir"]) / "logs"
        fallback = f"http://127.0.0.1:{fallback_port}"
        yield Service(url, folder, tiny_checkpoint, own_checkpoint, own_config, metrics_url, logs, spans, fallback)
        shut_down()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the browser's downloads."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Page]:
    """One browser for all tests of a file. Without a browser they are skipped, or fail where REQUIRE_BROWSER is set."""
    try:
        chromium = launch(downloads)
    except NoBrowser as error:
        if os.environ.get("REQUIRE_BROWSER"):
            raise
        pytest.skip(str(error))
    yield Page(chromium, downloads)
    chromium.quit()
