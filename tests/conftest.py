"""How async tests run: by anyio's plugin, in a loop of their own, for 20 s at most."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

import pytest

LONGEST_ASYNC_TEST_S = 20

AsyncTest = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that Ray Serve runs on."""
    return "asyncio"


def bounded(test: AsyncTest) -> AsyncTest:
    """Fails where the test hangs, in place of its waiting for pytest's own much longer limit."""

    @wraps(test)
    async def within_limit(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(LONGEST_ASYNC_TEST_S):
            await test(*args, **kwargs)

    return within_limit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bounds every async test."""
    for item in items:
        if isinstance(item, pytest.Function) and iscoroutinefunction(item.obj):
            item.obj = bounded(item.obj)
