"""Finds, reads and checks the Ray Serve config file that the launcher deploys, before anything starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from deployments.environment import has_nvidia_gpu
from deployments.settings import (
    APP_NAME,
    RequestParserConfig,
    Sam2ModelConfig,
    ServiceSettings,
    VideoReaderConfig,
    model_deployment_name,
    parse_settings,
)

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ConfigFile:
    """A config file from which this service can be deployed.

    Attributes:
        path: the file's path.
        schema: the whole file, as Ray Serve reads it.
        settings: the `args` of this service's application.
    """

    path: Path
    schema: ServeDeploySchema
    settings: ServiceSettings

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the service will listen on."""
        return self.schema.http_options.host, self.schema.http_options.port

    @property
    def route_prefix(self) -> str:
        """The prefix of all the service's paths, without a trailing slash; "" unless the file sets one."""
        return str(_application(self.schema).route_prefix or "").rstrip("/")


def default_path() -> Path:
    """Returns the production config if this machine has an NVIDIA GPU, else the config for machines without a GPU."""
    return ROOT / ("serve_config.yaml" if has_nvidia_gpu() else "cluster/local.yaml")


def read_config(path: Path, port: int | None = None, host: str | None = None) -> ConfigFile:
    """Reads and checks a config file.

    Args:
        path: the file.
        port: replaces the file's HTTP port.
        host: replaces the file's HTTP address.

    Raises:
        ValueError: the file cannot be read, or it does not deploy this service; the message names the file and the
            fault.
    """
    try:
        document: dict[str, Any] = yaml.safe_load(path.read_text())
        http = {"port": port, "host": host}
        given = {key: value for key, value in http.items() if value is not None}
        document["http_options"] = {**document.get("http_options", {}), **given}
        schema = ServeDeploySchema.model_validate(document)
        application = _application(schema)
        settings = parse_settings(application.args)
    except (OSError, yaml.YAMLError, ValidationError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    _check_deployments(path, application, settings)
    return ConfigFile(path, schema, settings)


def _application(schema: ServeDeploySchema) -> ServeApplicationSchema:
    for application in schema.applications:
        if application.name == APP_NAME:
            return application
    raise ValueError(f"has no application named {APP_NAME}")


def _check_deployments(path: Path, application: ServeApplicationSchema, settings: ServiceSettings) -> None:
    """Raises ValueError for mistakes that Serve, or each replica at its start, would only report later."""
    configs: dict[str, type[RequestParserConfig | VideoReaderConfig | Sam2ModelConfig] | None] = {
        "RequestParser": RequestParserConfig,
        "ResponseEncoder": None,
        "VideoReader": VideoReaderConfig,
        **{model_deployment_name(model.model_id): Sam2ModelConfig for model in settings.models},
    }
    for deployment in application.deployments:
        config = configs.get(deployment.name)
        if config is not None and isinstance(deployment.user_config, dict):
            try:
                config.model_validate(deployment.user_config)
            except ValidationError as error:
                raise ValueError(f"{path}: user_config of {deployment.name}: {error}") from error
    unknown = {deployment.name for deployment in application.deployments} - set(configs)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{path}: deployments has {names}; the known names are {', '.join(sorted(configs))}")
