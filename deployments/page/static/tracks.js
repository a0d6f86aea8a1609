// What was found of the objects of a video: their masks on its frames, as run lengths, which take some hundreds of bytes.

import { Mask } from "./mask.js";

// What is known of an object on a frame.
export const UNKNOWN = 0;
export const ABSENT = 1;
export const PRESENT = 2;

export class Tracks {
  constructor(facts) {
    this._size = [facts.height, facts.width];
    this._count = facts.num_frames;
    this._objects = new Map(); // by an object's id: {records by frame, states: what is known, by frame}
    this.times = new Float64Array(facts.num_frames).fill(NaN); // seconds, of frames that were followed
  }

  // Keeps an object's record in the service's answer. from: the prompt on this frame that led to it, {slot, picked}; null
  // if there was none.
  put(id, frame, { segmentation, score, present, area, bbox }, from) {
    const found = this._object(id);
    found.records.set(frame, { counts: segmentation.counts, score, area, bbox, from });
    found.states[frame] = present ? PRESENT : ABSENT;
  }

  // Returns {mask, score, from}, or null if nothing is known of the object on this frame.
  on(id, frame) {
    const record = this._objects.get(id)?.records.get(frame);
    if (!record) return null;
    const { counts, score, area, bbox, from } = record;
    return { mask: new Mask({ segmentation: { size: this._size, counts }, area, bbox }), score, from };
  }

  has(id, frame) {
    return Boolean(this._objects.get(id)?.states[frame]);
  }

  isPresent(id, frame) {
    return this._objects.get(id)?.states[frame] === PRESENT;
  }

  // Returns what is known of an object, a number for each frame.
  states(id) {
    return this._object(id).states;
  }

  _object(id) {
    if (!this._objects.has(id)) this._objects.set(id, { records: new Map(), states: new Uint8Array(this._count) });
    return this._objects.get(id);
  }
}
