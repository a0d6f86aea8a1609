// What is shown beside the image. Names and messages are put in as text, never as HTML.

import { candidateOf, isEmpty } from "./history.js";
import { rgbOf } from "./view.js";

const THUMBNAIL = 128;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawThumbnail(canvas, mask, hue, image) {
  const scale = THUMBNAIL / Math.max(mask.width, mask.height);
  canvas.width = Math.max(1, Math.round(mask.width * scale));
  canvas.height = Math.max(1, Math.round(mask.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const colour = rgbOf(hue);
  for (let y = 0, at = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, at += 4) {
      const inside = mask.has(Math.floor((x + 0.5) / scale), Math.floor((y + 0.5) / scale));
      for (let channel = 0; channel < 3; channel++) {
        const value = pixels.data[at + channel];
        pixels.data[at + channel] = inside ? 0.35 * value + 0.65 * colour[channel] : 0.6 * value;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

export function showCandidates(list, object, image, pick) {
  const candidates = object.slot.answer?.candidates ?? [];
  const buttons = candidates.map(({ mask, score }, index) => {
    const canvas = element("canvas", { ariaHidden: "true" });
    drawThumbnail(canvas, mask, object.hue, image);
    const button = element("button", { type: "button", onclick: () => pick(index) }, canvas, score.toFixed(2));
    button.setAttribute("aria-pressed", String(index === object.picked));
    const share = ((100 * mask.area) / (mask.width * mask.height)).toFixed(1);
    button.setAttribute("aria-label", `Candidate ${index + 1}, score ${score.toFixed(2)}, ${share} % of the image`);
    return button;
  });
  replace(list, buttons);
}

// Rebuilds a list and leaves the keyboard where it was.
function replace(list, children) {
  const focused = [...list.querySelectorAll("button, input")].indexOf(document.activeElement);
  list.replaceChildren(...children);
  if (focused >= 0) list.querySelectorAll("button, input")[focused]?.focus();
}

export function showObjects(list, { objects, selected }, { select, rename, remove }) {
  const rows = objects.map((object) => {
    const swatch = element("span", { className: "swatch", ariaHidden: "true" });
    swatch.style.background = `hsl(${object.hue} 90% 55%)`;
    const candidate = candidateOf(object);
    const chosen = element("button", { type: "button", className: "select", onclick: () => select(object.id) }, swatch);
    chosen.append(candidate ? candidate.score.toFixed(2) : "–");
    chosen.setAttribute("aria-pressed", String(object.id === selected));
    chosen.setAttribute("aria-label", `Select ${object.name}${isEmpty(object) ? ", empty" : ""}`);
    const name = element("input", { type: "text", value: object.name, maxLength: 80 });
    name.setAttribute("aria-label", `Name of ${object.name}`);
    name.addEventListener("change", () => rename(object.id, name.value.trim() || object.name));
    const gone = element("button", { type: "button", onclick: () => remove(object.id) }, "×");
    gone.setAttribute("aria-label", `Remove ${object.name}`);
    return element("li", {}, chosen, name, gone);
  });
  replace(list, rows);
  list.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: "nearest" });
}

export function showModels(select, models, chosen) {
  const options = models.map(({ model_id, state }) => {
    const words = { ready: "", asleep: " (asleep)", loading: " (waking up)", failed: " (failed to load)" }[state];
    return element("option", { value: model_id, textContent: model_id + words });
  });
  select.replaceChildren(...options);
  select.value = chosen;
  select.disabled = false;
}

// "Answer in 83 ms: model 52 ms, …"
export function latency({ timing, seconds }) {
  const milliseconds = (value) => `${Math.round(value)} ms`;
  const words = { queue: "queue", embed: "image", decode: "mask", encode: "writing", parse: "reading" };
  const parts = Object.entries(words)
    .filter(([name]) => timing[name] >= 0.5)
    .map(([name, word]) => `${word} ${milliseconds(timing[name])}`);
  return `Answer in ${milliseconds(1000 * seconds)}${parts.length ? ` (${parts.join(", ")})` : ""}`;
}
