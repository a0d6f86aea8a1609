// Which mask is shown for an object: that of its prompt, or what was found by following it through a video.

import { candidateOf, isAsked } from "./history.js";
import { page } from "./state.js";

// Whether what was found came of the prompt that is there now. Without a prompt there, it always did.
const isOf = (found, prompt) => !isAsked(prompt) || (found.from?.slot === prompt.slot && found.from.picked === prompt.picked);

// Returns {mask, score}, or null. prompt: what is asked of the object on this frame, see promptOn in history.js.
export function shownOn(frame, id, prompt) {
  const found = page.video?.tracks.on(id, frame) ?? null;
  if (found && isOf(found, prompt)) return found;
  // Until the answer comes, the mask before is shown.
  return candidateOf(prompt) ?? (prompt.slot.answer ? null : prompt.before);
}

// Whether what is shown was found by following the object.
export const wasTracked = (shown) => "from" in shown;

// Returns the mask of an object on the present frame, {mask, score}, or null.
export const shownOf = (object) => shownOn(page.history.frame, object.id, object);
