// A mask's contours along the edges of its pixels, as GeoJSON. As in the service's own polygons, a pixel (x, y) is the
// square from (x, y) to (x + 1, y + 1), so that areas are exact.

// Returns the edges between the mask's pixels and others, with the mask on their right on the screen. Outer rings then
// run clockwise on the screen: counterclockwise where y points upwards, as RFC 7946 demands.
function edgesOf(mask) {
  const { bits, w, h } = mask;
  const at = (column, row) => column >= 0 && row >= 0 && column < w && row < h && bits[row * w + column] === 1;
  const next = new Map();
  const stride = w + 1;
  const add = (fromX, fromY, toX, toY) => {
    const key = fromY * stride + fromX;
    const ends = next.get(key);
    if (ends) ends.push(toY * stride + toX);
    else next.set(key, [toY * stride + toX]);
  };
  for (let row = 0; row < h; row++) {
    for (let column = 0; column < w; column++) {
      if (!at(column, row)) continue;
      if (!at(column, row - 1)) add(column, row, column + 1, row);
      if (!at(column + 1, row)) add(column + 1, row, column + 1, row + 1);
      if (!at(column, row + 1)) add(column + 1, row + 1, column, row + 1);
      if (!at(column - 1, row)) add(column, row + 1, column, row);
    }
  }
  return { next, stride };
}

// Returns closed walks along the edges. Where two pixels touch only at a corner, a walk turns right, round its own
// pixel: such pixels are not connected.
function walksOf(mask) {
  const { next, stride } = edgesOf(mask);
  const take = (from, before) => {
    const ends = next.get(from);
    const right = before === undefined ? ends[0] : from + turnedRight(from - before, stride);
    return ends.splice(Math.max(0, ends.indexOf(right)), 1)[0];
  };
  const walks = [];
  for (const start of next.keys()) {
    while (next.get(start).length) {
      const walk = [start];
      const first = next.get(start)[0];
      let [before, here] = [start, take(start)];
      // The walk ends at its start, unless it only passes through it and leaves by another edge than at first.
      while (here !== start || (next.get(start).length && start + turnedRight(start - before, stride) !== first)) {
        walk.push(here);
        [before, here] = [here, take(here, before)];
      }
      walks.push(walk.map((key) => [key % stride, Math.floor(key / stride)]));
    }
  }
  return walks;
}

// Turns a step by 90° clockwise: right to down, down to left, left to up, up to right.
function turnedRight(step, stride) {
  return { 1: stride, [stride]: -1, [-1]: -stride, [-stride]: 1 }[step];
}

// Cuts each walk where it comes to a vertex a second time: no ring touches itself.
function ringsOf(mask) {
  const rings = [];
  for (const walk of walksOf(mask)) {
    const path = [];
    const place = new Map();
    for (const vertex of walk) {
      const key = String(vertex);
      if (place.has(key)) {
        const ring = path.splice(place.get(key));
        for (const cut of ring) place.delete(String(cut));
        rings.push(ring);
      }
      place.set(key, path.length);
      path.push(vertex);
    }
    rings.push(path);
  }
  return rings.map(corners);
}

// Returns the ring without the vertices inside straight lines.
function corners(ring) {
  return ring.filter(([x, y], index) => {
    const [beforeX, beforeY] = ring[(index + ring.length - 1) % ring.length];
    const [afterX, afterY] = ring[(index + 1) % ring.length];
    return (x - beforeX) * (afterY - y) !== (y - beforeY) * (afterX - x);
  });
}

// Returns twice the signed area: positive for outer rings, negative for holes.
function area(ring) {
  return ring.reduce((sum, [x, y], index) => {
    const [nextX, nextY] = ring[(index + 1) % ring.length];
    return sum + x * nextY - nextX * y;
  }, 0);
}

function contains(ring, x, y) {
  let inside = false;
  for (let index = 0, before = ring.length - 1; index < ring.length; before = index++) {
    const [x0, y0] = ring[before];
    const [x1, y1] = ring[index];
    if (y0 > y !== y1 > y && x < x0 + ((y - y0) / (y1 - y0)) * (x1 - x0)) inside = !inside;
  }
  return inside;
}

// Returns a point inside the hole: half a pixel from the middle of its first edge, on the side away from the mask.
function pointIn(hole) {
  const [[x0, y0], [x1, y1]] = hole;
  const dx = Math.sign(x1 - x0);
  const dy = Math.sign(y1 - y0);
  return [x0 + dx / 2 + dy / 2, y0 + dy / 2 - dx / 2];
}

const closed = (ring, mask) => [...ring, ring[0]].map(([x, y]) => [x + mask.x, y + mask.y]);

export function multiPolygon(mask) {
  const rings = ringsOf(mask).filter((ring) => ring.length > 2);
  const polygons = rings
    .filter((ring) => area(ring) > 0)
    .map((outer) => ({ outer, size: area(outer), holes: [] }))
    .sort((one, other) => one.size - other.size);
  for (const hole of rings.filter((ring) => area(ring) < 0)) {
    const [x, y] = pointIn(hole);
    polygons.find(({ outer, size }) => size > -area(hole) && contains(outer, x, y)).holes.push(hole);
  }
  const coordinates = polygons.map(({ outer, holes }) => [outer, ...holes].map((ring) => closed(ring, mask)));
  return { type: "MultiPolygon", coordinates };
}
