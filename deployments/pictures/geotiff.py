"""Reads where a GeoTIFF lies on a map: the affine transform and the coordinate reference system of a page.

GDAL (by rasterio) interprets the tags, of ModelPixelScale, ModelTiepoint, ModelTransformation and the GeoKeys. Its
transforms are from the corners of pixels: where the file's are from centres (PixelIsPoint), GDAL has moved them by half
a pixel. It knows nothing of TIFF's orientation, so its transform is that of the stored rows.
"""

import io
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.tiff import HEIGHT, ORIENTATION, WIDTH
from deployments.pictures.tiff_directory import Directories

PIXEL_SCALE, TIEPOINT, TRANSFORMATION = 33550, 33922, 34264

LONGEST_WKT = 20_000
"""Characters. Those of the EPSG registry have up to some 5,000."""

FILES = re.compile(r"PARAMETERFILE|EXTENSION|grids\s*=|init\s*=", re.IGNORECASE)
"""How a system in WKT 2 can name grids of datums, which PROJ would look for."""

Six: TypeAlias = tuple[float, float, float, float, float, float]

IDENTITY: Six = (1, 0, 0, 0, 1, 0)

STORED_PLACES: dict[int, Callable[[int, int], Six]] = {
    2: lambda width, _: (-1, 0, width, 0, 1, 0),
    3: lambda width, height: (-1, 0, width, 0, -1, height),
    4: lambda _, height: (1, 0, 0, 0, -1, height),
    5: lambda *_: (0, 1, 0, 1, 0, 0),
    6: lambda _, height: (0, 1, 0, -1, 0, height),
    7: lambda width, height: (0, -1, width, -1, 0, height),
    8: lambda width, _: (0, -1, width, 1, 0, 0),
}
"""For each orientation but 1, of the stored width and height: from a place in the upright picture to the stored one."""


def georeference_of(content: Any, options: PictureOptions) -> Georeference | NoGeoreference:
    """As `georeference`, of a file's bytes."""
    return georeference(io.BytesIO(content), options)


def georeference(file: BinaryIO, options: PictureOptions) -> Georeference | NoGeoreference:
    """Returns where a page lies.

    Args:
        file: a TIFF file.
        options: which page is read.

    Raises:
        InvalidImage: the file is damaged.
        InvalidRequest: it has no such page.
    """
    file.seek(0)
    data = file.read()
    picture = Directories(data).picture(options.page)
    if TRANSFORMATION not in picture.tags and not {PIXEL_SCALE, TIEPOINT} <= picture.tags.keys():
        points = TIEPOINT in picture.tags
        return NoGeoreference(
            "the image is georeferenced by control points alone, which are not read"
            if points
            else "the image has no georeference"
        )
    found, wkt = _by_gdal(data, picture.offset)
    # GDAL has the identity where it finds no transform.
    is_singular = math.isclose(found[0] * found[4], found[1] * found[3], rel_tol=1e-12)
    if is_singular or found == IDENTITY or not all(map(math.isfinite, found)):
        return NoGeoreference("the image's georeference is not usable: its transform is none, or cannot be inverted")
    if FILES.search(wkt):
        return NoGeoreference("the image's coordinate reference system names files, which are not read")
    if not 0 < len(wkt) <= LONGEST_WKT:
        return NoGeoreference("the image's georeference does not say which coordinate reference system it is in")
    width, height = picture.value(WIDTH, 0), picture.value(HEIGHT, 0)
    upright = STORED_PLACES.get(picture.value(ORIENTATION, 1))
    transform = found if upright is None else _composed(found, upright(width, height))
    return Georeference(transform, wkt, _has_wgs84(found, wkt, (width, height)))


def _by_gdal(data: bytes, offset: int) -> tuple[Six, str]:
    """Returns the transform of the directory at an offset, and the system as WKT; "" if there is none."""
    # Imported where it is used: the service's own processes, which do not run this, need no GDAL.
    import rasterio
    from rasterio.errors import CRSError, NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    # Nothing but the file's own tags: no files beside it, no others that it names.
    internal: dict[str, Any] = {"GDAL_GEOREF_SOURCES": "INTERNAL", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    with rasterio.Env(**internal), MemoryFile(data) as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(f"GTIFF_DIR:off:{offset}:{memory.name}", driver="GTiff") as page:
            transform = tuple(page.transform)[:6]
            try:
                return transform, page.crs.to_wkt(version="WKT2_2019") if page.crs else ""
            except CRSError:
                return transform, ""


def _composed(outer: Six, inner: Six) -> Six:
    """Returns the transform that applies `inner` first."""
    a, b, c, d, e, f = outer
    g, h, i, j, k, m = inner
    return (a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f)


def _has_wgs84(transform: Six, wkt: str, size: tuple[int, int]) -> bool:
    """Whether any of nine places of a picture, `size` its width and height, has a longitude and latitude."""
    from rasterio._err import CPLE_BaseError
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.warp import transform as warped

    a, b, c, d, e, f = transform
    crs = CRS.from_wkt(wkt)
    for x in (size[0] / 2, 0.0, float(size[0])):
        for y in (size[1] / 2, 0.0, float(size[1])):
            try:
                [longitude], [latitude] = warped(crs, "EPSG:4326", [a * x + b * y + c], [d * x + e * y + f])
            except (CPLE_BaseError, RasterioError):
                continue
            if math.isfinite(longitude) and abs(latitude) <= 90:
                return True
    return False
