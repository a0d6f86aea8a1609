"""Reads the project's documents: their code blocks by name, their links, the anchors of their headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUNBOOK = ROOT / "cluster" / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    RUNBOOK,
]

EXECUTABLE = {"bash", "sh", "console", "python", "yaml"}
"""Languages whose blocks have a test, or say why not."""

FENCE = re.compile(r"^\s*```(\w*)")
NAME = re.compile(r"^\s*<!-- test: ([\w-]+) -->$")
REASON = re.compile(r"^\s*<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A code block of a document.

    Attributes:
        where: the document and the line that the block begins in.
        language: what stands behind its fence.
        code: its text.
        name: of its test; "" without one.
        reason: why it is not run; "" if it is.
    """

    where: str
    language: str
    code: str
    name: str = ""
    reason: str = ""


def blocks(text: str, where: str = "") -> Iterator[Block]:
    """Returns the code blocks of a document, each with what the comment in the line above it says."""
    lines = text.splitlines(keepends=True)
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        above = lines[at - 1].rstrip("\n") if at else ""
        name, reason = NAME.match(above), REASON.match(above)
        end = next((line for line in range(at + 1, len(lines)) if FENCE.match(lines[line])), len(lines))
        yield Block(
            f"{where}:{at + 1}",
            fence[1],
            "".join(lines[at + 1 : end]),
            name[1] if name else "",
            reason[1] if reason else "",
        )
        at = end + 1


def all_blocks() -> list[Block]:
    """Returns the code blocks of all documents."""
    return [block for path in DOCUMENTS for block in blocks(path.read_text(), path.relative_to(ROOT).as_posix())]


def code_of(name: str) -> str:
    """Returns the code of the block of that name.

    Raises:
        ValueError: there is no such block, or more than one.
    """
    [code] = [block.code for block in all_blocks() if block.name == name]
    return code


def prose(text: str) -> str:
    """Returns a document without its code blocks; lines keep their numbers."""
    inside, lines = False, []
    for line in text.splitlines():
        is_fence = FENCE.match(line) is not None
        lines.append("" if inside or is_fence else line)
        inside ^= is_fence
    return "\n".join(lines)


def links(text: str) -> list[str]:
    """Returns the targets of a document's links and pictures, those to other hosts left out."""
    without_code = re.sub(r"`[^`]*`", "", prose(text))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", without_code) if not re.match(r"\w+:", target)]


def anchors(text: str) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        repeated = sum(one == anchor for one in found)
        found.append(anchor)
        if repeated:
            found.append(f"{anchor}-{repeated}")
    return set(found)
