"""Client and AsyncClient by the same calls, around a server that is a function."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest

from deployments.client import AsyncClient, Client, TrackedFrame

Server = Callable[[httpx.Request], httpx.Response]


class Sync:
    """Gives Client the awaitable methods, and the asynchronous generator, of AsyncClient."""

    def __init__(self, server: Server, **options: Any) -> None:
        self.client = Client("http://service", transport=httpx.MockTransport(server), **options)

    async def track(self, *arguments: Any, **options: Any) -> AsyncGenerator[TrackedFrame, None]:
        frames = self.client.track(*arguments, **options)
        try:
            for frame in frames:
                yield frame
        finally:
            frames.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            return getattr(self.client, name)(*arguments, **options)

        return call


def asynchronous(server: Server, **options: Any) -> AsyncClient:
    return AsyncClient("http://service", transport=httpx.MockTransport(server), **options)


either = pytest.mark.parametrize("connect", [Sync, asynchronous], ids=["sync", "async"])
Connect = Callable[..., Any]
