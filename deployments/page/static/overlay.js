// The overlay: masks in colour over the image, at the image's own resolution.

const FILL = 0.45; // the opacity of a mask inside its outline

// Returns "hsl(hue 90% 55%)" as [red, green, blue].
export function rgbOf(hue) {
  const channel = (shift) => {
    const at = (shift + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.405 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export class Overlay {
  constructor(canvas) {
    this._canvas = canvas;
    this._pixels = null; // megabytes for large images: kept between paintings
  }

  clear() {
    this._pixels = null;
  }

  resize(width, height) {
    [this._canvas.width, this._canvas.height] = [width, height];
    this.clear();
  }

  // layers: [{mask, hue, strength 0 to 1}], the first at the bottom.
  paint(layers) {
    const { width, height } = this._canvas;
    const context = this._canvas.getContext("2d", { willReadFrequently: true });
    const pixels = (this._pixels ??= context.createImageData(width, height));
    pixels.data.fill(0);
    const reach = Math.max(1, Math.round(Math.max(width, height) / 700));
    for (const { mask, hue, strength } of layers) {
      const [red, green, blue] = rgbOf(hue);
      mask.visit(reach, (x, y, onEdge) => {
        const at = 4 * (y * width + x);
        pixels.data[at] = red;
        pixels.data[at + 1] = green;
        pixels.data[at + 2] = blue;
        pixels.data[at + 3] = 255 * strength * (onEdge ? 1 : FILL);
      });
    }
    context.putImageData(pixels, 0, 0);
  }
}
