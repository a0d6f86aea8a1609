"""The benchmark's own arithmetic, also where nothing was measured; the load generator and the memory it counts."""

import hashlib
import importlib
import inspect
import mmap
import os
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import orjson
import psutil
import pytest
from PIL import Image
from ray import serve
from ray.serve.schema import ServeDeploySchema

import benchmarks.__main__ as bench
from benchmarks import servers
from benchmarks.comparison.scenarios import BUDGET_SCENARIOS, FULL, QUICK, Comparison, _key, _rows
from benchmarks.plot import draw
from benchmarks.replicas import affinity, faults, scaling, waiting_model
from benchmarks.replicas.waiting_model import WaitingModel
from benchmarks.report import BUDGETS, Findings, Report, Row, Spread, budget_row, figure, ratios
from benchmarks.requests import memory
from benchmarks.servers import Server
from benchmarks.workplace import DEMO, Configuration
from deployments import app
from deployments.messages.pieces import num_rows
from deployments.model.sam2_model import Sam2Model
from deployments.settings import Sam2ModelConfig, parse_settings
from harness.load import Exchange, Load, Request, continuous_load, load, parse_server_timing, percentile, point_request
from harness.processes import Growth, ProcessTree, idle_memory, measurable
from harness.serve import free_port, wait_until
from tests.local_servers import serving
from tuning.tables import Table

HARDWARE = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "A Processor",
    "cores": 2,
    "cpu_flags": {"avx2": True, "amx_bf16": False},
    "memory_gb": 24.0,
    "gpu": None,
    "python": "3.11",
    "packages": {"torch": "1", "ray": "2", "sam2": "3"},
    "commit": "abc",
    "uncommitted_changes": False,
}


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratios([10, 30, 20], [1, 1, 10]) == Spread(10, 2, 30, 3)


def test_percentiles() -> None:
    values = [float(value) for value in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([1.0], 0.99)) == (50, 95, 1)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ({}, "")),
        ('parse;dur=1.5, queue;dur=0, cache;desc="hit"', ({"parse": 1.5, "queue": 0.0}, "hit")),
        ("embed;dur=12.25, cache;desc=miss", ({"embed": 12.25}, "miss")),
        ("encode;desc=text;dur=3, decode; dur=2", ({"encode": 3.0, "decode": 2.0}, "")),
    ],
)
def test_server_timing_is_read(header: str, expected: tuple[dict[str, float], str]) -> None:
    assert parse_server_timing(header) == expected


def test_failures_do_not_count_as_throughput() -> None:
    load = Load(
        [Exchange(200, 1.0), Exchange(503, 0.1, error="overloaded"), Exchange(200, 1.0, error="cut")],
        2.0,
    )
    assert load.rate == 0.5
    assert load.record()["num_failed"] == 2


@pytest.mark.parametrize(
    ("budget", "measured", "verdict"),
    [
        ("new image", 5.0, "met"),
        ("new image", 4.9, "not met"),
        ("overhead", 15.1, "not met"),
        ("replica killed", 0.0, "met"),
        ("replica killed", None, "not measured"),
    ],
)
def test_verdicts(budget: str, measured: float | None, verdict: str) -> None:
    assert budget_row(budget, measured, "float32").verdict == verdict


def test_figures_have_their_units() -> None:
    assert [figure(5, "×"), figure(1234.5, "MB"), figure(3.14159, "ms"), figure(97.25, "%"), figure(0.001, "")] == [
        "5.0×",
        "1,234 MB",
        "3.14 ms",
        "97.2 %",
        "0.001",
    ]


def test_points_lie_inside_the_image_and_differ() -> None:
    coords = [orjson.loads(point_request(b"", (64, 48), index).fields["point_coords"])[0] for index in range(200)]
    assert all(0 < x < 64 and 0 < y < 48 for x, y in coords)
    assert len({tuple(one) for one in coords}) == 200


@pytest.mark.parametrize("scenarios", [FULL, QUICK])
def test_every_throughput_budget_has_its_scenario(scenarios: list[object]) -> None:
    assert {_key(one) for one in scenarios} >= set(BUDGET_SCENARIOS.values())  # type: ignore[arg-type]
    assert len(set(scenarios)) == len(scenarios)


def test_requests_are_the_same_for_both_servers_and_new_images_are_new() -> None:
    small = next(one for one in QUICK if one.size == (640, 480))
    assert small.requests(7, 2, to_service=True) == small.requests(7, 2, to_service=False)
    assert len({one.image for one in small.requests(0, 3, to_service=True)}) == 3


