// Prompts as requests: the fields that an object's prompt becomes, and the prompts that led to it.

import { candidateOf } from "./history.js";
import { logitsOf } from "./mask.js";
import { shownOf, wasTracked } from "./shown.js";
import { page } from "./state.js";

// One click alone is ambiguous: it gets three candidates.
const isAmbiguous = ({ points, box, previous }) => points.length === 1 && !box && !previous;

// Returns the text fields of a request for the object's mask, without the image and mask_input.
export function fieldsOf(object) {
  const { points, box } = object;
  const fields = {};
  if (points.length) {
    fields.point_coords = JSON.stringify(points.map(({ x, y }) => [x, y]));
    fields.point_labels = JSON.stringify(points.map(({ label }) => label));
  }
  if (box) fields.box = JSON.stringify(box);
  if (!isAmbiguous(object)) fields.multimask_output = "false";
  return fields;
}

// Returns [{fields, picked}]: the prompts that led to the object's mask, each with the candidate that the next went on
// from.
export const stepsOf = (object) => [
  ...(object.previous?.steps ?? []),
  { fields: fieldsOf(object), picked: object.picked },
];

// Returns what a candidate becomes as the mask_input of the next prompt: its logits, or if it has none its mask.
export const maskInputOf = ({ logits, mask }) => JSON.stringify(logits ?? logitsOf(mask));

// Returns the changes that every new prompt of an object brings along: no answer yet, and as mask_input the mask that the
// user sees. An image's must be of the same model. On a video's frame any mask that was found there is corrected.
export function withoutAnswer(object, modelId) {
  const candidate = candidateOf(object);
  const seen = page.video ? shownOf(object) : candidate;
  let previous = object.previous?.modelId === modelId && !object.slot.answer ? object.previous : null;
  const isOfModel = object.slot.answer?.modelId === modelId;
  if (seen?.mask.area && (wasTracked(seen) || (page.video && isOfModel))) {
    previous = { candidate: seen, modelId, steps: [] };
  } else if (candidate?.logits && isOfModel) {
    previous = { candidate, modelId, steps: stepsOf(object) };
  }
  return { previous, before: seen ?? object.before, everything: null, slot: { answer: null }, picked: 0 };
}
