"""The config files that come with the service: valid, and in step with the defaults in app.py that they replace."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from deployments import app
from deployments.settings import (
    RequestParserConfig,
    Sam2ModelConfig,
    VideoReaderConfig,
    model_deployment_name,
    parse_settings,
)

ROOT = Path(__file__).parents[2]
FILES = ["serve_config.yaml", "cluster/local.yaml"]


def application(file: str) -> dict[str, Any]:
    [only] = yaml.safe_load((ROOT / file).read_text())["applications"]
    return dict(only)


def environments(file: str) -> dict[str, Any]:
    """The `runtime_env` of each deployment."""
    return {entry["name"]: entry["ray_actor_options"].get("runtime_env") for entry in application(file)["deployments"]}


@pytest.mark.parametrize("file", FILES)
def test_serve_and_the_settings_accept_it(file: str) -> None:
    ServeDeploySchema.model_validate(yaml.safe_load((ROOT / file).read_text()))
    settings = parse_settings(application(file)["args"])
    entries = {entry["name"]: entry for entry in application(file)["deployments"]}
    models = {model_deployment_name(model.model_id) for model in settings.models}
    assert set(entries) == {"RequestParser", "ResponseEncoder", "VideoReader", *models}
    configs: dict[str, type[BaseModel]] = {"RequestParser": RequestParserConfig, "VideoReader": VideoReaderConfig}
    for name, entry in entries.items():
        configs.get(name, Sam2ModelConfig).model_validate(entry.get("user_config", {}))


@pytest.mark.parametrize("file", FILES)
def test_the_parser_keeps_its_flow_control(file: str) -> None:
    assert environments(file)["RequestParser"] == app.FLOW_CONTROL
    assert app.PARSER_OPTIONS["ray_actor_options"]["runtime_env"] == app.FLOW_CONTROL


def test_models_on_the_cpu_keep_their_memory_from_run_to_run() -> None:
    models = [found for name, found in environments("cluster/local.yaml").items() if name.startswith("Sam2Model")]
    assert len(models) == 9
    assert all(found == app.KEEP_FREED_MEMORY for found in models)
    assert app.MODEL_OPTIONS["ray_actor_options"]["runtime_env"] == app.KEEP_FREED_MEMORY
