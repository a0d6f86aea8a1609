// One picture at the service: an image, uploaded and embedded once for each model, and again when the service has
// forgotten it; or a frame of a video, see video_file.js.

import { Mask } from "./mask.js";
import * as service from "./service.js";
import { Upload } from "./upload.js";

const TRIES = 3;

// Returns the result of request(name), where name() is a promise of the fields that name a picture or a video. If the
// service has forgotten it, forget() makes the next name() upload it again.
export async function remembered(name, forget, request) {
  for (let attempt = 1; ; attempt++) {
    const fields = await name();
    try {
      return await request(fields);
    } catch (fault) {
      if (fault.kind !== "forgotten" || attempt === TRIES) throw fault;
      forget();
    }
  }
}

// A picture that prompts can be sent for. Subclasses have _name(modelId, signal, progress), which returns a promise of
// the fields that name the picture in a request, and _forget(modelId).
export class Picture {
  _ask(request, modelId, { signal, progress }) {
    return remembered(
      () => this._name(modelId, signal, progress),
      () => this._forget(modelId),
      (fields) => request({ ...fields, model_id: modelId }, { signal, onWait: progress?.onWait }),
    );
  }

  // Returns {candidates: [{mask, score, logits}], timing, seconds}, the best candidate first.
  async segment(fields, modelId, options) {
    const answer = await this._ask((picture, how) => service.segment({ ...picture, ...fields }, how), modelId, options);
    const candidates = answer.json.masks.map((record) => ({
      mask: new Mask(record),
      score: record.score,
      logits: record.logits,
    }));
    return { ...answer, candidates };
  }

  // Returns {found: [{mask, score, point: [x, y]}], timing, seconds}.
  async everything(fields, modelId, options) {
    const ask = (picture, how) => service.everything({ ...picture, ...fields }, how);
    const answer = await this._ask(ask, modelId, options);
    const found = answer.json.masks.map((record) => ({
      mask: new Mask(record),
      score: record.predicted_iou,
      point: record.point_coords[0],
    }));
    return { ...answer, found };
  }
}

export class Session extends Picture {
  constructor(file) {
    super();
    this.file = file;
    this._uploads = new Map(); // by model id
  }

  _upload(modelId) {
    if (!this._uploads.has(modelId)) {
      this._uploads.set(modelId, new Upload((options) => service.embed(this.file, modelId, options)));
    }
    return this._uploads.get(modelId);
  }

  // Returns embed's answer: {image_id, width, height}.
  image(modelId, signal, progress) {
    return this._upload(modelId).answer(signal, progress);
  }

  // Ends the uploads that are under way.
  cancel() {
    for (const upload of this._uploads.values()) upload.cancel();
  }

  async _name(modelId, signal, progress) {
    const { image_id } = await this.image(modelId, signal, progress);
    return { image_id };
  }

  _forget(modelId) {
    this._upload(modelId).forget();
  }
}
