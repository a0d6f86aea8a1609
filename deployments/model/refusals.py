"""Overload as an answer, not as an exception that leaves the replica."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from deployments.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


def overload_returned(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T | Overloaded]]:
    """Makes a replica's method return the Overloaded that it raises; `ModelCalls` raises it on the caller's side.

    Serve logs whatever leaves a replica with its traceback, twice, and Ray writes it down once more: milliseconds that
    hold the GIL for each refusal, taken from the model just when refusals are most of what there is.
    """

    @wraps(method)
    async def answering(*arguments: P.args, **options: P.kwargs) -> T | Overloaded:
        try:
            return await method(*arguments, **options)
        except Overloaded as refusal:
            # The traceback would keep the request's pixels alive until a garbage collection.
            return refusal.with_traceback(None)

    return answering
