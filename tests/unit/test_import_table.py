"""Who may import whom (DESIGN.md, section 4): the table, the checker, and proof that the checker sees faults."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "deployments").rglob("*.py"))
}

SHARED = {
    "schema",
    "automatic",
    "formats",
    "bands",
    "errors",
    "settings",
    "metrics",
    "model_status",
    "tracing",
    "upsampling",
}
ROOMS = {"parsing", "model", "encoding"}

# What each module at the top may import of ours; a room may import itself and SHARED.
OWN_IMPORTS = {
    "errors": set[str](),
    "metrics": set[str](),
    "tracing": set[str](),
    "client": set[str](),
    "upsampling": set[str](),
    "model_status": set[str](),
    "settings": {"errors"},
    "schema": {"errors", "upsampling"},
    "automatic": {"schema", "errors", "upsampling"},
    "formats": {"schema", "automatic", "errors"},
    "bands": {"schema", "upsampling"},
    "app": {
        "settings",
        "parsing.request_parser",
        "parsing.affinity_router",
        "model.sam2_model",
        "encoding.response_encoder",
    },
    "__main__": {"app", "settings", "model_status", "errors", "model.checkpoints"},
}

# Importing these costs the launcher seconds, so it does so only in the command that needs them.
LAZY = {"__main__": {"model.checkpoints"}}

DEPLOYMENT_FILES = {"parsing.request_parser", "model.sam2_model", "encoding.response_encoder"}
CLUSTER_FILES = {"parsing.calls", "parsing.encoders", "parsing.control_plane", "parsing.affinity_router"}
RAY_FILES = {"app", "__main__", "model_status", "metrics"} | CLUSTER_FILES
SAM2_FILES = {"model.checkpoints", "model.engine", "model.automatic_masks"}
TORCH_FILES = SAM2_FILES | {"model.devices", "model.halving"}
HTTP_FILES = {
    "parsing.request_parser",
    "parsing.generate_routes",
    "parsing.page_files",
    "parsing.side_routes",
    "parsing.form",
    "parsing.boundary",
    "parsing.answers",
    "parsing.exchange",
}
ONLY_IN = {
    "ray": RAY_FILES | DEPLOYMENT_FILES,
    "sam2": SAM2_FILES,
    "torch": TORCH_FILES,
    "torchvision": TORCH_FILES,
    "fastapi": HTTP_FILES,
    "starlette": HTTP_FILES,
}
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


def import_faults(module: str, source: str) -> list[str]:
    """What a module imports against the table, a sentence each."""
    own_name = module.removeprefix("deployments.")
    room = own_name.split(".")[0]
    faults = []
    for found in imports(source, module):
        where = f"{module} imports {found.name} in line {found.line}"
        top_level = found.name.split(".")[0]
        if own_name not in ONLY_IN.get(top_level, {own_name}):
            faults.append(f"{where}; {top_level} is allowed only in {', '.join(sorted(ONLY_IN[top_level]))}")
        if not found.own or found.name == module:
            continue
        target_room = found.own.split(".")[0]
        if room in ROOMS:
            allowed = target_room == room or found.own in SHARED
        else:
            allowed = found.own in OWN_IMPORTS.get(own_name, set())
        if not allowed:
            faults.append(f"{where}, which the table does not allow")
        if found.at_top and found.own in LAZY.get(own_name, set()):
            faults.append(f"{where} at the top; it may only be imported where it is needed")
    return faults


def environment_faults(module: str, source: str) -> list[str]:
    """Where a module reads or writes the environment."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute | ast.ImportFrom)]
    return [
        f"{module} uses os.{name} in line {node.lineno}; only deployments.settings may"
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


@pytest.mark.parametrize("module", [module for module in FILES if module != "deployments.settings"])
def test_only_settings_touches_the_environment(module: str) -> None:
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
        ("deployments.parsing.calls", "from deployments.model.engine import Engine", "deployments.model.engine"),
        ("deployments.parsing.form", "import ray", "ray"),
        ("deployments.parsing.images", "from starlette.requests import Request", "starlette.requests"),
        ("deployments.parsing.calls", "from deployments import app", "deployments.app"),
        ("deployments.encoding.png", "from deployments.parsing import images", "deployments.parsing.images"),
        ("deployments.encoding.png", "def f():\n    import torch.nn.functional", "torch.nn.functional"),
        ("deployments.model.engine", "from ..parsing import images", "deployments.parsing.images"),
        ("deployments.model.embedding_cache", "if True:\n    import sam2", "sam2"),
        ("deployments.errors", "from deployments.settings import Limits", "deployments.settings"),
        ("deployments.schema", "from deployments.settings import Limits", "deployments.settings"),
        ("deployments.model_status", "import deployments.__main__", "deployments.__main__"),
        ("deployments.__main__", "from deployments.model.checkpoints import prefetch", "deployments.model.checkpoints"),
        ("deployments.app", "from deployments.parsing.calls import Calls", "deployments.parsing.calls"),
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
    [fault] = environment_faults("deployments.parsing.form", source)

    assert fault.startswith("deployments.parsing.form uses os.")


def test_the_checker_catches_a_cycle() -> None:
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).static_order())


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None

import numpy as np
import torch
from deployments.bands import cut_band, num_rows
from deployments.encoding.json_text import encode_band
from deployments.model.checkpoints import load_model
from deployments.model.engine import Engine
from deployments.model.model_loader import ModelLoader
from deployments.parsing.form import parse_prompt
from deployments.parsing.images import identify
from deployments.schema import Prompt, sorted_segmentation
from deployments.settings import Limits, ModelSettings

image = identify(np.zeros((60, 80, 3), np.uint8), Limits())
engine = Engine(load_model(ModelSettings(model_id="sam2-demo"), print), torch.device("cpu"))
[embedding] = engine.embed([image.decode(Limits())])
prompt = parse_prompt({"box": "[10, 10, 50, 40]"}, True, True, Limits())
[answer] = engine.decode([(embedding, prompt)])
segmentation = sorted_segmentation(image.image_id, "sam2-demo", (60, 80), *answer, prompt.has_object_axis)
assert encode_band(cut_band(segmentation, 0, num_rows(segmentation)), False).endswith(b'"}')
print("answered")
"""


def test_an_image_is_segmented_in_a_process_that_has_no_ray() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("answered\n")
