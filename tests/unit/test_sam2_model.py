"""Sam2Model around an engine that only notes what it is given: batches, what never reaches one, who is told what.

The batch queue is Serve's own; only the replica around it is made up.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import serve

from deployments.errors import ModelLoadError, ModelUnavailable, Overloaded, TooLarge
from deployments.messages.arrays import RgbArray
from deployments.messages.calls import (
    AnswerSize,
    AutoCall,
    Caller,
    EmbedCall,
    EmbeddedImage,
    ModelAnswer,
    SegmentCall,
    Supplies,
    Wanted,
)
from deployments.messages.everything import AutomaticPrompt
from deployments.messages.prompt import Prompt
from deployments.model import automatic_masks, checkpoints, devices, sam2_model
from deployments.model import engine as engine_module
from deployments.model.sam2_model import Sam2Model
from deployments.settings import ModelSettings, Sam2ModelConfig
from tests.loops import settled, until

LOAD = Sam2Model._load

PROMPT = Prompt(point_coords=[[1, 1]], point_labels=[1])
TOO_LARGE = 99


@dataclass(frozen=True, eq=False)
class Embedding:
    """Stands for an image: its first pixel."""

    value: int
    nbytes: int = 10
    image_size: tuple[int, int] = (2, 2)


@dataclass
class RecordingEngine:
    """Takes its time for each batch, and notes it. An image of TOO_LARGE does not fit."""

    seconds: float = 0.05
    images: list[list[int]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def embed_each(self, images: Sequence[RgbArray]) -> list[Embedding | Overloaded]:
        values = [int(image[0, 0, 0]) for image in images]
        self.images.append(values)
        self.go.wait(5)
        return [Overloaded("does not fit") if value == TOO_LARGE else Embedding(value) for value in values]

    def decode_each(self, items: Sequence[tuple[Embedding, Prompt]]) -> list[Any]:
        self.prompts.append([embedding.value for embedding, _ in items])
        time.sleep(self.seconds)
        return [
            (np.full((1, 1, 256, 256), embedding.value, np.float32), np.ones((1, 1), np.float32))
            for embedding, _ in items
        ]


def image(value: int) -> RgbArray:
    return np.full((2, 2, 3), value, np.uint8)


async def segment(model: Sam2Model, image_id: str, pixels: RgbArray | None = None, **caller: Any) -> Any:
    return await model.ask(SegmentCall(image_id, PROMPT), Supplies(pixels), Caller(**caller))


async def embed(model: Sam2Model, image_id: str, pixels: RgbArray | None = None) -> Any:
    answer = await model.ask(EmbedCall(image_id), Supplies(pixels))
    return answer.result if isinstance(answer, ModelAnswer) else answer


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def model(engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Builds a model as a replica would, inside a running loop."""
    context = SimpleNamespace(
        replica_tag="replica",
        _deployment_config=SimpleNamespace(max_ongoing_requests=64, autoscaling_config=None),
    )
    observer = SimpleNamespace(hit=lambda: None, miss=lambda: None, evicted=lambda: None, holds=lambda *_: None)
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(sam2_model, "StatusReporter", lambda *_: SimpleNamespace(failed=print))
    monkeypatch.setattr(sam2_model, "CacheMetrics", lambda _: observer)
    monkeypatch.setattr(Sam2Model, "_load", lambda _: engine)
    batched: Any
    for batched in (Sam2Model._embed, Sam2Model._decode):
        # Serve keeps one queue a process, for its event loop; here each test has a loop of its own.
        batched.set_max_batch_size.__self__._queue = None

    async def build(**config: Any) -> Sam2Model:
        model = Sam2Model(ModelSettings(model_id="sam2-demo"))
        await model.reconfigure(Sam2ModelConfig(cache_bytes=1000, **config).model_dump())
        return model

    yield build
    engine.go.set()


async def ask(model: Sam2Model, value: int) -> int:
    """A request for an image of that value; what the answer was made of."""
    answer = await segment(model, str(value))
    if isinstance(answer, Wanted):
        answer = await segment(model, str(value), image(value))
    if isinstance(answer, Overloaded):
        raise answer
    assert isinstance(answer, ModelAnswer)
    assert answer.result.image_id == str(value)
    return int(answer.result.low_res_logits[0, 0, 0, 0])


