"""The status board: which replicas of each model are loading (how far), ready, or failed (why).

A replica that is still starting cannot be called, and a handle call would wake a sleeping model. So replicas push their
state to the cluster's key-value store, where `/models`, `/ready` and the launcher read it. The store is Ray's own
(in the GCS), so the board exists before the first replica and needs no process of its own.
"""

import logging
import threading
import time
from dataclasses import asdict, dataclass
from typing import Literal

import orjson
from ray.exceptions import RayError
from ray.experimental import internal_kv

State = Literal["asleep", "loading", "ready", "failed"]
ORDER: list[State] = ["asleep", "failed", "loading", "ready"]

NAMESPACE = b"segment-anything-2"
KEY_PREFIX = b"model-status/"

HEARTBEAT_S = 5.0
FORGET_AFTER_S = 4 * HEARTBEAT_S
"""A replica that has been silent for this long counts as gone. Nodes' clocks must agree within a few seconds."""

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class ModelStatus:
    """What one replica reports about its model.

    Attributes:
        model_id: the model.
        state: asleep, loading, ready or failed.
        detail: what is being loaded, or why loading failed; empty when ready.
        done_bytes: bytes downloaded so far; 0 where nothing is downloaded.
        total_bytes: size of the download in bytes; 0 where nothing is downloaded.
        encoder_backend: what runs the image encoder: torch or openvino; empty until the model is ready.
    """

    model_id: str
    state: State
    detail: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    encoder_backend: str = ""

    def __str__(self) -> str:
        text = f"{self.model_id}: {self.state}" + (f", {self.detail}" if self.detail else "")
        if self.total_bytes:
            text += f" ({self.done_bytes / 1e6:,.0f} of {self.total_bytes / 1e6:,.0f} MB)"
        return text


def read_statuses() -> dict[str, ModelStatus]:
    """Returns, by model id, the best state among a model's living replicas: ready before loading before failed.

    Blocks briefly.
    """
    statuses = []
    for key in internal_kv._internal_kv_list(KEY_PREFIX, namespace=NAMESPACE):
        entry = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
        if entry is None:
            continue
        record = orjson.loads(entry)
        if time.time() - record["at"] > FORGET_AFTER_S:
            internal_kv._internal_kv_del(key, namespace=NAMESPACE)
        else:
            statuses.append(ModelStatus(**record["status"]))
    return {status.model_id: status for status in sorted(statuses, key=lambda status: ORDER.index(status.state))}


class StatusReporter:
    """Pushes one replica's state to the board, at each change and as a heartbeat."""

    def __init__(self, replica_id: str, model_id: str) -> None:
        self._key = KEY_PREFIX + replica_id.encode()
        self._status = ModelStatus(model_id, "loading", "starting")
        # Without the lock, a heartbeat under way could overwrite a newer state with an older one.
        self._lock = threading.Lock()
        threading.Thread(target=self._push_forever, name="status-reporter", daemon=True).start()

    def loading(self, detail: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """Sets the state to loading.

        Args:
            detail: what is being loaded.
            done_bytes: bytes downloaded so far.
            total_bytes: size of the download in bytes.
        """
        before = self._status
        self._status = ModelStatus(before.model_id, "loading", detail, done_bytes, total_bytes)
        if detail != before.detail:
            self._announce()

    def ready(self, encoder_backend: str) -> None:
        """Sets the state to ready: the model can answer.

        Args:
            encoder_backend: what runs the image encoder.
        """
        self._status = ModelStatus(self._status.model_id, "ready", encoder_backend=encoder_backend)
        self._announce()

    def failed(self, cause: str) -> None:
        """Sets the state to failed, with its cause."""
        # A path in the cause may hold undecodable bytes, which JSON cannot represent.
        printable = cause.encode("utf-8", "replace").decode()
        self._status = ModelStatus(self._status.model_id, "failed", printable)
        self._announce()

    def _announce(self) -> None:
        logger.info("%s", self._status)
        # Pushed now, since the process may end before the next heartbeat: it does if its constructor fails.
        self._push()

    def _push(self) -> None:
        with self._lock:
            entry = orjson.dumps({"at": time.time(), "status": asdict(self._status)})
            try:
                internal_kv._internal_kv_put(self._key, entry, overwrite=True, namespace=NAMESPACE)
            except (RayError, RuntimeError, OSError) as error:
                logger.warning("the status board cannot be reached: %s", error)

    def _push_forever(self) -> None:
        while True:
            self._push()
            time.sleep(1.0 if self._status.state == "loading" else HEARTBEAT_S)
