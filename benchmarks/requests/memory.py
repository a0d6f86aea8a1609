"""Memory above idle, of all processes and shared memory together: one huge answer, and clients that do not read theirs.

Measured with HAProxy in front of the parsers and with Serve's own proxy.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from benchmarks.report import Findings, Row, budget_row
from benchmarks.servers import HA_PROXY, SERVE_PROXY, Server, service
from benchmarks.workplace import Configuration, Workplace
from deployments.settings import RequestParserConfig
from harness.images import noise
from harness.load import ROUTE, TIMEOUT_S, Request, load, point_request
from harness.processes import MEGABYTE, Growth, MemorySampler, idle_memory
from tuning.tables import Table

HUGE, FULL_HD = (4000, 3000), (1920, 1080)
DECODED_HUGE = HUGE[0] * HUGE[1] * 3
CLIENTS = 50
PATIENCE_S = 90.0
"""How long to wait for all clients to get their first bytes, which a service that bounds its memory may never send."""

HOLD_S = 15.0

# The first is what the launcher chooses, so the budgets are its.
PROXIES: dict[str, Mapping[str, str]] = {"HAProxy": HA_PROXY, "Serve's proxy": SERVE_PROXY}


def run(workplace: Workplace) -> Findings:
    """Measures both proxies, one after the other."""
    findings = Findings()
    lines = []
    proxies = dict(list(PROXIES.items())[:1]) if workplace.quick else PROXIES
    for proxy, environment in proxies.items():
        with service(workplace, Configuration(), environment) as server:
            # A small request first: what is imported and allocated once for all belongs to idle.
            load(server.url, [point_request(noise(640, 480, 1), (640, 480), index) for index in range(2)], clients=1)
            huge = {f"12 megapixels, {image} image": huge_answer(server) for image in ("new", "same")}
            slow, statuses = slow_readers(server, *((8, 15.0) if workplace.quick else (CLIENTS, PATIENCE_S)))
        growths = {**huge, f"clients that do not read, statuses {statuses}": slow}
        findings.rows += _rows(proxy, list(huge.values()), slow, statuses, workplace.precision)
        findings.data[proxy] = {what: growth.by_role for what, growth in growths.items()}
        lines += [[proxy, what, f"{growth.total:,.0f}", str(growth)] for what, growth in growths.items()]
    columns = ("proxy", "what", "in all, MB", "where, MB")
    findings.tables.append(
        Table("Memory of all processes and shared memory above idle, decoded image included", columns, lines)
    )
    return findings


def huge_answer(server: Server) -> Growth:
    """Growth at the peak of one 12-megapixel default answer that is read."""
    request = point_request(noise(*HUGE, 12), HUGE, 0)
    idle = idle_memory(server.tree)
    with MemorySampler(server.tree) as sampler:
        done = load(server.url, [request], clients=1)
    if done.failures:
        raise RuntimeError(f"the request failed: {done.failures[0]}")
    return Growth.between(idle, sampler.peak)


def slow_readers(server: Server, clients: int, patience_s: float) -> tuple[Growth, dict[int, int]]:
    """Growth at the peak while clients read 1 KB of their 1080p default answers; and the statuses they got."""
    image = noise(*FULL_HD, 13)
    load(server.url, [point_request(image, FULL_HD, 0)], clients=1)
    idle = idle_memory(server.tree)
    requests = [point_request(image, FULL_HD, index + 1) for index in range(clients)]
    with MemorySampler(server.tree) as sampler, _held(server, requests) as statuses:
        deadline = time.monotonic() + patience_s
        while len(statuses) < clients and time.monotonic() < deadline:
            time.sleep(0.2)
        # What is sent without being asked for is sent now.
        time.sleep(HOLD_S)
        counts = Counter(statuses)
        counts[0] += clients - len(statuses)
    return Growth.between(idle, sampler.peak), dict(+counts)


@contextmanager
def _held(server: Server, requests: list[Request]) -> Iterator[list[int]]:
    """Sends all requests at once and reads 1 KB of each answer; yields the statuses, which come in meanwhile."""
    statuses: list[int] = []
    released = threading.Event()

    def ask(request: Request) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
            # Closed by the end of the context at the latest, also where no answer has come.
            connections.append(connection)
            try:
                connection.sendall(_wire(server, request))
                statuses.append(int(connection.recv(1024).split(b" ", 2)[1]))
            except (OSError, IndexError):
                # Refused, or released before an answer came: counted as status 0.
                return
            released.wait()

    connections: list[socket.socket] = []
    with ThreadPoolExecutor(len(requests), thread_name_prefix="slow-reader") as pool:
        for request in requests:
            pool.submit(ask, request)
        try:
            yield statuses
        finally:
            released.set()
            for connection in connections:
                _hang_up(connection)


def _wire(server: Server, request: Request) -> bytes:
    """A request as it goes over the wire."""
    built = httpx.Request("POST", server.url + ROUTE, files=request.parts)
    head = "".join(f"{name}: {value}\r\n" for name, value in built.headers.items())
    return f"POST {ROUTE} HTTP/1.1\r\n{head}\r\n".encode() + built.read()


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It has been closed already.
        return


def _rows(proxy: str, huge: list[Growth], slow: Growth, statuses: dict[int, int], precision: str) -> list[Row]:
    # One parser, with the default settings.
    allowed = RequestParserConfig().answer_budget_bytes / MEGABYTE
    new_image, same_image = huge
    growth, excess = new_image.total - DECODED_HUGE / MEGABYTE, slow.total - allowed
    note = f"{proxy}; statuses {statuses} (0: no answer yet); answer budget {allowed:.0f} MB; {slow}"
    huge_note = f"{proxy}, a new image, with its {DECODED_HUGE / MEGABYTE:.0f} MB: {new_image}; again: {same_image}"
    if PROXIES[proxy] == HA_PROXY:
        return [
            budget_row("memory", growth, precision, note=huge_note),
            budget_row("slow readers", excess, precision, note=note),
        ]
    return [
        Row(f"12 megapixels, default JSON, {proxy}", growth, precision, "MB", note=huge_note),
        Row(f"clients that do not read, {proxy}: above idle and budget", excess, precision, "MB", note=note),
    ]
