"""A replica's refusals as answers."""

import pickle

import pytest

from deployments.errors import ModelUnavailable, Overloaded
from deployments.model.batching import overload_returned


class Model:
    @overload_returned
    async def segment(self, fault: Exception | None) -> int:
        if fault is not None:
            raise fault
        return 1


async def test_a_refusal_is_an_answer_that_holds_on_to_nothing_and_travels() -> None:
    refused = await Model().segment(Overloaded("full", 7.2))
    assert isinstance(refused, Overloaded)
    assert refused.__traceback__ is None
    arrived = pickle.loads(pickle.dumps(refused))
    assert (str(arrived), arrived.retry_after_s, arrived.status) == ("full", 8, 503)


async def test_what_else_a_replica_says_stays_as_it_is() -> None:
    assert await Model().segment(None) == 1
    with pytest.raises(ModelUnavailable, match="asleep"):
        await Model().segment(ModelUnavailable("asleep"))
