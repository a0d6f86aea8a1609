// The preview: the mask of a click at the pointer, shown while the selected object is empty.

import { isEmpty } from "./history.js";
import { paint } from "./painting.js";
import { $, page } from "./state.js";

let pointer = null; // {x, y} in the image, where a preview is wanted
let request = null; // the AbortController of the request under way

const isWanted = () => $("hover").checked && page.session !== null && isEmpty(page.history.selected);

// point: the pointer's {x, y}; null outside the image.
export function previewAt(point) {
  if (!point || !isWanted()) return endPreview();
  pointer = point;
  if (!request) followPointer();
}

export function endPreview() {
  pointer = null;
  request?.abort();
  if (page.preview) {
    page.preview = null;
    paint();
  }
}

// One request at a time; if the pointer has moved meanwhile, the next one follows.
async function followPointer() {
  const { x, y } = pointer;
  request = new AbortController();
  try {
    const fields = { point_coords: JSON.stringify([[x, y]]), point_labels: "[1]" };
    const { candidates } = await page.session.segment(fields, page.modelId, { signal: request.signal });
    if (pointer && isWanted()) {
      page.preview = candidates[0];
      paint();
    }
  } catch (fault) {
    // Previews stop silently; a click meets the same fault and reports it.
    if (fault.name !== "AbortError") $("hover").checked = false;
  } finally {
    request = null;
  }
  if (pointer && isWanted() && (pointer.x !== x || pointer.y !== y)) followPointer();
}
