"""The image: built as the project is, without secrets and without root, with what the manifests call."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from deployments import environment
from tests.cluster_files import (
    CLUSTER,
    IMAGE_ROOT,
    PYPROJECT,
    ROOT,
    aws,
    dockerfile,
    image_environment,
    ray_cluster,
    ray_groups,
    script,
    texts,
    worker_groups,
)


def image_files() -> list[str]:
    """What is copied from the repository."""
    sources = [shlex.split(text)[:-1] for text in texts("COPY") if "--from" not in text]
    return [source for group in sources for source in group if not source.startswith("--")]


def test_there_is_one_version_of_ray() -> None:
    [pinned] = [one.split("==")[1] for one in PYPROJECT["project"]["dependencies"] if one.startswith("ray[")]
    assert f"\nray=={pinned}\n" in (ROOT / "constraints.txt").read_text()
    assert ray_cluster()["rayVersion"] == pinned
    assert f'"ray[default,serve]=={pinned}"' in (CLUSTER / "aws.yaml").read_text()
    # The image has it from constraints.txt, and from nowhere else.
    installs = [text for text in texts("RUN") if "uv pip install" in text]
    assert all("--constraint constraints.txt" in text for text in installs)
    assert not re.search(r"ray(\[\w+\])?==|rayproject/", (CLUSTER / "Dockerfile").read_text())


def test_all_nodes_have_the_same_image() -> None:
    images = {pod["spec"]["containers"][0]["image"] for pod in (group["template"] for group in ray_groups())}
    assert images == {aws()["docker"]["image"]} == {f"segment-anything-2:{PYPROJECT['project']['version']}"}


def test_the_image_is_made_as_the_makefile_does() -> None:
    [makefile] = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert f"UV_VERSION={makefile}" in texts("ARG")
    [python] = [text.split("=")[1] for text in texts("ARG") if text.startswith("PYTHON_VERSION=")]
    assert f"py{python.replace('.', '')}" == PYPROJECT["tool"]["ruff"]["target-version"]
    installs = [text for text in texts("RUN") if "uv pip install" in text]
    assert "--requirement pyproject.toml" in installs[0]
    assert "--editable ." in installs[1]


def test_the_registry_is_the_builders_choice() -> None:
    stages = {text.split(" AS ")[1] for text in texts("FROM") if " AS " in text}
    assert all(text.split()[0] in {"${CUDA_IMAGE}", *stages} for text in texts("FROM"))
    assert any(text.startswith("CUDA_IMAGE=docker.io/nvidia/cuda:") for text in texts("ARG"))


def test_the_image_does_not_run_as_root() -> None:
    steps = dockerfile()
    user = max(index for index, step in enumerate(steps) if step.name == "USER")
    uid, gid = map(int, steps[user].text.split(":"))
    assert uid > 0
    # Weights are fetched as that user, who can read them then.
    [prefetch] = [index for index, step in enumerate(steps) if "prefetch" in step.text]
    assert user < prefetch
    for pod in (group["template"] for group in ray_groups()):
        assert pod["spec"]["securityContext"]["runAsUser"] == uid
        assert pod["spec"]["securityContext"]["fsGroup"] == gid


def test_what_the_image_copies_exists_and_is_in_the_build_context() -> None:
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in rules
    allowed = {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}
    files = image_files()
    assert {"deployments", "cluster", "serve_config.yaml", "pyproject.toml", "constraints.txt"} <= set(files)
    for file in files:
        assert (ROOT / file).exists(), file
        assert file in allowed
    assert allowed == set(files)


def test_the_image_holds_no_secret_and_fetches_nothing_unchecked() -> None:
    assert texts("ADD") == []
    names = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL", re.I)
    assert not [text for text in texts("ARG") if names.search(text)]
    assert not [name for name in image_environment() if names.search(name)]
    [prefetch] = [text for text in texts("RUN") if "prefetch" in text]
    assert "--mount=type=secret,id=hf_token" in prefetch
    assert not [text for text in texts("RUN") if re.search(r"\bcurl\b|wget http|chmod 777|sudo", text)]


def test_the_images_environment_is_what_the_launcher_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(environment, "has_haproxy", lambda: True)
    monkeypatch.setattr(environment, "_free_port", lambda wanted: wanted)
    program = f"{IMAGE_ROOT}/.venv/bin/segment-anything-2-haproxy"
    monkeypatch.setattr(environment, "haproxy_program", lambda: program)
    environment.prepare_environment()
    # Proxies on other nodes hear of a replica's end later.
    expected = {**os.environ, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30"}
    found = {name: value for name, value in image_environment().items() if name.startswith("RAY_")}
    assert found == expected


def test_the_image_has_what_the_manifests_call() -> None:
    packages = next(text for text in texts("RUN") if "--no-install-recommends bash" in text)
    probe = worker_groups()["cpu"]["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    assert probe[0] == "bash"
    assert probe[2].startswith("wget ")
    assert re.search(r"\bwget\b", packages)
    for group in worker_groups().values():
        python, program = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert image_environment()["PATH"].startswith(str(Path(python).parent) + ":")
        assert (ROOT / Path(program).relative_to(IMAGE_ROOT)).is_file()
    assert texts("WORKDIR")[-1] == IMAGE_ROOT


def test_a_login_shell_finds_ray_too() -> None:
    assert any("/etc/profile.d/" in text and f"{IMAGE_ROOT}/.venv/bin:$PATH" in text for text in texts("RUN"))


def test_the_container_starts_the_launcher_and_checks_its_health() -> None:
    assert json.loads(texts("CMD")[-1]) == ["python", "-m", "deployments", "--host", "0.0.0.0"]
    command = json.loads(texts("HEALTHCHECK")[-1].split("CMD", 1)[1])
    assert command == ["python", f"{IMAGE_ROOT}/cluster/healthcheck.py"]
    assert script("healthcheck.py").URL == "http://127.0.0.1:8000/health"
    assert "8000" in texts("EXPOSE")
