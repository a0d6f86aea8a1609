// Calls the service's public API: turns errors into sentences, repeats requests to a busy service, sends the token.

const TRIES = 6;
const TOKEN_KEY = "segment-anything-2-token";
const ROUTE = "segment-anything-2";

// An error as a sentence for the user. kind: "token" if the service asks for one, "forgotten" if it asks for the image
// again; others say which part of the request, or of the service, is at fault.
export class Fault extends Error {
  constructor(kind, sentence) {
    super(sentence);
    this.kind = kind;
  }
}

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

// Sends one request; by XMLHttpRequest, since fetch does not report the progress of an upload.
function send(method, path, body, { signal, onUpload }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    request.open(method, path);
    try {
      if (token.get()) request.setRequestHeader("Authorization", `Bearer ${token.get()}`);
    } catch {
      return reject(new Fault("token", "This token holds a character that no token can have."));
    }
    request.upload.onprogress = (event) => event.lengthComputable && onUpload?.(event.loaded / event.total);
    request.upload.onload = () => onUpload?.(1);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Fault("unreachable", "The service cannot be reached. Is it running?"));
    request.onabort = () => reject(signal.reason);
    request.onloadend = () => signal?.removeEventListener("abort", abort);
    if (signal?.aborted) return reject(signal.reason);
    signal?.addEventListener("abort", abort);
    request.send(body);
  });
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

// Returns the service's description of an error: {msg, code}. A proxy in front of it answers in plain text.
function detailOf(request) {
  const text = request.responseText.slice(0, 300) || `status ${request.status}`;
  try {
    const { detail } = JSON.parse(request.responseText);
    if (Array.isArray(detail)) return { msg: detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join("; ") };
    return typeof detail?.msg === "string" ? detail : { msg: text };
  } catch {
    return { msg: text };
  }
}

function faultOf(request) {
  const { msg, code } = detailOf(request);
  if (code === "image_not_cached") return new Fault("forgotten", "The service has forgotten the image.");
  if (code === "deadline_exceeded") return new Fault("late", `This takes longer than the service allows (${msg}).`);
  switch (request.status) {
    case 401:
      return new Fault("token", `The service ${token.get() ? "does not accept this token" : "asks for a token"}.`);
    case 400:
      if (!msg.startsWith("image:")) return new Fault("refused", `The service does not take this: ${msg}.`);
      return new Fault("image", `This file is not an image that the service can read (${msg}).`);
    case 408:
      return new Fault("late", "The upload took longer than the service waits.");
    case 413:
      return new Fault("large", `This is too large for the service: ${msg}.`);
    case 503:
      return new Fault("busy", `The service cannot answer now: ${msg}.`);
    case 500:
    case 502:
    case 504:
      return new Fault("broken", `Something went wrong inside the service: ${msg}.`);
    default:
      return new Fault("refused", `The service answered with an error (${request.status}): ${msg}.`);
  }
}

function read(request) {
  try {
    return JSON.parse(request.responseText);
  } catch {
    throw new Fault("broken", "The service's answer broke off.");
  }
}

// Returns {json, timing, seconds}; waits and repeats the request while the service is busy.
//   onUpload(share) is called with the share that is uploaded, from 0 to 1.
//   onWait(sentence) is called with the cause of a pause; "" when it is over.
export async function call(method, path, body, { signal, onUpload, onWait } = {}) {
  for (let attempt = 1; ; attempt++) {
    const started = performance.now();
    const request = await send(method, path, body, { signal, onUpload });
    if (request.status >= 200 && request.status < 300) {
      const seconds = (performance.now() - started) / 1000;
      return { json: read(request), timing: timings(request), seconds };
    }
    const fault = faultOf(request);
    const after = Number(request.getResponseHeader("Retry-After"));
    if (fault.kind !== "busy" || !(after > 0) || attempt === TRIES) throw fault;
    // While a model wakes up, the service's message says which, and how far it is.
    const cause = detailOf(request).msg.startsWith("model ") ? detailOf(request).msg : "The service is busy";
    for (let left = Math.ceil(after); left > 0; left--) {
      onWait?.(`${cause}: trying again in ${left} s.`);
      await pause(1, signal);
    }
    onWait?.("");
  }
}

// Returns Server-Timing as {parse: ms, queue: ms, …, cache: "hit" or "miss"}.
function timings(request) {
  const found = {};
  for (const entry of (request.getResponseHeader("Server-Timing") ?? "").split(",")) {
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
