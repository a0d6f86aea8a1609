// One image at the service: uploaded and embedded once for each model, and again when the service has forgotten it.

import * as service from "./service.js";
import { Mask } from "./mask.js";

// Returns the promise's value; rejects when the signal is aborted. The promise itself goes on: others may await it.
function unlessAborted(promise, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason));
    promise.then(resolve, reject);
  });
}

export class Session {
  constructor(file) {
    this.file = file;
    this._uploads = new Map(); // by model id: {answer: promise of embed's answer, controller, progress, isDone}
  }

  // Returns embed's answer: {image_id, width, height}. All callers share one upload; the last one learns its progress.
  //   progress: {onUpload, onWait}, see call in service.js.
  image(modelId, signal, progress = {}) {
    if (!this._uploads.has(modelId)) this._uploads.set(modelId, this._upload(modelId));
    const upload = this._uploads.get(modelId);
    Object.assign(upload.progress, progress);
    return unlessAborted(upload.answer, signal);
  }

  _upload(modelId) {
    const upload = { controller: new AbortController(), progress: {}, isDone: false };
    const options = {
      signal: upload.controller.signal,
      onUpload: (share) => upload.progress.onUpload?.(share),
      onWait: (sentence) => upload.progress.onWait?.(sentence),
    };
    upload.answer = service.embed(this.file, modelId, options).then(({ json }) => json);
    upload.answer.then(
      () => (upload.isDone = true),
      // A failed upload is tried again by the next call.
      () => this._uploads.get(modelId) === upload && this._uploads.delete(modelId),
    );
    return upload;
  }

  // Ends the uploads that are under way.
  cancel() {
    for (const [modelId, { controller, isDone }] of this._uploads) {
      if (!isDone) {
        this._uploads.delete(modelId);
        controller.abort();
      }
    }
  }

  async _ask(request, modelId, { signal, progress }) {
    for (let attempt = 1; ; attempt++) {
      const { image_id } = await this.image(modelId, signal, progress);
      try {
        return await request({ image_id, model_id: modelId }, { signal, onWait: progress?.onWait });
      } catch (fault) {
        if (fault.kind !== "forgotten" || attempt === 3) throw fault;
        this._uploads.delete(modelId);
      }
    }
  }

  // Returns {candidates: [{mask, score, logits}], timing, seconds}, the best candidate first.
  async segment(fields, modelId, options) {
    const answer = await this._ask((image, how) => service.segment({ ...image, ...fields }, how), modelId, options);
    const candidates = answer.json.masks.map((record) => ({
      mask: new Mask(record),
      score: record.score,
      logits: record.logits,
    }));
    return { ...answer, candidates };
  }

  // Returns {found: [{mask, score, point: [x, y]}], timing, seconds}.
  async everything(fields, modelId, options) {
    const answer = await this._ask((image, how) => service.everything({ ...image, ...fields }, how), modelId, options);
    const found = answer.json.masks.map((record) => ({
      mask: new Mask(record),
      score: record.predicted_iou,
      point: record.point_coords[0],
    }));
    return { ...answer, found };
  }
}
