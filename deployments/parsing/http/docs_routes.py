"""`GET /docs`: Swagger UI from files of our own, so that it works without the network and below any prefix."""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "swagger"
FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
PATHS = {"/docs", *(f"/docs/{name}" for name in FILES)}

# They change only with the service's version.
CACHE_CONTROL = "public, max-age=3600"


class SwaggerFiles(StaticFiles):
    """Serves Swagger UI's files, which browsers may keep for a while."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Returns StaticFiles' response with how long it may be kept."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = CACHE_CONTROL
        return response


class DocsRoutes:
    """The routes of the interactive documentation."""

    def add_to(self, app: FastAPI) -> None:
        """Registers the documentation and its files."""
        app.add_api_route("/docs", self.get_docs, include_in_schema=False)
        app.mount("/docs", SwaggerFiles(directory=FOLDER), name="docs")

    async def get_docs(self, request: Request) -> Response:
        """Returns the page. It names files relative to its own address, so that a proxy may add a prefix."""
        # Beside `…/docs`, but one up from `…/docs/`.
        up = "../" if request.scope.get("raw_path", b"").endswith(b"/") else ""
        return get_swagger_ui_html(
            openapi_url=f"{up}openapi.json",
            title=f"{request.app.title}: documentation",
            swagger_js_url=f"{up}docs/swagger-ui-bundle.js",
            swagger_css_url=f"{up}docs/swagger-ui.css",
            swagger_favicon_url="data:,",
            # By default Swagger UI asks a validator on the web about documents that are not from localhost.
            swagger_ui_parameters={"validatorUrl": None},
        )
