"""The documents are in step with the code, and what they name exists.

`python -m tests.unit.test_documents` writes the tables that the code generates.

Their Bash and Python blocks are run in tests/integration/test_documents.py.
"""

import ast
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from deployments import errors, settings
from deployments.messages.everything import AutomaticPrompt
from tests.documents import DOCUMENTS, EXECUTABLE, README, ROOT, all_blocks, anchors, blocks, code_of, links, prose
from tests.unit import test_import_table as table

MOST_README_LINES = 150

MARKDOWN = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for top in ROOT.iterdir() if top.is_dir() and top.name[0] != "." for path in top.rglob("*.md")),
    ]
)
"""All of the project's Markdown, model cards and notes of folders included."""

TESTS = [ROOT / "tests" / kind / "test_documents.py" for kind in ("unit", "integration")]

FOLDERS = {"deployments", "cluster", "docs", "tests"} | {path.name for path in ROOT.iterdir() if path.is_dir()}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- tables that the code writes


def number_text(value: float) -> str:
    """A number in full: 1048576, not 1.04858e+06."""
    return str(int(value)) if value == int(value) else f"{value:.4g}"


def default_text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple):
        return "`[" + ", ".join(str(getattr(item, "model_id", item)) for item in value) + "]`"
    if isinstance(value, BaseModel):
        return "below"
    return f"`{number_text(value)}`" if isinstance(value, float) else f"`{value}`"


def range_text(field: Any) -> str:
    bounds = {
        kind: number_text(getattr(item, kind))
        for item in field.metadata
        for kind in ("ge", "gt", "le")
        if hasattr(item, kind)
    }
    low = f"≥ {bounds['ge']}" if "ge" in bounds else f"> {bounds['gt']}" if "gt" in bounds else ""
    return ", ".join(filter(None, [low, f"≤ {bounds['le']}" if "le" in bounds else ""]))


def settings_table(names: str) -> str:
    """The settings of some classes."""
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    prefixes = {
        "ServiceSettings": "",
        "ModelSettings": "models[].",
        "Limits": "limits.",
        "RequestParserConfig": "RequestParser: ",
        "VideoReaderConfig": "VideoReader: ",
        "Sam2ModelConfig": "Sam2Model: ",
    }
    for name in names.split():
        for field_name, field in getattr(settings, name).model_fields.items():
            default = "required" if field.is_required() else default_text(field.default)
            rows.append(f"| `{prefixes[name]}{field_name}` | {default} | {range_text(field)} | {field.description} |")
    return "\n".join(rows)


def options_table(_: str) -> str:
    """The options for segmenting everything."""
    rows = ["| field | default | range | meaning |", "|---|---|---|---|"]
    option: Any
    for option in dataclasses.fields(AutomaticPrompt):
        low, high = (number_text(bound) for bound in option.metadata["range"])
        meaning = option.metadata["description"]
        default: Any = option.default
        rows.append(f"| `{option.name}` | `{number_text(default)}` | {low} to {high} | {meaning} |")
    return "\n".join(rows)


def modules_table(_: str) -> str:
    """Every module with the first line of its docstring, folder by folder."""
    # Files of a folder before the folders inside it, as a reader goes through them.
    ordered = sorted(table.FILES.values(), key=lambda path: (path.parent.parts, path.name != "__init__.py", path.name))
    rows = ["| file | what it is for |", "|---|---|"]
    for path in ordered:
        is_folder = path.name == "__init__.py"
        shown = name_of(path.parent if is_folder else path).removeprefix("deployments/") + "/" * is_folder
        target = f"../{name_of(path.parent if is_folder else path)}"
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].replace("|", "\\|")
        rows.append(
            f"| **[`{shown}`]({target})** | **{summary}** |" if is_folder else f"| [`{shown}`]({target}) | {summary} |"
        )
    return "\n".join(rows)


def module_text(own_name: str) -> str:
    """A module of `deployments` as its file, or its folder."""
    is_folder = table.FILES[f"deployments.{own_name}"].name == "__init__.py"
    return f"`{own_name.replace('.', '/')}{'/' if is_folder else '.py'}`"


def modules_text(own_names: Iterable[str]) -> str:
    return ", ".join(module_text(name) for name in sorted(own_names))


