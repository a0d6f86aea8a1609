"""HAProxy, with what Ray Serve's settings for it do not reach: Serve starts this program in its place.

The environment variable RAY_SERVE_HAPROXY_BINARY_PATH names it. It amends the configuration that Serve has written for
this start, and becomes HAProxy; a configuration that looks otherwise than Ray 2.60's goes to HAProxy as it is.
"""

import json
import os
import sys
from http import HTTPStatus
from pathlib import Path

from deployments.environment import haproxy_binary, request_head_timeout_s

MAX_HEADERS = 256
"""Of a request; HAProxy's default of 101 is too few behind chains of proxies."""

SPARE_CONNECTIONS = 16
"""Of `maxconn`, kept for whoever reads metrics."""

FRONTEND = "frontend http_frontend"
USE = "    use_backend "
HAS_SERVED = "segment-anything-2-has-served"
STARTING = "the service is starting, or is being replaced; try again"

ERRORS = {
    # Every request may be sent again.
    502: (HTTPStatus.SERVICE_UNAVAILABLE, 1, "the process that answered ended meanwhile; send the request again"),
    503: (HTTPStatus.SERVICE_UNAVAILABLE, 2, STARTING),
    504: (HTTPStatus.GATEWAY_TIMEOUT, None, "the service did not answer in time"),
}
"""What is answered in place of HAProxy's own errors, in the form of the service's: status, Retry-After, message.

Those of a head that is malformed (400) or late (408) stay HTML: HAProxy 2.8 sends them before it looks at its settings.
"""


def main() -> None:
    """Amends the file that follows `-f`, and runs HAProxy with the arguments that were given, in this very process."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    config = path.read_text()
    # The folder is this node's, and begins with its Ray.
    has_served = path.parent / HAS_SERVED
    if has_parser(config):
        has_served.touch()
    # Serve tells its own proxies by this path on their command line, so the file keeps its name.
    is_starting = not has_served.exists() or USE not in config
    path.write_text(amended(config, write_errors(path.parent), request_head_timeout_s(), is_starting))
    binary = haproxy_binary()
    os.execv(binary, [binary, *arguments])


def write_errors(folder: Path) -> dict[int, Path]:
    """Writes each error as HAProxy wants it, a whole HTTP message; returns the files by HAProxy's own status."""
    return {code: write_error(folder / f"segment-anything-2-{code}.http", *error) for code, error in ERRORS.items()}


def write_error(path: Path, status: HTTPStatus, retry_after_s: int | None, message: str) -> Path:
    """Writes one; returns its path."""
    body = json.dumps({"detail": {"msg": message}})
    retry = f"Retry-After: {retry_after_s}\r\n" if retry_after_s else ""
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n{retry}"
    path.write_text(f"{head}Content-Length: {len(body)}\r\n\r\n{body}", newline="")
    return path


def has_parser(config: str) -> bool:
    """Whether there is a server to send requests to, other than the proxy that Serve has for the time without one."""
    words = [line.split() for line in config.splitlines()]
    return any(line[0] == "server" and line[-1] != "backup" for line in words if line)


def amended(config: str, errors: dict[int, Path], head_timeout_s: float, is_starting: bool) -> str:
    """Returns Serve's configuration with what it lacks.

    - more headers are taken (`tune.http.maxhdr`);
    - a connection on which no whole head of a request arrives in time is ended (`timeout http-request`);
    - beyond `maxconn`, connections are refused at once, where HAProxy would let them wait unseen;
    - errors for a service that can't be reached are JSON, and 503 with Retry-After where another try helps;
    - until there is a parser for the first time, and while no application is known, the answer is 503; HAProxy would
      let requests wait in Serve's own proxy, or say 404.

    Args:
        config: the text of the file.
        errors: files with whole HTTP messages, by HAProxy's own status.
        head_timeout_s: how long a request's head may take, in seconds.
        is_starting: whether there has been no parser yet, or this HAProxy knows of no application.
    """
    lines = config.splitlines()
    limits = [int(words[1]) for words in map(str.split, lines) if words[:1] == ["maxconn"]]
    result = []
    for line in lines:
        if line.startswith("    errorfile "):
            continue
        result.append(line)
        if line == "global":
            result.append(f"    tune.http.maxhdr {MAX_HEADERS}")
        elif line == "defaults":
            result.append(f"    timeout http-request {round(1000 * head_timeout_s)}ms")
            result += [f"    errorfile {code} {path}" for code, path in errors.items()]
        elif line == FRONTEND:
            spare = [limit - SPARE_CONNECTIONS for limit in limits]
            result += [f"    tcp-request connection reject if {{ fe_conn gt {limit} }}" for limit in spare]
            if is_starting:
                # Serve's own paths, such as its health check, stay.
                result.append(f"    http-request return status 503 errorfile {errors[503]} if !{{ path_beg /-/ }}")
    return "\n".join([*result, ""])


if __name__ == "__main__":
    main()
