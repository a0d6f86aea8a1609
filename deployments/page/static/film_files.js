// Files with the video's own pictures: the video with masks over it, and what the masks cut out of it.

import { cutout } from "./downloads.js";
import { timeOf } from "./film.js";
import { Overlay } from "./overlay.js";
import { page } from "./state.js";
import { eachFrame, frameName, masksOn } from "./video_downloads.js";
import { Zip } from "./zip.js";

const DEFAULT_FPS = 10; // of videos whose frames have no times
const BITS_PER_PIXEL = 0.15; // a pixel and frame of the recording
const KINDS = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm"];

// A zip of PNGs: an object in the frame's own size, transparent where it is not; frames without it are left out.
export async function cutouts(object, signal, progress) {
  const place = page.history.state.objects.indexOf(object);
  const zip = new Zip();
  await eachFrame(async (frame, masks) => {
    const mask = masks[place]?.mask;
    if (!mask?.area) return;
    const bitmap = await createImageBitmap(await page.video.file.exactFrame(frame, signal));
    await zip.add(frameName(frame, "png"), await cutout(mask, bitmap, true));
    bitmap.close();
  }, progress);
  return zip.blob();
}

// A WebM of the frames with the masks over them, recorded by the browser. The recording pauses while a frame is fetched,
// so that each frame is seen as long as in the video, however slowly it came.
export async function webm(signal, progress) {
  const { width, height, num_frames } = page.video.facts;
  const film = document.createElement("canvas");
  const masks = document.createElement("canvas");
  [film.width, film.height] = [width, height];
  const context = film.getContext("2d");
  const overlay = new Overlay(masks);
  overlay.resize(width, height);
  const [track] = film.captureStream(0).getVideoTracks();
  const mimeType = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
  const bits = (width * height * BITS_PER_PIXEL) / secondsOf(0);
  const recorder = new MediaRecorder(new MediaStream([track]), { mimeType, videoBitsPerSecond: bits });
  const parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const stopped = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  recorder.pause();
  let [due, recorded] = [0, 0]; // seconds: how long the recording should be, and is
  try {
    for (let frame = 0; frame < num_frames; frame++) {
      const bitmap = await createImageBitmap(await page.video.file.frame(frame, signal));
      context.drawImage(bitmap, 0, 0);
      bitmap.close();
      overlay.paint(layersOn(frame));
      context.drawImage(masks, 0, 0);
      due += secondsOf(frame);
      const resumed = performance.now();
      recorder.resume();
      track.requestFrame();
      // Timers are late: what one frame has had too much, the next does without.
      await new Promise((resolve) => setTimeout(resolve, 1000 * (due - recorded)));
      recorder.pause();
      recorded += (performance.now() - resumed) / 1000;
      progress((frame + 1) / num_frames);
    }
  } finally {
    recorder.stop();
    await stopped;
    track.stop();
  }
  return new Blob(parts, { type: "video/webm" });
}

// How long a frame is seen.
function secondsOf(frame) {
  const seconds = timeOf(frame + 1) - timeOf(frame);
  return seconds > 0 ? seconds : 1 / (page.video.facts.fps ?? DEFAULT_FPS);
}

const layersOn = (frame) =>
  masksOn(frame)
    .map((found, index) => ({ mask: found?.mask, hue: page.history.state.objects[index].hue, strength: 1 }))
    .filter(({ mask }) => mask);
