// Asks the service for the mask of an object.

import { run } from "./jobs.js";
import { showLoading } from "./models.js";
import { latency } from "./panels.js";
import { endPreview } from "./preview.js";
import { fieldsOf, maskInputOf, withoutAnswer } from "./prompts.js";
import { render } from "./render.js";
import { $, page } from "./state.js";
import { progress, say } from "./status.js";

// The purpose of the request for an object's mask on the present frame, see jobs.js.
export const jobOf = ({ id }) => `${id} on ${page.history.frame}`;

export function ask(object) {
  endPreview();
  render();
  const { slot } = object;
  const { modelId, session } = page;
  run(jobOf(object), async (signal, controller) => {
    const fields = { ...fieldsOf(object), return_logits: "true" };
    if (object.previous) fields.mask_input = maskInputOf(object.previous.candidate);
    const wait = () => session.segment(fields, modelId, { signal, progress });
    const answer = await showLoading(signal, controller, wait);
    signal.throwIfAborted();
    slot.answer = { modelId, candidates: answer.candidates };
    $("latency").textContent = latency(answer);
    const { score, mask } = answer.candidates[0];
    const { selected } = page.history;
    if (selected.slot === slot) {
      say(`${selected.name}: ${mask.area ? `found, score ${score.toFixed(2)}` : "nothing found there"}.`);
    }
    render();
  });
}

// Gives the selected object another prompt, and asks for its mask.
export function changePrompt(changes) {
  const { selected } = page.history;
  ask(page.history.change(selected.id, { ...withoutAnswer(selected, page.modelId), ...changes }));
}

export function addPoint(point) {
  changePrompt({ points: [...page.history.selected.points, point] });
}

export function setBox(box) {
  // A box tells anew which object is meant: the mask before is no mask_input.
  changePrompt({ box, previous: null });
}
