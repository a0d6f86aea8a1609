"""The embedding cache: eviction by bytes, time to live, single flight, election of a sender, cancellation."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from deployments.errors import Overloaded
from deployments.model import embedding_cache
from deployments.model.embedding_cache import EmbeddingCache
from tests.loops import Clock, settled, until


@dataclass(eq=False)
class Embedding:
    nbytes: int = 10


@dataclass
class Counts:
    """An observer that only counts."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    held: tuple[int, int] = (0, 0)

    def hit(self) -> None:
        self.hits += 1

    def miss(self) -> None:
        self.misses += 1

    def evicted(self) -> None:
        self.evictions += 1

    def holds(self, entries: int, nbytes: int) -> None:
        self.held = (entries, nbytes)


Cache = EmbeddingCache[Embedding]


def new_cache(
    max_bytes: int = 1000, ttl_s: float | None = None, sender_timeout_s: float = 5.0, max_waiting: int = 100
) -> tuple[Cache, Counts]:
    counts = Counts()
    cache = Cache(counts, max_waiting)
    cache.configure(max_bytes, ttl_s, sender_timeout_s)
    return cache, counts


@dataclass
class Encoder:
    """Runs that wait until they are let go, and are counted."""

    value: Embedding = field(default_factory=Embedding)
    error: Exception | None = None
    runs: int = 0
    cancelled: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> Embedding:
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.value


def ready_encoder() -> Encoder:
    encoder = Encoder()
    encoder.go.set()
    return encoder


def made(value: Embedding) -> Callable[[], Awaitable[Embedding]]:
    """A run that takes no time."""

    async def run() -> Embedding:
        return value

    return run


async def request(cache: Cache, image_id: str, encoder: Encoder) -> Embedding:
    """What a request does: asks by id, and sends the pixels if it is elected."""
    return await cache.get(image_id) or await cache.compute(image_id, encoder.run)


# ---- by its id alone


async def test_who_has_no_pixels_is_not_elected() -> None:
    cache, counts = new_cache()
    assert [await cache.get("a", sender=None) for _ in range(2)] == [None, None]
    # Nobody is taken to be sending, so the next one who could is asked at once.
    value = await request(cache, "a", encoder := ready_encoder())
    assert await cache.get("a", sender=None) is value
    assert (encoder.runs, counts.hits, counts.misses) == (1, 1, 1)


async def test_who_has_no_pixels_waits_for_an_image_on_its_way() -> None:
    cache, _ = new_cache()
    assert await cache.get("a") is None
    waiting = asyncio.create_task(cache.get("a", sender=None))
    await settled()
    value = await cache.compute("a", ready_encoder().run)
    assert await waiting is value


async def test_who_has_no_pixels_is_not_elected_when_the_sender_gives_up() -> None:
    cache, _ = new_cache()
    assert await cache.get("a") is None
    without, other = (asyncio.create_task(cache.get("a", sender)) for sender in (None, ""))
    await settled()
    cache.give_up("a")
    assert await without is None
    assert await other is None
    # The other one is the sender now.
    last = asyncio.create_task(cache.get("a"))
    await settled()
    assert not last.done()
    await cache.compute("a", ready_encoder().run)
    assert await last is not None


async def test_who_has_no_pixels_is_told_where_too_many_wait() -> None:
    cache, _ = new_cache(max_waiting=1)
    assert await cache.get("a") is None
    waiting = asyncio.create_task(cache.get("a", sender=None))
    await settled()
    # Not that it is not there: it soon will be.
    with pytest.raises(Overloaded):
        await cache.get("a", sender=None)
    await cache.compute("a", ready_encoder().run)
    assert await waiting is not None


async def test_only_who_was_elected_can_give_up() -> None:
    cache, _ = new_cache(max_waiting=1)
    assert await cache.get("a", "first") is None
    waiting = asyncio.create_task(cache.get("a", "second"))
    await settled()
    # Too many wait, so it may send its pixels too; but the first one's are still on their way.
    assert await cache.get("a", "third") is None
    cache.give_up("a", "third")
    await settled()
    assert not waiting.done()
    cache.give_up("a", "first")
    assert await waiting is None
    cache.give_up("a", "second")
    assert cache.promised == 0