async def test_images_that_come_while_a_batch_is_at_work_are_the_next_batch(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model(max_batch_size=4, batch_wait_timeout_s=0.001)
    requests = [asyncio.create_task(ask(replica, 0))]
    await until(lambda: bool(engine.images))
    for value in range(1, 7):
        requests.append(asyncio.create_task(ask(replica, value)))
        # Much longer than a batch waits for company.
        await asyncio.sleep(0.02)
    engine.go.set()
    assert await asyncio.gather(*requests) == list(range(7))
    assert engine.images == [[0], [1, 2, 3, 4], [5, 6]]


async def test_the_size_of_batches_is_live(model: Callable[..., Any], engine: RecordingEngine) -> None:
    replica = await model(max_batch_size=2, batch_wait_timeout_s=0.001)
    requests = [asyncio.create_task(ask(replica, 0))]
    await until(lambda: bool(engine.images))
    await replica.reconfigure(Sam2ModelConfig(max_batch_size=5, cache_bytes=1000).model_dump())
    requests += [asyncio.create_task(ask(replica, value)) for value in range(1, 6)]
    await asyncio.sleep(0.05)
    engine.go.set()
    await asyncio.gather(*requests)
    assert engine.images == [[0], [1, 2, 3, 4, 5]]


async def test_where_nothing_is_configured_batches_suit_the_device(
    model: Callable[..., Any], engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam2_model, "_gpu_fraction", lambda: 0.0)
    monkeypatch.setattr(checkpoints, "load_model", lambda *_: None)
    loaded = SimpleNamespace(
        warm_up=lambda: None, device=torch.device("cpu"), precision=torch.float32, encoder_backend="torch"
    )
    monkeypatch.setattr(engine_module, "Engine", lambda *_: loaded)
    monkeypatch.setattr(devices, "default_batch_sizes", lambda _: (3, 2))

    replica = await model(batch_wait_timeout_s=0.001)
    replica._status = SimpleNamespace(loading=print, ready=print)
    LOAD(replica)
    requests = [asyncio.create_task(ask(replica, 0))]
    await until(lambda: bool(engine.images))
    requests += [asyncio.create_task(ask(replica, value)) for value in range(1, 5)]
    await settled()
    engine.go.set()
    await asyncio.gather(*requests)
    assert engine.images == [[0], [1, 2, 3], [4]]
    assert max(map(len, engine.prompts)) == 2


async def test_prompts_that_come_while_others_are_decoded_are_decoded_together(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model(max_decode_batch_size=3)
    engine.go.set()
    for value in range(5):
        await ask(replica, value)
    engine.prompts.clear()
    assert await asyncio.gather(*(ask(replica, value) for value in range(5))) == list(range(5))
    assert sorted(map(len, engine.prompts)) == [2, 3]
    assert sorted(value for prompts in engine.prompts for value in prompts) == list(range(5))


async def test_a_request_that_is_gone_never_reaches_a_batch(model: Callable[..., Any], engine: RecordingEngine) -> None:
    replica = await model(max_batch_size=8, batch_wait_timeout_s=0.001)
    first = asyncio.create_task(ask(replica, 0))
    await until(lambda: bool(engine.images))
    others = [asyncio.create_task(ask(replica, value)) for value in (1, 2, 2, 3)]
    await asyncio.sleep(0.05)
    # Both that want image 2, and one of the others.
    for gone in (others[1], others[2], others[3]):
        gone.cancel()
    await asyncio.sleep(0.02)
    engine.go.set()
    assert list(await asyncio.gather(first, others[0])) == [0, 1]
    assert engine.images == [[0], [1]]


async def test_an_image_that_does_not_fit_fails_alone_and_is_not_remembered(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model(max_batch_size=8, batch_wait_timeout_s=0.05)
    engine.go.set()
    results = await asyncio.gather(*(ask(replica, value) for value in (1, TOO_LARGE, 2)), return_exceptions=True)
    assert engine.images == [[1, TOO_LARGE, 2]]
    assert (results[0], results[2]) == (1, 2)
    assert isinstance(results[1], Overloaded)
    with pytest.raises(Overloaded):
        await ask(replica, TOO_LARGE)
    assert len(engine.images) == 2


async def test_answers_tell_hits_from_misses_and_what_took_how_long(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    assert await segment(replica, "1") == Wanted()
    missing = asyncio.create_task(segment(replica, "1", image(1)))
    await until(lambda: bool(engine.images))
    await asyncio.sleep(0.1)
    engine.go.set()
    missed = await missing
    hit = await segment(replica, "1")
    assert (missed.cache, hit.cache) == ("miss", "hit")
    assert hit.embed_s < 0.1 <= missed.embed_s
    assert min(missed.decode_s, hit.decode_s) >= engine.seconds


async def test_another_is_asked_for_the_pixels_when_the_first_gives_up(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    engine.go.set()
    assert await segment(replica, "1") == Wanted()
    waiting = asyncio.create_task(ask(replica, 1))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await replica.give_up("1")
    assert await waiting == 1


async def test_an_id_alone_is_answered_only_where_the_image_is_remembered(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    engine.go.set()
    assert await segment(replica, "1", offers=frozenset()) == Wanted()
    # That was no promise of pixels, for which this one would wait.
    assert await ask(replica, 1) == 1
    answer = await segment(replica, "1", offers=frozenset())
    assert isinstance(answer, ModelAnswer)
    assert answer.cache == "hit"
    assert engine.images == [[1]]


async def test_an_answer_that_would_be_too_large_is_refused_before_it_is_decoded(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    engine.go.set()
    await ask(replica, 1)
    engine.prompts.clear()
    # Three masks of 2×2 and their logits.
    most = 3 * (4 + 256 * 256)
    with pytest.raises(TooLarge, match=f"{most} numbers, more than the {most - 1}"):
        await replica.ask(SegmentCall("1", PROMPT, AnswerSize(3, most - 1)))
    assert not engine.prompts
    assert isinstance(await replica.ask(SegmentCall("1", PROMPT, AnswerSize(3, most))), ModelAnswer)


async def test_embedding_asks_for_the_pixels_and_tells_the_size(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    engine.go.set()
    assert await embed(replica, "1") == Wanted()
    for pixels in (image(1), None):
        assert await embed(replica, "1", pixels) == EmbeddedImage("1", "sam2-demo", (2, 2))
    assert (engine.images, engine.prompts) == ([[1]], [])


async def test_embedding_and_prompts_at_once_share_one_run(model: Callable[..., Any], engine: RecordingEngine) -> None:
    replica = await model()
    assert await embed(replica, "1") == Wanted()
    prompts = [asyncio.create_task(ask(replica, 1)) for _ in range(3)]
    by_id = asyncio.create_task(segment(replica, "1", offers=frozenset()))
    await settled()
    embedded = [asyncio.create_task(embed(replica, "1", pixels)) for pixels in (image(1), None)]
    await settled()
    engine.go.set()
    assert await asyncio.gather(*embedded) == [EmbeddedImage("1", "sam2-demo", (2, 2))] * 2
    assert await asyncio.gather(*prompts) == [1, 1, 1]
    assert isinstance(await by_id, ModelAnswer)
    assert engine.images == [[1]]


async def test_a_forgotten_image_is_asked_for_again(model: Callable[..., Any], engine: RecordingEngine) -> None:
    replica = await model()
    engine.go.set()
    await ask(replica, 1)
    assert await replica.forget("1")
    assert not await replica.forget("1")
    assert await segment(replica, "1") == Wanted()


# ---- everything


class Steps:
    """Stands for AutomaticMaskGenerator: two crops, three steps each, every step noted."""

    def __init__(self, engine: RecordingEngine, prompt: AutomaticPrompt, image_size: tuple[int, int]) -> None:
        self._engine = engine
        whole, part = (SimpleNamespace(layer=layer, pixels=(slice(0, 2 - layer), slice(None))) for layer in range(2))
        self.crops = [whole, part][: 1 + prompt.crop_n_layers]

    def steps(self, embedding: Embedding, crop: Any) -> Iterator[None]:
        for _ in range(3):
            if embedding.value == TOO_LARGE - 1:
                raise Overloaded("does not fit")
            self._engine.prompts.append([1000 + embedding.value])
            time.sleep(self._engine.seconds)
            yield

    def finish(self, *arguments: Any) -> tuple[Any, ...]:
        return arguments


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, engine: RecordingEngine) -> None:
    monkeypatch.setattr(automatic_masks, "AutomaticMaskGenerator", Steps)
    engine.go.set()


async def auto(model: Sam2Model, value: int, **options: Any) -> Any:
    answer = await model.ask(AutoCall(str(value), AutomaticPrompt(**options), 7), Supplies(image(value)))
    if isinstance(answer, Overloaded):
        raise answer
    assert isinstance(answer, ModelAnswer)
    given: Any = answer.result
    assert given == (str(value), "sam2-demo", 7)
    return answer


@pytest.mark.usefixtures("steps")
async def test_a_click_has_its_turn_between_slices(model: Callable[..., Any], engine: RecordingEngine) -> None:
    replica = await model()
    await ask(replica, 1)
    engine.prompts.clear()
    long = [asyncio.create_task(auto(replica, value)) for value in (2, 3)]
    await until(lambda: len(engine.prompts) == 2)
    assert await ask(replica, 1) == 1
    # The slice that was at work, and perhaps one that had just been sent.
    assert engine.prompts.index([1]) <= 4
    assert not any(task.done() for task in long)
    await asyncio.gather(*long)
    # One after the other, not both at once.
    assert [values for values in engine.prompts if values != [1]] == [[1002]] * 3 + [[1003]] * 3


@pytest.mark.usefixtures("steps")
async def test_everything_remembers_the_image_and_embeds_crops_anew(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    assert isinstance(await replica.ask(AutoCall("4", AutomaticPrompt())), Wanted)
    assert await replica.ask(AutoCall("5", AutomaticPrompt()), caller=Caller(offers=frozenset())) == Wanted()
    missed = await auto(replica, 4)
    assert engine.images == [[4]]
    assert (await auto(replica, 4)).cache == "hit" != missed.cache
    await auto(replica, 4, crop_n_layers=1)
    assert engine.images == [[4], [4]]


@pytest.mark.usefixtures("steps")
async def test_whoever_is_gone_or_failed_makes_room_for_the_next(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    gone = asyncio.create_task(auto(replica, 1))
    waiting = asyncio.create_task(auto(replica, 2))
    await until(lambda: len(engine.prompts) == 1)
    gone.cancel()
    waiting.cancel()
    await asyncio.wait([gone, waiting])
    with pytest.raises(Overloaded, match="does not fit"):
        await auto(replica, TOO_LARGE - 1)
    engine.prompts.clear()
    await auto(replica, 3)
    assert engine.prompts == [[1003]] * 3
    assert replica._auto_turns.admission.waiting == 0


@pytest.mark.usefixtures("steps")
async def test_only_so_many_wait_for_their_turn(
    model: Callable[..., Any], engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam2_model, "MAX_WAITING_AUTOS", 2)

    replica = await model()
    tasks = [asyncio.create_task(auto(replica, value)) for value in range(5)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 2


@pytest.mark.usefixtures("steps")
async def test_who_wants_everything_waits_no_longer_than_it_may(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    # Three slices of 0.05 s each.
    await auto(replica, 1)
    tasks = [asyncio.create_task(auto(replica, 1)) for _ in range(3)]
    await settled()
    assert "takes about" in str(await replica.ask(AutoCall("1", AutomaticPrompt()), caller=Caller(wait_s=0.2)))
    # It takes longer than was to be expected.
    replica._auto_turns.admission._batch_s = 0.001
    assert "take too long" in str(await replica.ask(AutoCall("1", AutomaticPrompt()), caller=Caller(wait_s=0.2)))
    await asyncio.gather(*tasks)
    assert isinstance(await replica.ask(AutoCall("1", AutomaticPrompt()), caller=Caller(wait_s=5)), ModelAnswer)


async def test_one_callers_deadline_is_not_that_of_others_who_wait_for_the_image(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model()
    assert await segment(replica, "1", name="hasty", wait_s=0.3) == Wanted()
    others = [asyncio.create_task(ask(replica, 1)) for _ in range(3)]
    await settled()
    # Since then, many have come.
    engine.go.clear()
    busy = asyncio.create_task(ask(replica, 2))
    await until(lambda: engine.images == [[2]])
    replica._embed_stage.admission._batch_s = 1.0
    assert isinstance(await segment(replica, "1", image(1), name="hasty", wait_s=0.2), Overloaded)
    engine.go.set()
    assert await asyncio.gather(*others) == [1, 1, 1]
    assert await busy == 2


async def test_who_would_wait_too_long_is_told_so_before_it_sends_pixels(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model(max_batch_size=1, batch_wait_timeout_s=0.001, max_wait_s=60)
    engine.go.set()
    # The decoder's queue is not to be the one that is too long, however slow the machine is.
    engine.seconds = 0.0
    # A run takes some 0.1 s of ten that are to come.
    replica._embed_stage.admission._batch_s = 0.1
    engine.go.clear()
    requests = [asyncio.create_task(ask(replica, value)) for value in range(10)]
    await until(lambda: bool(engine.images))
    refused = await segment(replica, "10", wait_s=0.3)
    assert isinstance(refused, Overloaded)
    assert "the queue of sam2-demo takes about" in refused.message
    assert refused.retry_after_s == 1
    # It is promised to nobody: who has more time is asked for the pixels.
    assert isinstance(await segment(replica, "10", wait_s=30), Wanted)
    await replica.give_up("10")
    # Also who has them, and came too late with them.
    assert isinstance(await segment(replica, "11", image(11), wait_s=0.3), Overloaded)
    await replica.reconfigure(Sam2ModelConfig(cache_bytes=1000, max_wait_s=0.3).model_dump())
    assert isinstance(await embed(replica, "12"), Overloaded)
    engine.go.set()
    assert await asyncio.gather(*requests) == list(range(10))


async def test_a_remembered_image_needs_no_turn_of_the_encoder(
    model: Callable[..., Any], engine: RecordingEngine
) -> None:
    replica = await model(max_batch_size=1, batch_wait_timeout_s=0.001)
    engine.go.set()
    await ask(replica, 1)
    engine.go.clear()
    replica._embed_stage.admission._batch_s = 100.0
    busy = asyncio.create_task(ask(replica, 2))
    await until(lambda: len(engine.images) == 2)
    answer = await segment(replica, "1", wait_s=5)
    assert isinstance(answer, ModelAnswer)
    engine.go.set()
    await busy


@pytest.mark.parametrize("stage", ["embed_each", "decode_each"])
async def test_a_replica_whose_device_is_lost_ends(
    model: Callable[..., Any], engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, stage, fail)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)

    replica = await model()
    engine.go.set()
    with pytest.raises(torch.AcceleratorError):
        await ask(replica, 1)
    assert codes == [1]


async def test_a_replica_is_healthy_if_its_device_works(model: Callable[..., Any], engine: RecordingEngine) -> None:
    replica = await model()
    checked: list[bool] = []
    engine.check_device = lambda: checked.append(True)  # type: ignore[attr-defined]
    await replica.check_health()
    assert checked == [True]


async def test_a_replica_whose_model_is_not_loaded_is_healthy(
    model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is the matter, and tries again."""

    def fail(_: Any) -> Any:
        raise ModelLoadError("no network")

    monkeypatch.setattr(Sam2Model, "_load", fail)
    monkeypatch.setattr(sam2_model, "_is_warm", lambda: False)
    replica = await model()
    await replica.check_health()
    with pytest.raises(ModelUnavailable, match="no network"):
        await segment(replica, "1")
