// A mask as one ring through the centres of its border's pixels, as YOLO's files have it: loaders fill the ring together
// with the pixels on its line. Holes and further parts are reached by bridges, there and back on one line.
//
// Everything is done on the grid of pixels, so that the time grows with the pixels, also where a mask is noise. Corners
// are the pixels that they lie in: (column, row).

import { regionRings } from "./polygons.js";

// Returns the pixels at the ends of the edges of a ring, on its right on the screen, where the mask is.
function centres(ring) {
  const path = [];
  ring.forEach(([x0, y0], index) => {
    const [x1, y1] = ring[(index + 1) % ring.length];
    const [dx, dy] = [Math.sign(x1 - x0), Math.sign(y1 - y0)];
    const length = Math.abs(x1 - x0 + y1 - y0);
    for (const along of length > 1 ? [0.5, length - 0.5] : [0.5]) {
      path.push([Math.floor(x0 + dx * along - dy / 2), Math.floor(y0 + dy * along + dx / 2)]);
    }
  });
  const distinct = path.filter(([x, y], index) => {
    const [beforeX, beforeY] = path[(index || path.length) - 1];
    return x !== beforeX || y !== beforeY;
  });
  return distinct.length ? distinct : path.slice(0, 1);
}

// Places on a way, each with the one that follows. At first each ring is a way around.
class Way {
  x = [];
  y = [];
  next = [];
  _bridges = new Map();

  add([x, y], next) {
    this.x.push(x);
    this.y.push(y);
    return this.next.push(next) - 1;
  }

  // Returns the first place of the ring, and one past its last.
  addRing(ring) {
    const first = this.next.length;
    ring.forEach((corner) => this.add(corner, this.next.length + 1));
    this.next[this.next.length - 1] = first;
    return [first, this.next.length];
  }

  // Notes a bridge from a point on the edge that begins at a place to a corner of another ring, and back.
  bridge(edge, landing, { first, end }, start) {
    const bridges = this._bridges.get(edge) ?? [];
    const away = (landing[0] - this.x[edge]) ** 2 + (landing[1] - this.y[edge]) ** 2;
    bridges.push({ away, landing, start, before: start === first ? end - 1 : start - 1 });
    this._bridges.set(edge, bridges);
  }

  // Lets the ways lead over the bridges, and returns the corners from a place until it comes again.
  from(begin) {
    // First all ends, since the last edge of a ring may have bridges itself.
    for (const bridges of this._bridges.values()) {
      for (const bridge of bridges) {
        bridge.back = this.add(bridge.landing, -1);
        this.next[bridge.before] = this.add([this.x[bridge.start], this.y[bridge.start]], bridge.back);
      }
    }
    for (const [edge, bridges] of this._bridges) {
      const after = this.next[edge];
      let here = edge;
      for (const { landing, start, back } of bridges.sort((one, other) => one.away - other.away)) {
        this.next[here] = this.add(landing, start);
        here = back;
      }
      this.next[here] = after;
    }
    const corners = [];
    let place = begin;
    do {
      const [x, y] = [this.x[place], this.y[place]];
      if (corners.at(-1)?.[0] !== x || corners.at(-1)?.[1] !== y) corners.push([x, y]);
      place = this.next[place];
    } while (place !== begin);
    return corners;
  }
}

const topOf = (ring) => ring.reduce((top, [, y]) => Math.min(top, y), Infinity);

// Adds a region's rings to a way, the holes by bridges straight up from their topmost corners: what lies there is the
// region, up to the first edge of an earlier ring. Edges are found by the pixels that they run through.
function addRegion(rings, way, edges, w) {
  const [outer, ...holes] = rings.map(centres);
  const note = ([first, end]) => {
    for (let edge = first; edge < end; edge++) {
      const after = edge + 1 < end ? edge + 1 : first;
      const steps = Math.max(Math.abs(way.x[after] - way.x[edge]), Math.abs(way.y[after] - way.y[edge]));
      const step = Math.sign(way.x[after] - way.x[edge]) + w * Math.sign(way.y[after] - way.y[edge]);
      for (let at = 0; at < Math.max(1, steps); at++) edges[way.y[edge] * w + way.x[edge] + at * step] = edge + 1;
    }
  };
  const range = way.addRing(outer);
  note(range);
  const tops = holes.map((hole) => [topOf(hole), hole]).sort(([one], [other]) => one - other);
  for (const [top, hole] of tops) {
    const [first, end] = way.addRing(hole);
    const start = first + hole.findIndex(([, y]) => y === top);
    let pixel = top * w + way.x[start];
    while (!edges[pixel]) pixel -= w;
    way.bridge(edges[pixel] - 1, [pixel % w, Math.floor(pixel / w)], { first, end }, start);
    note([first, end]);
  }
  return range[0];
}

