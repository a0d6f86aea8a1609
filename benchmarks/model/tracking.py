"""The tracker alone, without Ray, against SAM 2's own video predictor on the same frames: frames a second, and masks.

Frames are past the point where the memory is full, as almost all frames of a video are. Both run the image encoder for
each frame.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.model import engines
from benchmarks.report import Findings, Row, ratios
from benchmarks.workplace import Workplace
from deployments.messages.arrays import RgbArray
from deployments.messages.prompt import Prompt
from deployments.messages.track import TrackPrompt, TrackState
from deployments.model.engine import Engine
from deployments.model.tracker import Chunk, Tracker
from harness.images import picture
from harness.video_reference import initial_state, video_predictor
from harness.weights import sam2_package
from tuning.measuring import embed
from tuning.tables import Table

SIZE = (1280, 720)
FULL = 7
"""Frames until all places for features are taken. Pointers, which are added for longer, cost next to nothing."""

ROUNDS = 3


def run(workplace: Workplace) -> Findings:
    """Measures hiera-tiny with one object and with eight, by turns."""
    measured = 1 if workplace.quick else 2
    frames = clip(FULL + measured * (1 if workplace.quick else ROUNDS))
    rows, lines, data = [], [], {}
    for objects in (1, 8):
        prompts = [click(number) for number in range(objects)]
        theirs = Peer(frames, prompts)
        ours = Ours(frames, prompts, workplace.precision)
        for side in (theirs, ours):
            side.advance(FULL)
        peer_s, our_s = [], []
        while ours.position < len(frames):
            peer_s.append(theirs.advance(measured))
            our_s.append(ours.advance(measured))
        speed = ratios(peer_s, our_s)
        name = f"tracking {objects} object{'s' * (objects > 1)}, without HTTP: frames/s ÷ SAM2VideoPredictor's"
        note = f"mean IoU with its masks {ours.agreement(theirs):.4f}"
        rows.append(Row(name, speed.median, workplace.precision, unit="×", spread=speed, note=note))
        lines.append([str(objects), *(f"{np.median(one) / measured:.3g}" for one in (peer_s, our_s)), note])
        data[str(objects)] = {"predictor_s": peer_s, "tracker_s": our_s, "frames": measured}
    columns = ("objects", "predictor, s a frame", "tracker, s a frame", "masks")
    title = f"Tracking, hiera-tiny, {SIZE[0]}×{SIZE[1]}, encoder included"
    return Findings(rows, [Table(title, columns, lines)], data)


def clip(count: int) -> list[RgbArray]:
    """A picture that moves sideways."""
    still = np.asarray(picture(*SIZE))
    return [np.roll(still, 6 * index, axis=1) for index in range(count)]


def click(number: int) -> TrackPrompt:
    """A prompt for one of several objects, on the first frame."""
    return TrackPrompt(number, 0, Prompt([[100 + 140 * number, 360]], [1]))


class Ours:
    """The project's tracker, fed frame by frame."""

    def __init__(self, frames: list[RgbArray], prompts: list[TrackPrompt], precision: str) -> None:
        self._frames, self._prompts = frames, prompts
        self._engine: Engine = engines.engine(engines.hiera("tiny"), precision)
        self._tracker = Tracker(self._engine)
        self._state = TrackState(len(frames))
        self.position = 0
        self.masks: dict[int, Any] = {}

    def advance(self, count: int) -> float:
        """Follows the objects through the next frames, in one chunk; returns the seconds."""
        started = time.perf_counter()
        images = self._frames[self.position : self.position + count]
        embeddings = [embedding for image in images for embedding in embed(self._engine, [image])]
        prompts = self._prompts if self.position == 0 else []
        [found] = self._tracker.track(
            [Chunk(embeddings, range(self.position, self.position + len(embeddings)), prompts, self._state)]
        )
        seconds = time.perf_counter() - started
        self._state, self.position = found.state, self.position + count
        self.masks |= {each.frame_index: each.logits > 0 for each in found.masks}
        return seconds

    def agreement(self, peer: "Peer") -> float:
        """Mean IoU of all masks with the predictor's; two empty masks agree."""
        found = []
        for index, masks in self.masks.items():
            for ours, theirs in zip(masks, peer.masks[index], strict=True):
                union = (ours | theirs).sum()
                found.append((ours & theirs).sum() / union if union else 1.0)
        return float(np.mean(found))


class Peer:
    """SAM2VideoPredictor in float32, handed the same frames."""

    def __init__(self, frames: list[RgbArray], prompts: list[TrackPrompt]) -> None:
        config = OmegaConf.load(sam2_package() / engines.HIERA_CONFIGS["tiny"])
        weights = engines.hiera("tiny")
        self._predictor = video_predictor(config, weights.state_dict()).to(engines.device())
        images = Engine(weights, engines.device())._batch(frames).cpu()
        self._state = initial_state(self._predictor, images, *frames[0].shape[:2])
        for prompt in prompts:
            assert prompt.prompt is not None
            points, labels = prompt.prompt.point_coords, prompt.prompt.point_labels
            self._predictor.add_new_points_or_box(self._state, 0, prompt.object_id, points, labels)
        self._steps: Iterator[Any] = self._predictor.propagate_in_video(self._state)
        self.masks: dict[int, Any] = {}

    def advance(self, count: int) -> float:
        """Follows the objects through the next frames; returns the seconds."""
        started = time.perf_counter()
        for _ in range(count):
            index, _, _ = next(self._steps)
            outputs = self._state["output_dict_per_obj"].values()
            kind = "cond_frame_outputs" if index == 0 else "non_cond_frame_outputs"
            logits = torch.cat([output[kind][index]["pred_masks"] for output in outputs])[:, 0]
            self.masks[index] = logits.cpu().numpy() > 0
        return time.perf_counter() - started
