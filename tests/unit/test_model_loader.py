"""ModelLoader: one load in the background, for any number of waiters."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

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
        self.count = 0
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> Engine:
        assert self.go.wait(20)
        outcome = self.outcomes[self.count]
        self.count += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def run(scenario: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def ignore(_: str) -> None:
    """Takes a cause."""


def test_waiters_get_the_engine_once_it_is_loaded() -> None:
    async def scenario() -> None:
        load = Attempts(ENGINE)
        load.go.clear()
        loader = ModelLoader(load, ignore, first_pause_s=60)
        waiters = [asyncio.create_task(loader.engine()) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert not any(waiter.done() for waiter in waiters)

        load.go.set()

        assert set(await asyncio.gather(*waiters)) == {ENGINE}
        assert await loader.engine() is ENGINE
        assert load.count == 1

    run(scenario())


def test_a_failure_reaches_those_who_wait_and_is_given_at_once_from_then_on() -> None:
    async def scenario() -> None:
        load, causes = Attempts(ModelLoadError("own: no such file"), ENGINE), list[str]()
        load.go.clear()
        loader = ModelLoader(load, causes.append, first_pause_s=60)
        waiter = asyncio.create_task(loader.engine())
        await asyncio.sleep(0.02)
        load.go.set()

        with pytest.raises(ModelLoadError, match="own: no such file"):
            await waiter
        load.go.clear()
        for _ in range(5):
            with pytest.raises(ModelLoadError, match="own: no such file"):
                await asyncio.wait_for(loader.engine(), 1)
        assert causes == ["own: no such file"]
        load.go.set()

    run(scenario())


def test_loading_is_tried_again_by_itself() -> None:
    async def scenario() -> None:
        load, causes = Attempts(ModelLoadError("one"), ModelLoadError("two"), ENGINE), list[str]()
        loader = ModelLoader(load, causes.append, first_pause_s=0.01)

        await until(lambda: load.count == 3)

        assert await loader.engine() is ENGINE
        assert causes == ["one", "two"]

    run(scenario())


def test_a_request_after_the_cause_is_gone_does_not_wait_for_the_pause() -> None:
    async def scenario() -> None:
        load = Attempts(ModelLoadError("the hub cannot be reached"), ENGINE)
        loader = ModelLoader(load, ignore, first_pause_s=3600)
        with pytest.raises(ModelLoadError):
            await loader.engine()

        with pytest.raises(ModelLoadError):
            await loader.engine()
        await until(lambda: load.count == 2)

        assert await loader.engine() is ENGINE

    run(scenario())


def test_many_requests_for_a_broken_model_do_not_make_many_attempts() -> None:
    async def scenario() -> None:
        load = Attempts(ModelLoadError("broken"), ENGINE)
        loader = ModelLoader(load, ignore, first_pause_s=3600)
        await until(lambda: load.count == 1)

        for _ in range(50):
            with pytest.raises(ModelLoadError):
                await loader.engine()

        assert load.count == 1

    run(scenario())


def test_pauses_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_loader, "LONGEST_PAUSE_S", 0.08)

    async def scenario() -> None:
        load = Attempts(*[ModelLoadError("broken")] * 4, ENGINE)
        loader = ModelLoader(load, ignore, first_pause_s=0.02)

        await until(lambda: load.count == 5)

        assert loader._pause_s == 0.08

    run(scenario())


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), MemoryError("out of memory"), RuntimeError("CUDA error")])
def test_whatever_else_goes_wrong_reaches_those_who_wait(bug: Exception) -> None:
    async def scenario() -> None:
        causes: list[str] = []
        loader = ModelLoader(Attempts(bug, ENGINE), causes.append, first_pause_s=60)

        with pytest.raises(ModelLoadError, match=f"^{type(bug).__name__}: {bug}$"):
            await loader.engine()
        assert causes == [f"{type(bug).__name__}: {bug}"]

    run(scenario())


def test_a_cancelled_waiter_takes_nobody_with_it() -> None:
    async def scenario() -> None:
        load = Attempts(ENGINE)
        load.go.clear()
        loader = ModelLoader(load, ignore, first_pause_s=60)
        patient, impatient = asyncio.create_task(loader.engine()), asyncio.create_task(loader.engine())
        await asyncio.sleep(0.02)

        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        load.go.set()

        assert await patient is ENGINE

    run(scenario())


def test_a_waiter_that_runs_out_of_time_does_not_stop_the_load() -> None:
    async def scenario() -> None:
        load = Attempts(ENGINE)
        load.go.clear()
        loader = ModelLoader(load, ignore, first_pause_s=60)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loader.engine(), 0.02)
        load.go.set()

        assert await loader.engine() is ENGINE

    run(scenario())
