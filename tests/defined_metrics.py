"""Every metric that the product defines, in whichever module, as its source says.

A metric's object exists only where its deployment runs; the calls that make them can be read anywhere.
"""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ray.util import metrics as ray_metrics

ROOT = Path(__file__).parents[1]

# What Prometheus sees of each kind: its series, by what follows the name.
SERIES = {"Counter": ("",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}

# The parameters by which a metric is made, of Ray's classes and of ours.
NAMING = ("name", "description", "tag_keys")


class Metric(NamedTuple):
    """A metric as it is made: what it is called, and the names of its tags."""

    where: str
    kind: str
    name: str
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> set[str]:
        """The names of its series in Prometheus."""
        return {f"ray_{self.name}{ending}" for ending in SERIES[self.kind]}


def defined_metrics() -> list[Metric]:
    """Those of all modules of `deployments`."""
    found = []
    for file in sorted((ROOT / "deployments").rglob("*.py")):
        # The others are not imported: some need what is not here.
        if any(kind in file.read_text() for kind in SERIES):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found += metrics_of(importlib.import_module(name))
    return found


def metrics_of(module: ModuleType) -> list[Metric]:
    """The metrics that a module makes.

    Raises:
        ValueError: a metric's name, description or tags are no constants.
    """
    return [_read(call, made, kind, module) for call, made, kind in _made(ast.parse(inspect.getsource(module)), module)]


def _made(node: ast.AST, module: ModuleType) -> Iterator[tuple[ast.Call, Any, str]]:
    """Each call that makes a metric, the class that it calls, and the kind. Not those inside classes that wrap one."""
    if isinstance(node, ast.ClassDef) and _wrapped_kind(getattr(module, node.name, None)):
        return
    if isinstance(node, ast.Call):
        made = _class(node.func, module)
        if kind := _kind(made) or _wrapped_kind(made):
            yield node, made, kind
    for child in ast.iter_child_nodes(node):
        yield from _made(child, module)


def _class(called: ast.expr, module: ModuleType) -> Any:
    """What a dotted name stands for in a module; None for what only a running function knows."""
    found: Any = module
    for name in ast.unparse(called).split("."):
        found = getattr(found, name, None)
    return found if inspect.isclass(found) else None


def _kind(made: Any) -> str | None:
    """Of one of Ray's own metrics, or of a class that inherits from one."""
    return next((kind for kind in SERIES if made and issubclass(made, getattr(ray_metrics, kind))), None)


def _wrapped_kind(made: Any) -> str | None:
    """Of a class that is told a metric's name, as Ray's own are, and makes one."""
    if made is None or _kind(made) or not made.__module__.startswith("deployments."):
        return None
    if list(inspect.signature(made).parameters)[:2] != ["name", "description"]:
        return None
    module = sys.modules[made.__module__]
    body = ast.parse(textwrap.dedent(inspect.getsource(made)))
    calls = (_class(node.func, module) for node in ast.walk(body) if isinstance(node, ast.Call))
    return next((kind for one in calls if (kind := _kind(one))), None)


def _read(call: ast.Call, made: Any, kind: str, module: ModuleType) -> Metric:
    parameters = inspect.signature(made).parameters
    given = dict(zip(parameters, call.args, strict=False)) | {one.arg: one.value for one in call.keywords if one.arg}
    where = f"{module.__name__}:{call.lineno}"
    try:
        values = {name: eval(ast.unparse(value), vars(module)) for name, value in given.items() if name in NAMING}
    except NameError as error:
        raise ValueError(f"{where}: a metric is made of what only a running function knows: {error}") from error
    return Metric(where, kind, values["name"], values.get("description", ""), tuple(values.get("tag_keys", ())))