def test_only_the_service_is_asked_by_id_for_the_same_points() -> None:
    rle = next(one for one in QUICK if one.answer == "RLE by image_id")
    uploaded, by_id = (rle.requests(7, 2, to_service) for to_service in (False, True))
    for naive, served in zip(uploaded, by_id, strict=True):
        assert naive.image == rle.first_request().image
        assert served.image is None
        assert served.fields["image_id"] == hashlib.sha256(naive.image or b"").hexdigest()
        assert served.fields["response_format"] == "rle"
        assert served.fields["point_coords"] == naive.fields["point_coords"]


def made_up_report() -> Report:
    comparisons = []
    for number, scenario in enumerate(FULL):
        comparison = Comparison(scenario)
        for round_number in range(scenario.rounds):
            comparison.naive.append(Load([Exchange(200, 8.0, 8.0, 10)], 8.0 + round_number))
            comparison.served.append(Load([Exchange(200, 1.0, 0.1, 10)] * (number + 2), 2.0))
        comparisons.append(comparison)
    report = Report(HARDWARE, "float32", quick=False)
    rows = [*_rows(comparisons, "float32"), Row("something | else", None, "–", note="could not be measured")]
    report.findings["scenarios"] = Findings(rows, [Table("A table", ("a", "b"), [["1", "2"]])], {"raw": {1: 2.0}})
    report.findings["faults"] = Findings([budget_row("replica killed", 3, "float32")])
    report.failures["memory"] = "OSError: no such | thing"
    return report


def test_a_report_has_every_budget_also_of_parts_that_failed() -> None:
    report = made_up_report()
    assert [row.budget for row in report.budget_rows()] == list(BUDGETS)
    text = report.markdown()
    assert all(budget.what in text for budget in BUDGETS.values())
    assert "the part memory failed: OSError" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {
        len(("what", "budget", "measured", "verdict", "precision", "note")) + 1,
        3,
    }


def test_a_report_is_written_as_json_and_drawn(tmp_path: Path) -> None:
    report = made_up_report()
    report.write(tmp_path / "one.json")
    document = orjson.loads((tmp_path / "one.json").read_bytes())
    assert len(document["budgets"]) == len(BUDGETS)
    assert document["data"]["scenarios"] == {"raw": {"1": 2.0}}
    draw(report, tmp_path / "one.png")
    draw(Report(HARDWARE, "float32", quick=True), tmp_path / "empty.png")
    sizes = [Image.open(tmp_path / name).size for name in ("one.png", "empty.png")]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] > sizes[1][1] > 500


# ---- the load generator, against a small server


