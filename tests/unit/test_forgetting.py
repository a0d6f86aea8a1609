"""What every replica is to forget: replicas that die, that are not known yet, and that do not answer."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.errors import Unavailable
from deployments.parsing import retries
from deployments.parsing.model_calls import ModelCalls
from deployments.parsing.retries import forgotten_by_all
from deployments.parsing.video.video_calls import VideoCalls

UNKNOWN = DeploymentUnavailableError(cast(Any, "VideoReader"))


class Handle:
    """Gives the outcomes of broadcasts one after the other, the last one again and again."""

    def __init__(self, *outcomes: Sequence[Any] | Exception) -> None:
        self.asked: list[tuple[str, str]] = []
        self._outcomes = list(outcomes)

    def broadcast(self, method: str, identifier: str) -> "Handle":
        self.asked.append((method, identifier))
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> Any:
        assert 0 < timeout_s <= 10
        assert return_exceptions
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FORGET_PAUSE_S", 0.0)


async def forgotten(handle: Handle, is_gone: bool = False) -> bool:
    async def gone() -> bool:
        return is_gone

    return await forgotten_by_all(handle, "a" * 64, "video", "VideoReader", gone)


@pytest.mark.parametrize(
    ("outcomes", "found", "asked"),
    [
        ([[True]], True, 1),
        ([[False, True, False]], True, 1),
        ([[False, False]], False, 1),
        # What a replica said counts, though another one died and all are asked again.
        ([[True, RayActorError()], [False]], True, 2),
        ([UNKNOWN, UNKNOWN, [True]], True, 3),
        ([UNKNOWN, [RayActorError()], [False]], False, 3),
    ],
)
async def test_every_replica_is_asked_until_all_have_answered(outcomes: list[Any], found: bool, asked: int) -> None:
    handle = Handle(*outcomes)
    assert await forgotten(handle) is found
    assert handle.asked == [("forget", "a" * 64)] * asked


async def test_a_deployment_without_replicas_has_nothing_to_forget() -> None:
    assert await forgotten(Handle(UNKNOWN), is_gone=True) is False


@pytest.mark.parametrize("outcome", [UNKNOWN, [RayActorError()], TimeoutError()])
async def test_a_replica_that_does_not_answer_is_an_error(outcome: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FORGET_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable, match=r"^a replica of VideoReader did not answer; it may still have the video$"):
        await forgotten(Handle(outcome))


async def test_a_reader_that_a_handle_does_not_know_yet_is_asked_again() -> None:
    handle = Handle(UNKNOWN, [True])
    assert await VideoCalls(cast(Any, handle), cast(ModelCalls, None)).forget("a" * 64)
    assert len(handle.asked) == 2
