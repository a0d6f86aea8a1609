"""Twenty times what the service can take, for a minute; and clients that are slow on purpose."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from harness.checked_load import Question, answered, decoded, post, questions, same
from harness.load import percentile
from harness.processes import ProcessTree
from tests.cluster import nodes
from tests.integration.conftest import DEMO

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

DEADLINE_S = 20.0
OFFERED = 8.0
"""Requests a second, several times what two cores take."""
OVERLOAD, OVERLOAD_S = 20, 60
BODY_TIMEOUT_S = 6.0
MB = 2**20
CACHE_BYTES = 100 * MB


@dataclass
class Running:
    """The service, questions whose answers are known, and what it can take."""

    url: str
    known: list[Question]
    rate: float


@dataclass
class Answer:
    """What became of one request of many."""

    status: int
    seconds: float
    retry_after: str | None
    right: bool


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    # Few images are remembered, so that memory tells of requests.
    config = {"max_wait_s": 5, "cache_bytes": CACHE_BYTES}
    model = {"name": f"Sam2Model:{DEMO}", "ray_actor_options": {"num_cpus": 0}, "user_config": config}
    free = {"ray_actor_options": {"num_cpus": 0}}
    document = nodes.service_document(
        [{"model_id": DEMO, "torch_threads": 1, "precision": "float32"}],
        [
            {
                "name": "RequestParser",
                "user_config": {"body_timeout_s": BODY_TIMEOUT_S},
                "ray_actor_options": {
                    "num_cpus": 0,
                    "runtime_env": {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}},
                },
            },
            {"name": "ResponseEncoder", **free},
            {"name": "VideoReader", **free},
            model,
        ],
    )
    with nodes.several_nodes([{"num_cpus": 2}]):
        url = nodes.deploy(document)
        known = answered(questions(4), post(url))
        yield Running(url, known, capacity(url, known))


def capacity(url: str, known: list[Question]) -> float:
    """New images a second that are answered while a few more come than can be, until the last of them is."""
    started = time.monotonic()
    answers = asyncio.run(send(url, known, OFFERED, 6))
    rate = sum(answer.status == 200 for answer in answers) / (time.monotonic() - started)
    assert rate < 0.8 * OFFERED, "as many were answered as came: it can take more"
    return rate


async def send(url: str, known: list[Question], rate: float, seconds: float) -> list[Answer]:
    """New images at a steady rate, whatever becomes of those before."""
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client, asyncio.TaskGroup() as group:
        started, tasks = time.monotonic(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            tasks.append(group.create_task(ask(client, known[number % len(known)])))
    return [task.result() for task in tasks]


async def ask(client: httpx.AsyncClient, question: Question) -> Answer:
    """One request for an image that nobody has seen before."""
    data = {"point_coords": json.dumps([question.point]), "point_labels": "[1]", "response_format": "rle"}
    # What follows a PNG's end is not part of the picture, but of its digest.
    image = question.image + os.urandom(16)
    started = time.monotonic()
    answer = await client.post(
        "/segment-anything-2",
        data=data,
        files={"image": image},
        headers={"x-request-timeout-seconds": str(DEADLINE_S)},
    )
    seconds = time.monotonic() - started
    assert question.mask is not None
    right = answer.is_success and same(decoded(answer.json()["masks"][0]["segmentation"]), question.mask)
    return Answer(answer.status_code, seconds, answer.headers.get("retry-after"), right)


def memory(tree: ProcessTree) -> int:
    return sum(tree.memory().values())


def test_an_overload_is_refused_quickly_and_leaves_nothing_behind(service: Running) -> None:
    tree = ProcessTree(os.getpid())
    idle_bytes = memory(tree)
    rate = OVERLOAD * service.rate

    async def overload() -> tuple[list[Answer], float, int]:
        over, peak = asyncio.Event(), 0

        async def watch() -> None:
            nonlocal peak
            while not over.is_set():
                peak = max(peak, await asyncio.to_thread(memory, tree))
                await asyncio.sleep(2)

        watching, started = asyncio.create_task(watch()), time.monotonic()
        answers = await send(service.url, service.known, rate, OVERLOAD_S)
        seconds = time.monotonic() - started
        over.set()
        await watching
        return answers, seconds, peak

    answers, seconds, peak_bytes = asyncio.run(overload())
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    waits = [answer.seconds for answer in refused]
    # Full speed again: as quick as before, a moment later.
    time.sleep(6)
    again = capacity(service.url, service.known)
    print(
        f"\n{service.rate:.1f} a second is what it takes; {rate:.0f} came for {OVERLOAD_S} s: {len(accepted)} answered "
        f"in {seconds:.0f} s (slowest {max(one.seconds for one in accepted):.1f} s), {len(refused)} refused (median "
        f"{percentile(waits, 0.5):.2f} s, 99th percentile {percentile(waits, 0.99):.2f} s); memory "
        f"{(peak_bytes - idle_bytes) / MB:+.0f} MB; afterwards {again:.1f} a second"
    )
    assert {answer.status for answer in refused} == {503}
    assert all(answer.retry_after for answer in refused)
    assert percentile(waits, 0.95) < 1
    # The client kept up with what it meant to send.
    assert seconds < OVERLOAD_S + DEADLINE_S
    assert all(answer.right for answer in accepted)
    assert max(answer.seconds for answer in accepted) < DEADLINE_S
    # It went on working, for nothing that would come too late.
    assert len(accepted) > 0.6 * service.rate * seconds
    assert peak_bytes - idle_bytes < 500 * MB
    assert again > 0.7 * service.rate


def test_clients_that_send_slowly_get_408_and_hold_up_nobody(service: Running) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    head = (
        b"POST /segment-anything-2 HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b'Content-Length: 100000\r\n\r\n--b\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    )
    slow = [socket.create_connection((host, int(port))) for _ in range(100)]
    started = time.monotonic()
    for client in slow:
        client.sendall(head)
    # Half of them are half-open: they never send another byte.
    asked = post(service.url)
    seconds: list[float] = []
    while time.monotonic() - started < BODY_TIMEOUT_S - 1:
        for client in slow[::2]:
            client.sendall(b"x")
        question = service.known[len(seconds) % len(service.known)]
        began = time.monotonic()
        assert question.mask is not None
        assert same(asked(question), question.mask)
        seconds.append(time.monotonic() - began)
    answers = []
    for client in slow:
        client.settimeout(10)
        answers.append(client.recv(4096).split(b"\r\n")[0])
        client.close()
    assert set(answers) == {b"HTTP/1.1 408 Request Timeout"}
    assert time.monotonic() - started < BODY_TIMEOUT_S + 10
    assert percentile(seconds, 0.5) < 2