def imports_table(_: str) -> str:
    """The tables of tests/unit/test_import_table.py."""
    own = {room: table.allowed_imports(room) for room in sorted(table.ROOMS)} | table.OWN_IMPORTS
    packages: dict[str, list[str]] = {}
    for package, allowed in table.ONLY_IN.items():
        packages.setdefault(modules_text(allowed) or "none", []).append(f"`{package}`")
    return "\n".join(
        [
            "| module or folder | may import of `deployments` |",
            "|---|---|",
            *(
                f"| {module_text(name)} | {modules_text(allowed - {name}) or 'nothing else'} |"
                for name, allowed in own.items()
            ),
            "",
            "A folder may import itself. Beyond that:",
            "",
            *(
                f"- {module_text(folder)} is imported by itself and by {modules_text(allowed)} only."
                for folder, allowed in table.INNER.items()
            ),
            *(
                f"- {module_text(name)} imports {modules_text(late)} only inside the function that needs it."
                for name, late in table.LAZY.items()
            ),
            "- Only "
            + modules_text(name.removeprefix("deployments.") for name in table.ENVIRONMENT_FILES)
            + " read or write environment variables.",
            "",
            "| package | is imported only in |",
            "|---|---|",
            *(f"| {', '.join(names)} | {allowed} |" for allowed, names in packages.items()),
        ]
    )


