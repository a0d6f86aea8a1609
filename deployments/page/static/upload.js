// An upload that several callers wait for.

// Returns the promise's value; rejects when the signal is aborted. The promise itself goes on: others may await it.
export function unlessAborted(promise, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason));
    promise.then(resolve, reject);
  });
}

export class Upload {
  // send({signal, onUpload, onWait}) returns a promise of the service's answer, as call does in service.js.
  constructor(send) {
    this._send = send;
    this._current = null; // {answer: a promise, controller, progress, isDone}
  }

  // Returns the service's answer. All callers share one upload; the last one learns its progress.
  //   progress: {onUpload, onWait}, see call in service.js.
  answer(signal, progress = {}) {
    this._current ??= this._start();
    Object.assign(this._current.progress, progress);
    return unlessAborted(this._current.answer, signal);
  }

  _start() {
    const upload = { controller: new AbortController(), progress: {}, isDone: false };
    const options = {
      signal: upload.controller.signal,
      onUpload: (share) => upload.progress.onUpload?.(share),
      onWait: (sentence) => upload.progress.onWait?.(sentence),
    };
    upload.answer = this._send(options).then(({ json }) => json);
    upload.answer.then(
      () => (upload.isDone = true),
      // A failed upload is tried again by the next call.
      () => this._current === upload && this.forget(),
    );
    return upload;
  }

  // The next call uploads again.
  forget() {
    this._current = null;
  }

  // Ends the upload if it is under way.
  cancel() {
    if (!this._current || this._current.isDone) return;
    const { controller } = this._current;
    this.forget();
    controller.abort();
  }
}
