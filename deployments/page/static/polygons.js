// A mask's contours along the edges of its pixels, as GeoJSON. As in the service's own polygons, a pixel (x, y) is the
// square from (x, y) to (x + 1, y + 1), so that areas are exact.

// Returns the mask with a border of zeros: the number of each pixel's region, from 1. Sides connect, corners do not.
function labelled({ bits, w, h }) {
  const stride = w + 2;
  const inside = new Uint8Array(stride * (h + 2));
  for (let row = 0; row < h; row++) inside.set(bits.subarray(row * w, (row + 1) * w), (row + 1) * stride + 1);
  const labels = new Int32Array(inside.length);
  let count = 0;
  const waiting = [];
  const visit = (pixel) => {
    if (inside[pixel] !== 1 || labels[pixel]) return;
    labels[pixel] = count;
    waiting.push(pixel);
  };
  for (let first = stride; first < inside.length; first++) {
    if (inside[first] !== 1 || labels[first]) continue;
    count++;
    visit(first);
    while (waiting.length) {
      const pixel = waiting.pop();
      visit(pixel - 1);
      visit(pixel + 1);
      visit(pixel - stride);
      visit(pixel + stride);
    }
  }
  return { labels, count, stride };
}

// Follows a ring from a pixel's upper edge, with the mask on its right on the screen, and returns its corners. Outer
// rings then run clockwise on the screen: counterclockwise where y points upwards, as RFC 7946 demands. Where two pixels
// touch only at a corner, the ring stays with its own pixel if the other is of another region, and crosses over if it is
// of the same: so no ring touches itself.
function follow(first, { labels, stride }, seen) {
  const steps = [1, stride, -1, -stride];
  const ring = [];
  let [pixel, side] = [first, 0];
  do {
    seen[4 * pixel + side] = 1;
    const ahead = pixel + steps[side];
    const beside = ahead + steps[(side + 3) % 4];
    const isOver = labels[ahead] ? labels[beside] > 0 : labels[beside] === labels[pixel];
    if (labels[ahead] && !isOver) {
      pixel = ahead;
      continue;
    }
    // The corner at which the edge ends, counted without the border.
    const [column, row] = [(pixel % stride) - 1, Math.floor(pixel / stride) - 1];
    ring.push([column + (side < 2 ? 1 : 0), row + (side === 1 || side === 2 ? 1 : 0)]);
    if (isOver) pixel = beside;
    side = (side + (isOver ? 3 : 1)) % 4;
  } while (pixel !== first || side !== 0);
  return ring;
}

// Returns twice the signed area: positive for outer rings, negative for holes.
function area(ring) {
  return ring.reduce((sum, [x, y], index) => {
    const [nextX, nextY] = ring[(index + 1) % ring.length];
    return sum + x * nextY - nextX * y;
  }, 0);
}

// Returns the rings of each region, the outer one first; [x, y] in pixels of the mask's box.
export function regionRings(mask) {
  const image = labelled(mask);
  const { labels, count, stride } = image;
  const seen = new Uint8Array(4 * labels.length);
  const regions = Array.from({ length: count }, () => []);
  for (let pixel = stride; pixel < labels.length; pixel++) {
    if (!labels[pixel] || labels[pixel - stride] || seen[4 * pixel]) continue;
    const [rings, ring] = [regions[labels[pixel] - 1], follow(pixel, image, seen)];
    if (area(ring) > 0) rings.unshift(ring);
    else rings.push(ring);
  }
  return regions;
}

const closed = (ring, mask) => [...ring, ring[0]].map(([x, y]) => [x + mask.x, y + mask.y]);

export function multiPolygon(mask) {
  const coordinates = regionRings(mask).map((rings) => rings.map((ring) => closed(ring, mask)));
  return { type: "MultiPolygon", coordinates };
}
