// Brings the whole page in line with its state.

import { showFilm } from "./film.js";
import { isEmpty } from "./history.js";
import { paint } from "./painting.js";
import { showCandidates, showObjects } from "./panels.js";
import { showProgram } from "./program.js";
import { shownOf } from "./shown.js";
import { $, page, view } from "./state.js";
import { keepFocus } from "./status.js";

let acts; // called by the buttons in the panels: {pick(index), select(id), rename(id, name), remove(id)}

// Called once, before the first render().
export function connect(handlers) {
  acts = handlers;
}

export function render() {
  keepFocus(() => {
    const { selected, state } = page.history;
    view.mark(selected);
    paint();
    showCandidates($("candidates"), selected, view.image, acts.pick);
    $("candidates-none").hidden = Boolean(selected.slot.answer);
    showObjects($("objects"), state, acts);
    enableControls();
    showFilm();
    showProgram();
  });
}

// Brings in line only what changes from frame to frame while a video plays.
export function renderFrame() {
  keepFocus(() => {
    view.mark(page.history.selected);
    paint();
    showFilm();
  });
}

function enableControls() {
  const { canUndo, canRedo, finished, selected, state } = page.history;
  $("undo").disabled = !canUndo;
  $("redo").disabled = !canRedo;
  $("clear").disabled = state.objects.every(isEmpty);
  $("new").disabled = isEmpty(selected);
  $("everything").disabled = view.isEmpty;
  for (const id of ["zoom-in", "zoom-out", "zoom-fit"]) $(id).disabled = view.isEmpty;
  for (const button of document.querySelectorAll("[data-download]")) {
    const isSingle = ["mask", "cutout"].includes(button.dataset.download);
    button.disabled = isSingle ? !shownOf(selected)?.mask.area : !finished.length;
  }
}
