"""A load whose answers are known, and what became of each request: right, late, or lost."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from deployments.client import Client, ClientError

SIZE = (320, 240)
LATE_S = 5.0
"""An answer that takes longer is late: a request takes a few tenths of a second where nothing happens."""

SAME_IOU = 0.99
"""Batches of another size round otherwise: a pixel at the edge may differ."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """One request whose answer is known.

    Attributes:
        image: a PNG file.
        point: the click, x and y.
        mask: the best mask, as the idle service gave it.
    """

    image: bytes
    point: tuple[int, int]
    mask: Mask | None = None


@dataclass
class Outcome:
    """What became of one request."""

    sent_at: float
    seconds: float
    right: bool
    error: str = ""


@dataclass
class Report:
    """What became of a load.

    Attributes:
        fault: what happened meanwhile.
        outcomes: of its requests.
    """

    fault: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def lost(self) -> list[Outcome]:
        """Requests without a right answer."""
        return [outcome for outcome in self.outcomes if not outcome.right]

    @property
    def late(self) -> int:
        """Right answers that took long."""
        return sum(outcome.right and outcome.seconds > LATE_S for outcome in self.outcomes)

    def line(self) -> str:
        """A row of the table."""
        right, slowest = len(self.outcomes) - len(self.lost), max(outcome.seconds for outcome in self.outcomes)
        row = f"{self.fault:52} {len(self.outcomes):6} {right:6} {self.late:5} {len(self.lost):5} {slowest:8.1f}"
        return row + (f"  {self.lost[0].error[:80]}" if self.lost else "")


HEADER = f"{'fault':52} {'sent':>6} {'right':>6} {'late':>5} {'lost':>5} {'slowest':>8}"

Ask = Callable[[Question], Mask]


def questions(count: int, points: int = 3) -> list[Question]:
    """Clicks on made-up pictures: some coloured ellipses on a gradient, the same each time."""
    return [question for seed in range(count) for question in _questions(seed, points)]


def _questions(seed: int, points: int) -> Iterator[Question]:
    random, (width, height) = np.random.default_rng(seed), SIZE
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x % 256, y % 256, (x + y + 40 * seed) % 256], axis=2).astype(np.uint8)
    centres = []
    for _ in range(points):
        cx, cy = random.integers(50, width - 50), random.integers(50, height - 50)
        picture[((x - cx) / 45) ** 2 + ((y - cy) / 35) ** 2 < 1] = random.integers(0, 256, 3)
        centres.append((int(cx), int(cy)))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    for centre in centres:
        yield Question(buffer.getvalue(), centre)


def post(url: str, timeout_s: float = 120, **fields: str) -> Ask:
    """Asks over HTTP, once: whatever fails is an error. One connection for each thread."""
    own = threading.local()

    def ask(question: Question) -> Mask:
        if not hasattr(own, "client"):
            own.client = httpx.Client(base_url=url, timeout=timeout_s)
        data = {"point_coords": json.dumps([question.point]), "point_labels": "[1]", "response_format": "rle", **fields}
        answer = own.client.post("/segment-anything-2", data=data, files={"image": question.image})
        if answer.status_code != 200:
            raise ClientError(answer.text[:200], answer.status_code)
        return decoded(answer.json()["masks"][0]["segmentation"])

    return ask


def by_client(url: str) -> Ask:
    """Asks by the project's own client, which repeats what a dying replica refused."""
    client = Client(url, timeout_s=120)

    def ask(question: Question) -> Mask:
        found = client.segment(question.image, point_coords=[list(question.point)], point_labels=[1])
        mask: Mask = np.asarray(found.masks[0], bool)
        return mask

    return ask


def decoded(rle: dict[str, Any]) -> Mask:
    """The mask of COCO's run lengths."""
    mask: Mask = coco.decode({**rle, "counts": rle["counts"].encode()}).astype(bool)
    return mask


def answered(asked: Sequence[Question], ask: Ask) -> list[Question]:
    """The questions with the answers of the idle service."""
    return [Question(question.image, question.point, ask(question)) for question in asked]


def same(mask: Mask, expected: Mask) -> bool:
    """Whether two masks are the same but for rounding."""
    union = np.count_nonzero(mask | expected)
    return mask.shape == expected.shape and bool(np.count_nonzero(mask & expected) >= SAME_IOU * union)


@contextmanager
def load(fault: str, known: Sequence[Question], ask: Ask, clients: int = 4) -> Iterator[Report]:
    """Sends the questions, again and again, by so many clients while the block runs; waits for the last answers."""
    report, over = Report(fault), threading.Event()

    def work(number: int) -> None:
        for index in range(number, 1_000_000, clients):
            if over.is_set():
                return
            report.outcomes.append(_outcome(known[index % len(known)], ask))

    with ThreadPoolExecutor(clients) as pool:
        workers = [pool.submit(work, number) for number in range(clients)]
        try:
            yield report
        finally:
            over.set()
        for worker in workers:
            worker.result()


def _outcome(question: Question, ask: Ask) -> Outcome:
    started = time.monotonic()
    assert question.mask is not None
    try:
        mask = ask(question)
    except (httpx.HTTPError, ClientError) as error:
        # As a client would, before it comes again.
        time.sleep(0.1)
        return Outcome(started, time.monotonic() - started, False, f"{type(error).__name__}: {error}")
    right = same(mask, question.mask)
    return Outcome(started, time.monotonic() - started, right, "" if right else "another mask")
