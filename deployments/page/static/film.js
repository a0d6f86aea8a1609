// The panel below a video's frame: its controls and its timeline, in line with the page's state.

import { isEmpty } from "./history.js";
import { isRunning } from "./jobs.js";
import { $, page } from "./state.js";
import { Timeline } from "./timeline.js";

export const timeline = new Timeline($("timeline"));

// Returns when a frame is shown, in seconds; null if nobody knows.
export function timeOf(frame) {
  const { tracks, facts } = page.video;
  if (!Number.isNaN(tracks.times[frame])) return tracks.times[frame];
  return facts.fps ? frame / facts.fps : null;
}

export function showFilm() {
  $("film").hidden = !page.video;
  for (const element of document.querySelectorAll("[data-for]")) {
    element.hidden = element.dataset.for !== (page.video ? "video" : "image");
  }
  if (!page.video) return;
  const { history, video } = page;
  const { frame, state } = history;
  const last = video.facts.num_frames - 1;
  const time = timeOf(frame);
  $("frame").max = last;
  if ($("frame") !== document.activeElement) $("frame").value = frame;
  $("time").textContent = `of ${last}${time === null ? "" : ` · ${time.toFixed(2)} s`}`;
  $("step-back").disabled = frame === 0;
  $("step-on").disabled = frame === last;
  const isTracking = isRunning("track");
  const hasNothing = state.objects.every(isEmpty);
  for (const button of document.querySelectorAll("[data-track]")) button.disabled = isTracking || hasNothing;
  for (const button of document.querySelectorAll("[data-video-download]")) button.disabled = hasNothing;
  $("stop").hidden = !isTracking;
  const lanes = state.objects.map((object) => ({
    hue: object.hue,
    states: video.tracks.states(object.id),
    prompts: history.promptsOf(object).map(([at]) => at),
    isSelected: object.id === state.selected,
  }));
  timeline.draw(lanes, frame, `Frame ${frame} of ${last}${time === null ? "" : `, ${time.toFixed(2)} seconds`}`);
}
