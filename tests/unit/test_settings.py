"""Settings: defaults, ranges, and messages that name the setting."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

from deployments.environment import has_nvidia_gpu, prepare_environment, ray_address
from deployments.settings import (
    HUB_MODEL_IDS,
    Limits,
    ModelSettings,
    RequestParserConfig,
    Sam2ModelConfig,
    ServiceSettings,
    Settings,
    auth_token,
    model_deployment_name,
    parse_settings,
    use_compile_cache,
)

TINY = "facebook/sam2-hiera-tiny"
OWN: dict[str, Any] = {"model_id": "own/model", "checkpoint": "/weights/own.pt", "config": "own.yaml"}


def test_the_hub_ids_are_those_of_the_sam2_package() -> None:
    assert set(HUB_MODEL_IDS) == set(HF_MODEL_ID_TO_FILENAMES)


def test_no_args_serve_the_bundled_model() -> None:
    settings = parse_settings({})

    assert [model.model_id for model in settings.models] == ["sam2-demo"]
    assert settings.default_model_id == "sam2-demo"
    assert settings.limits == Limits()
    assert settings.auth_token is None


def test_the_first_model_is_the_default_one() -> None:
    assert parse_settings({"models": [TINY, "sam2-demo"]}).default_model_id == TINY


def test_another_model_can_be_the_default_one() -> None:
    assert parse_settings({"models": [TINY, "sam2-demo"], "default_model": "sam2-demo"}).default_model_id == "sam2-demo"


def test_a_bare_id_stands_for_a_model_with_defaults() -> None:
    assert parse_settings({"models": [TINY]}) == parse_settings({"models": [{"model_id": TINY}]})


def test_a_model_of_ones_own_has_checkpoint_and_config() -> None:
    [model] = parse_settings({"models": [OWN]}).models

    assert (model.checkpoint, model.config) == (Path("/weights/own.pt"), "own.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"modles": []}, "args.modles: Extra inputs are not permitted"),
        ({"models": []}, "args.models: Tuple should have at least 1 item"),
        ({"models": [{"model_id": TINY, "gpu": 1}]}, "args.models.0.gpu: Extra inputs are not permitted"),
        ({"models": [{"checkpoint": "a.pt", "config": "a.yaml"}]}, "args.models.0.model_id: Field required"),
        ({"models": [{"model_id": TINY, "device": "tpu"}]}, "args.models.0.device: Input should be 'auto', 'cpu' or"),
        ({"models": [{"model_id": TINY, "torch_threads": 0}]}, "args.models.0.torch_threads: Input should be greater"),
        (
            {"models": [{"model_id": TINY, "precision": "float16"}]},
            "args.models.0.precision: Input should be 'auto', 'f",
        ),
        (
            {"models": [{"model_id": TINY, "compile_batch_sizes": []}]},
            "args.models.0.compile_batch_sizes: Tuple should",
        ),
        (
            {"models": [{"model_id": TINY, "compile_batch_sizes": [0]}]},
            "args.models.0.compile_batch_sizes.0: Input sho",
        ),
        ({"models": [{"model_id": TINY, "compile_batch_sizes": [1, 257]}]}, "args.models.0.compile_batch_sizes.1: Inp"),
        ({"models": [{"model_id": TINY, "compile_batch_sizes": [*range(1, 10)]}]}, "args.models.0.compile_batch_sizes"),
        ({"models": [""]}, "args.models.0.model_id: String should have at least 1 character"),
        ({"models": ["a b"]}, "args.models.0.model_id: String should match pattern"),
        ({"models": ["a#b"]}, "args.models.0.model_id: String should match pattern"),
        ({"models": ["unheard/of"]}, "args.models.0: Value error, unheard/of: is neither sam2-demo nor one of"),
        ({"models": [{**OWN, "config": None}]}, "args.models.0: Value error, own/model: checkpoint and config must be"),
        ({"models": [{"model_id": TINY, "config": "x"}]}, f"args.models.0: Value error, {TINY}: checkpoint and config"),
        ({"models": [TINY, "sam2-demo", TINY]}, f"args: Value error, models: {TINY} is listed twice"),
        ({"default_model": TINY}, f"args: Value error, default_model: {TINY} is not among models"),
        ({"cors_origins": ["example.org"]}, "args.cors_origins.0: Value error, must be scheme://host"),
        ({"cors_origins": ["https://example.org/"]}, "args.cors_origins.0: Value error, must be scheme://host"),
        ({"cors_origins": ["https://*.example.org"]}, "args.cors_origins.0: Value error, must be scheme://host"),
        ({"cors_origins": "*"}, "args.cors_origins: Input should be a valid tuple"),
        ({"limits": {"max_pixels": 0}}, "args.limits.max_pixels: Input should be greater than or equal to 1"),
        ({"limits": {"max_image_bytes": "much"}}, "args.limits.max_image_bytes: Input should be a valid integer"),
        ({"limits": {"max_form_field_bytes": 10}}, "args.limits.max_form_field_bytes: Input should be greater"),
        ({"limits": {"max_body": 10_000}}, "args.limits.max_body: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_setting_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="args") as refused:
        parse_settings(args)

    assert str(refused.value).startswith(message)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="args") as refused:
        parse_settings({"limits": {"max_pixels": 0, "max_points": 0}, "colour": "blue"})

    assert [fault.split(":")[0] for fault in str(refused.value).split("; ")] == [
        "args.limits.max_pixels",
        "args.limits.max_points",
        "args.colour",
    ]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (RequestParserConfig, "request_timeout_s", 0),
        (RequestParserConfig, "request_timeout_s", 3601),
        (RequestParserConfig, "model_wait_s", -1),
        (RequestParserConfig, "max_retries", -1),
        (RequestParserConfig, "max_retries", 11),
        (RequestParserConfig, "band_bytes", 9_999),
        (RequestParserConfig, "max_batch_size", 8),
        (Sam2ModelConfig, "max_batch_size", 0),
        (Sam2ModelConfig, "max_batch_size", 257),
        (Sam2ModelConfig, "batch_wait_timeout_s", -0.1),
        (Sam2ModelConfig, "load_retry_s", 0),
        (Sam2ModelConfig, "band_bytes", 5_000_000),
    ],
)
def test_a_user_config_out_of_range_is_refused(config: type[Settings], field: str, value: float) -> None:
    with pytest.raises(ValidationError) as refused:
        config.model_validate({field: value})

    assert [fault["loc"] for fault in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize("config", [ServiceSettings, Limits, ModelSettings, RequestParserConfig, Sam2ModelConfig])
def test_every_setting_is_described(config: type[Settings]) -> None:
    assert [name for name, field in config.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("config", [Limits, RequestParserConfig, Sam2ModelConfig])
def test_a_user_config_survives_the_yaml_that_serve_writes(config: type[Settings]) -> None:
    assert config.model_validate(config().model_dump()) == config()


def test_origins_are_compared_as_browsers_write_them() -> None:
    origins = ["https://Example.org:443", "http://localhost:80", "http://localhost:8080", "https://a.org:80", "*"]
    settings = parse_settings({"cors_origins": origins})
    assert settings.cors_origins == (
        "https://example.org",
        "http://localhost",
        "http://localhost:8080",
        "https://a.org:80",
        "*",
    )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Limits().max_points = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("configured", "environment", "token"),
    [
        (None, None, None),
        (None, "", None),
        (None, "from-env", "from-env"),
        ("from-config", None, "from-config"),
        ("from-config", "from-env", "from-config"),
        ("", "from-env", None),
    ],
)
def test_the_config_files_token_comes_before_the_environments(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, environment: str | None, token: str | None
) -> None:
    monkeypatch.delenv("AUTH_TOKEN", raising=False)
    if environment is not None:
        monkeypatch.setenv("AUTH_TOKEN", environment)

    assert auth_token(parse_settings({"auth_token": configured})) == token


def test_a_token_is_not_shown_where_settings_are_printed() -> None:
    assert "secret-token" not in repr(parse_settings({"auth_token": "secret-token"}))


@pytest.mark.parametrize(("variable", "address"), [("", None), ("ray://head:10001", "ray://head:10001")])
def test_ray_is_joined_only_where_an_address_is_given(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)

    assert ray_address() == address


def test_the_environment_that_an_operator_sets_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "1")

    prepare_environment()

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_hidden_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert not has_nvidia_gpu()


def test_batch_sizes_to_compile_for_are_sorted_and_listed_once() -> None:
    assert ModelSettings(model_id=TINY, compile_batch_sizes=(8, 1, 8, 2)).compile_batch_sizes == (1, 2, 8)


def test_a_compile_cache_is_set_only_where_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/of/the/operator")

    use_compile_cache(None)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/of/the/operator"
    use_compile_cache(Path("/of/the/config"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/of/the/config"


def test_a_models_deployment_is_named_after_it() -> None:
    assert model_deployment_name(TINY) == "Sam2Model:facebook/sam2-hiera-tiny"
