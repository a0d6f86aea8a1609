// A mask as the service sends it: COCO's compressed run lengths, which go down the columns and begin with zeros.

// Returns the run lengths; follows rleFrString of pycocotools' maskApi.c.
export function runsOf(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      value |= (digit & 0x1f) << shift;
      shift += 5;
    } while (digit & 0x20);
    if (digit & 0x10) value |= -1 << shift;
    // From the fourth on, a run is written as its difference from the run two before it.
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

// Returns the counts of a mask without any pixel.
export function emptyCounts(pixels) {
  let counts = "";
  for (let left = pixels, isLast = false; !isLast; left >>= 5) {
    // The highest of the last five bits is the number's sign.
    isLast = left < 16;
    counts += String.fromCharCode(48 + ((left & 0x1f) | (isLast ? 0 : 0x20)));
  }
  return counts;
}

const LOGITS_SIDE = 256;
const SURE = 10; // the logit of a given mask: SAM 2 takes 10 inside and -10 outside

// Returns a mask as low-resolution logits, 1×256×256: that of the pixel in the middle of each.
export function logitsOf(mask) {
  const { bits, x, y, w, h } = mask;
  const places = Array.from({ length: LOGITS_SIDE }, (_, index) => (index + 0.5) / LOGITS_SIDE);
  const rows = places.map((place) => {
    const row = Math.floor(place * mask.height) - y;
    return places.map((along) => {
      const column = Math.floor(along * mask.width) - x;
      const inside = row >= 0 && row < h && column >= 0 && column < w && bits[row * w + column] === 1;
      return inside ? SURE : -SURE;
    });
  });
  return [rows];
}

export class Mask {
  // record: {segmentation: {size: [h, w], counts}, area, bbox: [x, y, w, h]}.
  constructor(record) {
    [this.height, this.width] = record.segmentation.size;
    this.counts = record.segmentation.counts;
    this.area = record.area;
    [this.x, this.y, this.w, this.h] = record.bbox;
    this._bits = new WeakRef({}); // Weak: the decoded masks of large images are megabytes.
  }

  // The h×w bytes of the box (bbox), row by row: 1 where the mask is.
  get bits() {
    const known = this._bits.deref();
    if (known instanceof Uint8Array) return known;
    const bits = new Uint8Array(this.w * this.h);
    let at = 0;
    let inside = false;
    for (const run of runsOf(this.counts)) {
      if (inside) {
        for (let index = at; index < at + run; index++) {
          const column = Math.floor(index / this.height);
          bits[(index - column * this.height - this.y) * this.w + column - this.x] = 1;
        }
      }
      at += run;
      inside = !inside;
    }
    this._bits = new WeakRef(bits);
    return bits;
  }

  // Calls visit(x, y, onEdge) for each pixel of the mask; onEdge: the border is at most `reach` pixels away.
  visit(reach, visit) {
    const { bits, w, h } = this;
    const inside = (column, row) => column >= 0 && row >= 0 && column < w && row < h && bits[row * w + column] === 1;
    for (let row = 0, index = 0; row < h; row++) {
      for (let column = 0; column < w; column++, index++) {
        if (bits[index]) {
          const onEdge =
            !inside(column - reach, row) || !inside(column + reach, row) ||
            !inside(column, row - reach) || !inside(column, row + reach);
          visit(this.x + column, this.y + row, onEdge);
        }
      }
    }
  }
}
