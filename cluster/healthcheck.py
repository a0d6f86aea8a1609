"""The container's health check: exits with 1 unless the service answers and its default model has not failed."""

import json
import sys
import urllib.request

URL = "http://127.0.0.1:8000/health"


def main(url: str = URL) -> int:
    """Returns the exit code: 0 if the service at the URL answers and is not in error, else 1."""
    # Bypasses any proxy that the environment names for outside connections.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=4) as answer:
            status = json.load(answer)["status"]
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1
    sys.stdout.write(f"{status}\n")
    return int(status == "ERROR")


if __name__ == "__main__":
    sys.exit(main())
