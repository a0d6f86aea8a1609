"""Write a run's averaged weights as the float16 safetensors file that the demo deployment loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.model.network import CHECKPOINT_PATH, build_model
from training.train import RUNS


def export(state_path: Path, target: Path) -> int:
    """Write the averaged weights and return the size of the file in bytes."""
    state: dict[str, Any] = torch.load(state_path, weights_only=True)
    weights: dict[str, Tensor] = {name: value.half().contiguous() for name, value in state["average"].items()}
    part = target.with_suffix(".part")
    save_file(weights, part, metadata={"format": "pt", "images": str(state["progress"]["images"])})
    build_model().load_state_dict(load_file(part), strict=True)
    part.chmod(0o644)
    part.replace(target)
    return target.stat().st_size


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="demo")
    parser.add_argument("--output", type=Path, default=CHECKPOINT_PATH)
    args = parser.parse_args()
    size = export(RUNS / args.run / "state.pt", args.output)
    print(f"{args.output.name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
