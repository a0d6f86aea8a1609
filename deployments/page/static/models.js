// The models of the service: which there are, and how far one is that loads.

import { Fault } from "./faults.js";
import { showModels } from "./panels.js";
import { models as askModels } from "./service.js";
import { $, page } from "./state.js";
import { say, showProgress } from "./status.js";

const POLL_MS = 1500;

let known = []; // the last answer of /models

const find = (modelId) => known.find(({ model_id }) => model_id === modelId);

export async function loadModels(signal) {
  known = await askModels(signal);
  if (!find(page.modelId)) page.modelId = known.find((model) => model.default).model_id;
  showModels($("model"), known, page.modelId);
}

// Returns the result of wait(). Meanwhile shows how far the model is; aborts the controller if it failed to load.
export async function showLoading(signal, controller, wait) {
  const wanted = page.modelId;
  let isOver = false;
  const look = async () => {
    try {
      await loadModels(signal);
    } catch {
      return; // The call that is under way meets the same fault and reports it.
    }
    const { state, detail, done_bytes, total_bytes } = find(wanted) ?? {};
    if (isOver || signal.aborted || state === "ready") return;
    if (state === "failed") controller.abort(new Fault("failed", `The model ${wanted} failed to load: ${detail}.`));
    const share = total_bytes ? ` (${Math.round((100 * done_bytes) / total_bytes)} %)` : "";
    say(`The model ${wanted} is waking up${detail ? `: ${detail}` : ""}${share}…`);
    showProgress(total_bytes ? done_bytes / total_bytes : undefined);
  };
  const timer = setInterval(look, POLL_MS);
  try {
    return await wait();
  } finally {
    isOver = true;
    clearInterval(timer);
    if (find(wanted)?.state !== "ready") loadModels().catch((fault) => console.info(fault.message));
  }
}
