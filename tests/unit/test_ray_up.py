"""The cluster on Amazon EC2: valid by Ray's schema, closed to the world, started with every token."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import fillout_defaults, merge_setup_commands

from tests.cluster_files import CLUSTER, aws, put


def validate_aws(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)


def test_ray_up_accepts_the_cluster() -> None:
    validate_aws(aws())
    config = aws()
    assert config["head_node_type"] in config["available_node_types"]
    workers = {name: one for name, one in config["available_node_types"].items() if name != config["head_node_type"]}
    assert sum(one["max_workers"] for one in workers.values()) <= config["max_workers"]
    assert (workers["gpu"]["min_workers"], workers["gpu"]["resources"]["GPU"]) == (0, 1)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "file_mounts" not in config


@pytest.mark.parametrize(
    ("path", "value"),
    [("max_worker", 1), ("docker.images", "x"), ("available_node_types.gpu.min_worker", 0), ("auth.user", "ubuntu")],
)
def test_a_mistake_in_the_cluster_would_be_noticed(path: str, value: Any) -> None:
    config = aws()
    put(config, path, value)
    with pytest.raises(jsonschema.ValidationError):
        validate_aws(config)


def test_on_ec2_ray_adds_no_commands_of_its_own() -> None:
    merged = merge_setup_commands(fillout_defaults(aws()))  # type: ignore[no-untyped-call]
    commands = [one for key in ("setup", "head_setup", "worker_setup") for one in merged[f"{key}_commands"]]
    # Its defaults call pip, which the image does not have.
    assert commands == []
    assert merged["head_start_ray_commands"] == aws()["head_start_ray_commands"]


def test_on_ec2_prometheus_on_the_head_reads_rays_list_of_nodes() -> None:
    jobs = yaml.safe_load((CLUSTER / "monitoring/prometheus.yaml").read_text())["scrape_configs"]
    assert {Path(job["file_sd_configs"][0]["files"][0]).parent for job in jobs} == {Path("/tmp/ray")}
    assert "--volume /tmp/ray:/tmp/ray" in aws()["docker"]["run_options"]
    assert any("mkdir -p" in one and " /tmp/ray " in one for one in aws()["initialization_commands"])


def test_on_ec2_only_the_service_is_open_and_only_to_private_networks() -> None:
    [rule] = aws()["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (8000, 8000, "tcp")
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    [start] = [one for one in aws()["head_start_ray_commands"] if "ray start" in one]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert '--autoscaling-config="$HOME/ray_bootstrap_config.yaml"' in start
    for one in (start, aws()["worker_start_ray_commands"][-1]):
        # Where prometheus.yaml and the NetworkPolicy expect it on any cluster.
        assert "--metrics-export-port=8080" in one


def test_on_ec2_a_node_without_the_token_does_not_start(tmp_path: Path) -> None:
    fetch = aws()["initialization_commands"][0]
    program = tmp_path / "aws"

    def run(answers: str) -> tuple[int, str]:
        program.write_text(f'#!/bin/sh\ncase "$*" in {answers} *) exit 254;; esac\n')
        program.chmod(0o755)
        environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        code = subprocess.run(["bash", "-c", fetch], env=environment, check=False, capture_output=True).returncode
        file = tmp_path / "service.env"
        text = file.read_text() if file.exists() else ""
        assert not file.exists() or file.stat().st_mode & 0o077 == 0
        file.unlink(missing_ok=True)
        return code, text

    both = "*/RAY_AUTH_TOKEN*) echo ours;; */AUTH_TOKEN*) echo secret;;"
    written = "AUTH_TOKEN=secret\nRAY_AUTH_MODE=token\nRAY_AUTH_TOKEN=ours\n"
    assert run(both) == (0, written)
    assert run(both + " */HF_TOKEN*) echo hf;;") == (0, written + "HF_TOKEN=hf\n")
    for one in ("", "*/RAY_AUTH_TOKEN*) echo ours;;", "*/RAY_AUTH_TOKEN*) exit 1;; */AUTH_TOKEN*) echo secret;;"):
        code, text = run(one)
        assert code != 0
        assert "AUTH_TOKEN" not in text
    assert "--env-file $HOME/service.env" in aws()["docker"]["run_options"]
