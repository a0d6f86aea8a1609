"""GeoTIFFs in, polygons in WGS 84 and GeoTIFFs out: compared with rasterio (GDAL, PROJ) at known places."""

import io
import json
from typing import Any, cast

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine, from_gcps
from rasterio.warp import transform as warped

from deployments.encoding.response_encoder import encode_piece
from deployments.errors import InvalidRequest
from deployments.messages.answer_format import AnswerFormat, ResponseFormat
from deployments.messages.georeference import Georeference, NoGeoreference
from deployments.messages.picture_options import PictureOptions
from deployments.messages.pieces import cut
from deployments.parsing.byte_budget import ByteBudget
from deployments.parsing.images import identify, image_by_id
from deployments.parsing.segmenter import Segmenter
from deployments.pictures import geotiff, reader, tiff
from deployments.pictures.exif import TURNS, upright_samples
from deployments.pictures.isolated import Helpers, IsolatedReader
from deployments.settings import Limits, ServiceSettings
from tests.masks import GivenMasks, Mask

HEIGHT, WIDTH = 40, 60

UTM = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_540_000.0)
ROTATED = Affine.translation(412_345.5, 5_643_210.25) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
DEGREES = Affine(0.01, 0.0, 13.0, 0.0, -0.02, 52.5)

# GeoKeys by hand: version 1.1.0, then model type, raster type and the EPSG code of the projected system.
AREA_KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
POINT_KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2, 3072, 0, 1, 32633)


class PromptMasks(GivenMasks):
    """Masks of a prompt: those of GivenMasks are shown as everything is."""

    def shown(self, mask_index: int | None) -> int | None:  # type: ignore[override]
        return mask_index or 0


def by_rasterio(crs: str | None, transform: Affine | None, **options: Any) -> bytes:
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 1, "dtype": "uint8"} | options
    with MemoryFile() as memory:
        with memory.open(crs=crs, transform=transform, **profile) as file:
            file.write(np.zeros((HEIGHT, WIDTH), np.uint8), 1)
        return bytes(memory.getbuffer())


def by_tifffile(keys: tuple[int, ...], left: float = 500_000.0, **options: Any) -> dict[str, Any]:
    """The arguments for a page with the tags of a GeoTIFF, for `TiffWriter.write`."""
    tags = [
        (33550, "d", 3, (10.0, 10.0, 0.0)),
        (33922, "d", 6, (0.0, 0.0, 0.0, left, 5_540_000.0, 0.0)),
        (34735, "H", len(keys), keys),
    ]
    return {"data": np.zeros((HEIGHT, WIDTH), np.uint8), "extratags": [*tags, *options.pop("tags", [])], **options}


