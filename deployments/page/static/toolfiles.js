// The objects as files of annotation tools, as the service's own formats have them. Names are escaped for each format.

import { candidateOf } from "./history.js";
import { greyPng, palettePng } from "./png.js";
import { multiPolygon } from "./polygons.js";
import { singleRing } from "./singlering.js";
import { greyTiff } from "./tiff.js";

// Without what XML cannot hold: control characters, halves of characters.
export const plain = (text) => text.replaceAll(/[\p{Cc}\p{Cs}\ufffe\uffff]/gu, "");

const json = (value, type = "application/json") => new Blob([JSON.stringify(value)], { type });

const MARKS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;" };
export const xml = (text) => plain(text).replaceAll(/[&<>"']/g, (mark) => MARKS[mark]);

const maskOf = (object) => candidateOf(object).mask;
const shown = (objects) => objects.filter((object) => maskOf(object).area > 0);

// Returns the lengths of runs of equal values, the first of zeros: 0 if the values begin with a one.
export function runsAlong(values) {
  const runs = [];
  let [current, length] = [0, 0];
  for (const value of values) {
    if (value !== current) {
      runs.push(length);
      [current, length] = [value, 0];
    }
    length++;
  }
  return [...runs, length];
}

// "CVAT for images 1.1": runs row by row inside the mask's box.
export function cvat(objects, fileName, width, height) {
  const lines = shown(objects).map((object) => {
    const mask = maskOf(object);
    const box = `left="${mask.x}" top="${mask.y}" width="${mask.w}" height="${mask.h}"`;
    const runs = runsAlong(mask.bits).join(", ");
    return `    <mask label="${xml(object.name)}" source="auto" occluded="0" rle="${runs}" ${box} z_order="0"></mask>\n`;
  });
  const text = `<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <image id="0" name="${xml(fileName)}" width="${width}" height="${height}">
${lines.join("")}  </image>
</annotations>
`;
  return new Blob([text], { type: "application/xml" });
}

// Writes numbers of given widths, the highest bit first.
class BitWriter {
  bytes = [];
  _free = 0;

  write(number, width) {
    for (let place = width - 1; place >= 0; place--) {
      if (this._free === 0) {
        this.bytes.push(0);
        this._free = 8;
      }
      if (Math.floor(number / 2 ** place) % 2) this.bytes[this.bytes.length - 1] |= 1 << (this._free - 1);
      this._free--;
    }
  }
}

// Returns Label Studio's run lengths of a mask: of the image row by row, each pixel four values of 0 or 255.
export function brush(mask) {
  const pixels = new Uint8Array(mask.width * mask.height);
  mask.visit(1, (x, y) => (pixels[y * mask.width + x] = 1));
  const sizes = [3, 4, 8, 16];
  const writer = new BitWriter();
  writer.write(4 * pixels.length, 32);
  writer.write(7, 5);
  for (const size of sizes) writer.write(size - 1, 4);
  runsAlong(pixels).forEach((run, index) => {
    for (let left = 4 * run; left > 0; left -= 2 ** 16) {
      const length = Math.min(left, 2 ** 16);
      const size = sizes.findIndex((bits) => length <= 2 ** bits);
      writer.write(4 + size, 3); // A one, "repeated", and the size's place.
      writer.write(length - 1, sizes[size]);
      writer.write(index % 2 ? 255 : 0, 8);
    }
  });
  return writer.bytes;
}

// A task of Label Studio with a prediction; see the service's formats for the labelling interface that it needs.
export function labelStudio(objects, fileName, width, height) {
  const result = shown(objects).map((object) => ({
    id: uuid().slice(0, 8),
    type: "brushlabels",
    from_name: "brush",
    to_name: "image",
    original_width: width,
    original_height: height,
    image_rotation: 0,
    value: { format: "rle", rle: brush(maskOf(object)), brushlabels: [plain(object.name)] },
  }));
  return json([{ data: { image: plain(fileName) }, predictions: [{ model_version: "Segment Anything 2", result }] }]);
}

// LabelMe's shapes of the kind mask: a picture of 0 and 1 in a box whose right and bottom are inclusive.
export async function labelMe(objects, fileName, width, height) {
  const shapes = [];
  for (const object of shown(objects)) {
    const mask = maskOf(object);
    const picture = new Uint8Array(await (await greyPng(mask.w, mask.h, mask.bits)).arrayBuffer());
    const characters = Array.from(picture, (byte) => String.fromCharCode(byte));
    shapes.push({
      label: plain(object.name),
      points: [
        [mask.x, mask.y],
        [mask.x + mask.w - 1, mask.y + mask.h - 1],
      ],
      group_id: null,
      description: "",
      shape_type: "mask",
      flags: {},
      mask: btoa(characters.join("")),
    });
  }
  const image = { imagePath: plain(fileName), imageData: null, imageHeight: height, imageWidth: width };
  return json({ version: "7.1.0", flags: {}, shapes, ...image });
}

// A UUID without crypto.randomUUID, which pages of plain HTTP do not have.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

// QuPath's annotations, along the edges of pixels.
export function quPath(objects) {
  const features = shown(objects).map((object) => {
    const name = plain(object.name);
    const color = [230, 60, 60];
    const { type, coordinates } = multiPolygon(maskOf(object));
    const [only, ...others] = coordinates;
    return {
      type: "Feature",
      id: uuid(),
      geometry: others.length ? { type, coordinates } : { type: "Polygon", coordinates: only },
      properties: { objectType: "annotation", name, color, classification: { name, color } },
    };
  });
  return json({ type: "FeatureCollection", features }, "application/geo+json");
}

// A line for each object of YOLO's segmentation: its class, that of all objects of the same name, and its ring. Corners
// lie a quarter of a pixel inside of theirs: loaders find the pixel by rounding down, or to the nearest.
export function yolo(objects, fileName, width, height) {
  const names = [...new Set(objects.map(({ name }) => name))];
  const lines = shown(objects).map((object) => {
    const numbers = singleRing(maskOf(object)).flatMap(([x, y]) => [(x - 0.25) / width, (y - 0.25) / height]);
    return `${names.indexOf(object.name)} ${numbers.map((number) => number.toFixed(6)).join(" ")}\n`;
  });
  return new Blob(lines, { type: "text/plain" });
}

export const DAVIS_OBJECTS = 255;

// The colours of DAVIS: bit 3k + c of a number is bit 7 − k of its channel c.
export function davisPalette() {
  return Uint8Array.from({ length: 3 * 256 }, (_, index) => {
    const [number, channel] = [Math.floor(index / 3), index % 3];
    let value = 0;
    for (let k = 0; 3 * k + channel < 8; k++) value |= ((number >> (3 * k + channel)) & 1) << (7 - k);
    return value;
  });
}

// A label image with a palette; where objects overlap, the lower number is on top.
export function davis(objects, fileName, width, height) {
  if (objects.length > DAVIS_OBJECTS) throw new Error(`DAVIS's files hold at most ${DAVIS_OBJECTS} objects.`);
  const values = new Uint8Array(width * height);
  numbered(objects).reverse().forEach((one) => paint(values, one, width));
  return palettePng(width, height, values, davisPalette());
}

// Labels of 16 bits; where objects overlap, the higher score is on top.
export function napari(objects, fileName, width, height) {
  const values = new Uint16Array(width * height);
  numbered(objects)
    .sort((one, other) => one.score - other.score)
    .forEach((one) => paint(values, one, width));
  return greyTiff(width, height, values);
}

const numbered = (objects) => objects.map((object, index) => ({ ...candidateOf(object), number: index + 1 }));

function paint(values, { mask, number }, width) {
  mask.visit(1, (x, y) => (values[y * width + x] = number));
}
