"""Rings that bridges join: they enclose the mask, run nowhere outside of it, and noise is joined in time."""

import time

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio import features

from deployments.encoding.bridges import bridged, single_ring
from deployments.encoding.contours import contours, rings_of
from deployments.encoding.ring_set import Ring, RingSet
from deployments.encoding.rings import centre_rings, edge_rings
from tests.masks import Mask, masks


def noise(size: int, share: float, seed: int = 16) -> Mask:
    return np.random.default_rng(seed).random((size, size)) < share


def scattered_holes(size: int, count: int) -> Mask:
    """A square with holes of a pixel, some of which touch at corners or sides."""
    mask = np.ones((size, size), np.bool_)
    places = np.random.default_rng(count).choice((size - 2) ** 2, count, replace=False)
    mask[1:-1, 1:-1].flat[places] = False
    return mask


def ring_set(rings: list[Ring], is_one_region: bool) -> RingSet:
    """Rings that are those of one region, the outer one first, or each the only one of its region."""
    region = np.zeros(len(rings), np.int64) if is_one_region else np.arange(len(rings))
    return RingSet(np.concatenate(rings), np.array([len(ring) for ring in rings]), region)


def joined(rings: list[Ring]) -> Ring:
    """The rings of one region, the outer one first, as one."""
    [ring] = bridged(ring_set(rings, is_one_region=True)).rings()
    return ring


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.98])
def test_rings_of_noise_enclose_the_same_and_no_bridge_crosses_anything(share: float) -> None:
    mask = noise(96, share)
    y, x = np.mgrid[:96, :96] + 0.5
    inside = np.zeros_like(mask)
    polygons = contours(mask, 0)
    assert sum(len(polygon.interiors) for polygon in polygons) > 50
    for polygon in polygons:
        ring = joined([ring[:-1] for ring in rings_of(polygon)])
        # GEOS counts crossings, so lines there and back make nothing of themselves.
        inside |= np.asarray(shapely.contains_xy(shapely.Polygon(ring), x, y))
        assert shapely.covers(polygon, shapely.LineString([*ring, ring[0]]))
    np.testing.assert_array_equal(inside, mask)


def test_rings_of_noise_have_the_area_of_the_mask() -> None:
    # By the nonzero rule too: a hole that ran the same way as the outside would add to it.
    mask = noise(96, 0.8)
    assert sum(shapely.Polygon(ring).area for ring in edge_rings(mask, 0)) == mask.sum()
    signs = {shapely.LinearRing(ring).is_ccw for ring in edge_rings(mask, 0)}
    assert len(signs) == 1


def test_a_hole_below_another_is_reached_over_it() -> None:
    outer = np.array([(0, 0), (0, 9), (9, 9), (9, 0)], float)
    upper = np.array([(2, 2), (6, 2), (6, 3), (2, 3)], float)
    lower = np.array([(4, 5), (5, 5), (5, 6), (4, 6)], float)
    beside = np.array([(7, 5), (8, 5), (8, 6), (7, 6)], float)
    ring = [tuple(corner) for corner in joined([outer, lower, beside, upper]).tolist()]
    for landing, top in (((2, 0), (2, 2)), ((4, 3), (4, 5)), ((7, 0), (7, 5))):
        steps = set(zip(ring, ring[1:] + ring[:1], strict=True))
        assert {(landing, top), (top, landing)} <= steps
    assert len(ring) == 4 + 3 * (4 + 1 + 2)


def test_a_hole_that_reaches_out_of_the_outer_ring_is_reached_from_the_nearest_corner() -> None:
    outer = np.array([(0, 0), (0, 9), (9, 9), (9, 0)], float)
    hole = np.array([(8, -1), (9, 3), (7, 3)], float)
    ring = [tuple(corner) for corner in joined([outer, hole]).tolist()]
    at = ring.index((8, -1))
    assert ring[at - 1] == (9, 0)


def test_thousands_of_holes_are_joined_in_time_that_grows_with_them() -> None:
    rings = [ring[:-1] for ring in rings_of(max(contours(scattered_holes(400, 12_000), 0), key=lambda one: one.area))]
    assert len(rings) > 8_000
    began = time.process_time()
    whole = joined(rings)
    # Less than a second; where each is looked for among all corners, half a minute.
    assert time.process_time() - began < 8
    assert shapely.Polygon(whole).area == shapely.Polygon(rings[0], rings[1:]).area


def test_regions_are_joined_by_the_shortest_bridges() -> None:
    squares = [np.array([(x, 0), (x, 2), (x + 2, 2), (x + 2, 0)], float) for x in (0, 10, 5)]
    line = shapely.LinearRing(single_ring(ring_set(squares, is_one_region=False)))
    # Between the squares there are gaps of three pixels, each of which is walked along there and back.
    assert line.length == 3 * 8 + 2 * (3 + 3)


def test_no_region_is_lost_where_its_corners_are_also_those_of_others() -> None:
    # As simplified rings of neighbours may have them.
    outer = np.array([(0, 0), (0, 9), (9, 9), (4, 4)], float)
    other = np.array([(20, 0), (20, 9), (6, 4)], float)
    between = np.array([(4, 4), (6, 4), (9, 9)], float)
    close = between[::-1] + 1e-13
    ring = single_ring(ring_set([outer, other, between, close], is_one_region=False))
    steps = {tuple(sorted(map(tuple, step))) for step in np.stack([ring, np.roll(ring, -1, axis=0)], axis=1).tolist()}
    for part in (outer, other, between, close):
        edges = np.stack([part, np.roll(part, -1, axis=0)], axis=1).tolist()
        assert {tuple(sorted(map(tuple, edge))) for edge in edges} <= steps


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_traced_polygons_are_those_that_gdal_finds(share: float) -> None:
    mask = noise(64, share)
    found = features.shapes(mask.view(np.uint8), mask=mask, connectivity=4)
    expected = [shapely.normalize(shapely.geometry.shape(geometry)) for geometry, _ in found]
    polygons = contours(mask, 0)
    assert len(polygons) == len(expected)
    assert shapely.is_valid(shapely.multipolygons(polygons))
    assert shapely.equals(shapely.union_all(polygons), shapely.union_all(expected))
    assert sorted(shapely.area(polygons)) == sorted(shapely.area(expected))


@given(masks(), st.sampled_from([0.5, 1, 3, 20]))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_ring_walks_along_every_region_at_any_tolerance(mask: Mask, tolerance: float) -> None:
    if not mask.any():
        return
    rings = centre_rings(mask, tolerance)
    ring = single_ring(rings)
    corners = set(map(tuple, ring.tolist()))
    assert all(set(map(tuple, one.tolist())) <= corners for one in rings.rings())
