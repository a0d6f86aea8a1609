// The objects of a video as files: what is shown of them on all frames.

import { emptyCounts } from "./mask.js";
import { palettePng } from "./png.js";
import { shownOn } from "./shown.js";
import { edges, singleRing } from "./singlering.js";
import { page } from "./state.js";
import { DAVIS_OBJECTS, davisPalette, plain, xml } from "./toolfiles.js";
import { Zip } from "./zip.js";

const SMALL = 32 ** 2; // pixels, the borders between SA-V's sizes
const MEDIUM = 96 ** 2;

const json = (parts) => new Blob(parts, { type: "application/json" });

// Returns the masks on a frame, {mask, score} or null for each object.
export function masksOn(frame) {
  const { history } = page;
  return history.state.objects.map((object) => shownOn(frame, object.id, history.promptOn(frame, object)));
}

// Calls visit(frame, masks) for all frames, one after the other. progress(share) may throw to end it.
export async function eachFrame(visit, progress) {
  const { num_frames } = page.video.facts;
  for (let frame = 0; frame < num_frames; frame++) {
    const masks = masksOn(frame);
    await visit(frame, masks);
    if (frame % 50 === 49) await new Promise((resolve) => setTimeout(resolve));
    progress((frame + 1) / num_frames);
  }
}

const isKnown = (masks) => masks.some((one) => one !== null);

// Names as the service has them: five digits, or more where indices have more.
export const frameName = (frame, suffix) =>
  `${String(frame).padStart(Math.max(5, String(page.video.facts.num_frames - 1).length), "0")}.${suffix}`;

// The objects that have a mask on any frame.
function followed() {
  const { history, video } = page;
  return history.state.objects.filter(
    (object) => history.promptsOf(object).length || video.tracks.states(object.id).some((state) => state),
  );
}

// A zip like the service's own `png`: label images with DAVIS's palette, in which the n-th object is n; where objects
// overlap, the lower number is on top. Frames of which nothing is known are left out.
export async function davis(progress) {
  const { facts } = page.video;
  const { objects } = page.history.state;
  if (objects.length > DAVIS_OBJECTS) throw new Error(`DAVIS's files hold at most ${DAVIS_OBJECTS} objects.`);
  const zip = new Zip();
  const { width, height } = facts;
  const about = { ...facts, objects: Object.fromEntries(objects.map(({ name }, index) => [index + 1, plain(name)])) };
  await zip.add("video.json", new Blob([JSON.stringify(about)]));
  const values = new Uint8Array(width * height);
  await eachFrame(async (frame, masks) => {
    if (!isKnown(masks)) return;
    values.fill(0);
    for (let index = masks.length - 1; index >= 0; index--) {
      masks[index]?.mask.visit(1, (x, y) => (values[y * width + x] = index + 1));
    }
    await zip.add(frameName(frame, "png"), await palettePng(width, height, values, davisPalette()));
  }, progress);
  return zip.blob();
}

// The JSON of the SA-V dataset: for each frame the run lengths of each object, empty where it is not seen.
export async function saV(progress) {
  const { facts } = page.video;
  const { width, height, num_frames } = facts;
  const objects = followed();
  const places = objects.map((object) => page.history.state.objects.indexOf(object));
  const empty = { size: [height, width], counts: emptyCounts(width * height) };
  const seen = objects.map(() => ({ frames: 0, pixels: 0, changes: 0, first: null, last: null }));
  const parts = [];
  await eachFrame((frame, masks) => {
    const row = places.map((place, index) => {
      const mask = masks[place]?.mask;
      const isSeen = Boolean(mask?.area);
      count(seen[index], frame, mask);
      return isSeen ? { size: [height, width], counts: mask.counts } : empty;
    });
    parts.push(frame ? "," : "", JSON.stringify(row));
  }, progress);
  const sizes = seen.map(({ frames, pixels }) => (frames ? pixels / frames : 0));
  const about = {
    video_id: facts.video_id,
    video_duration: facts.fps ? num_frames / facts.fps : null,
    video_frame_count: num_frames,
    video_height: height,
    video_width: width,
    video_resolution: width * height,
    masklet_id: objects.map((_, index) => index),
    masklet_name: objects.map(({ name }) => plain(name)),
    masklet_size_rel: sizes.map((size) => size / (width * height)),
    masklet_size_abs: sizes,
    masklet_size_bucket: sizes.map((size) => (size < SMALL ? "small" : size < MEDIUM ? "medium" : "large")),
    masklet_visibility_changes: seen.map(({ changes }) => changes),
    masklet_first_appeared_frame: seen.map(({ first }) => first),
    masklet_frame_count: objects.map(() => num_frames),
    masklet_type: objects.map(() => "manual"),
    masklet_num: objects.length,
  };
  return json([JSON.stringify(about).slice(0, -1), ',"masklet":[', ...parts, "]}"]);
}