async def test_who_is_refused_leaves_the_image_to_others() -> None:
    def refuse() -> None:
        raise Overloaded("full")

    cache, counts = new_cache()
    with pytest.raises(Overloaded):
        await cache.get("a", "hasty", refuse)
    assert cache.promised == 0
    # Elected, and then too late for its own deadline, which is not that of who waits for the image.
    assert await cache.get("a", "slow") is None
    waiting = asyncio.create_task(cache.get("a", "patient"))
    await settled()
    with pytest.raises(Overloaded):
        await cache.compute("a", (encoder := ready_encoder()).run, "slow", refuse)
    assert await waiting is None
    assert (encoder.runs, counts.misses) == (0, 0)
    # One who was not elected takes nothing back.
    with pytest.raises(Overloaded):
        await cache.compute("a", encoder.run, "slow", refuse)
    assert cache.promised == 1
    assert await cache.compute("a", encoder.run, "patient") is not None
    assert (encoder.runs, counts.misses) == (1, 1)


# ---- entries


async def test_a_remembered_image_is_a_hit() -> None:
    cache, counts = new_cache()
    value = await cache.compute("a", made(Embedding()))
    assert await cache.get("a") is value
    assert (counts.hits, counts.misses, counts.held) == (1, 1, (1, 10))


async def test_the_least_recently_used_is_evicted_by_bytes() -> None:
    cache, counts = new_cache(max_bytes=30)
    for image_id in "abc":
        await cache.compute(image_id, made(Embedding(10)))
    await cache.get("a")
    await cache.compute("d", made(Embedding(15)))
    # b and c made room; a was used after them.
    assert [await cache.get(image_id) is not None for image_id in "abcd"] == [True, False, False, True]
    assert (counts.evictions, counts.held, cache.nbytes) == (2, (2, 25), 25)


async def test_what_is_larger_than_the_cache_is_answered_but_evicts_nothing() -> None:
    cache, counts = new_cache(max_bytes=30)
    await cache.compute("a", made(Embedding(10)))
    assert (await cache.compute("b", made(Embedding(31)))).nbytes == 31
    assert (len(cache), counts.evictions) == (1, 0)


async def test_lower_limits_evict_at_once() -> None:
    cache, counts = new_cache()
    for image_id in "abc":
        await cache.compute(image_id, made(Embedding(10)))
    cache.configure(10, None, 5)
    assert (len(cache), cache.nbytes, counts.evictions) == (1, 10, 2)
    assert await cache.get("c") is not None


async def test_what_is_too_old_is_forgotten_also_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(embedding_cache, "time", clock)
    cache, counts = new_cache(ttl_s=0.05)
    await cache.compute("a", made(Embedding()))
    clock.now = 0.03
    # Used, but not younger for it.
    assert await cache.get("a") is not None
    clock.now = 0.05
    await until(lambda: not len(cache))
    assert (len(cache), counts.held, counts.evictions) == (0, (0, 0), 1)


async def test_a_forgotten_image_is_gone() -> None:
    cache, counts = new_cache()
    await cache.compute("a", made(Embedding()))
    assert cache.forget("a")
    assert not cache.forget("a")
    assert await cache.get("a") is None
    assert (counts.held, cache.nbytes) == ((0, 0), 0)


async def test_an_image_that_is_forgotten_while_the_encoder_runs_is_answered_but_not_remembered() -> None:
    cache, _ = new_cache()
    encoder = Encoder()
    waiting = asyncio.create_task(request(cache, "a", encoder))
    await settled()
    assert cache.forget("a")
    encoder.go.set()
    assert await waiting is encoder.value
    assert len(cache) == 0


async def test_a_time_to_live_that_is_set_later_counts_for_what_is_there() -> None:
    cache, _ = new_cache()
    await cache.compute("a", made(Embedding()))
    cache.configure(1000, 0.03, 5)
    await until(lambda: not len(cache))


# ---- single flight


