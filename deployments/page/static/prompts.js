// Prompts as requests: the fields that an object's prompt becomes, and the prompts that led to it.

import { candidateOf } from "./history.js";

export const isAsked = ({ points, box }) => points.length > 0 || box !== null;

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

// Returns the changes that every new prompt of an object brings along: no answer yet, and as mask_input the logits of
// the mask that the user sees, if they are of the same model.
export function withoutAnswer(object, modelId) {
  const candidate = candidateOf(object);
  let previous = object.previous?.modelId === modelId && !object.slot.answer ? object.previous : null;
  if (candidate?.logits && object.slot.answer.modelId === modelId) {
    previous = { logits: candidate.logits, modelId, steps: stepsOf(object) };
  }
  return { previous, before: candidate ?? object.before, everything: null, slot: { answer: null }, picked: 0 };
}
