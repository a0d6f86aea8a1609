// Paints the masks of all objects, and the preview, over the image.

import { shownOf } from "./shown.js";
import { page, view } from "./state.js";

export function paint() {
  if (view.isEmpty) return;
  const { objects, selected } = page.history.state;
  const layers = objects
    .map((object) => ({ mask: shownOf(object)?.mask, hue: object.hue, strength: object.id === selected ? 1 : 0.8 }))
    .filter(({ mask }) => mask)
    .sort((one, other) => other.mask.area - one.mask.area);
  if (page.preview) layers.push({ mask: page.preview.mask, hue: page.history.selected.hue, strength: 0.6 });
  view.paint(layers);
}
