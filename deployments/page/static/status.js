// The lines below the image: what is under way, how far it is, and what went wrong.

import { $, view } from "./state.js";

export function say(text) {
  $("status").textContent = text;
}

export function complain(text) {
  $("fault-text").textContent = text;
  keepFocus(() => ($("fault").hidden = !text));
}

// share: from 0 to 1; undefined if it is unknown, null if nothing is under way.
export function showProgress(share) {
  $("progress").hidden = share === null;
  if (share === undefined) $("progress").removeAttribute("value");
  else if (share !== null) $("progress").value = share;
}

// Calls act(), which may hide, disable or remove the control that has the keyboard; the image then gets the keyboard.
export function keepFocus(act) {
  const focused = document.activeElement;
  act();
  if (!focused || focused === document.body) return;
  if (!focused.isConnected || focused.disabled || !focused.checkVisibility()) view.stage.focus();
}

// Shows the progress of a call that uploads something; see call in service.js. after: what happens then.
const progressOf = (what, after) => ({
  onWait: say,
  onUpload(share) {
    showProgress(share < 1 ? share : undefined);
    // In steps of ten: a screen reader would read every per cent.
    say(share < 1 ? `Uploading the ${what}: ${10 * Math.floor(10 * share)} %` : after);
  },
});

export const progress = progressOf("image", "The model looks at the image…");
export const videoProgress = progressOf("video", "The service reads the video…");