class Answering(BaseHTTPRequestHandler):
    """Answers JSON, an error, or half a body, as the request's body asks."""

    protocol_version = "HTTP/1.1"
    answered: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        text = b'{"masks": "[1]"}'
        self.send_response(503 if b"refuse" in body else 200)
        self.send_header("server-timing", 'decode;dur=1.5, cache;desc="hit"')
        self.send_header("content-length", str(len(text) + (b"truncate" in body)))
        self.end_headers()
        self.wfile.write(text)
        self.answered.append(body)
        self.close_connection = b"truncate" in body

    def log_message(self, *_: object) -> None: ...


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what some of these tests are about."""


@pytest.fixture
def server() -> Iterator[Server]:
    http = QuietServer(("127.0.0.1", 0), Answering)
    Answering.answered.clear()
    with serving(http):
        yield Server(f"http://127.0.0.1:{http.server_port}", ProcessTree(os.getpid()))


def test_a_load_sends_every_request_once(server: Server) -> None:
    done = load(server.url, [Request(b"image", {"index": str(index)}) for index in range(25)], clients=4)
    assert len(done.exchanges) == 25
    assert not done.failures
    assert {(one.cache, one.durations["decode"], one.num_bytes) for one in done.exchanges} == {("hit", 1.5, 16)}


@pytest.mark.parametrize(("word", "status"), [("refuse", 503), ("truncate", 0)])
def test_refused_and_truncated_answers_are_failures(server: Server, word: str, status: int) -> None:
    [failure] = load(server.url, [Request(word.encode(), {})], clients=1).failures
    assert failure.status == status
    assert failure.error


def test_a_server_that_is_gone_is_a_failure() -> None:
    [failure] = load(f"http://127.0.0.1:{free_port()}", [Request(b"image", {})], clients=1).failures
    assert "ConnectError" in failure.error


def test_a_continuous_load_goes_on_until_it_is_stopped(server: Server) -> None:
    with continuous_load(server.url, [Request(b"image", {})], clients=2) as finish:
        wait_until(lambda: len(Answering.answered) > 10, 60, "answered more than ten times")
        done = finish()
    sent = len(Answering.answered)
    assert len(done.exchanges) == sent > 10
    assert not done.failures


def test_slow_readers_report_their_statuses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "HOLD_S", 0.3)
    monkeypatch.setattr(memory, "idle_memory", lambda tree: idle_memory(tree, 0.3))
    _, statuses = memory.slow_readers(server, 3, patience_s=10)
    assert statuses == {200: 3}


@pytest.mark.skipif(not measurable(), reason="this kernel does not report what processes take (Pss)")
@pytest.mark.parametrize("lacking", ["nothing", "smaps_rollup"])
def test_memory_counts_an_array_and_a_shared_one_once(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read(path / "gone" if path.name == lacking else path))
    tree = ProcessTree(os.getpid())
    idle = tree.memory()
    # Not numpy's, and written in small pieces: malloc might give memory that an earlier test has freed, or keep it.
    piece = bytes(1_000_000)
    private = mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(50):
        private.write(piece)
    grown = Growth.between(idle, tree.memory())
    assert 45 < grown.total < 60
    assert str(grown).startswith(f"{psutil.Process().name()} ")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        for _ in range(30):
            file.write(piece)
        file.flush()
        # Written, but mapped by nobody: still memory.
        assert 25 < Growth.between(idle, tree.memory()).total - grown.total < 40
        with mmap.mmap(file.fileno(), 30_000_000) as mapped:
            assert not any(mapped[::4096])
            assert 25 < Growth.between(idle, tree.memory()).total - grown.total < 40


def test_memory_that_the_kernel_does_not_report_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: "Rss: 80 kB\nPss: 0 kB\n")
    with pytest.raises(RuntimeError, match="no proportional set size"):
        idle_memory(ProcessTree(os.getpid()))


def test_the_waiting_model_takes_what_the_real_one_takes() -> None:
    inspect.signature(WaitingModel.ask).bind(*inspect.signature(Sam2Model.ask).parameters)


def test_every_part_is_a_function_and_every_budget_has_its_part() -> None:
    functions = {
        part: getattr(importlib.import_module(f"benchmarks.{module}"), function)
        for part, (module, function) in bench.PARTS.items()
    }
    assert all(list(inspect.signature(function).parameters) == ["workplace"] for function in functions.values())
    assert {budget.part for budget in BUDGETS.values()} <= set(functions)


# ---- configs and deploys


@pytest.mark.parametrize(
    "configuration",
    [Configuration(), scaling.CONFIGURATION, affinity.CONFIGURATION, faults.LIVE, faults.ROLLED, faults.RESTARTED],
)
def test_configs_are_accepted_by_serve_and_by_the_settings(configuration: Configuration) -> None:
    document = configuration.document(8000)
    [application] = ServeDeploySchema.model_validate(document).applications
    settings = parse_settings(application.args)
    assert settings.default_model_id == configuration.model_id
    names = [deployment.name for deployment in application.deployments]
    assert names == ["RequestParser", "ResponseEncoder", "VideoReader", configuration.deployment_name]
    user_config = configuration.model_deployment.get("user_config", {})
    Sam2ModelConfig.model_validate(user_config)


def test_the_waiting_model_stands_where_the_model_stood() -> None:
    real, waiting = app.build({"models": [DEMO]}), waiting_model.build({"models": [DEMO]})
    models = []
    for application in (real, waiting):
        init_args: Any = application._bound_deployment.init_args
        models.append(init_args[1][DEMO]._bound_deployment)
    assert [model.name for model in models] == [f"Sam2Model:{DEMO}"] * 2
    assert [model.func_or_class for model in models] == [Sam2Model, waiting_model.WaitingModel]


def test_the_waiting_model_has_the_models_methods() -> None:
    ours, theirs = waiting_model.WaitingModel, Sam2Model
    for name in ("reconfigure", "wait_until_ready", "ask"):
        assert callable(getattr(ours, name))
        assert callable(getattr(theirs, name))
    assert num_rows(waiting_model.small_segmentation("id", DEMO)) == 64 + 256


@pytest.mark.parametrize(
    ("status", "states", "expected"),
    [
        ("RUNNING", {"RUNNING": 2}, True),
        ("DEPLOYING", {"RUNNING": 2}, False),
        ("RUNNING", {"RUNNING": 1}, False),
        ("RUNNING", {"RUNNING": 2, "STOPPING": 1}, False),
    ],
)
def test_a_deploy_has_ended_when_the_wanted_replicas_run_alone(
    monkeypatch: pytest.MonkeyPatch, status: str, states: dict[str, int], expected: bool
) -> None:
    deployment = SimpleNamespace(replica_states=states)
    application = SimpleNamespace(status=status, message="", deployments={f"Sam2Model:{DEMO}": deployment})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"segment-anything-2": application}))
    assert servers._is_deployed(Configuration(DEMO, replicas=2)) is expected
