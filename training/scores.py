"""Fit the scores alone, after training, to what somebody means who clicks.

In training every part is asked for nearly as often as the whole, so the scores learn that a click on a highlight means
the highlight. Whoever clicks mostly means the whole thing. Here only the head that predicts IoUs learns, on clicks and
boxes of whatever there is, each error counted by how often somebody means such a thing; masks stay what they are.
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

from training.model import learning
from training.model.learning import ious
from training.model.network import CHECKPOINT_PATH, build_model, decode, encode, set_size, short_attention
from training.prompts import Pool, first_prompt, make_batch
from training.scenes import render as scenes

SIZE = 1024
PROMPTS = 10  # mostly all that is there, so that weights can say what is meant how often
MEANT = torch.tensor([1.0, 0.12, 0.06])  # how often an object is meant, one of its parts, a part of those
KINDS = {"click": 0.7, "box": 0.3}
REPORT_EVERY = 50
SEED = 11


def fit(rank: int, checkpoint: Path, minutes: float, lr: float, half: bool) -> None:
    """One of the processes; the first one writes the checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED + rank)
    rng = np.random.default_rng([SEED, rank])
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
        loss = _loss(model, rng, pool, half)
        loss.backward()  # type: ignore[no-untyped-call]
        learning.mean_gradients([head])
        optimiser.step()
        optimiser.zero_grad()
        errors.append(float(loss.detach()))
        spent = learning.latest(spent + time.process_time() - started)
        if rank == 0 and len(errors) % REPORT_EVERY == 0:
            recent = np.mean(errors[-REPORT_EVERY:])
            print(f"{spent / 60:5.1f} min  {len(errors)} images  squared error {recent:.4f}", flush=True)
    if rank == 0:
        _write(model, checkpoint)


def _loss(model: Any, rng: np.random.Generator, pool: Pool, half: bool) -> torch.Tensor:
    """Squared error of all four masks' scores on one image, of prompts of each kind, by how often each is meant."""
    batch = make_batch(rng, pool, SIZE, 1, PROMPTS, 0.6)
    masks, weights = (batch.targets > 0.5).float(), MEANT[batch.levels]
    total = torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16, enabled=half), short_attention():
        features = encode(model, batch.images)
        for kind, share in KINDS.items():
            points, labels = first_prompt(kind, masks)
            decoded = decode(model, features, batch.owner, points, labels, None)
            errors = (decoded.scores.float() - ious(decoded.masks.float(), batch.targets)).square().mean(1)
            total = total + share * (weights * errors).sum() / weights.sum()
    return total


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
    parser.add_argument("--minutes", type=float, default=6, help="of computing, of each of two processes")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=torch.cpu._is_avx512_bf16_supported()
    )
    args = parser.parse_args()
    learning.run(2, fit, args.checkpoint, args.minutes, args.lr, args.bfloat16)


if __name__ == "__main__":
    main()
