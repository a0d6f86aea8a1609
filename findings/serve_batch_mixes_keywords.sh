#!/usr/bin/env bash
# Ray Serve: keyword arguments of batched calls end up under the name that the first call used
#
# One expects:   `@serve.batch` hands the function one list for each parameter; what a call leaves out has the
#                parameter's default. So `segment(a, low=5)` and `segment(b, high=6)` keep their own arguments, and so
#                do calls that give the same keywords in another order.
# What happens:  the arguments of the calls in a batch are laid side by side by position, and the first call's names
#                are taken for all: the second call's `high=6` becomes its `low`, and `high` is nowhere. With the same
#                keywords in another order their values are exchanged. Nothing is raised as long as all calls have the
#                same number of arguments (otherwise all calls of the batch fail). A call alone is right: only load
#                shows it.
# Who meets it:  anybody who batches calls with options (thresholds, box or points, one mask or three): under load one
#                user's box is taken for another's mask. Give a batched function a single positional argument.
# Versions:      ray 2.60.0 (ray[serve]). No cluster is started: the replica's context is set by hand, as in Ray's own
#                tests
# Source:        ray `serve/batching.py`, _batch_args_kwargs (names from `list_of_flattened_args[0]`)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q "ray[serve]==2.60.0"
venv/bin/python -W ignore - <<'PY'
import asyncio

import ray
from ray import serve
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank

print("ray", ray.__version__)

context._set_internal_replica_context(
    replica_id=ReplicaID("replica", DeploymentID("model", "application")),
    servable_object=None,
    _deployment_config=DeploymentConfig(max_ongoing_requests=10),
    rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
    world_size=1,
)


@serve.batch(max_batch_size=2, batch_wait_timeout_s=0.5)
async def segment(names, low=None, high=None):
    """Returns for each call the arguments that it has in the batch."""
    return [
        {"name": name, "low": low and low[index], "high": high and high[index]} for index, name in enumerate(names)
    ]


async def main():
    seen = {
        "alone": [await segment("b", high=6)],
        "other keywords": await asyncio.gather(segment("a", low=5), segment("b", high=6)),
        "other order": await asyncio.gather(segment("a", low=5, high=6), segment("b", high=8, low=7)),
    }
    for name, arguments in seen.items():
        print(f"{name}: {arguments}")
    return seen


seen = asyncio.run(main())
assert seen["alone"] == [{"name": "b", "low": None, "high": 6}]
assert seen["other keywords"][1] == {"name": "b", "low": 6, "high": None}, "keywords keep their names now"
assert seen["other order"][1] == {"name": "b", "low": 8, "high": 7}, "the keywords' order does not matter now"
PY
