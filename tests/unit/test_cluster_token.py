"""The launcher's question to a cluster that it is to join, to a gRPC server in place of Ray's."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from ray.core.generated.gcs_service_pb2 import GetClusterIdReply  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceServicer, add_NodeInfoGcsServiceServicer_to_server

from deployments import cluster_token
from deployments.cluster_token import ClusterRefusal, check_cluster


class Gcs(NodeInfoGcsServiceServicer):
    """Answers as Ray does."""

    def __init__(self, wants_token: bool) -> None:
        self._wants_token = wants_token

    def GetClusterId(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self._wants_token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: it is missing or incorrect")
        return GetClusterIdReply(cluster_id=b"1" * 28)


@contextmanager
def cluster(wants_token: bool) -> Iterator[str]:
    # Ray takes 127.0.0.1 for the address of this machine in its network.
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(Gcs(wants_token), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.fixture(params=[False, True], ids=["without a token", "with a token"])
def has_token(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    # Ray's own function changes the environment and what Ray has read of it, for good.
    monkeypatch.setattr(cluster_token, "maybe_enable_token_auth_if_token_available", lambda **_: None)
    loader = SimpleNamespace(has_token=lambda **_: request.param)
    monkeypatch.setattr(cluster_token, "AuthenticationTokenLoader", SimpleNamespace(instance=lambda: loader))
    return request.param


@pytest.mark.usefixtures("has_token")
def test_a_cluster_that_takes_the_launcher_is_joined() -> None:
    with cluster(wants_token=False) as address:
        check_cluster(address)


def test_a_cluster_that_asks_for_a_token_is_named_with_what_is_missing(has_token: bool) -> None:
    fault = "does not take the token of RAY_AUTH_TOKEN" if has_token else "asks for its token; it may be in"
    with cluster(wants_token=True) as address, pytest.raises(ClusterRefusal, match=fault) as raised:
        check_cluster(address)
    assert address in str(raised.value)
    assert "RAY_AUTH_TOKEN_PATH" in str(raised.value)


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.usefixtures("has_token")
def test_nothing_there_is_said_within_five_seconds(listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_token.ANSWER_S <= 4
    monkeypatch.setattr(cluster_token, "ANSWER_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        if listens:
            silent.listen()
        started = time.monotonic()
        with pytest.raises(ClusterRefusal, match=f"no Ray cluster answers at {address}"):
            check_cluster(address)
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("has_token")
def test_addresses_of_other_kinds_are_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_cluster("ray://127.0.0.1:1")
    check_cluster("local")
