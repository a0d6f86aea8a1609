"""Calls to a model in two steps, around a handle that only notes what it is asked: who wants pixels, who gives up."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from deployments.errors import (
    DeadlineExceeded,
    ImageNotCached,
    InvalidImage,
    ModelUnavailable,
    Overloaded,
    Unavailable,
)
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import AutoCall, ModelAnswer, ModelCall, SegmentCall, Wanted
from deployments.messages.everything import AutomaticPrompt
from deployments.messages.prompt import Prompt
from deployments.model_status import ModelStatus
from deployments.parsing.deadline import Deadline
from deployments.parsing.model_calls import ModelCalls, Sources
from deployments.parsing.model_states import ModelStates
from deployments.settings import RequestParserConfig
from deployments.telemetry.metrics import RequestMetrics
from tests.loops import settled

ANSWER: ModelAnswer[Any] = ModelAnswer(cast(Any, None), "hit", 0.0, 0.0)
Pixels = Callable[[], Awaitable[RgbArray]]
IMAGE = np.zeros((2, 2, 3), np.uint8)


class Response(asyncio.Future[Any]):
    """What a handle's call returns, as far as it matters here."""


@dataclass
class Handle:
    """A model's handle: `ask` gives the outcomes one after the other."""

    outcomes: list[Any]
    wakes: bool = True
    asked: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def options(self, session_id: str) -> "Handle":
        return self

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Awaitable[Any]:
            if method in ("ask", "give_up"):
                self.names.append(arguments[1] if method == "give_up" else arguments[2].name)
            return self._answer(method, *arguments)

        return SimpleNamespace(remote=remote)

    def _answer(self, method: str, *arguments: Any) -> Awaitable[Any]:
        asking = method == "ask"
        if asking:
            call, supplies, _ = arguments
            method = {SegmentCall: "segment", AutoCall: "auto"}[type(call)]
            method += "" if supplies.pixels is None else " with pixels"
        self.asked.append(method)
        answer = Response(loop=asyncio.get_running_loop())
        if method == "wait_until_ready" and not self.wakes:
            return answer
        outcome = self.outcomes.pop(0) if asking else None
        # Models answer that they are overloaded; whatever else is wrong, they raise.
        if isinstance(outcome, Exception) and not isinstance(outcome, Overloaded):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
        return answer


async def ask(
    handle: Handle,
    pixels: Pixels | None,
    state: str = "ready",
    auto: AutomaticPrompt | None = None,
    timeout_s: float = 10,
    metrics: Any = None,
    **config: Any,
) -> ModelAnswer[Any]:
    """Asks a model in that state about one image."""

    async def model_status(_: str) -> Any:
        return ModelStatus("m", cast(Any, state))

    model_states = cast(ModelStates, SimpleNamespace(model_status=model_status))
    calls = ModelCalls(
        {"m": cast(Any, handle)}, model_states, RequestParserConfig(**config), metrics or RequestMetrics()
    )
    try:
        image_id = "a" * 64
        call: ModelCall[Any] = SegmentCall(image_id, Prompt()) if auto is None else AutoCall(image_id, auto, 1000)
        sources: Sources = {} if pixels is None else {"pixels": pixels}
        return await calls.ask("m", call, sources, Deadline(timeout_s))
    finally:
        # What goes on in the background.
        await settled()


async def decoded() -> RgbArray:
    return IMAGE


async def damaged() -> RgbArray:
    raise InvalidImage("image: is damaged")


async def test_pixels_go_only_to_a_model_that_wants_them() -> None:
    for outcomes, asked in (
        ([ANSWER], ["segment"]),
        ([Wanted(), ANSWER], ["segment", "segment with pixels"]),
    ):
        handle = Handle(outcomes)
        assert await ask(handle, decoded) is ANSWER
        assert handle.asked == ["wait_until_ready", *asked]


