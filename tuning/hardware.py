"""The machine and the versions that a result was measured with."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deployments.machine import memory_limit, usable_cores

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "ray", "sam2", "numpy", "fastapi", "uvicorn", "httpx", "orjson", "pillow")
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def describe() -> dict[str, Any]:
    """Hardware, versions, commit and date, as the JSON file holds them."""
    flags = set(_cpuinfo("flags").split())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cores": usable_cores(),
        "cpu_flags": {flag: flag in flags for flag in MATRIX_FLAGS},
        "memory_gb": round(memory_limit() / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "deployments")),
    }


def slug(hardware: dict[str, Any]) -> str:
    """The date and the processor, as a file name."""
    name = re.sub(r"[^a-z0-9]+", "-", (hardware["gpu"] or hardware["cpu"]).lower()).strip("-")
    return f"{hardware['date'][:10]}-{name}"


def summary(hardware: dict[str, Any]) -> str:
    """One line for the head of a table or plot."""
    flags = [flag for flag, has in hardware["cpu_flags"].items() if has]
    packages = hardware["packages"]
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores ({', '.join(flags)}), {hardware['memory_gb']:g} GB, "
        f"{'GPU ' + hardware['gpu'] if hardware['gpu'] else 'no GPU'}; Python {hardware['python']}, "
        f"torch {packages['torch']}, ray {packages['ray']}, sam2 {packages['sam2']}; commit {hardware['commit']}"
        + (" with uncommitted changes" if hardware["uncommitted_changes"] else "")
    )


def _cpuinfo(field: str) -> str:
    with open("/proc/cpuinfo") as file:
        values = [line.split(":", 1)[1].strip() for line in file if line.startswith(field)]
    return values[0] if values else ""


def _git(*arguments: str) -> str:
    """What git says, or nothing outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
