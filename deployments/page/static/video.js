// Opens a video: uploads it, shows its first frame and its timeline.

import { timeline } from "./film.js";
import { restartNumbers } from "./history.js";
import { embed, showNothing } from "./images.js";
import { cancelAll, run } from "./jobs.js";
import { loadModels } from "./models.js";
import { pause, showPicture } from "./moving.js";
import { render } from "./render.js";
import { $, page, view } from "./state.js";
import { keepFocus, say, showProgress, videoProgress } from "./status.js";
import { Tracks } from "./tracks.js";
import { VideoFile } from "./video_file.js";

export async function openVideo(chosen) {
  cancelAll();
  restartNumbers();
  pause();
  page.session = page.video = null;
  page.fileName = chosen.name || "video";
  $("latency").textContent = "";
  await run("image", async (signal, controller) => {
    showNothing();
    if (!page.modelId) await loadModels(signal);
    const file = new VideoFile(chosen);
    const facts = await uploaded(file, signal);
    await showPicture(await file.frame(0, signal), true);
    const video = (page.video = { file, facts, tracks: new Tracks(facts), isFollowing: false });
    page.session = file.at(0);
    keepFocus(() => ($("welcome").hidden = true));
    const size = `${facts.width} by ${facts.height} pixels, ${facts.num_frames} frames`;
    view.stage.setAttribute("aria-label", `Video to segment: ${page.fileName}, ${size}`);
    render();
    timeline.show(facts.num_frames, facts.width / facts.height, (frames) => addPictures(video, frames));
    say("The model looks at the first frame…");
    showProgress(undefined);
    await embed(signal, controller);
  });
}

async function uploaded(file, signal) {
  // Nothing but this job waits for the upload.
  signal.addEventListener("abort", () => file.cancel());
  return file.facts(signal, videoProgress);
}

let picturesWanted = []; // frames whose pictures the timeline waits for

// Fetches small pictures for the timeline, one after the other, so that they do not hold up the frames that are looked at.
async function addPictures(video, frames) {
  const isBusy = picturesWanted.length > 0;
  picturesWanted = frames;
  if (isBusy) return;
  while (picturesWanted.length && page.video === video) {
    const [frame] = picturesWanted;
    try {
      const blob = await video.file.frame(frame, new AbortController().signal);
      const small = await createImageBitmap(blob, { resizeHeight: timeline.pictureHeight, resizeQuality: "medium" });
      if (page.video === video) timeline.addPicture(frame, small);
    } catch (fault) {
      // The timeline does without; whoever looks at this frame is told the fault.
      console.info(fault.message);
    }
    picturesWanted = picturesWanted.filter((other) => other !== frame);
  }
}