TABLES: dict[str, Callable[[str], str]] = {
    "settings": settings_table,
    "options": options_table,
    "modules": modules_table,
    "imports": imports_table,
}
GENERATED = re.compile(rf"<!-- ({'|'.join(TABLES)})(?:: ([\w ]+))? -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text: str) -> str:
    """A document with its generated tables as the code has them now."""

    def written(match: re.Match[str]) -> str:
        marker = match[0].split("\n", 1)[0]
        return f"{marker}\n\n{TABLES[match[1]](match[2] or '')}\n\n<!-- end -->"

    return GENERATED.sub(written, text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_generated_tables_are_as_the_code_has_them(path: Path) -> None:
    assert path.read_text() == with_tables(path.read_text()), "run python -m tests.unit.test_documents"


def test_every_kind_of_table_and_every_setting_is_in_a_document() -> None:
    found = [match.groups() for path in DOCUMENTS for match in GENERATED.finditer(path.read_text())]
    classes = {
        name
        for name, one in vars(settings).items()
        if isinstance(one, type) and issubclass(one, settings.Settings) and one is not settings.Settings
    }

    assert {kind for kind, _ in found} == set(TABLES)
    assert {name for kind, names in found if kind == "settings" for name in names.split()} == classes


def test_numbers_in_tables_are_written_in_full() -> None:
    assert [number_text(value) for value in (1048576, 1e8, 0.01, 300.0, 512 / 1500)] == [
        "1048576",
        "100000000",
        "0.01",
        "300",
        "0.3413",
    ]
    assert range_text(settings.RequestParserConfig.model_fields["answer_budget_bytes"]) == "≥ 1048576"


# ---- what documents name exists


def link_faults(path: Path, text: str) -> list[str]:
    """Links that lead nowhere: to no file, or to no heading."""
    faults = []
    for link in links(text):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text if file == path else file.read_text()):
            faults.append(f"{link}: no such heading")
    return faults


def path_faults(text: str) -> list[str]:
    """Files and folders of the project that the text names, and that do not exist."""
    named = re.findall(rf"(?<![\w/.:-])((?:{'|'.join(sorted(FOLDERS))})/[\w./-]*\w)", prose(text))
    return [path for path in named if "NAME" not in path and not (ROOT / path).exists()]


def command_faults(text: str) -> list[str]:
    """`make` targets and `python -m` modules that the text names in code, and that do not exist."""
    code = "\n".join([*re.findall(r"`([^`]+)`", prose(text)), *(block.code for block in blocks(text))])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    faults = [f"make {target}" for target in re.findall(r"\bmake ([a-z][\w-]*)", code) if target not in targets]
    for module in re.findall(r"python -m ([\w.]+)", code):
        if module.split(".")[0] not in FOLDERS:
            continue
        at = ROOT / Path(*module.split("."))
        if not at.with_suffix(".py").exists() and not (at / "__main__.py").exists():
            faults.append(f"python -m {module}")
    return faults


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    assert link_faults(path, path.read_text()) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_and_commands_that_a_document_names_exist(path: Path) -> None:
    text = path.read_text()

    assert path_faults(text) == []
    assert command_faults(text) == []


def test_the_checkers_see_what_does_not_exist() -> None:
    assert link_faults(README, "[a](docs/nothing.md) [b](docs/api.md#nothing) [c](#nothing) ![d](x.png)") == [
        "docs/nothing.md: no such file",
        "docs/api.md#nothing: no such heading",
        "#nothing: no such heading",
        "x.png: no such file",
    ]
    assert path_faults("`deployments/nothing.py`, deployments/app.py and tests/unit/nothing") == [
        "deployments/nothing.py",
        "tests/unit/nothing",
    ]
    assert command_faults("`make nothing`, make sure\n```sh\npython -m tests.nothing\nmake test\n```\n") == [
        "make nothing",
        "python -m tests.nothing",
    ]


def test_anchors_are_made_as_github_makes_them() -> None:
    text = "# Ray Serve 2.60, `as` it [is](x.md)\n```sh\n# no heading\n```\n## Twice\n## Twice\n"

    assert anchors(text) == {"ray-serve-260-as-it-is", "twice", "twice-1"}


def test_documents_are_reached_from_the_readme() -> None:
    reached = {(README.parent / link.partition("#")[0]).resolve() for link in links(README.read_text())}

    assert {path.resolve() for path in DOCUMENTS} - reached == {README.resolve()}


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text().splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_sentences_have_a_noun_for_a_subject(path: Path) -> None:
    assert re.findall(r"(?i)\bwho(?:m)?ever\b.*|(?:^|[.:;] )Who .*", prose(path.read_text())) == []


# ---- what has to be in them


def test_every_status_of_an_error_is_in_the_table_of_errors() -> None:
    [section] = re.findall(r"^## Errors\n(.*?)^## ", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = {int(status) for status in re.findall(r"^\| (\d{3}) \|", section, re.MULTILINE)}
    raised = {
        one.status for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.ServiceError)
    }

    assert raised <= listed


def test_variables_for_a_cluster_are_those_that_the_launcher_sets() -> None:
    source = (ROOT / "deployments" / "environment.py").read_text()
    given = re.findall(r"^  \| (RAY_\w+)=\"?([^|\"]+?)\"? \|", (ROOT / "docs" / "configuration.md").read_text(), re.M)

    assert len(given) >= 6
    assert [pair for pair in given if '"{}", "{}"'.format(*pair) not in source] == []


# ---- code blocks


def block_faults(text: str) -> list[str]:
    """Blocks that could be run, but have neither the name of a test nor a reason why not."""
    return [
        f"line {block.where.rpartition(':')[2]}: a block of {block.language or 'no language'}"
        for block in blocks(text)
        if block.language in EXECUTABLE and not block.name and not block.reason
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_code_block_is_tested_or_says_why_not(path: Path) -> None:
    assert block_faults(path.read_text()) == []


def test_a_block_without_a_name_would_be_noticed() -> None:
    text = "<!-- test: one -->\n```bash\nls\n```\n<!-- not run: why -->\n```sh\nls\n```\n\n  ```python\n1\n  ```\n"

    assert block_faults(text) == ["line 10: a block of python"]
    assert [(block.name, block.reason, block.code) for block in blocks(text)] == [
        ("one", "", "ls\n"),
        ("", "why", "ls\n"),
        ("", "", "1\n"),
    ]


def test_every_named_block_has_a_test_and_every_test_a_block() -> None:
    names = [block.name for block in all_blocks() if block.name]
    tested = {name for path in TESTS for name in re.findall(r'code_of\("([\w-]+)"\)', path.read_text())}

    assert len(set(names)) == len(names)
    assert set(names) == tested


def test_the_config_of_a_model_of_ones_own_is_accepted() -> None:
    parsed = settings.ServiceSettings.model_validate(yaml.safe_load(code_of("own-model")))

    assert [model.model_id for model in parsed.models] == ["facebook/sam2-hiera-large", "acme/leaf-segmenter"]


def test_the_config_of_traces_names_a_function() -> None:
    module, _, name = yaml.safe_load(code_of("tracing"))["tracing_config"]["exporter_import_path"].partition(":")

    assert callable(getattr(importlib.import_module(module), name))


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))
