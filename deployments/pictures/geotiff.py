"""Reads where a GeoTIFF lies on a map: the affine transform and the coordinate reference system of a page.

GDAL (by rasterio) interprets the tags, of ModelPixelScale, ModelTiepoint, ModelTransformation and the GeoKeys. Several
tiepoints without a scale are control points; an affine transform is fitted to them by least squares. GDAL's transforms
and control points count from the corners of pixels: where the file's are from centres (PixelIsPoint), GDAL has moved
them by half a pixel. It knows nothing of TIFF's orientation, so its transform is that of the stored rows.
"""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.pictures.steps import ReaderModule, facts_of
from deployments.pictures.tiff import HEIGHT, ORIENTATION, WIDTH
from deployments.pictures.tiff_directory import Directories

TIEPOINT, TRANSFORMATION = 33922, 34264

LONGEST_WKT = 20_000
"""Characters. Those of the EPSG registry have up to some 5,000."""

FILES = re.compile(r"PARAMETERFILE|EXTENSION|grids\s*=|init\s*=", re.IGNORECASE)
"""How a system in WKT 2 can name grids of datums, which PROJ would look for."""

LARGEST_RESIDUAL = 0.5
"""How far, in pixels, a transform may miss a control point."""

MOST_POINTS = 10_000

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


def placed_facts_of(
    reader: ReaderModule, file: BinaryIO, options: PictureOptions, max_pixels: int
) -> tuple[int, int, bool, Georeference | NoGeoreference]:
    """Returns what `steps.facts_of` does, and where the page lies; a picture is shown whatever is wrong with that."""
    facts = facts_of(reader, file, options, max_pixels)
    try:
        return *facts, georeference(file, options)
    except Exception as error:
        # Not all of rasterio's errors have a base of their own.
        return *facts, NoGeoreference(f"its georeference cannot be read: {error}")


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
    if not {TRANSFORMATION, TIEPOINT} & picture.tags.keys():
        return NoGeoreference("the image has no georeference")
    found, wkt = _by_gdal(data, picture.offset)
    if isinstance(found, NoGeoreference):
        return found
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


def _by_gdal(data: bytes, offset: int) -> tuple[Six | NoGeoreference, str]:
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
            points, crs = page.gcps
            # Of a scale that is 0, GDAL makes one control point.
            if len(points) > 1:
                transform: Six | NoGeoreference = _fitted(points)
            else:
                transform, crs = tuple(page.transform)[:6], page.crs
            try:
                return transform, crs.to_wkt(version="WKT2_2019") if crs else ""
            except CRSError:
                return transform, ""


def _fitted(points: list[Any]) -> Six | NoGeoreference:
    """Returns the affine transform that meets control points best, if it meets each of them well.

    Args:
        points: rasterio's, of which `col` and `row` are places in the picture, `x` and `y` those on the map.
    """
    places = np.array([(point.col, point.row, 1.0) for point in points])
    on_map = np.array([(point.x, point.y) for point in points])
    if len(points) > MOST_POINTS or not (np.isfinite(places).all() and np.isfinite(on_map).all()):
        return NoGeoreference("the image's control points are too many, or are no finite numbers")
    # Around their middles, since places on a map have more digits than differences between them.
    middle, map_middle = places.mean(axis=0) * (1, 1, 0), on_map.mean(axis=0)
    solved, _, rank, _ = np.linalg.lstsq(places - middle, on_map - map_middle, rcond=1e-9)
    linear = solved[:2].T
    if rank < 3 or math.isclose(linear[0, 0] * linear[1, 1], linear[0, 1] * linear[1, 0], rel_tol=1e-12):
        return NoGeoreference(f"the image's {len(points)} control points lie on a line, or are fewer than three")
    missed = (places - middle) @ solved - (on_map - map_middle)
    off = float(np.hypot(*np.linalg.solve(linear, missed.T)).max())
    if not off < LARGEST_RESIDUAL:
        return NoGeoreference(
            f"the image's {len(points)} control points are met by no affine transform: the best one is off by "
            f"{off:.3g} pixels, and {LARGEST_RESIDUAL} are accepted"
        )
    x, y = solved[2] + map_middle - linear @ middle[:2]
    return (*linear[0].tolist(), float(x), *linear[1].tolist(), float(y))


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
