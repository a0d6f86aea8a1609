"""A proposal as the `deployments` of a Ray Serve config file, and whether the service and Ray accept them."""

import copy
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from deployments.settings import APP_NAME, RequestParserConfig, Sam2ModelConfig, model_deployment_name
from tuning.capacity import Measured, Plan, Proposal

ROOT = Path(__file__).resolve().parent.parent

# As in serve_config.yaml, for config files that do not say: most calls of a parser wait, an encoder's do not.
TARGETS = {"RequestParser": 16, "ResponseEncoder": 2}

Entry = dict[str, Any]


def fragment(
    measured: Measured, proposal: Proposal, planned: Plan | None, entries: Mapping[str, Entry]
) -> dict[str, list[Entry]]:
    """`deployments` with what is proposed; whatever else the config file's entries say, they keep.

    Args:
        measured: of the model.
        proposal: its settings.
        planned: for a load; only then there are entries of RequestParser and ResponseEncoder.
        entries: the config file's, by name.
    """
    # On a single machine without a GPU no CPU is reserved, as in cluster/local.yaml, so that everything fits on it.
    one_machine = not measured.on_gpu and (planned is None or planned.machines == 1)
    model = _model_entry(measured, proposal, planned, entries, one_machine)
    if planned is None:
        return {"deployments": [model]}
    counts = {"RequestParser": planned.parsers, "ResponseEncoder": planned.encoders}
    shared = [_shared_entry(name, count, entries, 0 if one_machine else 1) for name, count in counts.items()]
    return {"deployments": [*shared, model]}


def _model_entry(
    measured: Measured, proposal: Proposal, planned: Plan | None, entries: Mapping[str, Entry], one_machine: bool
) -> Entry:
    name = model_deployment_name(measured.model_id)
    entry = copy.deepcopy(entries.get(name, {"name": name}))
    # It would contradict autoscaling.
    entry.pop("num_replicas", None)
    scaling = {"min_replicas": 1, "max_replicas": proposal.replicas_a_device, **entry.get("autoscaling_config", {})}
    if planned:
        scaling["max_replicas"] = planned.replicas
    entry["autoscaling_config"] = {**scaling, "target_ongoing_requests": proposal.target_ongoing_requests}
    entry["max_ongoing_requests"] = proposal.max_ongoing_requests
    entry["ray_actor_options"] = {**entry.get("ray_actor_options", {}), "num_cpus": 0, "num_gpus": proposal.num_gpus}
    if not measured.on_gpu:
        # All cores, so that each machine gets one: that is how many threads torch starts.
        entry["ray_actor_options"] = {**model_options(), "num_cpus": 0 if one_machine else measured.cores}
    entry["user_config"] = {
        **entry.get("user_config", {}),
        "max_batch_size": proposal.max_batch_size,
        "max_decode_batch_size": proposal.max_decode_batch_size,
        "cache_bytes": proposal.cache_bytes,
    }
    return entry


def _shared_entry(name: str, count: int, entries: Mapping[str, Entry], num_cpus: int) -> Entry:
    entry = copy.deepcopy(entries[name] if name in entries else local_deployments()[name])
    entry.pop("num_replicas", None)
    scaling = {"target_ongoing_requests": TARGETS[name], **entry.get("autoscaling_config", {})}
    entry["autoscaling_config"] = {**scaling, "min_replicas": 1, "max_replicas": count}
    entry["ray_actor_options"] = {**entry.get("ray_actor_options", {}), "num_cpus": num_cpus}
    return entry


def check(document: dict[str, list[Entry]]) -> str:
    """What was checked.

    Raises:
        ValueError: the service, or Ray, would refuse it.
    """
    for entry in document["deployments"]:
        if entry["name"] != "ResponseEncoder":
            config = RequestParserConfig if entry["name"] == "RequestParser" else Sam2ModelConfig
            config.model_validate(entry.get("user_config", {}))
    if find_spec("ray") is None:
        return "user_config: accepted. Ray is not installed here, so nobody has checked the rest."
    # Imported here: measuring works on machines that have no Ray.
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeApplicationSchema

    ServeApplicationSchema.model_validate({"name": APP_NAME, "import_path": "deployments.app:build", **document})
    for entry in document["deployments"]:
        AutoscalingConfig.model_validate(entry["autoscaling_config"])
    return "Checked: the service's settings and Ray Serve's schema accept it."


def model_options() -> Entry:
    """`ray_actor_options` of a model in cluster/local.yaml."""
    return dict(local_deployments()["Sam2Model:sam2-demo"]["ray_actor_options"])


@cache
def local_deployments() -> dict[str, Entry]:
    """The `deployments` of cluster/local.yaml by their names."""
    document = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    [application] = document["applications"]
    return {entry["name"]: entry for entry in application["deployments"]}
