#!/usr/bin/env bash
# Ray Serve: a batched generator cannot yield NumPy arrays
#
# One expects:   a function under `@serve.batch` that yields a list of results, one for each call, streams anything
#                that a handle can carry: text, dictionaries, arrays of masks; without `yield` the same arrays pass.
# What happens:  before a result is handed on, Serve asks whether it is one of the marks for "this call is done"
#                (`result in [StopIteration, StopAsyncIteration]`). NumPy compares every element, the truth of that is
#                ambiguous, and all calls of the batch fail with ValueError. Arrays of a single element pass, so a test
#                with scores does not show it.
# Who meets it:  anybody who streams masks of a batch frame by frame. Wrap the array: in a tuple, a dictionary or a
#                dataclass with `eq=False`.
# Versions:      ray 2.60.0 (ray[serve]), numpy 2.4.6. No cluster is started: the replica's context is set by hand, as
#                in Ray's own tests
# Source:        ray `serve/batching.py`, _BatchQueue._consume_func_generator (USER_CODE_STREAMING_SENTINELS)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q "ray[serve]==2.60.0" numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import asyncio
import logging

import numpy as np
import ray
from ray import serve
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank

print("ray", ray.__version__, "numpy", np.__version__)

context._set_internal_replica_context(
    replica_id=ReplicaID("replica", DeploymentID("model", "application")),
    servable_object=None,
    _deployment_config=DeploymentConfig(max_ongoing_requests=10),
    rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
    world_size=1,
)
logging.getLogger("ray.serve").setLevel("CRITICAL")
MASK = np.ones((2, 2), bool)
SCORE = np.array([0.9])


@serve.batch(max_batch_size=2, batch_wait_timeout_s=0.5)
async def at_once(results):
    return results


@serve.batch(max_batch_size=2, batch_wait_timeout_s=0.5)
async def streamed(results):
    for _ in range(2):
        yield results


async def count(stream):
    """Returns how many results a stream gives, or the error that ends it."""
    try:
        return len([result async for result in stream])
    except Exception as error:
        return error


async def main():
    whole = await asyncio.gather(at_once(MASK), at_once(MASK))
    seen = {}
    for name, result in (("a mask", MASK), ("a score", SCORE), ("a mask in a tuple", (MASK,))):
        seen[name] = await asyncio.gather(count(streamed(result)), count(streamed(result)))
        print(f"{name}, streamed: {seen[name]}")
    return whole, seen


whole, seen = asyncio.run(main())
print("masks at once:", [mask.shape for mask in whole])
assert all((mask == MASK).all() for mask in whole)
assert seen["a score"] == [2, 2] and seen["a mask in a tuple"] == [2, 2]
assert all(isinstance(error, ValueError) for error in seen["a mask"]), "arrays can be streamed now"
PY
