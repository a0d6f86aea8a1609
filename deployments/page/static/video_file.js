// A video at the service: uploaded once, and again when the service does not keep it any more; and its frames, each of
// which can be prompted like an image.

import * as service from "./service.js";
import { Picture, remembered } from "./session.js";
import { unlessAborted, Upload } from "./upload.js";

const KEPT_FRAMES = 24;
const KEPT_LOGITS = 8;

export class VideoFile {
  constructor(file) {
    this.file = file;
    this._upload = new Upload((options) => service.keepVideo(file, options));
    this._frames = new Map(); // by index: a promise of a JPEG; the one that was used last is the last
    this._recent = []; // the answers whose candidates still have logits
  }

  // Returns {video_id, width, height, fps, num_frames}.
  facts(signal, progress) {
    return this._upload.answer(signal, progress);
  }

  cancel() {
    this._upload.cancel();
  }

  forget() {
    this._upload.forget();
  }

  // Returns the result of request(videoId).
  ask(request, signal, progress) {
    return remembered(
      () => this.facts(signal, progress),
      () => this.forget(),
      ({ video_id }) => request(video_id),
    );
  }

  // Returns a frame as a JPEG, a Blob. A few are kept, packed as they came.
  frame(index, signal) {
    const known = this._frames.get(index) ?? this._fetch(index);
    this._frames.delete(index);
    this._frames.set(index, known);
    const [oldest] = this._frames.keys();
    if (this._frames.size > KEPT_FRAMES) this._frames.delete(oldest);
    return unlessAborted(known, signal);
  }

  // Callers share the request, so none of them ends it.
  _fetch(index) {
    const { signal } = new AbortController();
    const frame = this.ask((id) => service.picture(id, index, "jpeg", { signal }), signal);
    frame.catch(() => this._frames.get(index) === frame && this._frames.delete(index));
    return frame;
  }

  // Returns the very pixels of a frame as a PNG, a Blob, which is not kept.
  exactFrame(index, signal) {
    return this.ask((id) => service.picture(id, index, "png", { signal }), signal);
  }

  // How many frames and how many answers with logits are held.
  get held() {
    return { frames: this._frames.size, logits: this._recent.length };
  }

  // Logits take megabytes, and a user clicks on many frames: only the last answers keep theirs.
  keepLogits(answer) {
    this._recent.push(answer);
    if (this._recent.length > KEPT_LOGITS) {
      for (const candidate of this._recent.shift().candidates) candidate.logits = null;
    }
  }

  at(index) {
    return new Frame(this, index);
  }
}

class Frame extends Picture {
  constructor(video, index) {
    super();
    this._video = video;
    this._index = index;
  }

  // Makes the model look at the frame; returns {width, height}.
  async image(modelId, signal, progress) {
    const ask = (frame, how) => service.embedFrame(frame, modelId, how);
    return (await this._ask(ask, modelId, { signal, progress })).json;
  }

  async segment(fields, modelId, options) {
    const answer = await super.segment(fields, modelId, options);
    this._video.keepLogits(answer);
    return answer;
  }

  cancel() {
    this._video.cancel();
  }

  async _name(modelId, signal) {
    const { video_id } = await this._video.facts(signal);
    return { video_id, frame_index: this._index };
  }

  _forget() {
    this._video.forget();
  }
}
