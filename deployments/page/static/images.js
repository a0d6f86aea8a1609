// Opens an image: shows it, uploads it, and makes the service look at it.

import { History, restartNumbers } from "./history.js";
import { cancelAll, run } from "./jobs.js";
import { loadModels, showLoading } from "./models.js";
import { render } from "./render.js";
import { Fault } from "./faults.js";
import { Session } from "./session.js";
import { $, page, view } from "./state.js";
import { keepFocus, progress, say } from "./status.js";

export async function openImage(file) {
  cancelAll();
  page.session = new Session(file);
  page.video = null;
  page.fileName = file.name || "image.png";
  restartNumbers();
  $("latency").textContent = "";
  await run("image", async (signal, controller) => {
    showNothing();
    const url = URL.createObjectURL(file);
    try {
      await view.show(url);
    } catch {
      // The file is no image, or of a kind that only the service reads: the service's answer tells which.
      if (!signal.aborted) view.clear();
    } finally {
      URL.revokeObjectURL(url);
    }
    signal.throwIfAborted();
    if (!view.isEmpty) {
      keepFocus(() => ($("welcome").hidden = true));
      const size = `${view.width} by ${view.height} pixels`;
      view.stage.setAttribute("aria-label", `Image to segment: ${page.fileName}, ${size}`);
    }
    render();
    if (!page.modelId) await loadModels(signal);
    await embed(signal, controller);
  });
}

// Makes the model look at the image, or the video's present frame, ahead of the first prompt.
export async function embed(signal, controller) {
  const wait = () => page.session.image(page.modelId, signal, progress);
  const { width, height } = await showLoading(signal, controller, wait);
  if (view.isEmpty) giveUp("The service can read this file, but this browser cannot show it. Save it as PNG or JPEG.");
  if (width !== view.width || height !== view.height) {
    const sizes = `The service sees ${width}×${height} pixels, this browser ${view.width}×${view.height}`;
    giveUp(`${sizes}. Save the image as PNG.`);
  }
  say(`Ready: click on something in the ${page.video ? "frame, then track it" : "image"}.`);
}

function giveUp(sentence) {
  page.session = null;
  showNothing();
  throw new Fault("image", sentence);
}

export function showNothing() {
  view.clear();
  view.stage.setAttribute("aria-label", "Image to segment");
  $("welcome").hidden = false;
  page.history = new History();
  render();
}
