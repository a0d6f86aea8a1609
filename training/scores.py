"""Fit the scores alone, after training, to what somebody means who clicks.

In training every part is asked for nearly as often as the whole, so the scores learn that a click on a highlight means
the highlight. Whoever clicks mostly means the whole thing. Here only the head that predicts IoUs learns, on prompts
that mostly mean whole objects; masks stay what they are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training import scenes, together
from training.attention import short_attention
from training.data import Pool, make_batch
from training.losses import ious
from training.model import CHECKPOINT_PATH, build_model, decode, encode, set_size
from training.prompts import first_prompt

SIZE = 1024
PROMPTS = 8
LEVEL_WEIGHTS = (1.0, 0.12, 0.06)  # objects, parts, parts of parts
BOX_SHARE = 0.3
SEED = 11


def fit(rank: int, checkpoint: Path, minutes: float, lr: float, half: bool) -> None:
    """One of the processes; the first one writes the checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED + rank)
    rng, kinds = np.random.default_rng([SEED, rank]), np.random.default_rng(SEED)
    model = build_model()
    model.load_state_dict({name: value.float() for name, value in load_file(checkpoint).items()})
    model.requires_grad_(False)
    set_size(model, SIZE)
    head = model.sam_mask_decoder.iou_prediction_head.requires_grad_(True)
    optimiser = torch.optim.Adam(head.parameters(), lr)
    pool, spent, errors = Pool(scenes.POOL_FOLDER, SIZE), 0.0, []
    while spent < 60 * minutes:
        started = time.process_time()
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - spent / (60 * minutes))
        loss = _loss(model, rng, "box" if kinds.random() < BOX_SHARE else "click", pool, half)
        loss.backward()  # type: ignore[no-untyped-call]
        together.mean_gradients([head])
        optimiser.step()
        optimiser.zero_grad()
        errors.append(float(loss.detach()))
        spent = together.latest(spent + time.process_time() - started)
        if rank == 0 and len(errors) % 50 == 0:
            print(f"{spent / 60:5.1f} min  {len(errors)} images  squared error {np.mean(errors[-50:]):.4f}", flush=True)
    if rank == 0:
        _write(model, checkpoint)


def _loss(model: Any, rng: np.random.Generator, kind: str, pool: Pool, half: bool) -> torch.Tensor:
    """Squared error of the scores of all four masks, for prompts of one kind on one image."""
    batch = make_batch(rng, pool, SIZE, 1, PROMPTS, 0.6, LEVEL_WEIGHTS)
    points, labels = first_prompt(kind, (batch.targets > 0.5).float())
    with torch.autocast("cpu", torch.bfloat16, enabled=half), short_attention():
        decoded = decode(model, encode(model, batch.images), batch.owner, points, labels, None)
    return (decoded.scores.float() - ious(decoded.masks.float(), batch.targets)).square().mean()


def _write(model: Any, checkpoint: Path) -> None:
    with safe_open(checkpoint, "pt") as opened:
        metadata = opened.metadata()
    part = checkpoint.with_suffix(".part")
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, part, metadata)
    part.chmod(0o644)
    part.replace(checkpoint)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT_PATH, help="read, and written again")
    parser.add_argument("--minutes", type=float, default=5, help="of computing, of each of two processes")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=torch.cpu._is_avx512_bf16_supported()
    )
    args = parser.parse_args()
    together.run(2, fit, args.checkpoint, args.minutes, args.lr, args.bfloat16)


if __name__ == "__main__":
    main()