@pytest.mark.parametrize(
    ("outcomes", "pixels", "error"),
    [([Wanted()], damaged, InvalidImage), ([Wanted(), Overloaded("full")], decoded, Overloaded)],
)
async def test_a_request_that_fails_gives_up_its_promise_of_pixels(
    outcomes: list[Any], pixels: Pixels, error: type[Exception]
) -> None:
    handle = Handle(outcomes)
    with pytest.raises(error):
        await ask(handle, pixels)
    assert handle.asked[-1] == "give_up"


@pytest.mark.parametrize(("outcome", "error"), [(Wanted(), ImageNotCached), (Overloaded("full"), Overloaded)])
async def test_a_request_by_id_takes_back_nobodys_promise(outcome: Any, error: type[Exception]) -> None:
    handle = Handle([outcome])
    with pytest.raises(error):
        await ask(handle, None)
    assert handle.asked == ["wait_until_ready", "segment"]


async def test_who_is_refused_was_promised_nothing() -> None:
    # By the replica, or by Serve before it.
    for refusal in (Overloaded("full"), BackPressureError(1, 1)):
        handle = Handle([refusal])
        with pytest.raises(Overloaded):
            await ask(handle, decoded)
        assert handle.asked == ["wait_until_ready", "segment"]


async def test_a_request_by_id_wakes_no_sleeping_model() -> None:
    handle = Handle([])
    with pytest.raises(ImageNotCached, match="m does not remember"):
        await ask(handle, None, "asleep")
    assert handle.asked == []


async def test_everything_is_asked_for_in_two_steps_and_with_crops_in_one() -> None:
    handle = Handle([Wanted(), ANSWER])
    assert await ask(handle, decoded, auto=AutomaticPrompt()) is ANSWER
    assert handle.asked == ["wait_until_ready", "auto", "auto with pixels"]
    handle = Handle([ANSWER])
    assert await ask(handle, decoded, auto=AutomaticPrompt(crop_n_layers=1)) is ANSWER
    assert handle.asked == ["wait_until_ready", "auto with pixels"]


async def test_a_request_for_everything_that_fails_gives_up_only_what_it_promised() -> None:
    for crops, outcomes, asked in (
        (0, [Wanted(), Overloaded("full")], ["auto", "auto with pixels", "give_up"]),
        (1, [Overloaded("full")], ["auto with pixels"]),
    ):
        handle = Handle(outcomes)
        with pytest.raises(Overloaded):
            await ask(handle, decoded, auto=AutomaticPrompt(crop_n_layers=crops))
        assert handle.asked == ["wait_until_ready", *asked]
    handle = Handle([Wanted()])
    with pytest.raises(ImageNotCached):
        await ask(handle, None, auto=AutomaticPrompt())
    assert handle.asked == ["wait_until_ready", "auto"]


async def test_all_steps_of_a_request_go_by_one_name() -> None:
    names = []
    for _ in range(2):
        handle = Handle([Wanted(), Overloaded("full")])
        with pytest.raises(Overloaded):
            await ask(handle, decoded)
        assert len(handle.names) == 3
        assert len(set(handle.names)) == 1
        names.append(handle.names[0])
    assert names[0] != names[1]


async def test_a_deadline_that_is_over_is_no_model_that_is_not_ready() -> None:
    # It was read so slowly that no time is left.
    with pytest.raises(DeadlineExceeded):
        await ask(Handle([]), decoded, timeout_s=0)
    # There is time, but the model did not wake up while it was to be waited for.
    with pytest.raises(ModelUnavailable, match="asleep; try again later"):
        await ask(Handle([], wakes=False), decoded, "asleep", model_wait_s=0.1)


async def test_only_what_is_sent_again_counts_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, metrics = Handle([]), Mock()
    pauses: list[float] = []
    turn = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await turn(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    handle.outcomes = [RayActorError()] * 3
    with pytest.raises(Unavailable, match="safe to send it again"):
        await ask(handle, decoded, metrics=metrics, max_retries=2)
    assert handle.asked.count("segment") == 3
    assert metrics.retried.call_count == 2
    # Nothing after the last one.
    assert [seconds for seconds in pauses if seconds] == [0.2, 0.4]
