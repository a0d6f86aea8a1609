"""What all parts share: how long to take, where to put files, the weights, and the config of the service."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deployments.settings import APP_NAME, model_deployment_name
from harness.weights import fill_hub_cache

ROOT = Path(__file__).resolve().parent.parent
TINY = "facebook/sam2-hiera-tiny"
DEMO = "sam2-demo"


@dataclass(frozen=True)
class Workplace:
    """A temporary folder with a hub cache of seeded random weights.

    Attributes:
        folder: for logs and configs; removed at the end.
        quick: fewer and shorter measurements, to see that all works; its figures mean little.
        precision: what the service computes with, as its settings have it.
    """

    folder: Path
    quick: bool
    precision: str

    @property
    def hub_cache(self) -> Path:
        """The Hugging Face cache folder that the servers get as HF_HUB_CACHE."""
        return self.folder / "hub"

    def fill(self) -> None:
        """Writes the weights of hiera-tiny: random ones, since no figure here depends on what the model has learnt."""
        fill_hub_cache(self.hub_cache, TINY)


@dataclass(frozen=True)
class Configuration:
    """What the service is measured with: cluster/local.yaml's options, one warm model, and what differs between parts.

    Attributes:
        model_id: the one model, warm and the default.
        replicas: of the model.
        model: more of its entry in `args.models`, such as torch_threads.
        model_deployment: more of its entry in `deployments`, such as user_config.
        parser: more of RequestParser's entry in `deployments`.
        limits: more of `args.limits`.
        import_path: the application's builder.
    """

    model_id: str = TINY
    replicas: int = 1
    model: Mapping[str, Any] = field(default_factory=dict)
    model_deployment: Mapping[str, Any] = field(default_factory=dict)
    parser: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    import_path: str = "deployments.app:build"

    @property
    def deployment_name(self) -> str:
        """The name of the model's deployment."""
        return model_deployment_name(self.model_id)

    def document(self, port: int) -> dict[str, Any]:
        """The Ray Serve config file. No CPU is reserved, so that any number of replicas fits on the machine."""
        entry = {
            "name": self.deployment_name,
            "ray_actor_options": model_options(),
            "autoscaling_config": {"min_replicas": self.replicas, "max_replicas": self.replicas},
            **self.model_deployment,
        }
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [
                {
                    "name": APP_NAME,
                    "route_prefix": "/",
                    "import_path": self.import_path,
                    "args": {
                        "default_model": self.model_id,
                        "models": [{"model_id": self.model_id, **self.model}],
                        "limits": dict(self.limits),
                    },
                    "deployments": [*_shared_deployments(self.parser), entry],
                }
            ],
        }


def _shared_deployments(parser: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of RequestParser, with more in it, ResponseEncoder and VideoReader in cluster/local.yaml."""
    entries = local_deployments()
    return [{**entries["RequestParser"], **parser}, entries["ResponseEncoder"], entries["VideoReader"]]


def model_options() -> dict[str, Any]:
    """`ray_actor_options` of a model in cluster/local.yaml."""
    return dict(local_deployments()["Sam2Model:sam2-demo"]["ray_actor_options"])


def local_deployments() -> dict[str, dict[str, Any]]:
    """The `deployments` of cluster/local.yaml by their names."""
    document = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    [application] = document["applications"]
    return {entry["name"]: entry for entry in application["deployments"]}
