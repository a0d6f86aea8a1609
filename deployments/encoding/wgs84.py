"""Brings polygons from pixels to longitudes and latitudes in WGS 84, as RFC 7946 (GeoJSON) has them."""

from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.warp import transform as warped

from deployments.encoding.contours import rings_of
from deployments.messages.georeference import Georeference

WGS84 = "EPSG:4326"

MOST_OFF_PIXELS = 0.1
"""How far the middle of an edge, drawn straight in degrees, may be from where the picture has it."""

MOST_HALVINGS = 6

DECIMALS = 10
"""Of degrees: a hundredth of a millimetre."""

FEWEST_CORNERS = 4
"""Of a closed ring."""


def in_wgs84(polygons: NDArray[Any], georeference: Georeference) -> list[Any]:
    """Returns the coordinates of a GeoJSON MultiPolygon: longitude first, outer rings counterclockwise, rings closed.

    Edges that are straight in the picture are bent in degrees; where a bent one would be more than a tenth of a pixel
    off, corners are inserted. Polygons that cross the antimeridian are cut there, and one with a pole inside reaches up
    to the pole, between the longitudes -180 and 180 (RFC 7946, section 3.1.9). Corners outside of the projection are
    left out.

    Args:
        polygons: shapely's, in pixels.
        georeference: of the picture; has_wgs84.
    """
    rings = [rings_of(polygon) for polygon in polygons]
    if not rings:
        return []
    degrees = iter(_in_degrees([ring for one in rings for ring in one], georeference))
    found = []
    for one in rings:
        outer, *holes = [_unbroken(next(degrees)) for _ in one]
        if len(outer) >= FEWEST_CORNERS:
            found += _cut(_region(outer, [hole for hole in holes if len(hole) >= FEWEST_CORNERS]))
    if not found:
        return []
    return [[ring.round(DECIMALS).tolist() for ring in rings_of(one)] for one in shapely.orient_polygons(found)]


# ---- from pixels to degrees


def _in_degrees(rings: list[NDArray[np.float64]], georeference: Georeference) -> list[NDArray[np.float64]]:
    """Returns rings with the corners that their bent edges need: `n×2` longitudes and latitudes each."""
    corners = np.concatenate(rings)
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    degrees = _degrees(corners, georeference)
    for _ in range(MOST_HALVINGS):
        starts = np.flatnonzero(ring_of[:-1] == ring_of[1:])
        middles = (corners[starts] + corners[starts + 1]) / 2
        bent_middles = _degrees(middles, georeference)
        chords = _turn(degrees[starts + 1] - degrees[starts])
        off = np.hypot(*(_turn(bent_middles - degrees[starts]) - chords / 2).T)
        pixels = np.hypot(*(corners[starts + 1] - corners[starts]).T)
        # An edge of n pixels is as long as its chord. Comparisons with NaN are false: such corners are left out later.
        is_bent = off * pixels > MOST_OFF_PIXELS * np.hypot(*chords.T)
        if not is_bent.any():
            break
        at = starts[is_bent] + 1
        corners = np.insert(corners, at, middles[is_bent], axis=0)
        degrees = np.insert(degrees, at, bent_middles[is_bent], axis=0)
        ring_of = np.insert(ring_of, at, ring_of[starts[is_bent]])
    return np.split(degrees, np.flatnonzero(ring_of[:-1] != ring_of[1:]) + 1)


def _turn(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns differences, `n×2`, with those of longitudes from -180 to 180."""
    turned = differences.copy()
    turned[:, 0] -= 360 * np.round(turned[:, 0] / 360)
    return turned


def _degrees(places: NDArray[np.float64], georeference: Georeference) -> NDArray[np.float64]:
    """Returns the longitudes and latitudes of places in pixels, `n×2` both; NaN where the projection has none."""
    a, b, c, d, e, f = georeference.transform
    x, y = places.T
    on_map = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
    degrees = _from_map(on_map, _system(georeference.crs))
    degrees[~np.isfinite(degrees).all(axis=1)] = np.nan
    return degrees


def _from_map(places: NDArray[np.float64], crs: CRS) -> NDArray[np.float64]:
    try:
        return np.stack(warped(crs, WGS84, *places.T), axis=1)
    except CPLE_BaseError:
        # PROJ fails on all if it fails on one.
        if len(places) == 1:
            return np.full((1, 2), np.nan)
    half = len(places) // 2
    return np.concatenate([_from_map(places[:half], crs), _from_map(places[half:], crs)])


@lru_cache(maxsize=64)
def _system(crs: str) -> CRS:
    return CRS.from_user_input(crs)


# ---- around the earth


def _unbroken(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a ring whose longitudes do not jump, and may leave -180 to 180; around a pole, closed by way of it."""
    ring = ring[np.isfinite(ring[:, 0])]
    if len(ring) and (ring[0] != ring[-1]).any():
        ring = np.concatenate([ring, ring[:1]])
    turns = np.cumsum(np.round(np.diff(ring[:, 0]) / 360))
    ring[1:, 0] -= 360 * turns
    if len(turns) and turns[-1]:
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        ring = np.concatenate([ring, [[ring[-1, 0], pole], [ring[0, 0], pole], ring[0]]])
    return ring


def _region(outer: NDArray[np.float64], holes: list[NDArray[np.float64]]) -> Any:
    """Returns a polygon less its holes."""
    # A hole may be a turn away from its outer ring, and around a pole on both ends of it.
    moves = [np.array([360.0 * turns, 0.0]) for turns in (-2, -1, 0, 1, 2)]
    placed = [shapely.make_valid(shapely.polygons(hole + move)) for hole in holes for move in moves]
    region = shapely.make_valid(shapely.polygons(outer))
    return shapely.difference(region, shapely.union_all(placed)) if placed else region


def _cut(region: Any) -> list[Any]:
    """Returns the polygons of a region, cut at the antimeridian and moved to between -180 and 180."""
    if shapely.is_empty(region):
        return []
    left, _, right, _ = shapely.bounds(region).round(DECIMALS)
    parts = []
    for turn in range(int(np.floor((left + 180) / 360)), int(np.ceil((right + 180) / 360))):
        within = region
        if left < 360 * turn - 180 or right > 360 * turn + 180:
            within = shapely.intersection(region, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        moved = shapely.transform(within, lambda corners, turn=turn: corners - np.array([360.0 * turn, 0.0]))
        parts += _polygons(moved)
    # What reaches around a pole begins and ends at the same meridian, where its pieces meet.
    return _polygons(shapely.union_all(parts)) if len(parts) > 1 else parts


def _polygons(geometry: Any) -> list[Any]:
    """Returns the polygons in a geometry that have an area."""
    return [part for part in shapely.get_parts(_flat(geometry)) if part.geom_type == "Polygon" and part.area > 0]


def _flat(geometry: Any) -> Any:
    """Returns the parts of a collection, of which those of a MultiPolygon are single polygons."""
    return shapely.get_parts(shapely.get_parts(geometry)) if geometry.geom_type == "GeometryCollection" else geometry
