// The public API as this page uses it: errors as sentences, patience with a busy service, the token.

const TRIES = 6;
const TOKEN_KEY = "segment-anything-2-token";
const ROUTE = "segment-anything-2";

// What went wrong, as a sentence for a person. kind: "token" asks for one, "forgotten" for the image again.
export class Fault extends Error {
  constructor(kind, sentence) {
    super(sentence);
    this.kind = kind;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN_KEY) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN_KEY, value),
};

function headers() {
  return token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
}

export function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined && value !== null && value !== "") body.append(name, value);
  }
  return body;
}

// One exchange; over XMLHttpRequest, since fetch does not say how far an upload is.
function exchange(method, path, body, { signal, onUpload }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onUpload?.(event.loaded / event.total);
    request.upload.onload = () => onUpload?.(1);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Fault("unreachable", "The service cannot be reached. Is it running?"));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onloadend = () => signal?.removeEventListener("abort", abort);
    if (signal?.aborted) return request.onabort();
    signal?.addEventListener("abort", abort);
    request.send(body);
  });
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    });
  });
}

// What the service says of an error: {msg, code}. The proxy in front of it answers with plain text.
function detailOf(request) {
  try {
    const { detail } = JSON.parse(request.responseText);
    if (Array.isArray(detail)) return { msg: detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join("; ") };
    return detail;
  } catch {
    return { msg: request.responseText.slice(0, 200) || `status ${request.status}` };
  }
}

function faultOf(request) {
  const { msg, code } = detailOf(request);
  if (code === "image_not_cached") return new Fault("forgotten", "The service has forgotten the image.");
  if (code === "deadline_exceeded") return new Fault("late", `This takes longer than the service allows (${msg}).`);
  switch (request.status) {
    case 401:
      return new Fault("token", token.get() ? "The service does not accept this token." : "The service asks for a token.");
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

// {json, timing, seconds}; waits and asks again while the service is busy.
//   onWait(sentence) tells why it takes longer; "" when it goes on.
export async function call(method, path, body, { signal, onUpload, onWait } = {}) {
  for (let attempt = 1; ; attempt++) {
    const started = performance.now();
    const request = await exchange(method, path, body, { signal, onUpload });
    if (request.status >= 200 && request.status < 300) {
      const seconds = (performance.now() - started) / 1000;
      return { json: JSON.parse(request.responseText), timing: timings(request), seconds };
    }
    const fault = faultOf(request);
    const after = Number(request.getResponseHeader("Retry-After"));
    if (fault.kind !== "busy" || !(after > 0) || attempt === TRIES) throw fault;
    for (let left = Math.ceil(after); left > 0; left--) {
      onWait?.(`The service is busy: trying again in ${left} s.`);
      await pause(1, signal);
    }
    onWait?.("");
  }
}

// Server-Timing as {parse: ms, queue: ms, …, cache: "hit" or "miss"}.
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

export const models = async () => (await call("GET", "models")).json.models;

export const embed = (file, modelId, options) =>
  call("POST", `${ROUTE}/embed`, form({ image: file, model_id: modelId }), options);

export const segment = (fields, options) =>
  call("POST", ROUTE, form({ ...fields, response_format: "rle" }), options);

export const everything = (fields, options) => call("POST", `${ROUTE}/auto`, form(fields), options);
