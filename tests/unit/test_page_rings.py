"""The page's own polygons and single rings, run by Node where it is installed: those of the very masks, and in time."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image, ImageDraw

from deployments.encoding.contours import contours
from tests.masks import Mask, discs_and_rings, random_mask

STATIC = Path(__file__).parents[2] / "deployments/page/static"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")

PROGRAM = """
import { readFileSync } from "node:fs";
const folder = process.argv[2];
const { multiPolygon } = await import(`${folder}/polygons.js`);
const { singleRing } = await import(`${folder}/singlering.js`);
const answers = JSON.parse(readFileSync(0)).map(({ x, y, w, h, bits }) => {
  const mask = { x, y, w, h, bits: Uint8Array.from(bits) };
  const began = performance.now();
  const [polygons, ring] = [multiPolygon(mask), singleRing(mask)];
  return { polygons, ring, seconds: (performance.now() - began) / 1000 };
});
console.log(JSON.stringify(answers));
"""


def by_page(tmp_path: Path, masks: list[Mask]) -> list[dict[str, Any]]:
    """What the page makes of masks: multiPolygon, singleRing, and the seconds that they took."""
    # Node takes files for modules by their package.
    folder = tmp_path / "static"
    shutil.copytree(STATIC, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "program.js").write_text(PROGRAM)
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y, x = int(rows[0]), int(columns[0])
        h, w = int(rows[-1]) + 1 - y, int(columns[-1]) + 1 - x
        bits = mask[y : y + h, x : x + w].astype(int).ravel().tolist()
        boxes.append({"x": x, "y": y, "w": w, "h": h, "bits": bits})
    command = ["node", str(folder / "program.js"), str(folder)]
    done = subprocess.run(command, input=json.dumps(boxes), capture_output=True, text=True, timeout=100, check=False)
    assert not done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def filled(ring: list[list[float]], size: tuple[int, int]) -> Mask:
    """The ring with the pixels on its line."""
    image = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(image).polygon([(x - 0.5, y - 0.5) for x, y in ring], fill=1, outline=1)
    return np.asarray(image)


def test_the_page_makes_the_masks_own_polygons_and_one_ring(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    noise = [random_mask(rng, (61, 83), cells, share) for cells in (9, 35, 70) for share in (0.05, 0.3, 0.7, 0.95)]
    masks = [mask for mask in [*noise, *discs_and_rings((96, 131)), np.ones((1, 1), np.bool_)] if mask.any()]
    for mask, answer in zip(masks, by_page(tmp_path, masks), strict=True):
        found = shapely.geometry.shape(answer["polygons"])
        regions = contours(mask, 0)
        assert shapely.is_valid(found)
        assert shapely.equals(found, shapely.multipolygons(regions))
        assert all(shapely.LinearRing(polygon.exterior).is_ccw for polygon in found.geoms)
        ring = answer["ring"]
        assert len(ring) >= 3
        drawn = filled(ring, mask.shape)
        assert not (mask & ~drawn).any()
        # Nothing but bridges is added, which are short.
        assert (drawn & ~mask).sum() <= (len(regions) - 1) * max(mask.shape)
        line = shapely.LineString([(x, y) for x, y in ring])
        assert shapely.covers(shapely.union_all(regions), line) or len(regions) > 1


def test_the_page_joins_noise_in_time_that_grows_with_the_pixels(tmp_path: Path) -> None:
    masks = [np.random.default_rng(1).random((512, 512)) < share for share in (0.3, 0.75)]
    y, x = np.mgrid[:512, :512] + 0.5
    for mask, answer in zip(masks, by_page(tmp_path, masks), strict=True):
        # A second each; where each ring is compared with all others, minutes.
        assert answer["seconds"] < 10
        # By GEOS: of so many slanting edges, Pillow draws some corners otherwise than it draws the same edges alone.
        ring = shapely.Polygon(answer["ring"])
        shapely.prepare(ring)
        covered = shapely.intersects_xy(ring, x, y)
        assert not (mask & ~covered).any()
        assert (covered & ~mask).sum() <= 2 * len(contours(mask, 0))
