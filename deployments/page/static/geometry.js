// Numbers of the plane that several modules need.

export const clamp = (value, least, most) => Math.min(most, Math.max(least, value));

// Returns the box [x0, y0, x1, y1] between two corners, cut to an image of that size.
export function boxBetween(one, other, { width, height }) {
  const x = [one.x, other.x].map((value) => clamp(value, 0, width)).sort((a, b) => a - b);
  const y = [one.y, other.y].map((value) => clamp(value, 0, height)).sort((a, b) => a - b);
  return [x[0], y[0], x[1], y[1]];
}