// Returns for each pixel which place is nearest, nearly: each takes over from its neighbours, down the rows and up.
function nearest(way, places, w, h) {
  const near = new Int32Array(w * h).fill(-1);
  for (const place of places) near[way.y[place] * w + way.x[place]] = place;
  const offer = (x, y, fromX, fromY) => {
    if (fromX < 0 || fromY < 0 || fromX >= w || fromY >= h) return;
    const [offered, own] = [near[fromY * w + fromX], near[y * w + x]];
    const length = (place) => (way.x[place] - x) ** 2 + (way.y[place] - y) ** 2;
    if (offered >= 0 && (own < 0 || length(offered) < length(own))) near[y * w + x] = offered;
  };
  for (const down of [1, -1]) {
    for (let row = 0; row < h; row++) {
      const y = down > 0 ? row : h - 1 - row;
      for (let x = 0; x < w; x++) {
        for (const dx of [-1, 0, 1]) offer(x, y, x + dx, y - down);
        offer(x, y, x - 1, y);
      }
      for (let x = w - 1; x >= 0; x--) offer(x, y, x + 1, y);
    }
  }
  return near;
}

// Returns the shortest lines between corners of regions that connect all of them, as [place, place]. Where the pixels
// next to each other have corners of two regions as their nearest ones, these are a candidate.
function connections(way, places, regionOf, w, h) {
  const near = nearest(way, places, w, h);
  const pairs = [];
  const compare = (one, other) => {
    if (regionOf[one] !== regionOf[other]) pairs.push([one, other]);
  };
  for (let pixel = 0; pixel < near.length; pixel++) {
    if ((pixel + 1) % w) compare(near[pixel], near[pixel + 1]);
    if (pixel + w < near.length) compare(near[pixel], near[pixel + w]);
  }
  // Squared length and number in one: both are below 2 ** 26.
  const keys = Float64Array.from(pairs, ([one, other], index) => {
    return ((way.x[one] - way.x[other]) ** 2 + (way.y[one] - way.y[other]) ** 2) * 2 ** 26 + index;
  });
  const root = [];
  const rootOf = (region) => {
    while ((root[region] ?? region) !== region) region = root[region] = root[root[region]] ?? root[region];
    return region;
  };
  return Array.from(keys.sort(), (key) => pairs[key % 2 ** 26]).filter(([one, other]) => {
    const [first, second] = [rootOf(regionOf[one]), rootOf(regionOf[other])];
    root[second] = first;
    return first !== second;
  });
}

// Joins all regions to the first, by bridges between corners of their outer rings.
function joinRegions(way, begins, ends, w, h) {
  const [places, regionOf] = [[], []];
  begins.forEach((first, region) => {
    for (let place = first; place < ends[region]; place++) {
      places.push(place);
      regionOf[place] = region;
    }
  });
  const lines = begins.map(() => []);
  for (const [one, other] of connections(way, places, regionOf, w, h)) {
    lines[regionOf[one]].push([one, other]);
    lines[regionOf[other]].push([other, one]);
  }
  const joined = new Set([0]);
  for (const region of joined) {
    for (const [edge, start] of lines[region]) {
      const other = regionOf[start];
      if (joined.has(other)) continue;
      way.bridge(edge, [way.x[edge], way.y[edge]], { first: begins[other], end: ends[other] }, start);
      joined.add(other);
    }
  }
}

// Returns the corners, [x, y] in pixels; the first is not repeated at the end.
export function singleRing(mask) {
  const { w, h } = mask;
  const way = new Way();
  const edges = new Int32Array(w * h);
  const ends = [];
  const begins = regionRings(mask).map((rings) => {
    const first = addRegion(rings, way, edges, w);
    ends.push(first + centres(rings[0]).length);
    return first;
  });
  if (begins.length > 1) joinRegions(way, begins, ends, w, h);
  const ring = way.from(begins[0]).map(([x, y]) => [x + mask.x + 0.5, y + mask.y + 0.5]);
  while (ring.length < 3) ring.push(ring.at(-1));
  return ring;
}
