"""One word, one thing: no two types of the product share a name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Names that may be defined in several files, each with the reason.
EXCEPTIONS: dict[str, str] = {}


def types_in(source: str) -> Iterator[str]:
    """The classes of a file, at any depth, and its type aliases: `Name: TypeAlias = …` and `Name = Something[…]`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for node in tree.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript()) if not name.isupper():
                yield name


def shared_names(files: dict[str, str]) -> dict[str, list[str]]:
    """Names of types that are defined twice, with the files that define them."""
    places = defaultdict(list)
    for path, source in files.items():
        for name in types_in(source):
            places[name].append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def test_no_two_types_share_a_name() -> None:
    files = sorted((ROOT / "deployments").rglob("*.py"))
    assert len(files) > 50
    shared = shared_names({path.relative_to(ROOT).as_posix(): path.read_text() for path in files})
    # An exception that is not needed any more must go.
    assert shared.keys() == EXCEPTIONS.keys(), shared


def test_a_shared_name_is_seen_whatever_kind_of_type_has_it() -> None:
    files = {
        "a.py": "class Piece: ...\nclass Rows: ...\nT = TypeVar('T')\nTABLE = KINDS['a']\n",
        "b.py": "Piece: TypeAlias = bytes\nclass Outer:\n    class Rows: ...\n",
        "c.py": "Rows = Callable[[int], int]\nT = TypeVar('T')\nTABLE = KINDS['b']\nclass Other: ...\n",
    }
    assert shared_names(files) == {"Piece": ["a.py", "b.py"], "Rows": ["a.py", "b.py", "c.py"]}
