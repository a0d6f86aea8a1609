"""ModelLoader: one attempt while a replica starts, more in the background where that failed."""

import threading
import time
from collections.abc import Callable

import pytest

from deployments.errors import ModelLoadError
from deployments.model import model_loader
from deployments.model.engine import Engine
from deployments.model.model_loader import ModelLoader

ENGINE = Engine.__new__(Engine)


class Attempts:
    """A `load` that does what it is told, attempt by attempt."""

    def __init__(self, *outcomes: Exception | Engine) -> None:
        self.outcomes = list(outcomes)
        self.times: list[float] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> Engine:
        assert self.go.wait(20)
        outcome = self.outcomes[len(self.times)]
        self.times.append(time.monotonic())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ignore(_: str) -> None:
    """Takes a cause."""


def failed_loader(load: Attempts, on_failure: Callable[[str], None] = ignore, pause_s: float = 60) -> ModelLoader:
    """A loader whose first attempt has failed and which keeps trying."""
    loader = ModelLoader(load, on_failure, first_pause_s=pause_s)
    with pytest.raises(ModelLoadError):
        loader.attempt()
    loader.keep_trying()
    return loader


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_loader, "SHORTEST_PAUSE_S", 0.01)


def test_a_loaded_engine_is_there_for_everyone() -> None:
    load = Attempts(ENGINE)
    loader = ModelLoader(load, ignore, first_pause_s=60)
    loader.attempt()
    assert [loader.engine() for _ in range(3)] == [ENGINE] * 3
    assert len(load.times) == 1


def test_before_the_first_attempt_there_is_no_engine() -> None:
    with pytest.raises(ModelLoadError, match="has not been loaded yet"):
        ModelLoader(Attempts(ENGINE), ignore, first_pause_s=60).engine()


def test_a_failure_is_told_and_given_at_once_from_then_on() -> None:
    causes: list[str] = []
    load = Attempts(ModelLoadError("own: no such file"), ENGINE)
    loader = failed_loader(load, causes.append)
    load.go.clear()
    for _ in range(5):
        with pytest.raises(ModelLoadError, match="own: no such file"):
            loader.engine()
    assert causes == ["own: no such file"]
    load.go.set()


def test_loading_is_tried_again_by_itself() -> None:
    causes: list[str] = []
    load = Attempts(ModelLoadError("one"), ModelLoadError("two"), ENGINE)
    loader = failed_loader(load, causes.append, pause_s=0.01)
    until(lambda: len(load.times) == 3)
    until(lambda: loader._engine is ENGINE)
    assert causes == ["one", "two"]


def test_a_request_after_the_cause_is_gone_does_not_wait_for_the_pause() -> None:
    load = Attempts(ModelLoadError("the hub cannot be reached"), ENGINE)
    loader = failed_loader(load, pause_s=3600)
    with pytest.raises(ModelLoadError):
        loader.engine()
    until(lambda: loader._engine is ENGINE)


def test_many_requests_for_a_broken_model_do_not_make_many_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_loader, "SHORTEST_PAUSE_S", 3600)
    load = Attempts(ModelLoadError("broken"), ModelLoadError("still"), ENGINE)
    loader = failed_loader(load, pause_s=3600)
    for _ in range(50):
        with pytest.raises(ModelLoadError):
            loader.engine()
        time.sleep(0.005)
    assert len(load.times) == 1


def test_pauses_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_loader, "LONGEST_PAUSE_S", 0.2)
    load = Attempts(*[ModelLoadError("broken")] * 5, ENGINE)
    failed_loader(load, pause_s=0.1)
    until(lambda: len(load.times) == 6)
    pauses = [after - before for before, after in zip(load.times, load.times[1:], strict=False)]
    expected = [0.1, 0.2, 0.2, 0.2, 0.2]
    assert all(pause >= wanted for pause, wanted in zip(pauses, expected, strict=True))
    # Doubled once more each time, the last would be of 1.6 s.
    assert pauses[-1] < 1.5, "no longer than the limit"


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), MemoryError("out of memory"), RuntimeError("CUDA error")])
def test_whatever_else_goes_wrong_is_a_cause_too(bug: Exception) -> None:
    causes: list[str] = []
    loader = ModelLoader(Attempts(bug), causes.append, first_pause_s=60)
    with pytest.raises(ModelLoadError, match=f"^{type(bug).__name__}: {bug}$"):
        loader.attempt()
    with pytest.raises(ModelLoadError, match=str(bug)):
        loader.engine()
    assert causes == [f"{type(bug).__name__}: {bug}"]
