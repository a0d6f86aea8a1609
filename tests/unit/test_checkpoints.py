"""From a model id to weights: the hub and its cache, files of one's own, and everything that can be wrong with them."""

import http.server
import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor

from deployments.errors import ModelLoadError
from deployments.messages.prompt import Prompt
from deployments.model import checkpoints
from deployments.model.checkpoints import DEMO, load_model, prefetch
from deployments.model.engine import Engine, ImageEmbedding
from deployments.settings import ModelSettings
from harness.weights import COMMIT, fill_hub_cache, random_model, save_checkpoint
from tests.local_servers import serving

TINY = "facebook/sam2-hiera-tiny"
TINY_FILE = HF_MODEL_ID_TO_FILENAMES[TINY][1]
DEMO_CONFIG = DEMO / "sam2_demo.yaml"


def ignore(*_: object) -> None:
    """Takes a report of progress."""


def own(checkpoint: Path, config: str | Path = DEMO_CONFIG) -> ModelSettings:
    return ModelSettings(model_id="own/model", checkpoint=checkpoint, config=str(config))


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that nobody answers for; huggingface_hub reads both from the environment only once."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    point_hub_to("http://127.0.0.1:9", monkeypatch)
    return cache


def point_hub_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for the bundled configuration, as a .pt file."""
    return save_checkpoint(random_model(DEMO_CONFIG, seed=5), tmp_path_factory.mktemp("weights") / "own.pt")


@pytest.fixture(scope="module")
def tiny_hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds random weights for sam2-hiera-tiny."""
    cache = tmp_path_factory.mktemp("hub")
    fill_hub_cache(cache, TINY)
    return cache


@pytest.fixture(scope="module")
def tiny_checkpoint(tiny_hub_cache: Path) -> Path:
    """Its file."""
    return next(tiny_hub_cache.rglob(TINY_FILE))


# ---- the bundled model and files of one's own


def test_the_bundled_model_is_float32_on_the_cpu_in_evaluation_mode() -> None:
    model = load_model(ModelSettings(model_id="sam2-demo"), ignore)

    assert {(tensor.dtype, tensor.device.type) for tensor in model.parameters()} == {(torch.float32, "cpu")}
    assert not any(module.training for module in model.modules())


def test_a_checkpoint_of_ones_own_is_loaded(demo_checkpoint: Path) -> None:
    reports: list[tuple[str, int, int]] = []

    model = load_model(own(demo_checkpoint), lambda *report: reports.append(report))

    assert_same_weights(model, random_model(DEMO_CONFIG, seed=5))
    assert reports == [("loading own.pt", 0, 0)]


