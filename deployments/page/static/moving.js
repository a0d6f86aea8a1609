// Moves through a video: shows one of its frames, or plays it.

import { clamp } from "./geometry.js";
import { cancel, run } from "./jobs.js";
import { endPreview } from "./preview.js";
import { render, renderFrame } from "./render.js";
import { $, page, view } from "./state.js";

const DEFAULT_FPS = 10; // of videos whose frames have no times
const AHEAD = 2; // frames that are fetched ahead while the video plays

let wanted = 0; // the frame to be shown next
let playing = null; // the video that plays

const last = () => page.video.facts.num_frames - 1;

// Shows a frame. If the picture before is still on its way, only the newest wish is fulfilled.
export function goTo(frame) {
  wanted = clamp(frame, 0, last());
  if (wanted === page.history.frame || isMoving) return;
  move();
}

// As goTo, by the user: the page then stays where it is.
export function seek(frame) {
  pause();
  page.video.isFollowing = false;
  goTo(frame);
}

export const step = (frames) => seek((isMoving ? wanted : page.history.frame) + frames);

let isMoving = false;

async function move() {
  const { video } = page;
  isMoving = true;
  endPreview();
  cancel("everything");
  await run("frame", async (signal) => {
    while (page.video === video && page.history.frame !== wanted) {
      const frame = wanted;
      const picture = await video.file.frame(frame, signal);
      if (page.video !== video) return;
      await showPicture(picture);
      page.history.moveTo(frame);
      page.session = video.file.at(frame);
      if (playing) renderFrame();
      else render();
    }
  });
  isMoving = false;
}

let shownUrl = "";

// Shows a frame's picture, a Blob. isFirst: it has another size than the one before.
export async function showPicture(blob, isFirst = false) {
  const url = URL.createObjectURL(blob);
  try {
    await (isFirst ? view.show(url) : view.swap(url));
  } finally {
    URL.revokeObjectURL(shownUrl);
    shownUrl = url;
  }
}

// ---- playing

export function pause() {
  if (!playing) return;
  playing = null;
  $("play").textContent = "Play";
  render();
}

export const playOrPause = () => (playing ? pause() : play());

// Plays at the video's own speed. If frames come too slowly, some are left out.
async function play() {
  const { video } = page;
  const { fps } = video.facts;
  const first = page.history.frame === last() ? 0 : page.history.frame;
  const started = performance.now();
  playing = video;
  video.isFollowing = false;
  $("play").textContent = "Pause";
  let shown = 0;
  while (playing === video && page.video === video) {
    const seconds = (performance.now() - started) / 1000;
    const frame = Math.min(last(), first + Math.floor(seconds * (fps ?? DEFAULT_FPS)));
    if (frame !== page.history.frame) {
      goTo(frame);
      for (let next = frame + 1; next <= Math.min(last(), frame + AHEAD); next++) fetchAhead(video, next);
      shown++;
    }
    if (seconds > 0.5) $("latency").textContent = `${(shown / seconds).toFixed(1)} frames/s shown`;
    if (frame === last()) break;
    await new Promise(requestAnimationFrame);
    while (isMoving && playing) await new Promise(requestAnimationFrame);
  }
  if (playing === video) pause();
}

// What is fetched ahead may fail: the frame is asked for again when its turn comes.
function fetchAhead(video, frame) {
  video.file.frame(frame, new AbortController().signal).catch((fault) => console.info(fault.message));
}
