"""The same image, the same replica: the router that RequestParser's calls to a model go through."""

import hashlib
import time
from collections import Counter
from typing import Any

import pytest

from harness.serve import deploy
from tests.integration.conftest import MEMBERS, Service, config_document, routing_application

IMAGES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(60)]


class Routing:
    """The application beside the service, with as many members as a test wants."""

    def __init__(self, service: Service) -> None:
        from ray import serve

        document = config_document(int(service.url.rpartition(":")[2]), service.folder, service.own_config)
        self._document = {**document, "applications": document["applications"][:1]}
        self._caller: Any = serve.get_app_handle("routing")
        self._deployed = (MEMBERS, 100)

    def deploy(self, members: int, max_ongoing_requests: int = 100) -> None:
        """With so many members; returns when calls reach all of them."""
        if self._deployed != (members, max_ongoing_requests):
            routing = routing_application(members, max_ongoing_requests)
            deploy({**self._document, "applications": [*self._document["applications"], routing]})
        deadline = time.monotonic() + 60
        while len(set(self.names(IMAGES))) != members and time.monotonic() < deadline:
            time.sleep(0.2)
        self._deployed = (members, max_ongoing_requests)

    def names(self, image_ids: list[str], seconds: float = 0) -> list[str]:
        """Which member each image reaches; all asked at once, inside one request."""
        return list(self._caller.names.remote(image_ids, seconds).result(timeout_s=60))


@pytest.fixture(scope="module")
def routing(service: Service) -> Routing:
    """As the service started it."""
    return Routing(service)


def test_an_image_stays_with_its_replica_and_few_move_when_one_is_added(routing: Routing) -> None:
    routing.deploy(2)
    before = routing.names(IMAGES)
    # Every replica has its part, and every image its place: in whatever order, and each one alone.
    assert min(Counter(before).values()) >= 4
    assert routing.names(IMAGES[::-1])[::-1] == before
    assert [routing.names([image_id])[0] for image_id in IMAGES[:10]] == before[:10]

    routing.deploy(3)
    after = routing.names(IMAGES)
    moved = [new for old, new in zip(before, after, strict=True) if new != old]
    # A third is expected, 20; what moves, moves to the new replica.
    assert len(moved) <= 33
    assert set(moved) == set(after) - set(before)


def test_many_calls_inside_one_request_are_all_answered_by_the_right_replica(routing: Routing) -> None:
    routing.deploy(3)
    expected = dict(zip(IMAGES, routing.names(IMAGES), strict=True))
    # Ray's own router finds the call by an id that all these share: some then hang.
    assert routing.names(IMAGES * 3, seconds=0.05) == [expected[image_id] for image_id in IMAGES * 3]


def test_a_replica_that_is_full_passes_an_image_on(routing: Routing) -> None:
    routing.deploy(3, max_ongoing_requests=2)
    names = Counter(routing.names(IMAGES[:1] * 6, seconds=1.0))
    assert names == dict.fromkeys(names, 2)
    assert len(names) == 3
