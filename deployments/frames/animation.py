"""Animation: animated pictures and the pages of a TIFF, read by Pillow, which composes their frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deployments.errors import InvalidImage, InvalidVideo, TooLarge
from deployments.frames.video import Video, VideoFrame, checked, missing_frame, of_one_size
from deployments.messages.picture_options import PictureOptions
from deployments.messages.video import VideoFacts
from deployments.pictures.faults import BOMBS, DECODER_ERRORS, decoding
from deployments.pictures.pil_image import raster_by_info, raster_formats
from deployments.pictures.raster import Picture
from deployments.pictures.steps import show
from deployments.settings import Limits

ANIMATIONS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
"""Pillow's names of the formats of which it reads all frames."""


def is_animation(path: Path) -> bool:
    """Returns whether Pillow reads the file as one of the formats that may hold several pictures.

    Raises:
        InvalidVideo: it is a still picture.
        TooLarge: it has so many pixels that Pillow refuses it.
    """
    try:
        with Image.open(path, formats=raster_formats()) as image:
            # To count the frames may take long, and is done once, when the file is opened to be read.
            name, is_animated = image.format, getattr(image, "is_animated", False)
    except BOMBS as error:
        raise TooLarge(f"video: its frames have more than the pixels that are accepted: {error}") from error
    except DECODER_ERRORS:
        return False
    if not is_animated or name not in ANIMATIONS:
        raise InvalidVideo(f"video: is a still picture ({name}); send it as `image` to the routes for images")
    return True


class Animation(Video):
    """An animated GIF, WebP, PNG or AVIF, or the pages of a TIFF."""

    def __init__(self, path: Path, limits: Limits, max_frames: int) -> None:
        self._file = path.open("rb")
        try:
            image: Any = Image.open(self._file, formats=ANIMATIONS)
            self._image, self._options = image, PictureOptions()
            self._first = int(bool(image.info.get("default_image")))
            count = image.n_frames - self._first
            width, height = image.size
            checked(VideoFacts(width, height, count, None), limits, max_frames)
            first = self._picture(0)
            # All frames are shown in the window of the first: a mask follows what keeps its brightness.
            self._options = PictureOptions(window=first.window or "auto")
            height, width, _ = first.pixels.shape
            self._times = self._start_times(count)
        except (InvalidImage, *DECODER_ERRORS) as error:
            self.close()
            cause = error.message.removeprefix("image: ") if isinstance(error, InvalidImage) else error
            raise InvalidVideo(f"video: is damaged or truncated: {cause}") from error
        except BaseException:
            self.close()
            raise
        fps = (count - 1) / self._times[-1] if self._times and self._times[-1] > 0 else None
        self.facts = VideoFacts(width, height, count, fps, times=np.array(self._times) if self._times else None)

    def _start_times(self, count: int) -> list[float]:
        """Returns when each frame is shown, in seconds; [] for a TIFF, whose pages have no times."""
        if self._image.format == "TIFF":
            return []
        times, time_s = [], 0.0
        for index in range(count):
            times.append(time_s)
            self._image.seek(self._first + index)
            if self._image.format in ("WEBP", "AVIF"):
                # Only then does Pillow know for how long the frame is shown.
                self._image.load()
            time_s += self._image.info.get("duration", 0) / 1000
        return times

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[VideoFrame]:
        """See Video."""
        for index in range(start, min(stop, self.facts.num_frames), step):
            try:
                pixels = self._picture(index).pixels
            except (InvalidImage, *DECODER_ERRORS) as error:
                raise missing_frame(index) from error
            time_s = self._times[index] if self._times else None
            yield VideoFrame(index, time_s, of_one_size(pixels, self.facts, index))

    def _picture(self, index: int) -> Picture:
        if self._image.format == "PNG" and self._first + index < self._image.tell():
            # Pillow 13.0 goes back in an animated PNG only once, and then finds "frame sequence errors".
            self._image = Image.open(self._file, formats=ANIMATIONS)
        self._image.seek(self._first + index)
        # As an image that is sent by itself: also upright, and 16 bits as 8.
        with decoding("a frame"):
            return show(raster_by_info(self._image, self._options.background), self._options)

    def close(self) -> None:
        """See Video."""
        self._file.close()
