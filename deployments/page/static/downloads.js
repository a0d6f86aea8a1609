// The objects as files, at the image's own resolution.

import { candidateOf } from "./history.js";
import { greyPng } from "./png.js";
import { multiPolygon } from "./polygons.js";

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const json = (value) => new Blob([JSON.stringify(value)], { type: "application/json" });

// 8 bits: 255 where the mask is, 0 elsewhere.
export function maskPng(mask) {
  const values = new Uint8Array(mask.width * mask.height);
  mask.visit(1, (x, y) => (values[y * mask.width + x] = 255));
  return greyPng(mask.width, mask.height, values);
}

// n where the n-th object is, smaller objects above larger ones; 0 elsewhere.
export function labelPng(objects, width, height) {
  const values = new Uint16Array(width * height);
  const numbered = objects.map((object, index) => ({ mask: candidateOf(object).mask, number: index + 1 }));
  for (const { mask, number } of numbered.sort((one, other) => other.mask.area - one.mask.area)) {
    mask.visit(1, (x, y) => (values[y * width + x] = number));
  }
  return greyPng(width, height, values);
}

// The image in the mask's box, or the whole image; transparent where the mask is not.
export function cutout(mask, image, isWhole = false) {
  const { bits, x, y, w, h } = mask;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = isWhole ? [mask.width, mask.height] : [w, h];
  const context = canvas.getContext("2d");
  const [left, top] = isWhole ? [0, 0] : [x, y];
  context.drawImage(image, -left, -top);
  const pixels = context.getImageData(x - left, y - top, w, h);
  for (let index = 0; index < bits.length; index++) {
    if (!bits[index]) pixels.data.fill(0, 4 * index, 4 * index + 4);
  }
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.putImageData(pixels, x - left, y - top);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// An annotation file of COCO; objects of the same name are of one category.
export function coco(objects, fileName, width, height) {
  const names = [...new Set(objects.map(({ name }) => name))];
  return json({
    info: { description: "Segment Anything 2" },
    images: [{ id: 1, file_name: fileName, width, height }],
    categories: names.map((name, index) => ({ id: index + 1, name })),
    annotations: objects.map((object, index) => {
      const { mask, score } = candidateOf(object);
      return {
        id: index + 1,
        image_id: 1,
        category_id: names.indexOf(object.name) + 1,
        segmentation: { size: [mask.height, mask.width], counts: mask.counts },
        area: mask.area,
        bbox: [mask.x, mask.y, mask.w, mask.h],
        iscrowd: 0,
        score,
      };
    }),
  });
}

// GeoJSON, with coordinates in pixels.
export function polygons(objects) {
  return json({
    type: "FeatureCollection",
    features: objects.map((object) => {
      const { mask, score } = candidateOf(object);
      const properties = { name: object.name, score, area: mask.area };
      return { type: "Feature", properties, geometry: multiPolygon(mask) };
    }),
  });
}
