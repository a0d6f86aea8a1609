"""Looks up known vulnerabilities of the pinned dependencies: `make audit`, a part of `make check`.

Fails on a vulnerability that `[tool.audit.ignore]` of pyproject.toml does not list with its reason. Only warns where
the service that knows them cannot be reached: a machine without it can still check everything else.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"),
    *("--format", "json", "--desc", "off", "--progress-spinner", "off", "--timeout", "10"),
)
LIMIT_S = 180
UNREACHABLE = ("ConnectionError", "Could not connect", "Timeout", "ServiceError", "ProxyError", "SSLError")


class Unreachable(Exception):
    """The vulnerability service does not answer."""


def main() -> int:
    """0 if there is nothing to mend, as far as one can know."""
    ignored = ignore_list()
    try:
        dependencies = ask()
    except Unreachable as error:
        return _warn(f"NOT AUDITED: the vulnerability service cannot be reached: {error}")
    unknown = [one["name"] for one in dependencies if "skip_reason" in one]
    if len(unknown) == len(dependencies):
        return _warn("NOT AUDITED: the vulnerability service knows none of the packages; is it a mirror without them?")
    if unknown:
        _warn(f"not audited: {', '.join(unknown)}")
    found = list(vulnerabilities(dependencies))
    for line in sorted(set(ignored) - {name for names, _ in found for name in names}):
        _warn(f"{line}: is ignored in pyproject.toml and no longer found")
    left = [text for names, text in found if not names & set(ignored)]
    for text in left:
        sys.stderr.write(f"{text}\n")
    sys.stdout.write(f"{len(dependencies) - len(unknown)} packages audited, {len(left)} vulnerabilities\n")
    return int(bool(left))


def ignore_list() -> dict[str, str]:
    """Ids that are known and cannot be mended, each with its reason."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["audit"]["ignore"]
    return {str(name): str(reason) for name, reason in table.items()}


def ask() -> list[dict[str, Any]]:
    """What pip-audit says about each pinned package that this platform installs.

    Raises:
        Unreachable: it cannot say anything now.
        RuntimeError: it failed otherwise.
    """
    try:
        run = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unreachable(f"no answer within {LIMIT_S} s") from None
    try:
        return list(json.loads(run.stdout)["dependencies"])
    except (ValueError, KeyError):
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        if any(word in run.stderr for word in UNREACHABLE):
            raise Unreachable(last) from None
        raise RuntimeError(f"pip-audit failed: {last}") from None


def vulnerabilities(dependencies: list[dict[str, Any]]) -> list[tuple[set[str], str]]:
    """Of each one: its ids, and a line that says what to do."""
    return [
        (
            {found["id"], *found.get("aliases", ())},
            f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}",
        )
        for one in dependencies
        for found in one.get("vulns", ())
    ]


def _warn(text: str) -> int:
    sys.stderr.write(f"warning: {text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
