"""Defines every metric with its name, unit and tags. Ray exports them with the prefix `ray_`.

Serve adds the tags application, deployment and replica. A name ends with its unit, a counter's name with `_total`.
Tags take few values: configured models, routes as registered, formats, statuses.
"""

import threading
from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakSet

from ray.serve.metrics import Counter, Gauge, Histogram

# `Any`, since Ray's annotations allow only tuples of a single name.
REQUEST: Any = ("route", "model_id", "response_format")
MODEL: Any = ("model_id",)
STAGE: Any = ("model_id", "stage")

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
"""Buckets from the time of a click on a remembered image to the longest deadline."""

BATCH_SIZES = [size + 0.5 for size in (*range(17), 24, 32, 48, 64, 128, 256)]
"""Ray computes a histogram's sum from the middles of its buckets; these boundaries make it exact up to size 16."""


KEEP_S = 4.0
"""Seconds after which gauges are set again. Ray drops a gauge that was not set for two report intervals: 20 s by
default."""


class KeptGauge:
    """A gauge whose last value is exported until the process ends, no matter when it was set."""

    _all: ClassVar[WeakSet["KeptGauge"]] = WeakSet()
    _keeper: ClassVar[threading.Thread | None] = None
    _starting: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str, description: str, tag_keys: Any = (), **default_tags: str) -> None:
        self._gauge = Gauge(name, description, tag_keys)
        if default_tags:
            self._gauge.set_default_tags(default_tags)
        self._last: dict[tuple[tuple[str, str], ...], float] = {}
        self._lock = threading.Lock()
        with self._starting:
            self._all.add(self)
            if KeptGauge._keeper is None:
                KeptGauge._keeper = threading.Thread(target=self._keep, name="gauges", daemon=True)
                KeptGauge._keeper.start()

    def set(self, value: float, **tags: str) -> None:
        """Sets the gauge for these tags."""
        with self._lock:
            self._last[tuple(tags.items())] = value
            # Serve adds to this dict, which belongs to this call alone.
            self._gauge.set(value, tags=tags)

    def repeat(self) -> None:
        """Sets the last value of each set of tags again."""
        with self._lock:
            for tags, value in self._last.items():
                self._gauge.set(value, tags=dict(tags))

    @classmethod
    def _keep(cls) -> None:
        never = threading.Event()
        while not never.wait(KEEP_S):
            with cls._starting:
                gauges = list(cls._all)
            for gauge in gauges:
                gauge.repeat()


class RequestMetrics:
    """Counts and times the requests of one RequestParser replica."""

    def __init__(self) -> None:
        self._requests = Counter("sam2_requests_total", "HTTP requests that ended.", (*REQUEST, "status"))
        self._seconds = Histogram(
            "sam2_request_seconds", "Time from a request's arrival to the last byte of its answer.", SECONDS, REQUEST
        )
        self._stages = Histogram(
            "sam2_stage_seconds",
            "Time of each stage of a request: parse, queue, embed, decode, track, encode (to the first byte), send.",
            SECONDS,
            STAGE,
        )
        self._in_progress = KeptGauge("sam2_requests_in_progress", "HTTP requests under way.")
        self._answer_bytes = KeptGauge("sam2_answer_bytes_in_flight", "Bytes of the answer budget that are in use.")
        self._rejected = Counter(
            "sam2_rejected_total",
            "Requests that were rejected: unauthorized (401), body_timeout (408), too_large (413); with 503: "
            "overloaded, deadline_exceeded, model_unavailable, unavailable, shutting_down.",
            ("reason",),
        )
        self._retries = Counter(
            "sam2_retries_total", "Calls that were sent again because their replica had died.", ("callee",)
        )

    def in_progress(self, count: int) -> None:
        """Sets the number of requests under way."""
        self._in_progress.set(count)

    def answer_bytes(self, nbytes: int) -> None:
        """Sets the number of bytes of the answer budget that are in use."""
        self._answer_bytes.set(nbytes)

    def finished(
        self,
        route: str,
        model_id: str,
        response_format: str,
        status: int,
        seconds: float,
        stages: Mapping[str, float],
    ) -> None:
        """Counts a request that has ended, answered or not.

        Args:
            route: the path as it is registered.
            model_id: a configured model; "" if the request ended before its model was known.
            response_format: the answer's format; "" where the route offers no choice.
            status: the answer's status; 499 if the client went away.
            seconds: time since the request's arrival.
            stages: seconds of each stage.
        """
        tags = {"route": route, "model_id": model_id, "response_format": response_format}
        # Each metric gets a copy, since Serve adds to the dict.
        self._requests.inc(tags={**tags, "status": str(status)})
        self._seconds.observe(seconds, tags={**tags})
        for stage, stage_s in stages.items():
            self._stages.observe(stage_s, tags={"stage": stage, "model_id": model_id})

    def rejected(self, reason: str) -> None:
        """Counts a rejected request."""
        self._rejected.inc(tags={"reason": reason})

    def retried(self, callee: str) -> None:
        """Counts a call that is sent again."""
        self._retries.inc(tags={"callee": callee})


