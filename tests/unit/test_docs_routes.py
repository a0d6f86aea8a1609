"""/docs and the OpenAPI document: nothing comes from elsewhere, below any prefix, and all bodies are described."""

import re
from typing import Annotated, Any
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI, File, Form, UploadFile
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from deployments.parsing.http.body_schemas import with_all_bodies
from deployments.parsing.http.docs_routes import FILES, FOLDER, DocsRoutes
from deployments.parsing.http.tolerance import PathMiddleware


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(docs_url=None, redoc_url=None, middleware=[Middleware(PathMiddleware)])
    DocsRoutes().add_to(app)
    return TestClient(app)


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_all_that_the_page_loads_is_here_below_any_prefix(client: TestClient, path: str) -> None:
    page = client.get(path).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"|url: \'([^\']+)\'', page)
    addresses = {one or other for one, other in loaded} - {"data:,"}
    found = {urljoin(f"http://host/any/prefix{path}", address) for address in addresses}
    base = "http://host/any/prefix"
    assert found == {f"{base}/openapi.json", *(f"{base}/docs/{name}" for name in FILES)}
    assert "http" not in page.replace("http-equiv", "")
    assert '"validatorUrl": null' in page


@pytest.mark.parametrize("name", FILES)
def test_swagger_uis_files_are_served_and_may_be_kept(client: TestClient, name: str) -> None:
    response = client.get(f"/docs/{name}")
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["cache-control"] == "public, max-age=3600"
    again = client.get(f"/docs/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


def test_the_files_come_with_their_licence_and_version() -> None:
    assert "Apache License" in (FOLDER / "LICENSE").read_text()
    [version] = re.findall(r"`swagger-ui-dist` ([\d.]+)", (FOLDER / "README.md").read_text())
    assert f'"{version}"' in (FOLDER / "swagger-ui-bundle.js").read_text()


def document() -> dict[str, Any]:
    app = FastAPI()

    @app.post("/segment")
    async def _(
        image: Annotated[UploadFile, File(description="The image.")] = None,  # type: ignore[assignment]
        point_coords: Annotated[str | None, Form(description="JSON.")] = None,
        flag: Annotated[bool, Form()] = True,
    ) -> None: ...

    @app.post("/keep")
    async def _(video: Annotated[UploadFile, File(description="The video.")]) -> None: ...

    @app.get("/health")
    async def _() -> None: ...

    return with_all_bodies(app.openapi())


def test_each_form_is_described_as_json_and_urlencoded_too() -> None:
    content = document()["paths"]["/segment"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json", "application/x-www-form-urlencoded"}
    as_json = content["application/json"]["schema"]["properties"]
    assert (as_json["image"]["type"], as_json["image"]["contentEncoding"]) == ("string", "base64")
    assert [one["type"] for one in as_json["point_coords"]["anyOf"]] == ["array", "string", "null"]
    assert as_json["flag"]["type"] == "boolean"
    assert set(content["application/x-www-form-urlencoded"]["schema"]["properties"]) == {"point_coords", "flag"}


def test_what_needs_a_file_cannot_be_urlencoded() -> None:
    content = document()["paths"]["/keep"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert content["application/json"]["schema"]["required"] == ["video"]
