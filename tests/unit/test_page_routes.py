"""The click page's files: their headers, and that they load and name nothing but themselves."""

import re
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from deployments.page.routes import FOLDER, PageRoutes

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
SOURCES = [name for name in FILES if Path(name).suffix in {".html", ".js", ".css"}]
MODULES = [name for name in FILES if name.endswith(".js")]


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    PageRoutes().add_to(app)
    return TestClient(app)


def assert_guarded(response: httpx2.Response) -> None:
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["img-src"] == "'self' blob:"
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


def test_the_page_is_at_the_root(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert_guarded(response)


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_served_with_its_type_and_the_headers(client: TestClient, name: str) -> None:
    response = client.get(f"/page/{name}")
    kinds = {".js": "javascript", ".css": "css", ".svg": "svg", ".png": "png", ".jpg": "jpeg", ".html": "html"}
    assert response.status_code == 200
    assert kinds.get(Path(name).suffix, "") in response.headers["content-type"]
    assert response.content == (FOLDER / name).read_bytes()
    assert_guarded(response)


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    tag = client.get("/page/app.js").headers["etag"]
    again = client.get("/page/app.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "../routes.py", "%2e%2e/routes.py", "examples", "", "\0", "a" * 5000])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get("/page/" + name.replace("\0", "%00")).status_code == 404


def imported_by(name: str) -> set[str]:
    return set(re.findall(r'from "\./([\w.-]+)"', (FOLDER / name).read_text()))


def test_all_that_the_page_names_is_there() -> None:
    page = (FOLDER / "index.html").read_text() + "".join((FOLDER / name).read_text() for name in MODULES)
    named = set(re.findall(r'"page/([\w./-]+)"', page))
    assert named <= set(FILES)
    unused = {name for name in FILES if name.endswith((".css", ".png", ".jpg"))} - named
    assert not unused


def test_every_module_is_reached_from_app_js_and_loaded_ahead() -> None:
    reached, new = {"app.js"}, {"app.js"}
    while new:
        new = set().union(*map(imported_by, new)) - reached
        reached |= new
    assert reached == set(MODULES)
    preloaded = re.findall(r'rel="modulepreload" href="page/([\w.-]+)"', (FOLDER / "index.html").read_text())
    assert sorted(preloaded) == sorted(reached - {"app.js"})


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    left = {name: imported_by(name) for name in MODULES}
    while free := [name for name, imports in left.items() if not imports & set(left)]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_names_another_host_or_makes_html_of_texts(name: str) -> None:
    source = (FOLDER / name).read_text()
    hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", source)) - {"www.w3.org"}
    assert not hosts
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", source)
    # The policy rejects styles and handlers inside of HTML.
    assert not re.search(r"<style|\sstyle=|\son\w+=\"|<script(?! type=\"module\" src=)|javascript:", source)


def test_the_examples_name_their_licences() -> None:
    text = (FOLDER / "examples" / "README.md").read_text()
    for example in (FOLDER / "examples").iterdir():
        if example.suffix != ".md":
            assert f"`{example.name}`" in text
    assert "licen" in text.lower()
