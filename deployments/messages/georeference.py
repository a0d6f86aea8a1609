"""Georeference: where on the earth a picture lies; NoGeoreference: why that is not known."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of an upright picture lie on a map.

    Attributes:
        transform: `(a, b, c, d, e, f)`: the place (x, y), in pixels from the top left corner of the first pixel, is
            (a x + b y + c, d x + e y + f) on the map.
        crs: the map's coordinate reference system, as WKT, or as `EPSG:n`.
        has_wgs84: whether the system can be brought to WGS 84.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str
    has_wgs84: bool


@dataclass(frozen=True)
class NoGeoreference:
    """A picture whose place on a map is not known.

    Attributes:
        reason: the end of a message that says why.
    """

    reason: str
