"""Video: an open video file of any kind, what it holds, and its frames."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from deployments.errors import InvalidVideo, TooLarge
from deployments.messages.arrays import RgbArray
from deployments.messages.video import VideoFacts
from deployments.settings import Limits


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame.

    Attributes:
        index: 0 for the first one that is shown.
        time_s: when it is shown, in seconds from the file's start; None where frames have no times.
        pixels: `H×W×3` uint8 RGB, upright.
    """

    index: int
    time_s: float | None
    pixels: RgbArray


class Video(ABC):
    """An open video file, for one thread. Holds one decoded frame at a time.

    Attributes:
        facts: what is known before frames are decoded.
    """

    facts: VideoFacts

    @abstractmethod
    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[VideoFrame]:
        """Decodes frames `start` to `stop` − 1, or to the last one, in the order in which they are shown.

        Args:
            start: the first frame.
            stop: one past the last frame.
            step: 1 for every frame, n for every n-th.

        Raises:
            InvalidVideo: a frame is damaged, or of another size than the others, or missing since the file is cut off;
                the message gives the frame's index.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked(facts: VideoFacts, limits: Limits, max_frames: int) -> VideoFacts:
    """Returns the facts if they keep the limits.

    Raises:
        InvalidVideo: there are no frames.
        TooLarge: frames have too many pixels, or there are too many frames.
    """
    if facts.width * facts.height > limits.max_pixels:
        raise TooLarge(
            f"video: its frames have {facts.width}×{facts.height} = {facts.width * facts.height} pixels, more than the "
            f"{limits.max_pixels} accepted"
        )
    if facts.num_frames > max_frames:
        raise TooLarge(f"video: has more than the {max_frames} frames that are accepted")
    if not facts.num_frames:
        raise InvalidVideo("video: holds no frames")
    return facts


def missing_frame(index: int) -> InvalidVideo:
    """Returns the error for a frame that cannot be decoded."""
    return InvalidVideo(f"video: frame {index} cannot be decoded: the file is cut off or damaged there")


def of_one_size(pixels: RgbArray, facts: VideoFacts, index: int) -> RgbArray:
    """Returns a frame's pixels if the frame is as large as the others.

    Raises:
        InvalidVideo: it is not.
    """
    height, width = pixels.shape[:2]
    if (width, height) != (facts.width, facts.height):
        raise InvalidVideo(f"video: frame {index} is {width}×{height}; the first one is {facts.width}×{facts.height}")
    return pixels
