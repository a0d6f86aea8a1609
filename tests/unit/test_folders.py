"""Which top-level folders may import which: the product nothing but itself, a tool for operators only the product."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("deployments", "tuning", "harness", "benchmarks", "training", "tests", "cluster")

# By the folder or the file, the most particular one counts.
MAY_IMPORT = {
    "deployments": {"deployments"},
    "tuning": {"tuning", "deployments"},
    "harness": {"harness", "deployments"},
    "training": {"training", "deployments"},
    "training/tests": {"training", "deployments", "harness"},
    "benchmarks": {"benchmarks", "harness", "tuning", "deployments"},
    "cluster": {"cluster", "deployments"},
    "tests": {"tests", "harness", "tuning", "deployments"},
    "tests/unit/test_benchmarks.py": {"benchmarks", "tests", "harness", "tuning", "deployments"},
}


def imported(source: str) -> set[str]:
    """The top-level folders of ours that a file imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} & set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        allowed = MAY_IMPORT[max((rule for rule in MAY_IMPORT if name.startswith(rule)), key=len)]
        assert imported(path.read_text()) <= allowed, name


def test_an_import_is_seen_wherever_it_stands() -> None:
    source = "import training.train\ndef f():\n    from harness.images import iou\n    import numpy"
    assert imported(source) == {"training", "harness"}
