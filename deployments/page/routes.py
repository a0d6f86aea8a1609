"""The click page: static files at `/` and below `/page`, with headers that let them load nothing but themselves."""

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
        # blob: is the image that the user chose.
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Texts become HTML nowhere: a browser that knows Trusted Types refuses it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked about each time and mostly answered 304: after an update no browser mixes old files with new ones.
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files that the page loads."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """As StaticFiles, with the page's headers."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


class PageRoutes:
    """What a person sees in a browser."""

    def add_to(self, app: FastAPI) -> None:
        """Registers the page and its files."""
        app.add_api_route("/", self.get_page, methods=["GET", "HEAD"], include_in_schema=False)
        app.mount(PREFIX, PageFiles(directory=FOLDER), name="page")

    async def get_page(self) -> Response:
        """The page itself, which names its files relative to the address that it was loaded from."""
        return FileResponse(FOLDER / "index.html", headers=HEADERS, media_type="text/html")
