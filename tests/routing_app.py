"""A Serve application that shows where calls go: replicas that say who they are, behind the service's own router."""

import asyncio
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.app import MODEL_OPTIONS

ROUTING = {name: MODEL_OPTIONS[name] for name in ("max_queued_requests", "request_router_config")}


class Member:
    """In the place of a model: it has a name, and no more."""

    async def name(self, seconds: float = 0) -> str:
        """This replica's name, after a while."""
        await asyncio.sleep(seconds)
        return str(serve.get_replica_context().replica_tag)


class Caller:
    """In the place of RequestParser: makes many calls inside one request."""

    def __init__(self, members: "DeploymentHandle[Any]") -> None:
        self._members: Any = members

    async def names(self, image_ids: list[str], seconds: float = 0) -> list[str]:
        """Which replica each image's call reaches, all asked at once."""
        calls = (self._members.options(session_id=image_id).name.remote(seconds) for image_id in image_ids)
        return list(await asyncio.gather(*calls))


def build(_: dict[str, Any]) -> Application:
    """The application; a config file's `deployments` says how many members it has."""
    members = serve.deployment(**ROUTING)(Member)
    return serve.deployment(ray_actor_options={"num_cpus": 0})(Caller).bind(members.bind())
