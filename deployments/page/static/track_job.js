// Follows the objects through the video: sends the request, keeps and shows the masks as they come.

import { showFilm } from "./film.js";
import { Fault, faultOfLine } from "./faults.js";
import { cancel, run } from "./jobs.js";
import { showLoading } from "./models.js";
import { goTo, pause } from "./moving.js";
import { render, renderFrame } from "./render.js";
import { track } from "./service.js";
import { $, page } from "./state.js";
import { say, showProgress } from "./status.js";
import { requestOfPage } from "./track_request.js";

const SPEED_FRAMES = 30; // over so many frames the speed is measured

// direction: "forward", "backward" or "both".
export async function trackObjects(direction) {
  const { modelId, video } = page;
  pause();
  await run("track", async (signal, controller) => {
    const request = requestOfPage(direction);
    if (!request) throw new Fault("prompt", "Click on something first: only what is clicked on can be tracked.");
    video.isFollowing = true;
    render();
    showProgress(undefined);
    say("The service takes up the track…");
    const job = { request, video, speed: new Speed(), count: 0 };
    try {
      const fields = { ...request.fields, model_id: modelId };
      const ask = (id) => follow({ ...fields, video_id: id }, job, signal, controller);
      await video.file.ask(ask, signal);
      say(`Tracked ${job.count} frames.`);
      $("latency").textContent = `${job.count} frames in ${job.speed.total}`;
    } catch (fault) {
      if (signal.aborted && page.video === video) say(`Stopped after ${job.count} frames.`);
      throw fault;
    }
  });
  if (page.video === video) render();
}

export const stopTracking = () => cancel("track");

async function follow(fields, job, signal, controller) {
  const lines = track(fields, { signal, onWait: say });
  // The first line, what is known of the video, comes when the model is awake.
  await showLoading(signal, controller, () => lines.next());
  let isWhole = false;
  for await (const line of lines) {
    signal.throwIfAborted();
    if (line.error) throw faultOfLine(line.error);
    if (line.done) isWhole = true;
    else keep(line, job);
  }
  if (!isWhole) throw new Fault("broken", "The service's answer broke off. Track on from here.");
}

// Keeps what is new in a frame's line, and shows how far the job is.
function keep(line, job) {
  const { request, speed, video } = job;
  const frame = line.frame_index;
  let isNew = false;
  for (const record of line.objects) {
    const asked = request.objects.get(record.object_id);
    if (!asked?.isNew(frame)) continue;
    const { slot, picked } = asked.sent.get(frame) ?? {};
    video.tracks.put(record.object_id, frame, record, slot ? { slot, picked } : null);
    isNew = true;
  }
  if (line.time_s !== null) video.tracks.times[frame] = line.time_s;
  job.count++;
  speed.add(performance.now());
  showProgress(Math.min(1, job.count / request.total));
  $("latency").textContent = speed.text(request.total - job.count);
  // In steps of ten: a screen reader would read every frame.
  if (job.count % 10 === 1) say(isNew ? `Tracking: frame ${frame}.` : `Taking up the track at frame ${frame}.`);
  if (!isNew || page.video !== video) return;
  if (video.isFollowing) goTo(frame);
  if (frame === page.history.frame) renderFrame();
  else showFilm();
}

// How fast lines come.
class Speed {
  _started = performance.now();
  _count = 0;
  _times = [];

  add(time) {
    this._count++;
    this._times.push(time);
    if (this._times.length > SPEED_FRAMES) this._times.shift();
  }

  // Returns "3.2 s (25.1 frames/s)", of all frames.
  get total() {
    const seconds = (performance.now() - this._started) / 1000;
    return `${seconds.toFixed(1)} s (${(this._count / seconds).toFixed(1)} frames/s)`;
  }

  // left: how many frames are still to come.
  text(left) {
    const seconds = (this._times.at(-1) - this._times[0]) / 1000;
    if (!(seconds > 0)) return "";
    const speed = (this._times.length - 1) / seconds;
    return `${speed.toFixed(1)} frames/s, ${Math.ceil(left / speed)} s left`;
  }
}
