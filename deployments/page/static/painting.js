// Paints the masks of all objects, and the preview, over the image.

import { candidateOf } from "./history.js";
import { page, view } from "./state.js";

// Returns the candidate that is painted for an object: until its answer comes, the one before.
const shownOf = (object) => candidateOf(object) ?? (object.slot.answer ? null : object.before);

export function paint() {
  if (view.isEmpty) return;
  const { objects, selected } = page.history.state;
  const layers = objects
    .filter(shownOf)
    .map((object) => ({ mask: shownOf(object).mask, hue: object.hue, strength: object.id === selected ? 1 : 0.8 }))
    .sort((one, other) => other.mask.area - one.mask.area);
  if (page.preview) layers.push({ mask: page.preview.mask, hue: page.history.selected.hue, strength: 0.6 });
  view.paint(layers);
}
