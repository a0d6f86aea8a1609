// The panels beside the image. Names and messages are put in as text, never as HTML.

import { isAsked, isEmpty } from "./history.js";
import { rgbOf } from "./overlay.js";
import { shownOf, wasTracked } from "./shown.js";

const THUMBNAIL = 128;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Returns a small picture of the image with the mask, drawn once for each candidate.
function thumbnail(candidate, hue, image) {
  if (candidate.thumbnail) return candidate.thumbnail;
  const { mask } = candidate;
  const { bits } = mask;
  const scale = THUMBNAIL / Math.max(mask.width, mask.height);
  const canvas = element("canvas", { ariaHidden: "true" });
  canvas.width = Math.max(1, Math.round(mask.width * scale));
  canvas.height = Math.max(1, Math.round(mask.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const colour = rgbOf(hue);
  for (let y = 0, at = 0; y < canvas.height; y++) {
    const row = Math.floor((y + 0.5) / scale) - mask.y;
    for (let x = 0; x < canvas.width; x++, at += 4) {
      const column = Math.floor((x + 0.5) / scale) - mask.x;
      const inside = row >= 0 && row < mask.h && column >= 0 && column < mask.w && bits[row * mask.w + column];
      for (let channel = 0; channel < 3; channel++) {
        const value = pixels.data[at + channel];
        pixels.data[at + channel] = inside ? 0.35 * value + 0.65 * colour[channel] : 0.6 * value;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
  candidate.thumbnail = canvas;
  return canvas;
}

export function showCandidates(list, object, image, pick) {
  const candidates = object.slot.answer?.candidates ?? [];
  const buttons = candidates.map((candidate, index) => {
    const { mask, score } = candidate;
    const picture = thumbnail(candidate, object.hue, image);
    const button = element("button", { type: "button", onclick: () => pick(index) }, picture, score.toFixed(2));
    button.setAttribute("aria-pressed", String(index === object.picked));
    const share = ((100 * mask.area) / (mask.width * mask.height)).toFixed(1);
    button.setAttribute("aria-label", `Candidate ${index + 1}, score ${score.toFixed(2)}, ${share} % of the image`);
    return button;
  });
  const focused = [...list.children].indexOf(document.activeElement);
  list.replaceChildren(...buttons);
  list.children[Math.min(focused, buttons.length - 1)]?.focus();
}

// By an object's id: its row, the same element for as long as the object exists, since the user may be typing in it.
const rows = new Map();

function rowOf(id, acts) {
  if (rows.has(id)) return rows.get(id);
  const swatch = element("span", { className: "swatch", ariaHidden: "true" });
  const score = element("span");
  const select = element("button", { type: "button", className: "select" }, swatch, score);
  select.addEventListener("click", () => acts.select(id));
  const name = element("input", { type: "text", maxLength: 80 });
  name.addEventListener("change", () => acts.rename(id, name.value.trim()));
  const remove = element("button", { type: "button", onclick: () => acts.remove(id) }, "×");
  const row = { item: element("li", {}, select, name, remove), swatch, score, select, name, remove };
  rows.set(id, row);
  return row;
}

// Returns what stands beside an object's colour: the score of its mask on the present frame.
function scoreOf(object) {
  const isAwaited = isAsked(object) && !object.slot.answer;
  const shown = isAwaited ? null : shownOf(object);
  const isAbsent = shown?.mask.area === 0 && wasTracked(shown);
  return isAbsent ? "absent" : (shown?.score.toFixed(2) ?? "–");
}

export function showObjects(list, { objects, selected }, acts) {
  for (const id of rows.keys()) {
    if (!objects.some((object) => object.id === id)) rows.delete(id);
  }
  const items = objects.map((object) => {
    const row = rowOf(object.id, acts);
    row.swatch.style.background = `hsl(${object.hue} 90% 55%)`;
    row.score.textContent = scoreOf(object);
    row.select.setAttribute("aria-pressed", String(object.id === selected));
    const prompts = `${object.points.length} points${object.box ? ", a box" : ""}`;
    row.select.setAttribute("aria-label", `Select ${object.name}: ${isEmpty(object) ? "empty" : prompts}`);
    if (row.name !== document.activeElement) row.name.value = object.name;
    row.name.setAttribute("aria-label", `Name of ${object.name}`);
    row.remove.setAttribute("aria-label", `Remove ${object.name}`);
    return row.item;
  });
  // Rows that are in their place stay: an element that is moved loses the keyboard.
  for (const item of [...list.children]) items.includes(item) || item.remove();
  items.forEach((item, index) => {
    const there = list.children[index] ?? null;
    if (item !== there) list.insertBefore(item, there);
  });
  const shown = rows.get(selected)?.item.getBoundingClientRect();
  const frame = list.getBoundingClientRect();
  if (shown?.top < frame.top) list.scrollTop -= frame.top - shown.top;
  else if (shown?.bottom > frame.bottom) list.scrollTop += shown.bottom - frame.bottom;
}

export function showModels(select, models, chosen) {
  const words = { ready: "", asleep: " (asleep)", loading: " (waking up)", failed: " (failed to load)" };
  const texts = models.map(({ model_id, state }) => model_id + words[state]);
  // The list may be open: it is replaced only if it has changed.
  if (String(texts) !== String([...select.options].map((option) => option.textContent))) {
    select.replaceChildren(
      ...models.map(({ model_id }, index) => element("option", { value: model_id, textContent: texts[index] })),
    );
  }
  select.value = chosen;
  select.disabled = false;
}

// Returns "Answer in 83 ms (mask 52 ms, …)".
export function latency({ timing, seconds }) {
  const milliseconds = (value) => `${Math.round(value)} ms`;
  const words = { queue: "queue", embed: "image", decode: "mask", encode: "writing", parse: "reading" };
  const parts = Object.entries(words)
    .filter(([name]) => timing[name] >= 0.5)
    .map(([name, word]) => `${word} ${milliseconds(timing[name])}`);
  return `Answer in ${milliseconds(1000 * seconds)}${parts.length ? ` (${parts.join(", ")})` : ""}`;
}
