"""PIL images of any mode as rasters."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from deployments.pictures.faults import DECODER_ERRORS
from deployments.pictures.raster import Raster

# Formats of which Pillow reads only the metadata, or which it reads by running another program, or that are drawings.
# IPTC is among them because it can wrap an image of any format, including the others.
NOT_RASTER = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC"}


def raster_formats() -> list[str]:
    """Returns Pillow's names of the formats that are read."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_RASTER]


def orientation_of(image: Image.Image) -> int:
    """Returns EXIF's orientation, without decoding the pixels; 1 if there is none, or none that can be read."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(0x0112, 1))
    except DECODER_ERRORS:
        return 1


def raster_of(image: Image.Image, background: tuple[int, int, int], page: int = 0) -> Raster:
    """Decodes an image that Pillow has opened or made.

    Args:
        image: of any mode.
        background: the colour behind transparent pixels.
        page: the frame.

    Returns:
        Upright samples: `H×W×1` of 16 or 32 bits for grey modes of so many, else `H×W×3` uint8.
    """
    if page:
        image.seek(page)
    upright: Any = ImageOps.exif_transpose(image)
    description = f"{image.format or 'PIL image'} of mode {image.mode}"
    if upright.mode.startswith("I") or upright.mode == "F":
        samples = np.asarray(upright)
        return Raster(samples.astype(samples.dtype.newbyteorder("="), copy=False)[:, :, None], description=description)
    if upright.has_transparency_data:
        behind = Image.new("RGBA", upright.size, (*background, 255))
        upright = Image.alpha_composite(behind, upright.convert("RGBA"))
    return Raster(np.asarray(upright.convert("RGB")), description=description)
