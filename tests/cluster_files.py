"""What tests read the operator's files in cluster/ with."""

import importlib.util
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGE_ROOT = "/srv/segment-anything-2"


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / file).read_text()))


def document(file: str, kind: str) -> dict[str, Any]:
    [only] = [one for one in documents(file) if one["kind"] == kind]
    return only


def rayservice() -> dict[str, Any]:
    return document("rayservice.yaml", "RayService")


def ray_cluster() -> dict[str, Any]:
    return dict(rayservice()["spec"]["rayClusterConfig"])


def worker_groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in ray_cluster()["workerGroupSpecs"]}


def ray_groups() -> list[dict[str, Any]]:
    return [ray_cluster()["headGroupSpec"], *worker_groups().values()]


def aws() -> dict[str, Any]:
    [only] = documents("aws.yaml")
    return only


def script(file: str) -> ModuleType:
    """A program of cluster/, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, CLUSTER / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put(tree: Any, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    for step in steps:
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    tree[last] = value


class Instruction(NamedTuple):
    """A step of the Dockerfile."""

    name: str
    text: str


def dockerfile() -> list[Instruction]:
    lines = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def texts(name: str) -> list[str]:
    return [step.text for step in dockerfile() if step.name == name]


def image_environment() -> dict[str, str]:
    """What the last stage sets."""
    steps = dockerfile()
    last = max(index for index, step in enumerate(steps) if step.name == "FROM")
    pairs = [pair for step in steps[last:] if step.name == "ENV" for pair in shlex.split(step.text)]
    return dict(pair.split("=", 1) for pair in pairs)
