"""A load generator: real HTTP, many clients, bodies read but not parsed. checked_load.py looks at the answers too."""

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

ROUTE = "/segment-anything-2"
TIMEOUT_S = 600.0
GOLDEN = 0.6180339887


@dataclass(frozen=True)
class Request:
    """One multipart request: an image file, if any, and text fields."""

    image: bytes | None
    fields: dict[str, str]
    path: str = ROUTE

    def by_id(self) -> "Request":
        """The same, with the image's id in place of its upload."""
        assert self.image is not None
        return Request(None, {**self.fields, "image_id": hashlib.sha256(self.image).hexdigest()}, self.path)

    @property
    def parts(self) -> list[Any]:
        """What httpx takes as `files`: with text fields among them, the form is multipart also without a file."""
        image = [] if self.image is None else [("image", ("image.png", self.image, "image/png"))]
        return [*((name, (None, text.encode())) for name, text in self.fields.items()), *image]


@dataclass(frozen=True)
class Exchange:
    """What became of one request.

    Attributes:
        status: the HTTP status; 0 if the connection failed.
        seconds: until the last byte.
        first_byte_s: until the first byte of the body.
        num_bytes: length of the body.
        durations: milliseconds by stage, from the Server-Timing header; empty if there was none.
        cache: `hit` or whatever else that header's `cache` says; empty if it says nothing.
        error: why it failed, or nothing.
    """

    status: int
    seconds: float
    first_byte_s: float = 0.0
    num_bytes: int = 0
    durations: dict[str, float] = field(default_factory=dict)
    cache: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether a whole answer came."""
        return self.status == httpx.codes.OK and not self.error


@dataclass(frozen=True)
class Load:
    """What became of many requests, and how long they took together."""

    exchanges: list[Exchange]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers per second; failures count as nothing."""
        return sum(exchange.ok for exchange in self.exchanges) / self.seconds

    @property
    def failures(self) -> list[Exchange]:
        """The requests that got no whole answer."""
        return [exchange for exchange in self.exchanges if not exchange.ok]

    def record(self) -> dict[str, Any]:
        """What the JSON file holds of it."""
        seconds = [exchange.seconds for exchange in self.exchanges]
        return {
            "requests": len(self.exchanges),
            "seconds": self.seconds,
            "rate": self.rate,
            "latency_s": {"median": percentile(seconds, 0.5), "p95": percentile(seconds, 0.95), "most": max(seconds)},
            "first_byte_s": percentile([exchange.first_byte_s for exchange in self.exchanges], 0.5),
            "mean_megabytes": sum(exchange.num_bytes for exchange in self.exchanges) / len(self.exchanges) / 1e6,
            "failures": [f"{exchange.status} {exchange.error}"[:200] for exchange in self.failures[:10]],
            "num_failed": len(self.failures),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def point_request(image: bytes, size: tuple[int, int], index: int, **fields: str) -> Request:
    """One foreground point; a new index is a new point."""
    x, y = (size[axis] * (0.1 + 0.8 * ((index + 1) * GOLDEN * (axis + 1) % 1)) for axis in (0, 1))
    return Request(image, {"point_coords": f"[[{x:.1f},{y:.1f}]]", "point_labels": "[1]", **fields})


def send(client: httpx.Client, request: Request) -> Exchange:
    """Sends one request and reads the whole answer, as a client does that stores it."""
    started = time.perf_counter()
    first_byte_s, num_bytes, tail = 0.0, 0, b""
    try:
        with client.stream("POST", request.path, files=request.parts) as response:
            for chunk in response.iter_bytes():
                first_byte_s = first_byte_s or time.perf_counter() - started
                tail = chunk or tail
            num_bytes = response.num_bytes_downloaded
    except httpx.HTTPError as failure:
        return Exchange(0, time.perf_counter() - started, error=f"{type(failure).__name__}: {failure}")
    seconds = time.perf_counter() - started
    durations, cache = parse_server_timing(response.headers.get("server-timing", ""))
    error = "" if tail.endswith(b"}") else f"the body ends with {tail[-20:]!r}"
    if not response.is_success:
        error = tail[:200].decode(errors="replace")
    return Exchange(response.status_code, seconds, first_byte_s, num_bytes, durations, cache, error)


def parse_server_timing(header: str) -> tuple[dict[str, float], str]:
    """Milliseconds by stage, and the description of `cache`, from `parse;dur=1.5, cache;desc="hit"`."""
    durations = {}
    cache = ""
    for entry in header.split(","):
        name = entry.partition(";")[0].strip()
        if duration := re.search(r";\s*dur=([\d.]+)", entry):
            durations[name] = float(duration[1])
        if name == "cache" and (description := re.search(r';\s*desc="?([\w-]+)', entry)):
            cache = description[1]
    return durations, cache


def load(url: str, requests: Sequence[Request], clients: int) -> Load:
    """Sends all requests, each client one after the other, and waits for the answers."""
    started = time.perf_counter()
    with _clients(url, iter(requests), clients) as results:
        exchanges = [exchange for result in results for exchange in result.result()]
    return Load(exchanges, time.perf_counter() - started)


@contextmanager
def continuous_load(url: str, requests: Iterable[Request], clients: int) -> Iterator[Callable[[], Load]]:
    """Sends requests over and over while the context lasts; what it yields stops them and tells what came of them."""
    stopped = threading.Event()
    started = time.perf_counter()
    endless = itertools.takewhile(lambda _: not stopped.is_set(), itertools.cycle(requests))
    with _clients(url, endless, clients) as results:

        def finish() -> Load:
            stopped.set()
            exchanges = [exchange for result in results for exchange in result.result()]
            return Load(exchanges, time.perf_counter() - started)

        try:
            yield finish
        finally:
            stopped.set()


@contextmanager
def _clients(url: str, requests: Iterator[Request], clients: int) -> Iterator[list["Future[list[Exchange]]"]]:
    """Client threads, each with connections of its own, that share one list of requests."""
    lock = threading.Lock()

    def next_request() -> Request | None:
        with lock:
            return next(requests, None)

    def work() -> list[Exchange]:
        exchanges = []
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            while (request := next_request()) is not None:
                exchanges.append(send(client, request))
        return exchanges

    with ThreadPoolExecutor(clients, thread_name_prefix="client") as pool:
        yield [pool.submit(work) for _ in range(clients)]
