"""The cluster on Kubernetes: valid by KubeRay's schema, in step with serve_config.yaml, open only where it must be."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster_files import (
    ROOT,
    aws,
    document,
    documents,
    image_environment,
    put,
    ray_cluster,
    ray_groups,
    rayservice,
    worker_groups,
)

RAY_PORTS = {6379, 8265, 10001, 52365}


def pods() -> list[dict[str, Any]]:
    """The pod templates of all files."""
    redis = document("redis.yaml", "StatefulSet")["spec"]["template"]
    return [*(group["template"] for group in ray_groups()), redis]


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "Mi": 2**20, "Gi": 2**30}[unit]


def strict(node: Any) -> Any:
    """A schema that refuses what Kubernetes would silently drop: fields it does not name."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    copy = {key: strict(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if node.get("type") == "object" and isinstance(node.get("properties"), dict) and not open_ended:
        copy["additionalProperties"] = False
    return copy


def validate(service: dict[str, Any]) -> None:
    schema = strict(json.loads((ROOT / "tests/data/rayservice_crd.json").read_text()))
    jsonschema.Draft202012Validator(schema).validate(service)


def test_kuberay_accepts_the_rayservice() -> None:
    validate(rayservice())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.serveConfig", "misspelt"),
        ("spec.serveConfigV2", {"must": "be text"}),
        ("spec.rayClusterConfig.autoscalerOptions.version", "v3"),
        ("spec.rayClusterConfig.autoscalerOptions.idleTimeout", 60),
        ("spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword", "text"),
        ("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterConfig.workerGroupSpecs.0.minReplica", 1),
        ("spec.rayClusterConfig.workerGroupSpecs.1.template.spec.containers.0.securityContext.readOnlyRoot", True),
        ("spec.rayClusterConfig.workerGroupSpecs.1.template.spec.containers.0.resources.limits.memory", "much"),
        ("spec.rayClusterConfig.workerGroupSpecs.1.template.spec.volumes.0.emptyDir.limit", "1Gi"),
        ("spec.rayClusterConfig.workerGroupSpecs.1.template.metadata.label", {}),
    ],
)
def test_a_mistake_in_the_rayservice_would_be_noticed(path: str, value: Any) -> None:
    service = rayservice()
    put(service, path, value)
    with pytest.raises(jsonschema.ValidationError):
        validate(service)


def test_kubernetes_serves_what_serve_config_says() -> None:
    assert yaml.safe_load(rayservice()["spec"]["serveConfigV2"]) == yaml.safe_load(
        (ROOT / "serve_config.yaml").read_text()
    )


def test_no_replica_comes_to_the_head() -> None:
    assert ray_cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert rayservice()["spec"]["excludeHeadPodFromServeSvc"] is True