function count(seen, frame, mask) {
  const isSeen = Boolean(mask?.area);
  if (seen.first !== null && isSeen !== seen.last) seen.changes++;
  if (isSeen) {
    seen.first ??= frame;
    seen.frames++;
    seen.pixels += mask.area;
  }
  seen.last = isSeen;
}

// COCO's JSON for videos, as YouTube-VIS has it: for each object its run lengths on all frames, null where it is not seen.
export async function youtubeVis(progress) {
  const { width, height, num_frames } = page.video.facts;
  const objects = followed();
  const places = objects.map((object) => page.history.state.objects.indexOf(object));
  const names = [...new Set(objects.map(({ name }) => plain(name)))];
  const lists = objects.map(() => ({ segmentations: [], areas: [], bboxes: [], scores: [] }));
  await eachFrame((frame, masks) => {
    places.forEach((place, index) => {
      const { mask, score } = masks[place] ?? {};
      const isSeen = Boolean(mask?.area);
      const list = lists[index];
      list.segmentations.push(isSeen ? JSON.stringify({ size: [height, width], counts: mask.counts }) : "null");
      list.areas.push(isSeen ? mask.area : null);
      list.bboxes.push(isSeen ? [mask.x, mask.y, mask.w, mask.h] : null);
      list.scores.push(isSeen ? score : null);
    });
  }, progress);
  const folder = stem();
  const video = {
    id: 1,
    width,
    height,
    length: num_frames,
    file_names: Array.from({ length: num_frames }, (_, frame) => `${folder}/${frameName(frame, "jpg")}`),
  };
  const about = {
    info: { description: "Segment Anything 2" },
    videos: [video],
    categories: names.map((name, index) => ({ id: index + 1, name })),
  };
  const annotations = objects.map(({ name }, index) => {
    const { segmentations, ...lengths } = lists[index];
    const category_id = names.indexOf(plain(name)) + 1;
    const text = JSON.stringify({ id: index + 1, video_id: 1, category_id, iscrowd: 0, width, height, ...lengths });
    return `${index ? "," : ""}${text.slice(0, -1)},"segmentations":[${segmentations}]}`;
  });
  return json([JSON.stringify(about).slice(0, -1), ',"annotations":[', ...annotations, "]}"]);
}

export const stem = () => page.fileName.replace(/\.[^.]*$/, "");

// "CVAT for video 1.1": a track for each object. CVAT's tracks hold one polygon on a frame: it runs along the edges of the
// mask's pixels, and reaches holes and further parts by bridges, there and back on one line.
export async function cvatTracks(progress) {
  const { facts } = page.video;
  const objects = followed();
  const places = objects.map((object) => page.history.state.objects.indexOf(object));
  const tracks = objects.map(() => new Track());
  await eachFrame((frame, masks) => {
    places.forEach((place, index) => tracks[index].add(frame, masks[place]?.mask));
  }, progress);
  const size = `<size>${facts.num_frames}</size><mode>interpolation</mode>`;
  const shape = `<original_size><width>${facts.width}</width><height>${facts.height}</height></original_size>`;
  const names = [...new Set(objects.map(({ name }) => name))];
  const labels = names.map((name) => `<label><name>${xml(name)}</name></label>`).join("");
  const head = `<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>${xml(page.fileName)}</name>${size}<labels>${labels}</labels>${shape}</task></meta>
`;
  const written = tracks.flatMap((track, index) => [
    `  <track id="${index}" label="${xml(objects[index].name)}" source="semi-auto">\n`,
    ...track.lines,
    "  </track>\n",
  ]);
  return new Blob([head, ...written, "</annotations>\n"], { type: "application/xml" });
}

// The polygons of an object. Where it is not seen, the last one is repeated as "outside", which ends what CVAT shows.
class Track {
  lines = [];
  _points = "";
  _isOutside = true;

  add(frame, mask) {
    if (mask?.area) {
      this._points = singleRing(mask, edges).map(([x, y]) => `${x},${y}`).join(";");
      this._write(frame, 0);
    } else if (!this._isOutside) {
      this._write(frame, 1);
    }
    this._isOutside = !mask?.area;
  }

  _write(frame, outside) {
    const facts = `frame="${frame}" keyframe="1" outside="${outside}" occluded="0" z_order="0"`;
    this.lines.push(`    <polygon ${facts} points="${this._points}"></polygon>\n`);
  }
}
