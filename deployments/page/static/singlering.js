// A mask as one ring through the centres of its border's pixels, as YOLO's files have it: loaders fill the ring together
// with the pixels on its line. Holes and further parts are reached by bridges, there and back on one line.

import { multiPolygon } from "./polygons.js";

// Returns the centres of the pixels along a closed ring of edges, on its right on the screen, where the mask is.
function centres(ring) {
  const path = [];
  for (let index = 1; index < ring.length; index++) {
    const [[x0, y0], [x1, y1]] = [ring[index - 1], ring[index]];
    const [dx, dy] = [Math.sign(x1 - x0), Math.sign(y1 - y0)];
    const length = Math.abs(x1 - x0 + y1 - y0);
    for (const along of length > 1 ? [0.5, length - 0.5] : [0.5]) {
      path.push([x0 + dx * along - dy / 2, y0 + dy * along + dx / 2]);
    }
  }
  const distinct = path.filter(([x, y], index) => {
    const [beforeX, beforeY] = path[(index || path.length) - 1];
    return x !== beforeX || y !== beforeY;
  });
  return distinct.length ? distinct : path.slice(0, 1);
}

// Inserts a ring, turned to begin with its corner `start`, into another after the corner `edge`, by way of `landing`.
function inserted(whole, edge, landing, ring, start) {
  const turned = [...ring.slice(start), ...ring.slice(0, start + 1)];
  return [...whole.slice(0, edge + 1), landing, ...turned, landing, ...whole.slice(edge + 1)];
}

// Joins a hole straight up from its topmost corner: what lies there is the mask, up to the first edge that is met.
function withHole(whole, hole) {
  const start = hole.reduce((top, [, y], index) => (y < hole[top][1] ? index : top), 0);
  const [x, y] = hole[start];
  let [edge, height] = [0, -Infinity];
  whole.forEach(([x0, y0], index) => {
    const [x1, y1] = whole[(index + 1) % whole.length];
    if (x < Math.min(x0, x1) || x > Math.max(x0, x1)) return;
    // Along the grid or diagonally; of an upright edge the point, or the end that is nearest to it.
    const [low, high] = [Math.min(y0, y1), Math.max(y0, y1)];
    const met = x0 === x1 ? Math.max(low, Math.min(high, y)) : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
    if (met <= y && met > height) [edge, height] = [index, met];
  });
  return inserted(whole, edge, [x, height], hole, start);
}

// Returns the shortest line between corners of two rings: its squared length, its end on the one, its place on the other.
function shortestLine(ring, part) {
  let line = { length: Infinity };
  for (const landing of ring) {
    part.forEach(([x, y], start) => {
      const length = (landing[0] - x) ** 2 + (landing[1] - y) ** 2;
      if (length < line.length) line = { length, landing, start };
    });
  }
  return line;
}

// Joins parts, always the nearest next: then no bridge crosses another.
function joined([first, ...others]) {
  let whole = first;
  const left = new Map(others.map((part) => [part, shortestLine(first, part)]));
  while (left.size) {
    const [part, { landing, start }] = [...left].reduce((one, other) => (other[1].length < one[1].length ? other : one));
    const edge = whole.findIndex(([x, y]) => x === landing[0] && y === landing[1]);
    whole = inserted(whole, edge, landing, part, start);
    left.delete(part);
    for (const [other, known] of left) {
      const line = shortestLine(part, other);
      if (line.length < known.length) left.set(other, line);
    }
  }
  return whole;
}

const topOf = (ring) => ring.reduce((top, [, y]) => Math.min(top, y), Infinity);

// Returns the corners of a closed ring without the first one's repetition.
export const edges = (ring) => ring.slice(1);

// Returns the corners, [x, y] in pixels; the first is not repeated at the end. pointsOf: centres, or the pixels' own edges.
export function singleRing(mask, pointsOf = centres) {
  const parts = multiPolygon(mask).coordinates.map((rings) => {
    const [outer, ...holes] = rings.map(pointsOf);
    return holes.sort((one, other) => topOf(one) - topOf(other)).reduce(withHole, outer);
  });
  const ring = joined(parts);
  while (ring.length < 3) ring.push(ring.at(-1));
  return ring;
}