async def test_ten_requests_at_once_for_a_new_image_cost_one_run() -> None:
    cache, counts = new_cache()
    encoder = Encoder()
    requests = [asyncio.create_task(request(cache, "a", encoder)) for _ in range(10)]
    await settled()
    assert encoder.runs == 1
    encoder.go.set()
    assert set(await asyncio.gather(*requests)) == {encoder.value}
    assert (counts.misses, counts.hits) == (1, 9)


async def test_only_one_of_many_is_asked_for_the_pixels() -> None:
    cache, _ = new_cache()
    answers = [asyncio.create_task(cache.get("a")) for _ in range(10)]
    await settled()
    assert [answer.done() for answer in answers].count(True) == 1
    value = await cache.compute("a", made(Embedding()))
    results = await asyncio.gather(*answers)
    assert (results.count(None), results.count(value)) == (1, 9)


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    cache, _ = new_cache()
    encoder = Encoder(error=ValueError("broken"))
    requests = [asyncio.create_task(request(cache, "a", encoder)) for _ in range(3)]
    await settled()
    encoder.go.set()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert [str(result) for result in results] == ["broken"] * 3
    again = Encoder()
    again.go.set()
    assert await request(cache, "a", again) is again.value


@pytest.mark.parametrize("leaving", [0, 1])
async def test_a_request_that_leaves_harms_no_other(leaving: int) -> None:
    cache, _ = new_cache()
    encoder = Encoder()
    requests = [asyncio.create_task(request(cache, "a", encoder)) for _ in range(3)]
    await settled()
    requests.pop(leaving).cancel()
    await settled()
    encoder.go.set()
    assert set(await asyncio.gather(*requests)) == {encoder.value}
    assert (encoder.runs, encoder.cancelled) == (1, 0)


async def test_a_run_that_all_have_left_is_cancelled_and_a_new_request_starts_its_own() -> None:
    cache, _ = new_cache()
    left, wanted = Encoder(), Encoder()
    requests = [asyncio.create_task(request(cache, "a", left)) for _ in range(2)]
    await settled()
    for one in requests:
        one.cancel()
    # In the very moment of the cancellation, too.
    await asyncio.sleep(0)
    late = asyncio.create_task(request(cache, "a", wanted))
    await settled()
    assert (left.cancelled, wanted.runs) == (1, 1)
    wanted.go.set()
    assert await late is wanted.value
    assert await cache.get("a") is wanted.value


# ---- senders


async def test_another_is_elected_when_the_sender_gives_up() -> None:
    cache, _ = new_cache()
    assert await cache.get("a") is None
    waiting = [asyncio.create_task(cache.get("a")) for _ in range(3)]
    await settled()
    cache.give_up("a")
    await settled()
    assert [task.done() for task in waiting].count(True) == 1
    value = await cache.compute("a", made(Embedding()))
    assert [await task for task in waiting].count(value) == 2


async def test_another_is_elected_when_the_sender_takes_too_long() -> None:
    cache, _ = new_cache(sender_timeout_s=0.05)
    assert await cache.get("a") is None
    assert await cache.get("a") is None


async def test_a_sender_that_was_given_up_may_still_deliver() -> None:
    cache, counts = new_cache()
    assert await cache.get("a") is None
    cache.give_up("a")
    value = await cache.compute("a", made(Embedding()))
    assert await cache.get("a") is value
    assert counts.misses == 1


async def test_giving_up_does_not_stop_a_run_of_another_sender() -> None:
    cache, _ = new_cache()
    encoder = Encoder()
    waiting = asyncio.create_task(request(cache, "a", encoder))
    await settled()
    cache.give_up("a")
    encoder.go.set()
    assert await waiting is encoder.value


async def test_those_who_wait_for_pixels_leave_room_for_those_who_send_them() -> None:
    cache, _ = new_cache(max_waiting=2)
    answers = [asyncio.create_task(cache.get("a")) for _ in range(5)]
    await settled()
    # One elected, two waiting, and two more who are asked to send rather than to wait.
    assert [answer.done() for answer in answers].count(True) == 3
    encoder = Encoder()
    senders = [asyncio.create_task(cache.compute("a", encoder.run)) for _ in range(3)]
    await settled()
    encoder.go.set()
    assert set(await asyncio.gather(*senders)) == {encoder.value}
    assert encoder.runs == 1