def file_of(*pages: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for page in pages:
            file.write(**page, metadata=None)
    return buffer.getvalue()


def place_of(data: bytes, page: int = 0) -> Georeference:
    found = geotiff.georeference(io.BytesIO(data), PictureOptions(page=page))
    assert isinstance(found, Georeference), found
    return found


def reason_of(data: bytes) -> str:
    found = geotiff.georeference(io.BytesIO(data), PictureOptions())
    assert isinstance(found, NoGeoreference)
    return found.reason


def box_mask(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Mask:
    mask = np.zeros(size, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def written(masks: Any, kind: ResponseFormat, place: Georeference | NoGeoreference, **options: Any) -> bytes:
    form = AnswerFormat(kind, **options).placed(place)
    return b"".join(encode_piece(piece, form) for piece in cut(masks, form, 5_000_000))


def on_map(mask: Mask, place: Georeference) -> Any:
    answer = json.loads(written(GivenMasks(mask[None], [0.9]), "polygons", place, coordinates="map"))
    return answer["masks"][0]["segmentation"]


def lon_lat(place: Georeference, x: float, y: float) -> tuple[float, float]:
    [longitude], [latitude] = warped(
        CRS.from_wkt(place.crs), "EPSG:4326", *([v] for v in Affine(*place.transform) @ (x, y))
    )
    return longitude, latitude


# ---- what a file says


@pytest.mark.parametrize(
    ("crs", "transform"),
    [("EPSG:32633", UTM), ("EPSG:32632", ROTATED), ("EPSG:4326", DEGREES), ("EPSG:3031", UTM), ("EPSG:3857", UTM)],
)
def test_transform_and_system_are_the_files(crs: str, transform: Affine) -> None:
    place = place_of(by_rasterio(crs, transform))
    np.testing.assert_allclose(place.transform, tuple(transform)[:6], rtol=1e-14)
    assert CRS.from_wkt(place.crs) == CRS.from_user_input(crs)
    assert place.has_wgs84


def test_pixel_is_point_means_centres() -> None:
    area, point = place_of(file_of(by_tifffile(AREA_KEYS))), place_of(file_of(by_tifffile(POINT_KEYS)))
    assert area.transform == (10, 0, 500_000, 0, -10, 5_540_000)
    assert point.transform == (10, 0, 499_995, 0, -10, 5_540_005)


def test_place_is_that_of_the_page() -> None:
    data = file_of(by_tifffile(AREA_KEYS), by_tifffile(AREA_KEYS, left=700_000.0))
    assert [place_of(data, page).transform[2] for page in (0, 1)] == [500_000, 700_000]


@pytest.mark.parametrize("orientation", [1, *TURNS])
def test_place_is_that_of_the_upright_picture(orientation: int) -> None:
    place = place_of(file_of(by_tifffile(AREA_KEYS, tags=[(274, "H", 1, orientation)])))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    stored = np.stack([500_000 + 10 * columns, 5_540_000 - 10 * rows], axis=2)
    shown = upright_samples(stored, orientation)
    a, b, c, d, e, f = place.transform
    rows, columns = np.mgrid[: shown.shape[0], : shown.shape[1]] + 0.5
    np.testing.assert_array_equal(shown[..., 0], a * columns + b * rows + c)
    np.testing.assert_array_equal(shown[..., 1], d * columns + e * rows + f)


def test_no_georeference_is_told_by_its_reason() -> None:
    assert "has no georeference" in reason_of(file_of({"data": np.zeros((4, 4), np.uint8)}))
    assert "which coordinate reference system" in reason_of(by_rasterio(None, UTM))
    assert "inverted" in reason_of(
        file_of(by_tifffile(AREA_KEYS, tags=[])).replace(np.float64(10.0).tobytes(), bytes(8), 1)
    )


def control_points(transform: Affine, places: list[tuple[float, float]], off: float = 0.0) -> list[GroundControlPoint]:
    """Points where a transform has them; the first is off by some pixels to the right."""
    on_map = [transform @ (column + off * (index == 0), row) for index, (column, row) in enumerate(places)]
    return [GroundControlPoint(row, column, *there) for (column, row), there in zip(places, on_map, strict=True)]


CORNERS = [(0.0, 0.0), (60.0, 0.0), (0.0, 40.0), (60.0, 40.0), (31.5, 7.25)]


@pytest.mark.parametrize(("crs", "transform"), [("EPSG:32633", UTM), ("EPSG:32632", ROTATED), ("EPSG:4326", DEGREES)])
@pytest.mark.parametrize("off", [0.0, 0.4])
def test_control_points_are_met_by_a_transform_of_least_squares(crs: str, transform: Affine, off: float) -> None:
    points = control_points(transform, CORNERS, off)

    place = place_of(by_rasterio(crs, None, gcps=points))

    assert CRS.from_wkt(place.crs) == CRS.from_user_input(crs)
    columns, rows = ~transform @ np.array([Affine(*place.transform) @ corner for corner in CORNERS]).T
    # The normal equations, by hand.
    known = np.array([(column, row, 1.0) for column, row in CORNERS])
    shift = known @ np.linalg.inv(known.T @ known) @ known.T[:, 0] * off
    np.testing.assert_allclose(columns, known[:, 0] + shift, atol=1e-6)
    np.testing.assert_allclose(rows, known[:, 1], atol=1e-6)
    if not off:
        np.testing.assert_allclose(place.transform, tuple(from_gcps(points))[:6], rtol=1e-9, atol=1e-9)


def test_control_points_that_no_transform_meets_are_refused_by_their_distance() -> None:
    bent = reason_of(by_rasterio("EPSG:32633", None, gcps=control_points(UTM, CORNERS, off=4.0)))
    assert "5 control points are met by no affine transform" in bent
    assert "0.5 are accepted" in bent
    line = control_points(UTM, [(0.0, 0.0), (10.0, 10.0), (20.0, 20.0), (40.0, 40.0)])
    assert "4 control points lie on a line" in reason_of(by_rasterio("EPSG:32633", None, gcps=line))
    assert "fewer than three" in reason_of(by_rasterio("EPSG:32633", None, gcps=control_points(UTM, CORNERS[:2])))


def test_control_points_of_pixel_is_point_are_centres() -> None:
    values = [v for x, y in CORNERS for v in (x, y, 0.0, 500_000 + 10 * x, 5_540_000 - 10 * y, 0.0)]
    for keys, left, top in ((AREA_KEYS, 500_000, 5_540_000), (POINT_KEYS, 499_995, 5_540_005)):
        page = {"data": np.zeros((HEIGHT, WIDTH), np.uint8)}
        tags = [(33922, "d", len(values), tuple(values)), (34735, "H", len(keys), keys)]
        place = place_of(file_of(page | {"extratags": tags}))
        np.testing.assert_allclose(place.transform, (10, 0, left, 0, -10, top), atol=1e-6)
    assert "which coordinate reference system" in reason_of(file_of(page | {"extratags": tags[:1]}))


def test_a_place_that_cannot_be_read_does_not_hinder_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr(geotiff, "georeference", fail)

    *facts, place = geotiff.placed_facts_of(tiff, io.BytesIO(by_rasterio("EPSG:32633", UTM)), PictureOptions(), 10**6)

    assert facts == [WIDTH, HEIGHT, False]
    assert isinstance(place, NoGeoreference)
    assert "cannot be read: of a library" in place.reason


def test_only_tiff_files_have_a_place() -> None:
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "PNG")
    limits = Limits()
    for image, reason in (
        (identify(png.getvalue(), limits), "only those of TIFF"),
        (identify(np.zeros((4, 4), np.uint8), limits), "only those of TIFF"),
        (image_by_id("0" * 64), "send the file"),
    ):
        assert isinstance(image.georeference, NoGeoreference)
        assert reason in image.georeference.reason


def test_the_place_comes_with_the_size_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Helpers):
        calls = 0

        def call(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return super().call(*args, **options)

    helpers = Counting(count=1, timeout_s=20)
    monkeypatch.setitem(reader.READERS, "tiff", IsolatedReader(tiff, "a TIFF file", helpers))

    image = identify(by_rasterio("EPSG:32633", UTM), Limits())

    assert isinstance(image.georeference, Georeference)
    assert image.georeference.transform == tuple(UTM)[:6]
    assert image.decoded_bytes == 3 * WIDTH * HEIGHT
    assert helpers.calls == 1
    helpers.close()


# ---- polygons on the map


@pytest.mark.parametrize(("crs", "transform"), [("EPSG:32633", UTM), ("EPSG:32632", ROTATED), ("EPSG:4326", DEGREES)])
def test_corners_are_where_rasterio_has_them(crs: str, transform: Affine) -> None:
    place = place_of(by_rasterio(crs, transform))
    [[ring]] = on_map(box_mask(7, 11, 31, 23), place)["coordinates"]
    assert ring[0] == ring[-1]
    expected = sorted(lon_lat(place, x, y) for x in (7, 31) for y in (11, 23))
    np.testing.assert_allclose(sorted(map(tuple, ring[:-1])), expected, rtol=0, atol=1e-9)
    assert shapely.LinearRing(ring).is_ccw


def test_holes_are_clockwise_and_stay() -> None:
    mask = box_mask(5, 5, 30, 30) & ~box_mask(10, 12, 20, 22)
    [[outer, hole]] = on_map(mask, place_of(by_rasterio("EPSG:32633", UTM)))["coordinates"]
    assert shapely.LinearRing(outer).is_ccw
    assert not shapely.LinearRing(hole).is_ccw
    assert shapely.Polygon(outer).contains(shapely.Polygon(hole))


def test_empty_mask_has_no_polygons() -> None:
    assert on_map(box_mask(0, 0, 0, 0), place_of(by_rasterio("EPSG:32633", UTM)))["coordinates"] == []


def test_edges_that_are_bent_in_degrees_get_corners() -> None:
    # 2,000 km from east to west at 60° north.
    transform = Affine(1000.0, 0.0, 3_300_000.0, 0.0, -1000.0, 4_100_000.0)
    place = Georeference(tuple(transform)[:6], CRS.from_epsg(3035).to_wkt(), True)
    [[ring]] = on_map(box_mask(0, 10, 2000, 20, (30, 2000)), place)["coordinates"]
    longitudes, latitudes = np.array(ring).T
    x, y = warped(
        "EPSG:4326", "EPSG:3035", *(shapely.get_coordinates(shapely.segmentize(shapely.LinearRing(ring), 0.01)).T)
    )
    columns, rows = ~transform @ (np.array(x), np.array(y))
    outside = np.minimum.reduce([np.abs(rows - 10), np.abs(rows - 20), np.abs(columns), np.abs(columns - 2000)])
    assert outside.max() < 0.2
    assert len(longitudes) == len(latitudes) < 200


def test_polygons_are_cut_at_the_antimeridian() -> None:
    # In EPSG:3832, Mercator around 150° east, the antimeridian is inside.
    [x], _ = warped("EPSG:4326", "EPSG:3832", [179.0], [0.0])
    transform = Affine(5000.0, 0.0, x, 0.0, -5000.0, 100_000.0)
    place = Georeference(tuple(transform)[:6], CRS.from_epsg(3832).to_wkt(), True)
    geometry = on_map(box_mask(0, 10, 50, 30), place)
    parts = shapely.get_parts(shapely.geometry.shape(geometry))
    assert shapely.geometry.shape(geometry).is_valid
    west, east = sorted(parts, key=lambda part: float(part.bounds[0]))
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    assert east.bounds[0] == pytest.approx(179.0, abs=1e-9)
    right, _ = lon_lat(place, 50, 20)
    assert west.bounds[2] == pytest.approx(right, abs=1e-9)


def test_pictures_of_the_whole_earth_are_not_cut() -> None:
    place = Georeference((6.0, 0.0, -180.0, 0.0, -4.5, 90.0), CRS.from_epsg(4326).to_wkt(), True)
    shape = shapely.geometry.shape(on_map(box_mask(0, 10, 60, 30), place))
    assert shapely.equals(shape, shapely.box(-180, -45, 180, 45))
    shifted = Georeference((6.0, 0.0, 0.0, 0.0, -4.5, 90.0), CRS.from_epsg(4326).to_wkt(), True)
    shape = shapely.geometry.shape(on_map(box_mask(20, 10, 40, 30), shifted))
    assert shapely.equals(
        shapely.union_all(shapely.get_parts(shape)),
        shapely.union(shapely.box(120, -45, 180, 45), shapely.box(-180, -45, -120, 45)),
    )


def test_polygons_around_a_pole_reach_up_to_it() -> None:
    transform = Affine(50_000.0, 0.0, -1_000_000.0, 0.0, -50_000.0, 1_000_000.0)
    place = Georeference(tuple(transform)[:6], CRS.from_epsg(3031).to_wkt(), True)
    mask = box_mask(10, 10, 30, 30) & ~box_mask(12, 12, 15, 15)
    shape = shapely.geometry.shape(on_map(mask, place))
    assert shape.is_valid
    assert shape.bounds[0] == -180
    assert shape.bounds[1] == -90
    assert shape.bounds[2] == 180
    for column, row in ((20.4, 20.4), (13.5, 13.5), (10.5, 29.5), (9.5, 20.5), (35.5, 35.5), (19.5, 25.5)):
        inside = bool(mask[int(row), int(column)])
        assert shapely.contains_xy(shape, *lon_lat(place, column, row)) == inside, (column, row)


def test_corners_outside_of_the_projection_are_left_out() -> None:
    # The full disc of a geostationary satellite: the corners of the picture are in space.
    crs = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=-75 +sweep=x +ellps=GRS80 +units=m")
    place = Georeference(
        (271_000.0, 0.0, -5_420_000.0, 0.0, -271_000.0, 5_420_000.0), crs.to_wkt(version="WKT2_2019"), True
    )
    mask = box_mask(10, 10, 30, 30, (40, 40)) | box_mask(0, 0, 12, 12, (40, 40))
    geometry = on_map(mask, place)
    assert np.isfinite(
        [value for polygon in geometry["coordinates"] for ring in polygon for place in ring for value in place]
    ).all()
    assert shapely.contains_xy(shapely.geometry.shape(geometry), -75.0, 0.0)


# ---- GeoTIFFs out


def test_geotiff_has_a_band_for_each_object() -> None:
    data = by_rasterio("EPSG:32632", ROTATED)
    masks = np.stack([box_mask(1, 2, 30, 20), box_mask(0, 0, 0, 0), box_mask(20, 10, 60, 40)])
    with (
        MemoryFile(written(PromptMasks(masks, [0.5, 0.25, 0.75]), "geotiff", place_of(data))) as memory,
        memory.open() as file,
    ):
        with MemoryFile(data) as source, source.open() as original:
            np.testing.assert_allclose(file.transform, original.transform, rtol=1e-14)
            assert file.crs == original.crs
        assert file.dtypes == ("uint8",) * 3
        assert file.nodatavals == (None,) * 3
        assert file.compression.name == "deflate"
        assert file.descriptions == ("object 1", "object 2", "object 3")
        assert [float(file.tags(band)["score"]) for band in (1, 2, 3)] == [0.5, 0.25, 0.75]
        np.testing.assert_array_equal(file.read(), np.where(masks, 255, 0))


def test_geotiff_of_everything_is_one_band_of_labels() -> None:
    masks = np.stack([box_mask(1, 2, 30, 20), box_mask(20, 10, 60, 40)])
    answer = written(GivenMasks(masks, [0.5, 0.75]), "geotiff", place_of(by_rasterio("EPSG:4326", DEGREES)))
    with MemoryFile(answer) as memory, memory.open() as file:
        assert file.dtypes == ("uint16",)
        assert file.crs == CRS.from_epsg(4326)
        np.testing.assert_array_equal(file.read(1), np.where(masks[1], 2, np.where(masks[0], 1, 0)))


# ---- what is refused


def test_answers_that_need_a_place_are_refused_without() -> None:
    nowhere = NoGeoreference("the image has no georeference")
    with pytest.raises(InvalidRequest, match=r"^coordinates: map needs .* has no georeference"):
        AnswerFormat("polygons", coordinates="map").placed(nowhere)
    with pytest.raises(InvalidRequest, match=r"^response_format: geotiff needs .* has no georeference"):
        AnswerFormat("geotiff").placed(nowhere)
    local = Georeference(tuple(UTM)[:6], "LOCAL_CS", False)
    with pytest.raises(InvalidRequest, match=r"^coordinates: map is in WGS 84"):
        AnswerFormat("polygons", coordinates="map").placed(local)
    assert AnswerFormat("geotiff").placed(local).georeference == local
    for unplaced in (AnswerFormat("polygons"), AnswerFormat("polygons", coordinates="pixels"), AnswerFormat("rle")):
        assert unplaced.placed(nowhere) is unplaced


def test_formats_that_were_never_placed_are_known() -> None:
    with pytest.raises(InvalidRequest, match=r"^georeference: is missing"):
        AnswerFormat("geotiff").check_place()
    with pytest.raises(InvalidRequest, match=r"^georeference: is missing"):
        AnswerFormat("polygons", coordinates="map").check_place()
    AnswerFormat("polygons").check_place()


async def test_a_place_is_remembered_for_the_image_id() -> None:
    segmenter = Segmenter(ServiceSettings(), cast(Any, None), ByteBudget(2**30, "too many images"))
    sent = await segmenter.identify(by_rasterio("EPSG:32633", UTM))
    named = await segmenter.identify(None, sent.image_id)
    found = segmenter.georeference(sent)
    assert isinstance(found, Georeference)
    assert segmenter.georeference(named) == found
    assert isinstance(segmenter.georeference(image_by_id("0" * 64)), NoGeoreference)


@pytest.mark.parametrize("kind", ["rle", "qupath", "geotiff"])
def test_coordinates_are_for_polygons(kind: ResponseFormat) -> None:
    with pytest.raises(InvalidRequest, match=r"^coordinates: is for response_format polygons"):
        AnswerFormat(kind, coordinates="map")


def test_systems_without_wgs84_are_known() -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    assert not place_of(by_rasterio(local, UTM)).has_wgs84
