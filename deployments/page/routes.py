"""Serves the click page: static files at `/` and below `/page`, with headers that allow no other files."""

import os
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
PREFIX = "/page"

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # blob: the image that the user chose.
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Browsers that know Trusted Types reject every text that would become HTML.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The browser asks for each file every time, and mostly gets 304: after an update it never mixes old and new files.
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """Serves the files that the page loads, with the page's headers."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Returns StaticFiles' response with the page's headers."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


class PageRoutes:
    """The routes of the page and its files."""

    def add_to(self, app: FastAPI) -> None:
        """Registers the page and its files."""
        app.add_api_route("/", self.get_page, methods=["GET", "HEAD"], include_in_schema=False)
        app.mount(PREFIX, PageFiles(directory=FOLDER), name="page")

    async def get_page(self) -> Response:
        """Returns index.html. It names its files relative to its own address, so that a proxy may add a prefix."""
        return FileResponse(FOLDER / "index.html", headers=HEADERS, media_type="text/html")
