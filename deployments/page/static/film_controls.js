// Wires the controls of a video to their actions.

import { save } from "./downloads.js";
import { timeline } from "./film.js";
import { cutouts, webm } from "./film_files.js";
import { isRunning, run } from "./jobs.js";
import { pause, playOrPause, seek, step } from "./moving.js";
import { showProgram } from "./program.js";
import { $, page, view } from "./state.js";
import { say, showProgress } from "./status.js";
import { stopTracking, trackObjects } from "./track_job.js";
import * as files from "./video_downloads.js";

const FAR = 10; // frames that a key with Shift goes

// Each returns [a promise of a Blob, the end of the file's name].
const downloads = {
  davis: (signal, progress) => [files.davis(progress), "davis.zip"],
  sav: (signal, progress) => [files.saV(progress), "sa-v.json"],
  youtubevis: (signal, progress) => [files.youtubeVis(progress), "youtube-vis.json"],
  cvattracks: (signal, progress) => [files.cvatTracks(progress), "cvat.xml"],
  webm: (signal, progress) => [webm(signal, progress), "overlay.webm"],
  cutouts: (signal, progress) => [cutouts(page.history.selected, signal, progress), "cut-outs.zip"],
};

function download(kind) {
  pause();
  run("download", async (signal) => {
    say("Writing the file…");
    const progress = (share) => {
      signal.throwIfAborted();
      showProgress(share);
    };
    const [blob, ending] = downloads[kind](signal, progress);
    save(await blob, `${files.stem()}.${ending}`);
    say("The file is written.");
  });
}

const keys = {
  " ": playOrPause,
  ",": () => step(-1),
  ".": () => step(1),
  "<": () => step(-FAR),
  ">": () => step(FAR),
  t: () => trackObjects("forward"),
  r: () => trackObjects("backward"),
  escape: stopTracking,
};

function press(event) {
  if (!page.video || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const act = keys[key];
  if (!act || (["t", "r"].includes(key) && isRunning("track"))) return;
  event.preventDefault();
  act();
}

export function wireFilm() {
  const clicks = { play: playOrPause, "step-back": () => step(-1), "step-on": () => step(1), stop: stopTracking };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  for (const button of document.querySelectorAll("[data-track]")) {
    button.addEventListener("click", () => trackObjects(button.dataset.track));
  }
  for (const button of document.querySelectorAll("[data-video-download]")) {
    button.addEventListener("click", () => download(button.dataset.videoDownload));
  }
  for (const id of ["most-frames", "only-selected"]) $(id).addEventListener("change", showProgram);
  $("frame").addEventListener("change", () => seek(Number($("frame").value)));
  timeline.addEventListener("seek", ({ detail }) => seek(detail.frame));
  for (const element of [view.stage, $("timeline")]) element.addEventListener("keydown", press);
}
