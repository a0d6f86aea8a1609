"""A server between the page and the service: passes requests on, asks for a token, is busy, counts."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.parsing.http.middleware import AuthMiddleware

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host", "keep-alive"}


@dataclass
class Relay:
    """Passes requests on to `target`.

    Attributes:
        target: the service's address.
        busy: for each path, how many of the next requests are answered 503, with Retry-After.
        slow_s: for each path, for how many seconds a request is held back.
        rejection: for each path, the message of a 400 that the next request is answered with.
        seen: for each path, how many requests came.
        answered: for each path, how many requests got the service's answer.
        bodies: for each path, the last body.
    """

    target: str
    busy: Counter[str] = field(default_factory=Counter)
    slow_s: dict[str, float] = field(default_factory=dict)
    rejection: dict[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    async def handle(self, request: Request) -> Response:
        """Answers one request."""
        path = request.url.path
        self.seen[path] += 1
        body = self.bodies[path] = await request.body()
        await asyncio.sleep(self.slow_s.get(path, 0))
        if self.busy[path] > 0:
            self.busy[path] -= 1
            return JSONResponse({"detail": {"msg": "the queue is full"}}, 503, {"Retry-After": "2"})
        if message := self.rejection.pop(path, None):
            return JSONResponse({"detail": {"msg": message}}, 400)
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            answer = await client.request(request.method, self.target + path, content=body, headers=headers)
        self.answered[path] += 1
        kept = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
        return Response(answer.content, answer.status_code, kept)


@contextmanager
def relay(target: str, token: str | None = None) -> Iterator[Relay]:
    """Runs a relay on a port of its own; with a token, the service's own middleware checks it."""
    one = Relay(target)
    routes = [Route("/{path:path}", one.handle, methods=["GET", "POST", "DELETE"])]
    app = AuthMiddleware(Starlette(routes=routes), token)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the relay did not start")
            threading.Event().wait(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        one.url = f"http://127.0.0.1:{port}"
        yield one
    finally:
        server.should_exit = True
        thread.join()
