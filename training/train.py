"""The training loop: small pictures first, then larger ones, by the processor's clock; it can be stopped and resumed.

A schedule is a list of stages `size:minutes:images:prompts`; minutes are of a process's own computing, so that a
busy machine takes longer but teaches as much; images are of one step of all processes learning.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from training.evaluation.held_out import held_out_iou
from training.model import learning
from training.model.learning import AffinityHead, make_optimisers, prompt_loss
from training.model.network import Decoded, Features, build_model, decode, ease_start, encode, set_size, short_attention
from training.prompts import Batch, Pool, correction, first_prompt, make_batch
from training.scenes import render as scenes

RUNS = Path(__file__).resolve().parent / "runs"
DEFAULT_STAGES = "128:17:16:5,256:40:16:5,512:60:8:5,1024:45:4:4"
KINDS = {"click": 0.55, "box": 0.33, "both": 0.10, "none": 0.02}
CORRECTED_SHARE = 0.5  # of the steps go on with corrective clicks
MOST_CORRECTIONS = 3
AFFINITY_WEIGHT = 0.5
EMA_DECAY = {128: 0.998, 256: 0.998, 512: 0.99, 1024: 0.985}  # fewer steps at larger sizes
FLOOR = 0.04
BAR = "{l_bar}{bar}| {n:.1f}/{total:.0f} min, {remaining} left"
REPORT_SECONDS = 30.0
CHECK_SECONDS = 360.0
CHECK_SCENES = {128: 32, 256: 24, 512: 14, 1024: 8}


@dataclass(frozen=True)
class Stage:
    """One input size, until the loop has run for `until` seconds."""

    size: int
    until: float
    images: int
    prompts: int


@dataclass
class Progress:
    """How far a run has come."""

    seconds: float = 0.0
    steps: int = 0
    images: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def parse_stages(text: str) -> list[Stage]:
    """Stages from `size:minutes:images:prompts,...`."""
    stages: list[Stage] = []
    for part in text.split(","):
        size, minutes, images, prompts = part.split(":")
        start = stages[-1].until if stages else 0.0
        stages.append(Stage(int(size), start + 60 * float(minutes), int(images), int(prompts)))
    return stages


class Trainer:
    """A model, its moving average, its optimisers, and the loop over them, as one of `count` processes.

    Args:
        folder: where the state is kept; only the first process (rank 0) reports, checks and saves.
        stages: the schedule.
        lr: the learning rate at its highest, for batches of 16 images.
        seed: of the weights, and of what is drawn.
        rank: which process this is.
        count: how many there are.
        half: compute in bfloat16, where the processor can; weights and sums stay float32.
    """

    def __init__(
        self, folder: Path, stages: list[Stage], lr: float, seed: int, rank: int, count: int, half: bool
    ) -> None:
        torch.manual_seed(seed)
        self.folder, self.stages, self.lr, self.seed = folder, stages, lr, seed
        self.rank, self.count, self.half = rank, count, half
        self.model = build_model()
        ease_start(self.model)
        self.average = deepcopy(self.model).eval().requires_grad_(False)
        self.helper = AffinityHead()
        self.optimisers = make_optimisers([self.model, self.helper], lr)
        self.progress = Progress()
        self._checked = self._reported = -math.inf
        self._recent: list[list[float]] = []

    @property
    def stage(self) -> Stage | None:
        """The stage the clock is in; None when all are over."""
        return next((stage for stage in self.stages if self.progress.seconds < stage.until), None)

    def run(self) -> None:
        """Train until the schedule is over."""
        torch.manual_seed(self.seed + 1000 * self.progress.steps + self.rank)
        rng = np.random.default_rng([self.seed, self.progress.steps, self.rank])
        # All processes ask for prompts of the same kind at the same time, so that none waits for another.
        kinds = np.random.default_rng([self.seed, self.progress.steps])
        current, pool = None, None
        quiet = None if self.rank == 0 else True
        bar = tqdm(total=self.stages[-1].until / 60, unit="min", disable=quiet, bar_format=BAR)
        while (stage := self.stage) is not None:
            started = time.process_time()
            if pool is None or stage is not current or self.progress.steps % 200 == 0:
                current, pool = stage, Pool(scenes.POOL_FOLDER, 1024 if stage.size == 1024 else 512)
                set_size(self.model, stage.size)
            self._step(rng, kinds, stage, pool)
            self.progress.seconds = learning.latest(self.progress.seconds + time.process_time() - started)
            bar.update(self.progress.seconds / 60 - bar.n)
            if self.rank == 0:
                self._report(stage)
        bar.close()
        if self.rank == 0:
            self._check(self.stages[-1])

    def _step(self, rng: Generator, kinds: Generator, stage: Stage, pool: Pool) -> None:
        images = stage.images // self.count  # a multiple of it: see work
        batch = make_batch(rng, pool, stage.size, images, stage.prompts, 0.5 if stage.size < 1024 else 0.6)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = self._rate(stage)
        with short_attention():
            loss, reached = self._loss(kinds, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        learning.mean_gradients([self.model, self.helper])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.progress.steps += 1
        self.progress.images += stage.images
        self._follow(stage.size)
        if self.rank == 0:
            best, single = reached[:, 1:].amax(1).mean(), reached[:, 0].mean()
            self._recent.append([float(loss.detach()), float(best), float(single)])

    def _rate(self, stage: Stage) -> float:
        """Cosine over the whole run, a warm-up at its start, and less for small batches."""
        done = self.progress.seconds / self.stages[-1].until
        cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * cosine * min(1.0, (self.progress.steps + 1) / 100) * math.sqrt(stage.images / 16)

    def _decode(
        self, features: Features, owner: Tensor, points: Tensor | None, labels: Tensor | None, previous: Tensor | None
    ) -> Decoded:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            masks, scores = decode(self.model, features, owner, points, labels, previous)
        return Decoded(masks.float(), scores.float())

    def _loss(self, rng: Generator, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            features = encode(self.model, batch.images)
            loss = AFFINITY_WEIGHT * self.helper([*features.high_res, features.embedding], batch.objects)
        masks = (batch.targets > 0.5).float()
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        points, labels = first_prompt(kind, masks)
        first = self._decode(features, batch.owner, points, labels, None)
        everywhere = torch.ones(len(masks))
        is_clear = (batch.levels == 0).float() if kind in ("click", "none") else everywhere
        opening, reached = prompt_loss(first.masks, first.scores, batch.targets, is_clear)
        loss = loss + (0.2 if kind == "none" else 1.0) * opening
        if points is None or labels is None or rng.random() >= CORRECTED_SHARE:
            return loss, reached
        # Every other prompt goes on.
        points, labels, owner = points[::2], labels[::2], batch.owner[::2]
        masks, targets, everywhere = masks[::2], batch.targets[::2], everywhere[::2]
        guess = Decoded(first.masks[::2], first.scores[::2])
        rounds, rows = int(rng.integers(1, MOST_CORRECTIONS + 1)), torch.arange(len(masks))
        for number in range(rounds):
            # As a user would: goes on from the mask that the model believes in; after a click or a box from one of
            # three, later, where it is clear what is meant, from the single one.
            chosen = guess.scores.detach()[:, 1:].argmax(1) + 1 if number == 0 else torch.zeros_like(rows)
            best = guess.masks.detach()[rows, chosen][:, None]
            click, label = correction(masks, best)
            points, labels = torch.cat([points, click], dim=1), torch.cat([labels, label], dim=1)
            previous = best.clamp(-32, 32) if rng.random() < 0.75 else None
            guess = self._decode(features, owner, points, labels, previous)
            loss = loss + 0.7 / rounds * prompt_loss(guess.masks, guess.scores, targets, everywhere)[0]
        return loss, reached

    @torch.no_grad()
    def _follow(self, size: int) -> None:
        """Move the average towards the model."""
        keep = min(EMA_DECAY.get(size, 0.99), (1 + self.progress.steps) / (10 + self.progress.steps))
        for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)

    def _report(self, stage: Stage) -> None:
        if self.progress.seconds - self._reported >= REPORT_SECONDS:
            self._reported = self.progress.seconds
            loss, best, single = (sum(column) / len(self._recent) for column in zip(*self._recent, strict=True))
            tqdm.write(
                f"{self.progress.seconds / 60:6.1f} min  size {stage.size}  step {self.progress.steps}  "
                f"images {self.progress.images}  loss {loss:.3f}  best of three {best:.3f}  single {single:.3f}  "
                f"rate {self._rate(stage):.5f}"
            )
            self._recent.clear()
        if self.progress.seconds - self._checked >= CHECK_SECONDS:
            self._check(stage)

    def _check(self, stage: Stage) -> None:
        """Measure the average on held-out scenes at the current size, note it, and save everything."""
        self._checked = self.progress.seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        scenes_asked = CHECK_SCENES.get(stage.size, 16)
        click, box = held_out_iou(self.average, stage.size, scenes_asked, self.folder / "sheet.png")
        note = {
            "minutes": round(self.progress.seconds / 60, 1),
            "images": self.progress.images,
            "size": stage.size,
            "one_click_best_of_three": round(click, 4),
            "box": round(box, 4),
        }
        self.progress.curve.append(note)
        tqdm.write(f"held out: {json.dumps(note)}")
        sys.stdout.flush()
        self.save()

    def save(self) -> None:
        """Write the state so that a later call can go on from it."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "helper": self.helper.state_dict(),
            "progress": vars(self.progress),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, self.folder / "state.part")
        (self.folder / "state.part").replace(self.folder / "state.pt")
        (self.folder / "curve.json").write_text(json.dumps(self.progress.curve, indent=1) + "\n")

    def start_from(self, checkpoint: Path) -> None:
        """Begin with the weights of an exported checkpoint instead of random ones."""
        weights = {name: value.float() for name, value in load_file(checkpoint).items()}
        for model in (self.model, self.average):
            model.load_state_dict(weights, strict=True)

    def resume(self) -> None:
        """Go on from the saved state."""
        state: dict[str, Any] = torch.load(self.folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.helper.load_state_dict(state["helper"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self._checked = self.progress.seconds


def work(rank: int, args: argparse.Namespace) -> None:
    """One of the processes that train."""
    torch.set_num_threads(1)
    stages = parse_stages(args.stages)
    if odd := [stage.images for stage in stages if stage.images % args.processes]:
        raise ValueError(f"--stages: {odd[0]} images cannot be shared out evenly to {args.processes} processes")
    trainer = Trainer(RUNS / args.run, stages, args.lr, args.seed, rank, args.processes, args.bfloat16)
    if args.init:
        trainer.start_from(args.init)
    if args.resume:
        trainer.resume()
    trainer.run()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="demo", help="name of the folder under training/runs/")
    parser.add_argument("--stages", default=DEFAULT_STAGES)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2, help="each of one thread; images of a step are shared out")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=torch.cpu._is_avx512_bf16_supported(),
        help="compute in bfloat16; the default is what this processor is faster with",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the state that the run has saved")
    parser.add_argument("--init", type=Path, help="begin with the weights of this checkpoint (.safetensors)")
    args = parser.parse_args()
    learning.run(args.processes, work, args)


if __name__ == "__main__":
    main()
