// Calls the service's public API: turns errors into sentences, repeats requests to a busy service, sends the token.

import { detailOf, Fault, faultOf } from "./faults.js";

const TRIES = 6;
const TOKEN_KEY = "segment-anything-2-token";
const ROUTE = "segment-anything-2";

// The token is kept until the tab is closed; without storage in the browser, until the page is loaded again.
let secret = "";
try {
  secret = sessionStorage.getItem(TOKEN_KEY) ?? "";
} catch (fault) {
  console.info(fault.message);
}

export const token = {
  get: () => secret,
  set(value) {
    secret = value;
    try {
      sessionStorage.setItem(TOKEN_KEY, value);
    } catch (fault) {
      console.info(fault.message);
    }
  },
};

export function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined && value !== null && value !== "") body.append(name, value);
  }
  return body;
}

const NO_HEADER = "This token holds a character that no token can have.";
const UNREACHABLE = "The service cannot be reached. Is it running?";

// Sends one request; by XMLHttpRequest, since fetch does not report the progress of an upload. Returns {status, text,
// header(name), seconds}.
function send(method, path, body, { signal, onUpload }) {
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    request.open(method, path);
    try {
      if (token.get()) request.setRequestHeader("Authorization", `Bearer ${token.get()}`);
    } catch {
      return reject(new Fault("token", NO_HEADER));
    }
    request.upload.onprogress = (event) => event.lengthComputable && onUpload?.(event.loaded / event.total);
    request.upload.onload = () => onUpload?.(1);
    request.onload = () =>
      resolve({
        status: request.status,
        text: request.responseText,
        header: (name) => request.getResponseHeader(name),
        seconds: (performance.now() - started) / 1000,
      });
    request.onerror = () => reject(new Fault("unreachable", UNREACHABLE));
    request.onabort = () => reject(signal.reason);
    request.onloadend = () => signal?.removeEventListener("abort", abort);
    if (signal?.aborted) return reject(signal.reason);
    signal?.addEventListener("abort", abort);
    request.send(body);
  });
}

// Sends one request by fetch, whose answer can be read while it comes. Returns {status, text, header(name), response};
// the text is that of an error.
async function fetched(method, path, body, { signal }) {
  const headers = new Headers();
  try {
    if (token.get()) headers.set("Authorization", `Bearer ${token.get()}`);
  } catch {
    throw new Fault("token", NO_HEADER);
  }
  try {
    const response = await fetch(path, { method, body, headers, signal });
    const text = response.ok ? "" : await response.text();
    return { status: response.status, text, header: (name) => response.headers.get(name), response };
  } catch (fault) {
    if (signal?.aborted) throw signal.reason;
    throw new Fault("unreachable", `${UNREACHABLE} (${fault.message})`);
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function read(answer) {
  try {
    return JSON.parse(answer.text);
  } catch {
    throw new Fault("broken", "The service's answer broke off.");
  }
}

// Returns the answer of ask(), of a kind that send() returns; waits and asks again while the service is busy.
async function patiently(ask, { signal, onWait }) {
  for (let attempt = 1; ; attempt++) {
    const answer = await ask();
    if (answer.status >= 200 && answer.status < 300) return answer;
    const fault = faultOf(answer, Boolean(token.get()));
    const after = Number(answer.header("Retry-After"));
    if (fault.kind !== "busy" || !(after > 0) || attempt === TRIES) throw fault;
    // While a model wakes up, the service's message says which, and how far it is.
    const { msg } = detailOf(answer);
    const cause = msg.startsWith("model ") ? msg : "The service is busy";
    for (let left = Math.ceil(after); left > 0; left--) {
      onWait?.(`${cause}: trying again in ${left} s.`);
      await pause(1, signal);
    }
    onWait?.("");
  }
}

// Returns {json, timing, seconds}; waits and repeats the request while the service is busy.
//   onUpload(share) is called with the share that is uploaded, from 0 to 1.
//   onWait(sentence) is called with the cause of a pause; "" when it is over.
export async function call(method, path, body, options = {}) {
  const answer = await patiently(() => send(method, path, body, options), options);
  return { json: read(answer), timing: timings(answer), seconds: answer.seconds };
}

// Yields an answer's lines, each a document of JSON, as they come. A signal that is aborted closes the connection.
async function* lines(path, body, options) {
  const { response } = await patiently(() => fetched("POST", path, body, options), options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let begun = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (begun + value).split("\n");
      begun = parts.pop();
      for (const part of parts) if (part.trim()) yield JSON.parse(part);
    }
  } catch (fault) {
    if (options.signal?.aborted) throw options.signal.reason;
    throw new Fault("unreachable", `The connection to the service broke off (${fault.message}).`);
  } finally {
    reader.cancel().catch((fault) => console.info(fault.message));
  }
}

// Returns Server-Timing as {parse: ms, queue: ms, …, cache: "hit" or "miss"}.
function timings(answer) {
  const found = {};
  for (const entry of (answer.header("Server-Timing") ?? "").split(",")) {
    const [name, ...parameters] = entry.trim().split(";");
    for (const parameter of parameters) {
      const [key, value] = parameter.split("=");
      found[name] = key === "dur" ? Number(value) : value?.replaceAll('"', "");
    }
  }
  return found;
}

export const models = async (signal) => (await call("GET", "models", null, { signal })).json.models;

export const embed = (file, modelId, options) =>
  call("POST", `${ROUTE}/embed`, form({ image: file, model_id: modelId }), options);

export const segment = (fields, options) =>
  call("POST", ROUTE, form({ ...fields, response_format: "rle" }), options);

export const everything = (fields, options) => call("POST", `${ROUTE}/auto`, form(fields), options);

// ---- videos

export const keepVideo = (file, options) => call("POST", `${ROUTE}/video/embed`, form({ video: file }), options);

export const embedFrame = (frame, modelId, options) =>
  call("POST", `${ROUTE}/embed`, form({ ...frame, model_id: modelId }), options);

// Returns a frame, a Blob. kind: "jpeg", or "png" for its very pixels.
export async function picture(videoId, index, kind, options) {
  const path = `${ROUTE}/video/${videoId}/frames/${index}?format=${kind}`;
  const { response } = await patiently(() => fetched("GET", path, null, options), options);
  return response.blob();
}

// Yields what is known of the video, a line for each frame, and the end; see the documents of the service.
export const track = (fields, options) => lines(`${ROUTE}/video`, form(fields), options);
