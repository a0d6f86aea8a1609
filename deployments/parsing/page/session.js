// One image on the service: uploaded and embedded once for each model, and again when the service has forgotten it.

import * as service from "./service.js";
import { Mask } from "./mask.js";

export class Session {
  constructor(file) {
    this.file = file;
    this._ids = new Map(); // model id → promise of the image_id
  }

  // The image's id, once the model has embedded it. options: see service.call.
  imageId(modelId, options) {
    if (!this._ids.has(modelId)) {
      const embedded = service.embed(this.file, modelId, options).then(({ json }) => json);
      this._ids.set(modelId, embedded);
      // What failed is tried again next time.
      embedded.catch(() => this._ids.delete(modelId));
    }
    return this._ids.get(modelId);
  }

  async _ask(request, modelId, options) {
    for (let attempt = 1; ; attempt++) {
      const { image_id } = await this.imageId(modelId, options);
      options.signal?.throwIfAborted();
      try {
        return await request({ image_id, model_id: modelId }, options);
      } catch (fault) {
        if (fault.kind !== "forgotten" || attempt === 3) throw fault;
        this._ids.delete(modelId);
      }
    }
  }

  // {candidates: [{mask, score, logits}], timing, seconds}, the best first.
  async segment(fields, modelId, options) {
    const answer = await this._ask((image) => service.segment({ ...image, ...fields }, options), modelId, options);
    const candidates = answer.json.masks.map((record) => ({
      mask: new Mask(record),
      score: record.score,
      logits: record.logits,
    }));
    return { ...answer, candidates };
  }

  // [{mask, score, point: [x, y]}]
  async everything(fields, modelId, options) {
    const answer = await this._ask((image) => service.everything({ ...image, ...fields }, options), modelId, options);
    const found = answer.json.masks.map((record) => ({
      mask: new Mask(record),
      score: record.predicted_iou,
      point: record.point_coords[0],
    }));
    return { ...answer, found };
  }
}
