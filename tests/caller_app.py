"""A second Serve application, whose one request asks the first many things at once."""

import asyncio
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import Segmentation


class Caller:
    """A program of the user's own, inside Serve, that uses the service by its handle."""

    async def segment_all(self, image: bytes, prompts: list[Prompt], model_id: str) -> list[Segmentation]:
        """All prompts on one image, at once."""
        handle: Any = serve.get_app_handle("segment-anything-2")
        calls = (handle.segment.remote(image, prompt, model_id=model_id) for prompt in prompts)
        return list(await asyncio.gather(*calls))


def build() -> Application:
    """The application."""
    return serve.deployment(ray_actor_options={"num_cpus": 0})(Caller).bind()
