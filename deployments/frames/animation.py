"""Animation: animated pictures and the pages of a TIFF as videos."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from deployments.errors import InvalidImage, InvalidVideo, TooLarge
from deployments.frames.animation_frames import ANIMATIONS, AnimationFrames, IsolatedFrames, opened_as
from deployments.frames.video import Video, VideoFrame, checked, missing_frame, of_one_size
from deployments.messages.picture_options import PictureOptions
from deployments.messages.video import VideoFacts
from deployments.pictures.faults import DECODER_ERRORS
from deployments.pictures.isolated import HELPERS
from deployments.settings import Limits


def is_animation(path: Path, max_pixels: int, kind: str = "") -> bool:
    """Returns whether Pillow reads the file as one of the formats that may hold several pictures.

    Args:
        path: of the file.
        max_pixels: the most pixels of a frame that are accepted.
        kind: what the file is, with its article, if a helper process reads it; "" if this one does.

    Raises:
        InvalidVideo: it is a still picture, or the decoder crashed on it.
        TooLarge: it has so many pixels that Pillow refuses it.
    """
    try:
        opened = HELPERS.call(kind, opened_as, path, max_pixels) if kind else opened_as(path, max_pixels)
    except InvalidImage as error:
        path.stat()
        raise InvalidVideo(f"video: {error.message.removeprefix('image: ')}") from error
    if opened is None:
        return False
    name, is_animated = opened
    if not is_animated or name not in ANIMATIONS:
        raise InvalidVideo(f"video: is a still picture ({name}); send it as `image` to the routes for images")
    return True


class Animation(Video):
    """An animated GIF, WebP, PNG or AVIF, or the pages of a TIFF.

    Args:
        path: of the file.
        limits: the limits of a video.
        max_frames: the most frames.
        kind: see `is_animation`.
    """

    def __init__(self, path: Path, limits: Limits, max_frames: int, kind: str = "") -> None:
        self._frames: AnimationFrames | IsolatedFrames | None = None
        self._options = PictureOptions()
        try:
            most = limits.max_pixels
            self._frames = frames = IsolatedFrames(path, most, kind) if kind else AnimationFrames(path, most)
            checked(VideoFacts(*frames.size, frames.count, None), limits, max_frames)
            first = frames.picture(0, self._options)
            # All frames are shown in the window of the first: a mask follows what keeps its brightness.
            self._options = PictureOptions(window=first.window or "auto")
            height, width, _ = first.pixels.shape
            self._times = _start_times(frames)
        except FileNotFoundError:
            self.close()
            raise
        except (InvalidImage, *DECODER_ERRORS) as error:
            self.close()
            cause = error.message.removeprefix("image: ") if isinstance(error, InvalidImage) else str(error)
            cause = cause.removeprefix("is damaged or truncated: ")
            raise InvalidVideo(f"video: is damaged or truncated: {cause}") from error
        except TooLarge as error:
            self.close()
            raise TooLarge(f"video: {error.message.removeprefix('image: ').removeprefix('video: ')}") from error
        except BaseException:
            self.close()
            raise
        fps = (frames.count - 1) / self._times[-1] if self._times and self._times[-1] > 0 else None
        self.facts = VideoFacts(width, height, frames.count, fps, times=np.array(self._times) if self._times else None)

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[VideoFrame]:
        """See Video."""
        assert self._frames is not None
        for index in range(start, min(stop, self.facts.num_frames), step):
            try:
                pixels = self._frames.picture(index, self._options).pixels
            except FileNotFoundError:
                raise
            except TooLarge as error:
                raise TooLarge(f"video: frame {index} {error.message.removeprefix('image: ')}") from error
            except (InvalidImage, *DECODER_ERRORS) as error:
                raise missing_frame(index) from error
            time_s = self._times[index] if self._times else None
            yield VideoFrame(index, time_s, of_one_size(pixels, self.facts, index))

    def close(self) -> None:
        """See Video."""
        if self._frames is not None:
            self._frames.close()


def _start_times(frames: AnimationFrames | IsolatedFrames) -> list[float]:
    """Returns when each frame is shown, in seconds; [] for a TIFF, whose pages have no times."""
    if frames.format == "TIFF":
        return []
    return list(accumulate(map(frames.duration_s, range(frames.count)), initial=0.0))[:-1]
