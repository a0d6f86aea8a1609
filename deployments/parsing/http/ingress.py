"""HttpRequestParser, the ingress deployment: RequestParser's handle calls, and the HTTP application around them."""

import logging
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from deployments.errors import ServiceError
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.http.body_schemas import with_all_bodies
from deployments.parsing.http.docs_routes import DocsRoutes
from deployments.parsing.http.draining import InFlightRequests
from deployments.parsing.http.error_responses import on_http_exception, on_service_error, on_validation_error
from deployments.parsing.http.flow_control import is_flow_controlled
from deployments.parsing.http.http_server import use_paced_server
from deployments.parsing.http.image_routes import ImageRoutes
from deployments.parsing.http.middleware import outer_layers
from deployments.parsing.http.slow_bodies import SlowBodies
from deployments.parsing.http.status_routes import StatusRoutes
from deployments.parsing.http.upload_budget import Line, UploadBudget, UploadBudgets
from deployments.parsing.http.video_routes import VideoRoutes
from deployments.parsing.request_parser import RequestParser
from deployments.settings import ServiceSettings, auth_token

logger = logging.getLogger("ray.serve")

DESCRIPTION = """\
Segment Anything 2: an image and a prompt (points, box, mask) in; masks, scores and logits out.

[Click on an image and see the mask](./)
"""


class Routes(Protocol):
    """Some routes of the HTTP application."""

    def add_to(self, app: FastAPI) -> None:
        """Registers the routes, as bound methods."""


class HttpRequestParser(RequestParser):
    """Reads HTTP requests, calls the model, and streams the answer that ResponseEncoder writes.

    Args:
        settings: the application's settings.
        models: a handle of a Sam2Model deployment for each configured model id.
        encoder: the handle of ResponseEncoder.
        reader: the handle of VideoReader.
        page: the routes of the click page.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        models: dict[str, "DeploymentHandle[Any]"],
        encoder: "DeploymentHandle[Any]",
        reader: "DeploymentHandle[Any]",
        page: Routes,
    ) -> None:
        super().__init__(settings, models, encoder, reader)
        self._in_flight = InFlightRequests(self._metrics.in_progress)
        self._answer_budget = ByteBudget(
            self._calls.config.answer_budget_bytes,
            "too many answers are under way to clients that have not read them",
            self._metrics.answer_bytes,
        )
        # Not the answers': a job holds its share for as long as its video takes, and images must not wait for that.
        self._video_budget = ByteBudget(self._calls.config.video_budget_bytes, "too many objects are followed already")
        line = Line()

        def max_wait_s() -> float:
            return self._calls.config.max_wait_s

        def file_budget() -> UploadBudget:
            return UploadBudget(
                lambda: self._calls.config.file_budget_bytes, "too many large files are there", max_wait_s, line
            )

        texts = UploadBudget(
            lambda: self._calls.config.text_budget_bytes, "too many large bodies are there", max_wait_s, line
        )
        slow = SlowBodies(lambda: self._calls.config.max_arriving_bodies)
        self._routes = (
            ImageRoutes(
                settings.limits,
                self._segmenter,
                self._videos,
                self._calls,
                self._encoder_calls,
                self._answer_budget,
                UploadBudgets(texts, file_budget(), slow),
            ),
            VideoRoutes(
                settings.limits,
                self._segmenter,
                self._calls,
                self._videos,
                self._video_calls,
                self._encoder_calls,
                self._video_budget,
                # Of its own: a job keeps its file until its video is followed to the end.
                UploadBudgets(texts, file_budget(), slow),
            ),
            StatusRoutes(settings.default_model_id, self._model_states),
            DocsRoutes(),
            page,
        )
        # Serve starts this replica's own server once the replica is built.
        use_paced_server()
        if not is_flow_controlled():
            logger.warning(
                "this replica does not wait for slow clients, and holds whole answers in memory; "
                "see docs/configuration.md#behind-haproxy"
            )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies the deployment's `user_config` (RequestParserConfig), at the start and whenever it changes."""
        await super().reconfigure(user_config)
        self._answer_budget.set_limit(self._calls.config.answer_budget_bytes)
        self._video_budget.set_limit(self._calls.config.video_budget_bytes)

    async def drain(self, timeout_s: float) -> int:
        """Rejects new HTTP requests (503), and returns once all requests under way are answered.

        The launcher calls it before it ends the application: Serve then ends models and encoders at once, even while
        requests need them.

        Args:
            timeout_s: the most seconds to wait.

        Returns:
            The number of requests that were still under way at the end.
        """
        return await self._in_flight.close(timeout_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Builds the FastAPI application, here and not in app.py: its routes are bound methods of this replica."""
        app = FastAPI(
            title="Segment Anything 2",
            description=DESCRIPTION,
            version=version("segment-anything-2-serve"),
            middleware=outer_layers(
                auth_token(self._settings), self._settings.cors_origins, self._metrics, self._in_flight
            ),
            dependencies=[Security(HTTPBearer(auto_error=False, description="AUTH_TOKEN, if the operator set one"))],
            exception_handlers={
                ServiceError: on_service_error,
                HTTPException: on_http_exception,
                RequestValidationError: on_validation_error,
            },
            # Relative to the document itself, whatever prefix a proxy adds or strips.
            servers=[{"url": "./"}],
            root_path_in_servers=False,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        for routes in self._routes:
            routes.add_to(app)
        described = app.openapi
        app.openapi = cache(lambda: with_all_bodies(described()))  # type: ignore[method-assign]
        return app
