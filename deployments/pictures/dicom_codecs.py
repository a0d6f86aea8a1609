"""Decodes the JPEG and JPEG-LS frames of DICOM files with imagecodecs, as a plug-in of pydicom.

pydicom's own plug-ins read JPEG of 12 bits and lossless JPEG only with pylibjpeg-libjpeg, which is under the GPL.
"""

from typing import Any

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from deployments.pictures.extra import library

PLUGIN = "imagecodecs"

DECODER_DEPENDENCIES = dict.fromkeys(
    (
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEGLSNearLossless,
    ),
    ("imagecodecs",),
)


def is_available(_transfer_syntax: str) -> bool:
    """Whether imagecodecs can be used, which pydicom asks for."""
    return True


def decode_frame(source: bytes, runner: Any) -> bytearray:
    """Returns the samples of a frame, as pydicom wants them: pixel by pixel, 8 or 16 bits each.

    Args:
        source: a JPEG or JPEG-LS file.
        runner: pydicom's DecodeRunner, which learns how the samples are laid out.
    """
    imagecodecs = library("imagecodecs", "a DICOM file")
    if runner.transfer_syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        samples = imagecodecs.jpegls_decode(source)
    else:
        # As the file stores them: pydicom converts colours by what the data set says of them.
        colours = {1: "GRAYSCALE", 3: "YCBCR"}.get(runner.samples_per_pixel)
        samples = imagecodecs.jpeg8_decode(source, colorspace=colours, outcolorspace=colours)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    return bytearray(np.ascontiguousarray(samples))


def register() -> None:
    """Makes the plug-in known to pydicom; a second time does nothing."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))
