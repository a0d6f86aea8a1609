"""A program in Java, with the client of its own library, which offers to upgrade to HTTP/2 beside the body."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.forms import GOOD_BODY, MULTIPART, POINT, ROUTE, parts
from tests.integration.conftest import Service

PROGRAM = Path(__file__).with_name("Post.java")

# A runtime alone has `java` too, but does not compile the program.
pytestmark = pytest.mark.skipif(shutil.which("javac") is None, reason="no Java development kit is installed")


@pytest.mark.parametrize("proxy", ["url", "fallback_url"])
def test_java_s_own_http_client_gets_the_plain_answer(proxy: str, service: Service, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(GOOD_BODY)
    command = ["java", str(PROGRAM), f"{getattr(service, proxy)}{ROUTE}", MULTIPART, str(body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    with service.client() as client:
        plain = client.post(ROUTE, files=parts(POINT))
    assert done.stdout.split() == ["200", str(len(plain.content))], done.stderr
