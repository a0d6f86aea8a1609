"""Which module may import what (docs/architecture.md, Imports): the table, its checker, and proof that it works."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "deployments").rglob("*.py"))
}

ROOMS = {"parsing", "frames", "model", "encoding", "page"}
"""Each may import itself and SHARED, and no other room, but for what is in ALSO."""

# The pictures of a zip or an animation are read as other pictures are, by the same rules.
ALSO = {"parsing": {"pictures"}, "frames": {"parsing.images", "pictures"}}

SHARED = {"messages", "telemetry", "errors", "settings", "model_status", "machine"}

# What each other module, or folder, may import of ours.
OWN_IMPORTS = {
    "errors": set[str](),
    "client": set[str](),
    "machine": set[str](),
    "model_status": set[str](),
    "telemetry": {"telemetry"},
    "settings": {"errors"},
    "messages": {"messages", "errors"},
    "pictures": {"pictures", "messages", "errors", "machine"},
    "app": {
        "settings",
        "parsing.http.ingress",
        "parsing.affinity_router",
        "model.sam2_model",
        "encoding.response_encoder",
        "frames.video_reader",
        "page.routes",
    },
    "cluster_token": set[str](),
    "environment": set[str](),
    "config_file": {"environment", "settings"},
    "haproxy": {"environment"},
    "launcher": {
        "cluster_token",
        "config_file",
        "environment",
        "settings",
        "model_status",
        "errors",
        "machine",
        "model.checkpoints",
    },
    "__main__": {"launcher"},
}

# Importing these costs the launcher seconds, so it does so only in the command that needs them.
LAZY = {"launcher": {"model.checkpoints"}}

# A folder inside a room that only itself and these modules may import.
INNER = {"parsing.http": {"app"}}

DEPLOYMENT_FILES = {"parsing.request_parser", "parsing.http.ingress", "model.sam2_model", "encoding.response_encoder"}
CLUSTER_FILES = {
    "parsing.model_calls",
    "parsing.encoder_calls",
    "parsing.video.job_replica",
    "parsing.video.video_calls",
    "parsing.retries",
    "parsing.model_states",
    "parsing.http.body_pacing",
    "parsing.http.flow_control",
    "parsing.affinity_router",
}
RAY_FILES = {"app", "launcher", "cluster_token", "config_file", "model_status", "telemetry.metrics"} | CLUSTER_FILES
SAM2_FILES = {
    "model.checkpoints",
    "model.engine",
    "model.image_encoder",
    "model.openvino_encoder",
    "model.automatic_masks",
    "model.mask_decoder",
    "model.memory_attention",
    "model.memory_bank",
    "model.tracker",
}
TORCH_FILES = SAM2_FILES | {"model.devices", "model.out_of_memory"}
HTTP_FILES = {"parsing.http", "page.routes"}
ONLY_IN = {
    "ray": RAY_FILES | DEPLOYMENT_FILES,
    "sam2": SAM2_FILES,
    "torch": TORCH_FILES,
    # Its import takes longer than torch's, at the start of each replica.
    "torchvision": set(),
    # By `import_module`: see `_openvino` in model/openvino_encoder.py.
    "openvino": set(),
    "av": {"frames.film"},
    "tifffile": {"pictures.tiff"},
    "imagecodecs": {"pictures.png16"},
    "fastapi": HTTP_FILES,
    "starlette": HTTP_FILES,
}
ENVIRONMENT_FILES = {"deployments.settings", "deployments.environment"}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    name: str
    line: int
    at_top: bool

    @property
    def own(self) -> str:
        """Its name inside `deployments`, or "" if it is not ours."""
        return self.name.removeprefix("deployments.") if self.name.startswith("deployments.") else ""


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import in a module, wherever it stands, with `from package import module` resolved to the module."""
    tree = ast.parse(source)
    lazy = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level]
                package = ".".join([*parents, package]).strip(".")
            inside = [f"{package}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if name in FILES]
            names = modules if len(modules) == len(inside) else [package, *modules]
        for name in names:
            yield Import(name, node.lineno, node not in lazy)  # type: ignore[attr-defined]


def within(name: str, names: Iterable[str]) -> bool:
    """Whether a module is one of these, or stands in one of these folders."""
    return any(name == one or name.startswith(f"{one}.") for one in names)


def allowed_imports(own_name: str) -> set[str]:
    """What a module may import of ours; nothing if the table does not know it."""
    room = own_name.split(".", maxsplit=1)[0]
    return {room, *ALSO.get(room, set())} | SHARED if room in ROOMS else OWN_IMPORTS.get(room, set())


def import_faults(module: str, source: str) -> list[str]:
    """What a module imports against the table, a sentence each."""
    own_name = module.removeprefix("deployments.")
    faults = []
    for found in imports(source, module):
        where = f"{module} imports {found.name} in line {found.line}"
        only_in = ONLY_IN.get(found.name.split(".")[0])
        if only_in is not None and not within(own_name, only_in):
            faults.append(f"{where}; it is allowed only in {', '.join(sorted(only_in))}")
        if not found.own or found.name == module:
            continue
        inner = next((folder for folder in INNER if within(found.own, [folder])), None)
        reachable = inner is None or within(own_name, {inner, *INNER[inner]})
        if not (reachable and within(found.own, allowed_imports(own_name))):
            faults.append(f"{where}, which the table does not allow")
        if found.at_top and found.own in LAZY.get(own_name, set()):
            faults.append(f"{where} at the top; it may only be imported where it is needed")
    return faults


def environment_faults(module: str, source: str) -> list[str]:
    """Where a module reads or writes the environment variables."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute | ast.ImportFrom)]
    return [
        f"{module} uses os.{name} in line {node.lineno}; only {' and '.join(sorted(ENVIRONMENT_FILES))} may"
        for node in nodes
        for name in (
            [node.attr]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            else [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module == "os"
            else []
        )
        if name in ENVIRONMENT_NAMES
    ]


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_table(module: str) -> None:
    assert import_faults(module, FILES[module].read_text()) == []


@pytest.mark.parametrize("module", [module for module in FILES if module not in ENVIRONMENT_FILES])
def test_only_settings_and_environment_touch_the_environment_variables(module: str) -> None:
    assert environment_faults(module, FILES[module].read_text()) == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: {found.name for found in imports(path.read_text(), module) if found.name in FILES}
        for module, path in FILES.items()
    }

    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("deployments.parsing.model_calls", "from deployments.model.engine import Engine", "deployments.model.engine"),
        ("deployments.parsing.http.form", "import ray", "ray"),
        ("deployments.parsing.images", "from starlette.requests import Request", "starlette.requests"),
        ("deployments.parsing.model_calls", "from deployments import app", "deployments.app"),
        ("deployments.encoding.png", "from deployments.parsing import images", "deployments.parsing.images"),
        ("deployments.encoding.png", "def f():\n    import torch.nn.functional", "torch.nn.functional"),
        ("deployments.model.engine", "from ..parsing import images", "deployments.parsing.images"),
        ("deployments.model.embedding_cache", "if True:\n    import sam2", "sam2"),
        ("deployments.errors", "from deployments.settings import Limits", "deployments.settings"),
        ("deployments.messages.prompt", "from deployments.settings import Limits", "deployments.settings"),
        ("deployments.model_status", "import deployments.launcher", "deployments.launcher"),
        ("deployments.launcher", "from deployments.model.checkpoints import prefetch", "deployments.model.checkpoints"),
        (
            "deployments.app",
            "from deployments.parsing.model_calls import ModelCalls",
            "deployments.parsing.model_calls",
        ),
        (
            "deployments.parsing.segmenter",
            "from deployments.parsing.http import form",
            "deployments.parsing.http.form",
        ),
        ("deployments.new_at_the_top", "import deployments.errors", "deployments.errors"),
    ],
)
def test_the_checker_catches_a_forbidden_import(module: str, source: str, imported: str) -> None:
    [fault] = import_faults(module, source)

    assert fault.startswith(f"{module} imports {imported} in line ")


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os\nprint(os.getenv('A'))", "from os import environ"]
)
def test_the_checker_catches_a_look_at_the_environment(source: str) -> None:
    [fault] = environment_faults("deployments.parsing.http.form", source)

    assert fault.startswith("deployments.parsing.http.form uses os.")


def test_the_checker_catches_a_cycle() -> None:
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).static_order())


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None

import numpy as np
import torch
from deployments.messages.pieces import cut_band, num_rows
from deployments.encoding.json_text import encode_band
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine
from deployments.model.model_loader import ModelLoader
from deployments.parsing.http.form import parse_prompt
from deployments.parsing.images import identify
from deployments.messages.prompt import Prompt
from deployments.messages.segmentation import sorted_segmentation
from deployments.settings import Limits, ModelSettings

image = identify(np.zeros((60, 80, 3), np.uint8), Limits())
engine = Engine(load_model(ModelSettings(model_id="sam2-demo"), print), torch.device("cpu"))
[embedding] = engine.embed([image.decode(Limits())])
prompt = parse_prompt({"box": "[10, 10, 50, 40]"}, True, True, Limits())
[answer] = engine.decode([(embedding, prompt)])
segmentation = sorted_segmentation(image.image_id, "sam2-demo", (60, 80), *answer, prompt.has_object_axis)
assert encode_band(cut_band(segmentation, 0, num_rows(segmentation)), False).endswith(b'"}')
assert "torchvision" not in sys.modules
print("answered")
"""


def test_an_image_is_segmented_in_a_process_that_has_no_ray() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("answered\n")
