"""Videos: what is known of one, its frames on their way to a model, and the image_id of a frame."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ServiceError
from deployments.messages.arrays import RgbArray

GONE = "video_id: the service does not keep this video; upload it (again)"
"""Says what VideoNotCached means."""

AFFINITY_DIGITS = 32
"""The first digits of an image's or a video's id: calls that share them go to the same replica."""


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video before its frames are decoded.

    Attributes:
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        num_frames: the number of frames that the file holds. Fewer may be decoded if it is damaged.
        fps: the average number of frames a second, or None where frames have no times.
        is_cut: whether the file says that there is more than it holds: it was cut off, and its last frames are missing.
        times: `N` float64, when each frame is shown, in seconds from the file's start; None where frames have no times.
    """

    width: int
    height: int
    num_frames: int
    fps: float | None
    is_cut: bool = False
    times: NDArray[np.float64] | None = field(default=None, compare=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return self.height, self.width

    def time_s(self, index: int) -> float | None:
        """Returns when a frame is shown, in seconds from the file's start; None where frames have no times."""
        return None if self.times is None else float(self.times[index])


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """Some frames of one video.

    Attributes:
        indices: the frames that are here. A file may announce frames that it does not hold: those are skipped.
        pixels: of each frame, `H×W×3` uint8 RGB, upright.
        fault: why the frames after these are not here, or None.
    """

    indices: tuple[int, ...]
    pixels: tuple[RgbArray, ...]
    fault: ServiceError | None = None


def frame_image_id(video_id: str, index: int) -> str:
    """Returns the image_id of a frame: 64 hexadecimal digits.

    It begins as the video's own id does, so that calls for the frame reach the replica that follows the video.
    """
    digest = hashlib.sha256(f"frame {index} of {video_id}".encode()).hexdigest()
    return video_id[:AFFINITY_DIGITS] + digest[AFFINITY_DIGITS:]


def affinity(identifier: str) -> str:
    """Returns the part of an image_id or video_id by which a replica is chosen."""
    return identifier[:AFFINITY_DIGITS]
