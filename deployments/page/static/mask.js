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