def test_a_safetensors_file_is_loaded(demo_checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(demo_checkpoint, weights_only=True)["model"]
    safetensors.torch.save_file(state, tmp_path / "own.safetensors")

    model = load_model(own(tmp_path / "own.safetensors"), ignore)

    assert_same_weights(model, random_model(DEMO_CONFIG, seed=5))


def test_a_configuration_may_be_named_as_in_the_sam2_package(tiny_checkpoint: Path) -> None:
    model = load_model(own(tiny_checkpoint, "configs/sam2/sam2_hiera_t.yaml"), ignore)

    assert model.image_encoder.trunk.channel_list == [768, 384, 192, 96]


@pytest.mark.parametrize("model_id", HF_MODEL_ID_TO_FILENAMES)
def test_each_hub_id_has_its_configuration_in_the_sam2_package(model_id: str) -> None:
    config = checkpoints._config_file(model_id, HF_MODEL_ID_TO_FILENAMES[model_id][0])

    assert "sam2_base.SAM2Base" in config.read_text()


def assert_same_weights(model: SAM2Base, expected: SAM2Base) -> None:
    state, expected_state = model.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


# ---- what can be wrong with files


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def refusal(settings: ModelSettings) -> str:
    with pytest.raises(ModelLoadError) as refused:
        load_model(settings, ignore)
    assert refused.value.message.startswith(f"{settings.model_id}: ")
    return refused.value.message


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    assert refusal(own(tmp_path / "none.pt")) == f"own/model: no such file: {tmp_path}/none.pt"


@pytest.mark.parametrize("config", ["none.yaml", "configs/none.yaml", "../none", "modeling/sam2_base.py", "configs"])
def test_a_missing_configuration_is_named(demo_checkpoint: Path, config: str) -> None:
    assert refusal(own(demo_checkpoint, config)) == (
        f"own/model: {config} is neither a file nor a configuration of the sam2 package"
    )


def test_a_checkpoint_of_another_size_does_not_fit(tiny_checkpoint: Path) -> None:
    message = refusal(own(tiny_checkpoint))

    assert message.startswith(f"own/model: {TINY_FILE} does not fit the configuration: ")
    assert len(message) < 600


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04", b"PK\x03\x04 cut short", bytes(range(256)) * 20])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"own{suffix}"
    path.write_bytes(content)

    assert f"own{suffix} cannot be read as a checkpoint: " in refusal(own(path))


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_checkpoint_cut_short_is_refused(demo_checkpoint: Path, tmp_path: Path, share: float) -> None:
    content = demo_checkpoint.read_bytes()
    (tmp_path / "own.pt").write_bytes(content[: int(share * len(content))])

    assert "own.pt cannot be read as a checkpoint: " in refusal(own(tmp_path / "own.pt"))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": {"weight": Trap(tmp_path / "sprung")}}, tmp_path / "own.pt")

    assert "own.pt cannot be read as a checkpoint: " in refusal(own(tmp_path / "own.pt"))
    assert not (tmp_path / "sprung").exists()


def test_code_in_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))

    assert "own.pt cannot be read as a checkpoint: " in refusal(own(tmp_path / "own.pt"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("saved", [{"weights": {}}, {}, [1, 2], 5, torch.zeros(3), "model"], ids=str)
def test_a_checkpoint_without_model_is_refused(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "own.pt")

    assert "own.pt holds no `model` state dict" in refusal(own(tmp_path / "own.pt"))


@pytest.mark.parametrize("model", [5, [1], None, {"weight": 5}, {}], ids=str)
def test_a_checkpoint_whose_model_is_no_state_dict_of_this_model_is_refused(tmp_path: Path, model: Any) -> None:
    torch.save({"model": model}, tmp_path / "own.pt")

    assert refusal(own(tmp_path / "own.pt")).startswith("own/model: own.pt ")


@pytest.mark.parametrize(
    "yaml",
    [
        "",
        "5",
        "hello",
        "- a\n- b",
        "a: [1",
        "\0",
        "model:",
        "model: 5",
        "model: {}",
        "model: {a: 1}",
        "other: {a: 1}",
        "model: {_target_: no.such.Class}",
        "model: {_target_: sam2.modeling.sam2_base.SAM2Base}",
        "model: {_target_: sam2.modeling.sam2_base.SAM2Base, unknown: 1}",
        "model: {_target_: collections.OrderedDict}",
        "model: {_target_: torch.nn.Linear, in_features: 2, out_features: 2}",
        "model: {_target_: '${oc.env:NO_SUCH_VARIABLE_IS_SET}'}",
        "model: {_target_: '${nothing}'}",
    ],
)
def test_a_yaml_that_is_no_sam2_configuration_is_refused(demo_checkpoint: Path, tmp_path: Path, yaml: str) -> None:
    (tmp_path / "own.yaml").write_text(yaml)

    assert refusal(own(demo_checkpoint, tmp_path / "own.yaml")).startswith("own/model: own.yaml ")


def test_a_yaml_that_is_no_text_is_refused(demo_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00\x81")

    assert refusal(own(demo_checkpoint, tmp_path / "own.yaml")).startswith("own/model: own.yaml is not a SAM 2 config")


# ---- the hub's cache


def test_a_cached_model_is_what_metas_from_pretrained_loads(
    tiny_hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tiny_hub_cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    model = load_model(ModelSettings(model_id=TINY), ignore)
    expected = SAM2ImagePredictor.from_pretrained(TINY, device="cpu").model

    assert_same_weights(model, expected)
    # Beside the weights, the postprocessing that from_pretrained adds to the configuration decides on the masks.
    generator = torch.Generator().manual_seed(0)
    feats = [torch.randn(1, *shape, generator=generator) for shape in ((256, 64, 64), (32, 256, 256), (64, 128, 128))]
    embedding = ImageEmbedding(feats[0], tuple(feats[1:]), (100, 100))
    prompt = Prompt(point_coords=[[30, 40]], point_labels=[1], multimask_output=False)
    answers = [Engine(each, torch.device("cpu")).decode([(embedding, prompt)]) for each in (model, expected)]
    torch.testing.assert_close(*answers)


def test_offline_an_empty_cache_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert refusal(ModelSettings(model_id=TINY)) == (
        f"{TINY}: {TINY_FILE} is not in the hub cache, and HF_HUB_OFFLINE is set"
    )


# ---- the hub


class FakeHub(http.server.ThreadingHTTPServer):
    """Answers HEAD and GET for the files that it is given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.content: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        self.status_of_missing = 404


class FakeHubHandler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.server.seen.append((self.command, self.path, self.headers["Authorization"]))
        content = self.server.content.get(self.path)
        self.send_response(self.server.status_of_missing if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound" if self.server.status_of_missing == 404 else "")
        else:
            self.send_header("ETag", '"0123abcd"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if with_body:
            self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine."""
    server = FakeHub()
    with serving(server):
        point_hub_to(server.url, monkeypatch)
        yield server
        huggingface_hub.close_session()


CONTENT = b"0123456789" * 2_500_000


def test_a_model_is_downloaded_with_reports_that_grow_to_the_total(hub: FakeHub, empty_hub_cache: Path) -> None:
    hub.content[f"/{TINY}/resolve/main/{TINY_FILE}"] = CONTENT
    reports: list[tuple[str, int, int]] = []

    path = prefetch(TINY, lambda *report: reports.append(report))

    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(empty_hub_cache)
    assert reports.pop(0) == (f"asking the hub for {TINY_FILE}", 0, 0)
    assert {(what, total) for what, _, total in reports} == {(f"downloading {TINY_FILE}", len(CONTENT))}
    done = [bytes_done for _, bytes_done, _ in reports]
    assert done == sorted(done)
    assert len(done) > 1
    assert done[-1] == len(CONTENT)


def test_a_downloaded_model_is_not_asked_for_again(hub: FakeHub) -> None:
    hub.content[f"/{TINY}/resolve/main/{TINY_FILE}"] = b"weights"
    first = prefetch(TINY, ignore)
    hub.seen.clear()

    assert prefetch(TINY, ignore) == first
    assert hub.seen == []


@pytest.mark.parametrize(("token", "header"), [("hf_test", "Bearer hf_test"), (None, None)])
def test_the_token_in_the_environment_is_sent(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None, header: str | None
) -> None:
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.content[f"/{TINY}/resolve/main/{TINY_FILE}"] = b"weights"

    prefetch(TINY, ignore)

    assert {method for method, _, _ in hub.seen} == {"HEAD", "GET"}
    assert {authorization for _, _, authorization in hub.seen} == {header}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_refusal_of_the_hub_is_told(hub: FakeHub, status: int) -> None:
    hub.status_of_missing = status

    message = refusal(ModelSettings(model_id=TINY))

    assert message.startswith(f"{TINY}: cannot download {TINY_FILE} from the hub: ")
    assert str(status) in message


def test_a_model_that_is_not_on_the_hub_cannot_be_prefetched() -> None:
    with pytest.raises(ModelLoadError, match="own/model: is not on the hub; known are facebook/sam2-hiera-tiny, "):
        prefetch("own/model", ignore)


def test_a_hub_that_refuses_connections_is_told_at_once() -> None:
    started = time.monotonic()

    message = refusal(ModelSettings(model_id=TINY))

    assert message.startswith(f"{TINY}: cannot download {TINY_FILE} from the hub: ")
    assert "refused" in message
    assert time.monotonic() - started < 10


def test_a_hub_that_never_answers_is_told_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoints.HUB_PROBE_TIMEOUT_S <= 10
    monkeypatch.setattr(checkpoints, "HUB_PROBE_TIMEOUT_S", 0.3)
    started = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_hub_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        message = refusal(ModelSettings(model_id=TINY))

    assert message.startswith(f"{TINY}: cannot download {TINY_FILE} from the hub: ")
    assert "timed out" in message or "no answer within 0.3 s" in message
    assert time.monotonic() - started < 10


def test_a_hub_that_has_no_such_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_to("http://hub.invalid", monkeypatch)

    assert refusal(ModelSettings(model_id=TINY)).startswith(f"{TINY}: cannot download {TINY_FILE} from the hub: ")
