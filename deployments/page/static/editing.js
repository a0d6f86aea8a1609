// Edits the objects: undo and redo, select, rename, remove, pick a candidate.

import { isAsked, newObject } from "./history.js";
import { isRunning } from "./jobs.js";
import { goTo } from "./moving.js";
import { endPreview } from "./preview.js";
import { render } from "./render.js";
import { ask, jobOf } from "./segmenting.js";
import { page } from "./state.js";

// Changes the history. A prompt whose request was cancelled before its answer came is asked again when it is selected.
function edit(change) {
  const { frame } = page.history;
  change(page.history);
  const changed = page.history.frame;
  // What was done on another frame of a video is undone there; until its picture has come, the present one is shown.
  page.history.moveTo(frame);
  if (changed !== frame) goTo(changed);
  endPreview();
  render();
  const { selected } = page.history;
  if (page.session && !selected.slot.answer && isAsked(selected) && !isRunning(jobOf(selected))) ask(selected);
}

export const undo = () => edit((history) => history.undo());
export const redo = () => edit((history) => history.redo());
export const clear = () => edit((history) => history.clear());
export const addObject = () => edit((history) => history.add([newObject()]));
export const select = (id) => edit((history) => history.select(id));
export const remove = (id) => edit((history) => history.remove(id));

export function rename(id, name) {
  if (name) page.history.rename(id, name);
  render();
}

export function pick(index) {
  const { selected } = page.history;
  if (selected.slot.answer?.candidates[index] && index !== selected.picked) {
    page.history.change(selected.id, { picked: index });
    render();
  }
}
