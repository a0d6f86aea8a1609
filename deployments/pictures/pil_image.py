"""PIL images of any mode as rasters."""

import numpy as np
from PIL import Image

from deployments.pictures.colours import shown
from deployments.pictures.exif import orientation, upright
from deployments.pictures.raster import Raster

# Formats of which Pillow reads only the metadata, or which it reads by running another program, or that are drawings.
# IPTC is among them because it can wrap an image of any format, including the others.
NOT_RASTER = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC"}


def raster_formats() -> list[str]:
    """Returns Pillow's names of the formats that are read."""
    Image.init()
    return [name for name in Image.OPEN if name not in NOT_RASTER]


def has_deep_samples(image: Image.Image) -> bool:
    """Whether samples have more than 8 bits; Pillow has only grey ones."""
    return image.mode.startswith("I") or image.mode == "F"


def raster_of(image: Image.Image, profile: bytes | None, background: tuple[int, int, int], description: str) -> Raster:
    """Decodes an upright image that Pillow has opened or made.

    Args:
        image: of any mode.
        profile: its ICC profile.
        background: the colour behind transparent pixels.
        description: see Raster.

    Returns:
        `H×W×1` of 16 or 32 bits for grey modes of so many, else `H×W×3` uint8.
    """
    if has_deep_samples(image):
        samples = np.asarray(image)
        return Raster(samples.astype(samples.dtype.newbyteorder("="), copy=False)[:, :, None], description=description)
    return Raster(shown(image, profile, background), description=description)


def raster_by_info(image: Image.Image, background: tuple[int, int, int]) -> Raster:
    """Decodes an image whose orientation and profile are what Pillow has noted in `info`; see `raster_of`."""
    description = f"{image.format or 'PIL image'} of mode {image.mode}"
    turned = upright(image, orientation(image.info.get("exif")))
    return raster_of(turned, image.info.get("icc_profile"), background, description)
