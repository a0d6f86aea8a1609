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
    return [name for name in Image.ID if name not in NOT_RASTER]


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
    description = f"{image.format or 'PIL image'} of mode {image.mode}"
    turned = upright(image, orientation(image.info.get("exif")))
    if turned.mode.startswith("I") or turned.mode == "F":
        samples = np.asarray(turned)
        return Raster(samples.astype(samples.dtype.newbyteorder("="), copy=False)[:, :, None], description=description)
    return Raster(shown(turned, image.info.get("icc_profile"), background), description=description)
