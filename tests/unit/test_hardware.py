"""What `/hardware/…` says of a node: the machine, and the part of it that the service may use."""

import platform
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from deployments.parsing import hardware
from deployments.parsing.http import openapi, status_routes
from deployments.parsing.http.status_routes import StatusRoutes

CONTRACT = {"pipeline", "model_id", "gpu_info", "nodes"}
MACHINE = {
    "node_id": "n1",
    "hostname": "box",
    "cpu_count": 64,
    "cpu_utilization": 12.5,
    "memory_total": 256_000,
    "memory_free": 200_000,
    "gpu_count": 0,
    "error": "",
}
ALLOWED = {"usable_cores": 2, "cpu_quota": 1.5, "memory_limit": 4_000, "memory_available": 3_000}


@pytest.fixture(autouse=True)
def container_on_a_large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores, of which the container has 1.5; no GPU."""
    for name in ("usable_cores", "cpu_quota", "memory_limit"):
        monkeypatch.setattr(hardware, name, lambda name=name: ALLOWED[name])
    monkeypatch.setattr(hardware, "available_memory", lambda: ALLOWED["memory_available"])
    monkeypatch.setattr(platform, "node", lambda: "box")
    monkeypatch.setattr(psutil, "cpu_count", lambda: 64)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 12.5)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=256_000, available=200_000))
    monkeypatch.setattr(pynvml, "nvmlInit", _no_driver)


def _no_driver() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


async def test_a_node_says_what_the_machine_has_and_what_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nodes() -> list[dict[str, object]]:
        return [{"node_id": "n1", **hardware.node_hardware()}]

    monkeypatch.setattr(status_routes, "cluster_hardware", nodes)
    routes = StatusRoutes("sam2-demo", SimpleNamespace())  # type: ignore[arg-type]

    info = (await routes.get_hardware_info()).model_dump()

    assert set(info) == CONTRACT
    assert info["nodes"] == [{**MACHINE, **ALLOWED}]
    assert (await routes.get_hardware_stats()).model_dump()["nodes"] == info["nodes"]


def test_a_node_that_does_not_answer_has_an_error_only() -> None:
    [node] = status_routes._node_documents([{"node_id": "n1", "error": "no answer: TimeoutError"}])

    assert node == openapi.Node(node_id="n1", error="no answer: TimeoutError")
    assert node.usable_cores == 0
    assert node.cpu_quota is None
