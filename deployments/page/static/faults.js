// Errors of the service as sentences for the user.

// kind: "token" if the service asks for one, "forgotten" if it asks for the image or the video again; others say which
// part of the request, or of the service, is at fault.
export class Fault extends Error {
  constructor(kind, sentence) {
    super(sentence);
    this.kind = kind;
  }
}

// Returns the service's description of an error: {msg, code}. A proxy in front of it answers in plain text.
//   answer: {status, text}.
export function detailOf({ status, text }) {
  const plain = text.slice(0, 300) || `status ${status}`;
  try {
    const { detail } = JSON.parse(text);
    if (Array.isArray(detail)) return { msg: detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join("; ") };
    return typeof detail?.msg === "string" ? detail : { msg: plain };
  } catch {
    return { msg: plain };
  }
}

// The error that a request was answered with. answer: {status, text}.
export function faultOf(answer, hasToken) {
  const { msg, code } = detailOf(answer);
  return faultOfCode(msg, code) ?? faultOfStatus(answer.status, msg, hasToken);
}

function faultOfCode(msg, code) {
  if (code === "image_not_cached") return new Fault("forgotten", "The service has forgotten the image.");
  if (code === "video_not_cached") return new Fault("forgotten", "The service does not keep the video any more.");
  if (code === "deadline_exceeded") return new Fault("late", `This takes longer than the service allows (${msg}).`);
  return null;
}

function faultOfStatus(status, msg, hasToken) {
  switch (status) {
    case 401:
      return new Fault("token", `The service ${hasToken ? "does not accept this token" : "asks for a token"}.`);
    case 400:
      if (msg.startsWith("image:")) return new Fault("image", `This file is not an image that the service can read (${msg}).`);
      if (msg.startsWith("video:")) return new Fault("image", `This file is not a video that the service can read (${msg}).`);
      return new Fault("refused", `The service does not take this: ${msg}.`);
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
      return new Fault("refused", `The service answered with an error (${status}): ${msg}.`);
  }
}

// The error in the last line of an answer that was sent line by line.
export const faultOfLine = ({ msg, code }) =>
  faultOfCode(msg, code) ?? new Fault("broken", `The service stopped here: ${msg}.`);
