#!/usr/bin/env bash
# Ray Serve: three ordinary exceptions that a caller's `except` does not recognise after a call through a handle
#
# One expects:   an exception that a deployment raises arrives as an instance of its own class (Ray makes a class that
#                inherits from both), so `except ValueError` and the like work across deployments.
# What happens:  it does for most, an ExceptionGroup included. But
#                * pydantic's ValidationError, a ValueError by itself, arrives as a bare RayTaskError: its class admits
#                no subclass. Neither `except ValidationError` nor `except ValueError` sees it; `error.cause` has it.
#                * an exception whose constructor takes keyword-only arguments arrives as UnserializableException: to
#                unpickle it, its class is called with `args`, which do not hold them. Only the text is left.
#                * asyncio.CancelledError, from an inner task that somebody cancelled, arrives as
#                ObjectRefStreamEndOfStreamError without a word: no class, no message, no traceback of its origin.
# Who meets it:  anybody who validates a message inside a replica and turns the error into a 400 in another, and anybody
#                who shares one computation among requests and cancels it. Catch inside, and raise a plain class.
# Versions:      ray 2.60.0 (ray[serve]), pydantic 2.14.3
# Source:        ray `exceptions.py`, RayTaskError.as_instanceof_cause, make_dual_exception_instance and
#                UnserializableException; `serve/_private/replica.py`, handle_request_with_rejection (a generator
#                task, which ends without a result when its coroutine is cancelled)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q "ray[serve]==2.60.0" pydantic==2.14.3
cat > application.py <<'PY'
import asyncio

from pydantic import BaseModel
from ray import serve


class Box(BaseModel):
    width: int


class TooLarge(ValueError):
    def __init__(self, *, pixels):
        super().__init__(f"{pixels} pixels")
        self.pixels = pixels


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Model:
    async def __call__(self, kind):
        match kind:
            case "ordinary":
                raise ValueError("a value")
            case "group":
                raise ExceptionGroup("several", [ValueError("a value"), KeyError("a key")])
            case "validation":
                Box(width="wide")
            case "keyword-only":
                raise TooLarge(pixels=7)
            case "cancelled":
                inner = asyncio.ensure_future(asyncio.sleep(9))
                inner.cancel()
                await inner
PY
venv/bin/python -W ignore - <<'PY'
import sys

import pydantic
import ray
from ray import serve

sys.path.insert(0, ".")
from application import Model

print("ray", ray.__version__, "pydantic", pydantic.VERSION)
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(proxy_location="Disabled")
seen = {}
try:
    handle = serve.run(Model.bind())
    for kind in ("ordinary", "group", "validation", "keyword-only", "cancelled"):
        try:
            handle.remote(kind).result(timeout_s=30)
        except Exception as error:
            seen[kind] = error
            print(f"{kind}: {type(error).__name__}, a ValueError: {isinstance(error, ValueError)}")
finally:
    serve.shutdown()
    ray.shutdown()

assert isinstance(seen["ordinary"], ValueError) and isinstance(seen["group"], ExceptionGroup)
assert not isinstance(seen["validation"], ValueError), "ValidationError arrives as itself now"
assert isinstance(seen["validation"].cause, pydantic.ValidationError)
assert type(seen["keyword-only"]).__name__ == "UnserializableException", "keyword-only arguments arrive now"
assert type(seen["cancelled"]).__name__ == "ObjectRefStreamEndOfStreamError", "CancelledError has a name now"
assert str(seen["cancelled"]) == ""
PY
