// Segments everything in the image: each thing becomes an object.

import { newObject } from "./history.js";
import { run } from "./jobs.js";
import { showLoading } from "./models.js";
import { latency } from "./panels.js";
import { render } from "./render.js";
import { $, page } from "./state.js";
import { progress, say, showProgress } from "./status.js";

const OPTIONS = ["points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"];

export function segmentEverything() {
  const started = performance.now();
  run("everything", async (signal, controller) => {
    showProgress(undefined);
    say("Segmenting everything. It can take a minute.");
    const clock = setInterval(() => {
      $("latency").textContent = `${Math.round((performance.now() - started) / 1000)} s`;
    }, 1000);
    const fields = Object.fromEntries(OPTIONS.map((name) => [name, $(name).value]));
    const { modelId } = page;
    try {
      const wait = () => page.session.everything(fields, modelId, { signal, progress });
      const answer = await showLoading(signal, controller, wait);
      signal.throwIfAborted();
      const found = answer.found.map(({ mask, score, point: [x, y] }, index) => ({
        ...newObject(),
        points: [{ x, y, label: 1 }],
        everything: { fields, index },
        slot: { answer: { modelId, candidates: [{ mask, score }] } },
      }));
      if (found.length) page.history.add([...found, newObject()]);
      $("latency").textContent = latency(answer);
      say(found.length ? `Found ${found.length} things.` : "Found nothing: lower the options of “everything”.");
    } finally {
      clearInterval(clock);
    }
    render();
  });
}
