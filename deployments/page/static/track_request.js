// Which prompts are sent to follow objects from the present frame on, and which frames of the answer are new.
//
// What was found before the present frame stays as it is; but the model must have seen it, to know what it goes on with.
// So the request begins earlier: at an object's first prompt, or, where that is long ago, with its mask some frames
// before. SAM 2 remembers the masks of six frames and the object pointers of fifteen, besides the frames with prompts.

import { candidateOf, isAsked } from "./history.js";
import { $, page } from "./state.js";

export const RUN_UP = 32;

const STEPS = { forward: 1, backward: -1 };

// Returns the request for what the user wishes, see trackRequest. direction: "forward", "backward" or "both".
export function requestOfPage(direction) {
  const { history, video } = page;
  const { objects, selected } = history.state;
  const wished = $("only-selected").checked ? objects.filter(({ id }) => id === selected) : objects;
  return trackRequest({ history, ...video }, wished, direction, Number($("most-frames").value) || null);
}

// Returns {fields, objects, first, total}: the text fields of the request, without model and video; for each object by its
// id {isNew(frame), sent: Map of the prompts by frame}; the first frame whose masks are new; and how many frames come.
// Returns null if no object has a prompt.
//   objects: those that are followed. mostFrames: how many frames at most, or null.
function trackRequest({ history, tracks, facts }, objects, direction, mostFrames) {
  const asked = objects
    .map((object) => ({ object, prompts: history.promptsOf(object).filter(([, prompt]) => isAsked(prompt)) }))
    .filter(({ prompts }) => prompts.length);
  if (!asked.length) return null;
  return direction === "both"
    ? bothWays(asked, facts, mostFrames)
    : oneWay(asked, history.frame, direction, tracks, facts, mostFrames);
}

// All prompts, and all frames are new.
function bothWays(asked, facts, mostFrames) {
  const start = Math.min(...asked.map(({ prompts }) => prompts[0][0]));
  const end = mostFrames ? start + mostFrames : facts.num_frames;
  const records = [];
  const found = new Map();
  for (const { object, prompts } of asked) {
    const sent = prompts.filter(([frame]) => frame < end);
    records.push(...sent.map(([frame, prompt]) => record(object.id, frame, prompt)));
    if (sent.length) found.set(object.id, { isNew: () => true, sent: new Map(sent) });
  }
  const fields = { prompts: JSON.stringify(records), direction: "both" };
  if (mostFrames) fields.max_frames = String(mostFrames);
  const total = mostFrames ? Math.min(end, facts.num_frames) - Math.max(0, start - mostFrames + 1) : facts.num_frames;
  return { fields, objects: found, first: start, total };
}

function oneWay(asked, present, direction, tracks, facts, mostFrames) {
  const step = STEPS[direction];
  const isBefore = (one, other) => step * (one - other) < 0;
  const earliest = (frames) => frames.reduce((one, other) => (isBefore(other, one) ? other : one));
  const plans = asked.map(({ object, prompts }) => ({
    object,
    ...planOf(object.id, step > 0 ? prompts : prompts.toReversed(), present, step, tracks),
  }));
  const first = earliest(plans.map(({ from }) => from));
  const start = earliest(plans.map(({ anchor, sent }) => anchor ?? sent[0][0]));
  const end = first + step * (mostFrames ?? facts.num_frames); // the first frame that is too far
  const records = [];
  const found = new Map();
  for (const { object, from, anchor, sent } of plans) {
    const within = sent.filter(([frame]) => isBefore(frame, end));
    if (anchor === null && !within.length) continue;
    if (anchor !== null) records.push(maskRecord(object.id, anchor, tracks.on(object.id, anchor).mask));
    records.push(...within.map(([frame, prompt]) => record(object.id, frame, prompt)));
    const isPrompted = within.some(([frame]) => frame === from);
    const isNew = (frame) => isBefore(from, frame) || (frame === from && isPrompted);
    found.set(object.id, { isNew, sent: new Map(within) });
  }
  const fields = { prompts: JSON.stringify(records), direction };
  if (mostFrames) fields.max_frames = String(Math.abs(end - start));
  const edge = step > 0 ? facts.num_frames : -1;
  const total = Math.abs((isBefore(end, edge) ? end : edge) - start);
  return { fields, objects: found, first, total };
}

// How an object is followed. from: the last frame that is known, or the first prompt; anchor: the frame whose mask stands
// for all that was before, or null; sent: the prompts that are sent. prompts: in the order in which frames are followed.
function planOf(id, prompts, present, step, tracks) {
  const isBefore = (one, other) => step * (one - other) < 0;
  const [firstPrompt] = prompts[0];
  let from = present;
  const isKnown = (frame) => tracks.has(id, frame) || prompts.some(([other]) => other === frame);
  while (isBefore(firstPrompt, from) && !isKnown(from)) from -= step;
  if (!isBefore(firstPrompt, from)) return { from: firstPrompt, anchor: null, sent: prompts };
  if (Math.abs(from - firstPrompt) <= RUN_UP) return { from, anchor: null, sent: prompts };
  for (let anchor = from - RUN_UP * step; isBefore(anchor, from); anchor += step) {
    if (tracks.isPresent(id, anchor)) return { from, anchor, sent: after(prompts, anchor, isBefore) };
  }
  // It was hidden all the time: only its first prompt tells what it looks like.
  return { from, anchor: null, sent: prompts };
}

const after = (prompts, frame, isBefore) => prompts.filter(([other]) => isBefore(frame, other));

const maskRecord = (id, frame, { height, width, counts }) => ({
  object_id: id,
  frame_index: frame,
  mask: { size: [height, width], counts },
});

// A prompt as the service takes it. Points alone would give the model's own choice: a mask that the user picked among the
// candidates, or found by “everything”, is sent itself.
function record(id, frame, prompt) {
  const candidate = candidateOf(prompt);
  if (candidate?.mask.area && (prompt.picked > 0 || prompt.everything)) return maskRecord(id, frame, candidate.mask);
  const { points, box } = prompt;
  const made = { object_id: id, frame_index: frame };
  if (points.length) {
    made.point_coords = points.map(({ x, y }) => [x, y]);
    made.point_labels = points.map(({ label }) => label);
  }
  if (box) made.box = box;
  return made;
}