class ModelMetrics:
    """Batches, queues and loading of one model replica."""

    def __init__(self, model_id: str) -> None:
        self._batch_size = Histogram(
            "sam2_batch_size",
            "Images (embed), prompts (decode) or chunks of videos (track) in one run of the model.",
            BATCH_SIZES,
            STAGE,
        )
        self._queue_length = KeptGauge(
            "sam2_queue_length",
            "Images (embed), prompts (decode), chunks of videos (track) or requests (auto) that wait for their turn.",
            STAGE,
            model_id=model_id,
        )
        self._load_seconds = Histogram("sam2_model_load_seconds", "Time that loading a model took.", SECONDS, MODEL)
        self._load_failures = Counter("sam2_model_load_failures_total", "Attempts to load a model that failed.", MODEL)
        for metric in (self._batch_size, self._load_seconds, self._load_failures):
            metric.set_default_tags({"model_id": model_id})

    def batch(self, stage: str, size: int) -> None:
        """Counts a batch that starts to run."""
        self._batch_size.observe(size, tags={"stage": stage})

    def waiting(self, stage: str, count: int) -> None:
        """Sets how many images, prompts or requests wait in a stage."""
        self._queue_length.set(count, stage=stage)

    def loaded(self, seconds: float) -> None:
        """Records how many seconds loading the model took, from the start until it could answer."""
        self._load_seconds.observe(seconds)

    def load_failed(self) -> None:
        """Counts a failed attempt to load the model."""
        self._load_failures.inc()


class VideoMetrics:
    """Files and frames of one VideoReader replica."""

    def __init__(self) -> None:
        self._frames = Counter("sam2_video_frames_decoded_total", "Frames of videos that were decoded.")
        self._files = KeptGauge("sam2_video_entries_kept", "Video files that are kept on disk.")
        self._bytes = KeptGauge("sam2_video_bytes_kept", "Bytes of the video files that are kept on disk.")

    def decoded(self, frames: int) -> None:
        """Counts decoded frames."""
        # Ray's counters refuse 0.
        if frames:
            self._frames.inc(frames)

    def holds(self, files: int, nbytes: int) -> None:
        """Sets the number of kept files and their bytes."""
        self._files.set(files)
        self._bytes.set(nbytes)


class StateMetrics:
    """What one model replica remembers of the objects that it follows."""

    def __init__(self, model_id: str) -> None:
        self._bytes = KeptGauge(
            "sam2_track_state_bytes", "Memory of what is remembered of objects in videos.", MODEL, model_id=model_id
        )

    def hit(self) -> None:
        """Counts nothing: a state that is missing is sent along."""

    def miss(self) -> None:
        """Counts nothing."""

    def evicted(self) -> None:
        """Counts nothing."""

    def holds(self, entries: int, nbytes: int) -> None:
        """Sets the bytes."""
        self._bytes.set(nbytes)


class CacheMetrics:
    """Hits, misses, evictions and size of the embedding cache of one model replica."""

    def __init__(self, model_id: str) -> None:
        self._hits = Counter(
            "sam2_embedding_cache_hits_total",
            "Requests whose image was remembered, or was being sent or embedded for another request.",
            MODEL,
        )
        self._misses = Counter("sam2_embedding_cache_misses_total", "Images that the encoder had to run for.", MODEL)
        self._evictions = Counter(
            "sam2_embedding_cache_evictions_total", "Images that were dropped to make room or had expired.", MODEL
        )
        self._bytes = KeptGauge(
            "sam2_embedding_cache_bytes", "Memory of the remembered embeddings.", MODEL, model_id=model_id
        )
        self._entries = KeptGauge("sam2_embedding_cache_entries", "Remembered images.", MODEL, model_id=model_id)
        for metric in (self._hits, self._misses, self._evictions):
            # Each metric gets a dict of its own, since Serve adds to it.
            metric.set_default_tags({"model_id": model_id})

    def hit(self) -> None:
        """Counts a request whose image was remembered, or was being sent or embedded for another request."""
        self._hits.inc()

    def miss(self) -> None:
        """Counts an image that the encoder has to run for."""
        self._misses.inc()

    def evicted(self) -> None:
        """Counts an image that was dropped to make room or had expired."""
        self._evictions.inc()

    def holds(self, entries: int, nbytes: int) -> None:
        """Sets the number of remembered images and their size in bytes."""
        self._entries.set(entries)
        self._bytes.set(nbytes)