def test_ray_asks_for_workers_and_gives_them_back() -> None:
    assert ray_cluster()["enableInTreeAutoscaling"] is True
    assert ray_cluster()["autoscalerOptions"]["version"] == "v2"
    gpu = worker_groups()["gpu"]
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)
    assert gpu["maxReplicas"] > 0
    [container] = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["template"]["spec"][
        "tolerations"
    ]
    assert "nvidia.com/gpu" not in worker_groups()["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_workers_have_processors_for_all_replicas() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    entries = config["applications"][0]["deployments"]
    replicas = [one.get("num_replicas") or one["autoscaling_config"]["max_replicas"] for one in entries]
    wanted = sum(most * one["ray_actor_options"]["num_cpus"] for most, one in zip(replicas, entries, strict=True))
    groups = worker_groups().values()
    sizes = [
        group["maxReplicas"]
        * int(
            group["rayStartParams"].get(
                "num-cpus", group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
            )
        )
        for group in groups
    ]
    assert sum(sizes) >= wanted


def test_what_needs_no_gpu_keeps_no_gpu_node_from_ending() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    for entry in config["applications"][0]["deployments"]:
        options = entry["ray_actor_options"]
        # Ray places by what is asked for: one of both each.
        assert (options["num_cpus"] == 0) == (options.get("num_gpus", 0) > 0) == entry["name"].startswith("Sam2Model:")
    assert worker_groups()["gpu"]["rayStartParams"]["num-cpus"] == "0"
    assert aws()["available_node_types"]["gpu"]["resources"] == {"CPU": 0, "GPU": 1}


def test_rays_processes_ask_each_other_for_a_token() -> None:
    assert ray_cluster()["authOptions"] == {"mode": "token"}
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    # Of the probes, Ray asks for none.
    assert {"/api/healthz", "/api/local_raylet_healthz"} <= set(PUBLIC_EXACT_PATHS)


def test_the_head_survives_its_restart() -> None:
    options = ray_cluster()["gcsFaultToleranceOptions"]
    service = document("redis.yaml", "Service")
    host, port = options["redisAddress"].split(":")
    assert (host, int(port)) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    redis = document("redis.yaml", "StatefulSet")["spec"]
    assert redis["template"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    [claim] = redis["volumeClaimTemplates"]
    [container] = redis["template"]["spec"]["containers"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in container["volumeMounts"]
    assert "--dir /data --appendonly yes" in container["command"][-1]
    [password] = container["env"]
    assert password["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_no_pod_may_do_more_than_it_must() -> None:
    containers = [container for pod in pods() for container in pod["spec"]["containers"]]
    containers.append(ray_cluster()["autoscalerOptions"])
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    for pod in pods():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
    # The autoscaler's container in the head's pod alone talks to Kubernetes.
    assert all(group["template"]["spec"]["automountServiceAccountToken"] is False for group in worker_groups().values())


def test_the_object_store_fits_into_its_memory() -> None:
    for group in ray_groups():
        spec = group["template"]["spec"]
        [shared] = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shared-mem"]
        assert shared["medium"] == "Memory"
        memory = bytes_of(spec["containers"][0]["resources"]["limits"]["memory"])
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store <= bytes_of(shared["sizeLimit"]) <= memory / 2
        assert {"name": "shared-mem", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]


def test_each_volume_that_is_mounted_exists() -> None:
    for pod in pods():
        claims = document("redis.yaml", "StatefulSet")["spec"]["volumeClaimTemplates"]
        names = {volume["name"] for volume in pod["spec"]["volumes"]} | {one["metadata"]["name"] for one in claims}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_the_hub_cache_outlives_its_pods_and_is_shared() -> None:
    claim = document("rayservice.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    cache = Path(image_environment()["HF_HUB_CACHE"])
    for group in worker_groups().values():
        spec = group["template"]["spec"]
        [name] = [
            one["name"]
            for one in spec["volumes"]
            if one.get("persistentVolumeClaim", {}).get("claimName") == claim["metadata"]["name"]
        ]
        [mount] = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == name]
        assert Path(mount["mountPath"]) in cache.parents


def test_secrets_are_only_referred_to_and_the_token_is_required() -> None:
    for file in ("rayservice.yaml", "redis.yaml"):
        assert "Secret" not in {one["kind"] for one in documents(file)}
    for group in ray_groups():
        entries = {one["name"]: one for one in group["template"]["spec"]["containers"][0]["env"]}
        assert set(entries) == {"AUTH_TOKEN", "HF_TOKEN"}
        assert all("value" not in one for one in entries.values())
        # An optional one that is missing would open the service to everyone.
        assert not entries["AUTH_TOKEN"]["valueFrom"]["secretKeyRef"].get("optional", False)
        assert entries["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True


def test_pods_are_probed() -> None:
    for group in ray_groups():
        [container] = group["template"]["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}
    head = ray_cluster()["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "exec" not in head["readinessProbe"]
    for group in worker_groups().values():
        command = group["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"][-1]
        assert "http://127.0.0.1:8000/-/healthz" in command
        assert "http://127.0.0.1:52365/api/local_raylet_healthz" in command


def test_nodes_are_not_emptied_all_at_once() -> None:
    budgets = [one["spec"] for one in documents("rayservice.yaml") if one["kind"] == "PodDisruptionBudget"]
    # Of pods that no Deployment owns, a budget can only say how many must stay.
    assert all(set(budget) == {"minAvailable", "selector"} for budget in budgets)
    groups = {budget["selector"]["matchLabels"]["ray.io/group"] for budget in budgets}
    assert groups == set(worker_groups())
    for budget in budgets:
        assert budget["selector"]["matchLabels"].items() >= ray_groups()[0]["template"]["metadata"]["labels"].items()


def opened(rule: dict[str, Any]) -> set[int]:
    assert all("endPort" not in port for port in rule["ports"])
    return {port["port"] for port in rule["ports"]}


def test_the_network_policy_holds_for_all_pods_of_the_cluster() -> None:
    policy = document("rayservice.yaml", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for group in ray_groups():
        assert group["template"]["metadata"]["labels"].items() >= policy["podSelector"]["matchLabels"].items()


def test_the_world_reaches_the_service_and_nothing_of_ray() -> None:
    policy = document("rayservice.yaml", "NetworkPolicy")["spec"]
    among_themselves = {"from": [{"podSelector": policy["podSelector"]}]}
    assert policy["ingress"].count(among_themselves) == 1
    others = [rule for rule in policy["ingress"] if rule != among_themselves]
    assert all(rule.get("ports") for rule in others)
    assert [opened(rule) for rule in others if not rule.get("from")] == [{8000}]
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    for rule in others:
        if opened(rule) & RAY_PORTS:
            assert opened(rule) == {8265}
            assert rule["from"] == [operator]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert [opened(rule) for rule in others if rule.get("from") == [monitoring]] == [{8080, 9101}]
    assert len(others) == 3


def test_only_the_cluster_reaches_redis() -> None:
    policy = document("redis.yaml", "NetworkPolicy")["spec"]
    redis = document("redis.yaml", "StatefulSet")["spec"]["template"]
    assert redis["metadata"]["labels"].items() >= policy["podSelector"]["matchLabels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    cluster = document("rayservice.yaml", "NetworkPolicy")["spec"]["podSelector"]
    assert policy["ingress"] == [{"from": [{"podSelector": cluster}], "ports": [{"port": 6379}]}]
