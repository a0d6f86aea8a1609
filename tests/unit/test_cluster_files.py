"""The operator's files in cluster/: valid by the schemas of those who read them, and in step with the code."""

import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import fillout_defaults, merge_setup_commands

from deployments import environment

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGE_ROOT = "/srv/segment-anything-2"
RAY_PORTS = {6379, 8265, 10001, 52365}


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


def pods() -> list[dict[str, Any]]:
    """The pod templates of all files."""
    redis = document("redis.yaml", "StatefulSet")["spec"]["template"]
    return [*(group["template"] for group in ray_groups()), redis]


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


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "Mi": 2**20, "Gi": 2**30}[unit]


# ---- the image


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


class Answer(BaseHTTPRequestHandler):
    """Answers what the test says."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def health_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/health"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"status": "OK"}', 0),
        (b'{"status": "IDLE"}', 0),
        (b'{"status": "ERROR"}', 1),
        (b"{}", 1),
        (b"Not found", 1),
    ],
)
def test_the_health_check_tells_a_failed_model(
    body: bytes, code: int, health_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answer, "body", body)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert script("healthcheck.py").main(health_url) == code


def test_the_health_check_fails_where_nothing_listens() -> None:
    assert script("healthcheck.py").main("http://127.0.0.1:9/health") == 1


# ---- what ends a worker pod


class Pod:
    """Processes of a made-up pod, whose replicas end one by one, and HAProxy after them."""

    def __init__(self, replicas: int, accepts: bool = True, has_head: bool = True) -> None:
        self.left = replicas
        self.accepts = accepts
        self.has_head = has_head
        self.seconds = 0.0
        self.commands: list[list[str]] = []

    def processes(self, _: list[str]) -> list[Any]:
        lines = [["ray::ServeReplica:segment-anything-2:RequestParser"]] * (self.left - 1)
        lines += [["/x/haproxy", "-f", "file"]] * (self.left > 0)
        lines += [["/x/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379", "--other"], ["ray::IDLE"], []]
        names = [line[0].removeprefix("/x/") if line and line[0].startswith("/x/") else "other" for line in lines]
        infos = zip(names, lines, strict=True)
        return [type("Process", (), {"info": {"name": name, "cmdline": line}}) for name, line in infos]

    def run(self, command: list[str], **_: Any) -> None:
        self.commands.append(command)
        if not self.accepts:
            raise subprocess.CalledProcessError(1, command)

    def sleep(self, seconds: float) -> None:
        # Without a head nobody ends them.
        self.left -= self.has_head
        self.seconds += seconds

    def connect(self, address: tuple[str, int], timeout: float) -> Any:
        assert (address, timeout) == (("10.0.0.1", 6379), 2)
        if not self.has_head:
            raise ConnectionRefusedError
        return io.BytesIO()


def drained(pod: Pod, monkeypatch: pytest.MonkeyPatch, deadline_s: float = 600) -> int:
    program = script("drain.py")
    monkeypatch.setattr(program.psutil, "process_iter", pod.processes)
    monkeypatch.setattr(program.subprocess, "run", pod.run)
    monkeypatch.setattr(program.time, "sleep", pod.sleep)
    monkeypatch.setattr(program.time, "monotonic", lambda: pod.seconds)
    monkeypatch.setattr(program.socket, "create_connection", pod.connect)
    return int(program.drain(deadline_s))


def test_a_pod_that_ends_waits_for_its_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(replicas=3)
    assert drained(pod, monkeypatch) == 0
    assert pod.left == 0
    [command] = pod.commands
    assert command[0].endswith("/ray")
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert options["--node-id"] == "ab12"
    assert options["--address"] == "10.0.0.1:6379"
    assert options["--deadline-remaining-seconds"] == "600"


def test_ray_knows_the_drain_command_with_these_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.scripts.scripts import cli

    pod = Pod(replicas=1)
    drained(pod, monkeypatch)
    known = cli.commands[pod.commands[0][1]]
    parsed = known.make_context("drain-node", pod.commands[0][2:]).params
    assert parsed["reason"] == "DRAIN_NODE_REASON_PREEMPTION"


def test_a_pod_without_replicas_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(replicas=0)
    assert drained(pod, monkeypatch) == 0
    assert pod.commands == []


def test_a_pod_waits_no_longer_where_ray_refuses_or_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Pod(replicas=5, accepts=False)
    assert drained(refused, monkeypatch) == 1
    assert refused.left == 5
    late = Pod(replicas=5)
    assert drained(late, monkeypatch, deadline_s=0) == 1
    assert late.left == 5


def test_a_pod_does_not_wait_for_a_head_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(replicas=5, has_head=False)
    assert drained(pod, monkeypatch) == 1
    assert pod.seconds == script("drain.py").HEAD_GONE_S


def test_pods_have_the_time_to_end() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    [parser] = [one for one in config["applications"][0]["deployments"] if one["name"] == "RequestParser"]
    answers_s = parser["graceful_shutdown_timeout_s"]
    assert rayservice()["spec"]["rayClusterDeletionDelaySeconds"] > answers_s
    deadline_s = script("drain.py").DEADLINE_S
    assert deadline_s > answers_s
    for group in worker_groups().values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > deadline_s


# ---- Kubernetes


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


def put(tree: Any, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    for step in steps:
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    tree[last] = value


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
    wanted = sum(one["autoscaling_config"]["max_replicas"] * one["ray_actor_options"]["num_cpus"] for one in entries)
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


# ---- Amazon EC2


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
