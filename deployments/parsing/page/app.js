// The click page: what each control does.

import * as downloads from "./downloads.js";
import { candidateOf, History, isEmpty, newObject, restartNumbers } from "./history.js";
import { latency, showCandidates, showModels, showObjects } from "./panels.js";
import { Fault, models as askModels, token } from "./service.js";
import { Session } from "./session.js";
import { curl, fieldsOf, pythonProgram } from "./snippets.js";
import { View } from "./view.js";

const EXAMPLES = [
  { file: "page/examples/drawn.png", text: "Drawn things on a table" },
  { file: "page/examples/photograph.jpg", text: "A photograph" },
];
const MODEL_POLL_MS = 1500;
const EVERYTHING_OPTIONS = ["points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"];

const $ = (id) => document.getElementById(id);
const view = new View($("stage"));

let session = null;
let fileName = "image.png";
let history = new History();
let modelId = "";
let known = []; // what /models said last
let work = new AbortController(); // of what the user waits for
let preview = null; // the candidate under the pointer
let afterToken = null;

// ---- words

function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("fault-text").textContent = text;
  $("fault").hidden = !text;
}

function showProgress(share) {
  $("progress").hidden = share === null;
  if (share === undefined) $("progress").removeAttribute("value");
  else if (share !== null) $("progress").value = share;
}

// Runs what the user asked for, in place of what was asked for before; faults become sentences.
async function run(action) {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  complain("");
  try {
    await action(signal);
  } catch (fault) {
    if (fault.name === "AbortError") return;
    if (!(fault instanceof Fault)) throw fault;
    say("");
    if (fault.kind === "token") return askForToken(fault.message, action);
    complain(fault.message);
  } finally {
    if (signal === work.signal) {
      showProgress(null);
      $("cancel").hidden = true;
    }
  }
}

function askForToken(sentence, action) {
  complain(token.get() ? sentence : "");
  $("token-form").hidden = false;
  $("token").focus();
  afterToken = action;
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set($("token").value.trim());
  $("token").value = "";
  $("token-form").hidden = true;
  view.stage.focus();
  const action = afterToken;
  run(async (signal) => {
    await loadModels();
    await action?.(signal);
  });
});

$("fault-close").addEventListener("click", () => complain(""));
$("cancel").addEventListener("click", () => {
  work.abort();
  say("Cancelled.");
});

// ---- models

async function loadModels() {
  known = await askModels();
  if (!known.some(({ model_id }) => model_id === modelId)) modelId = known.find((model) => model.default).model_id;
  showModels($("model"), known, modelId);
}

$("model").addEventListener("change", () => {
  modelId = $("model").value;
  if (!session) return;
  const { selected } = history;
  if (selected.points.length || selected.box) ask(history.change(selected.id, fresh()));
  else run(embed);
});

// While it takes: how far the model is.
function watchModel(signal) {
  const look = async () => {
    try {
      await loadModels();
    } catch {
      return; // What the user waits for tells what is wrong.
    }
    const { state, detail, done_bytes, total_bytes } = known.find(({ model_id }) => model_id === modelId);
    if (signal.aborted || signal !== work.signal || state === "ready") return;
    const share = total_bytes ? ` (${Math.round((100 * done_bytes) / total_bytes)} %)` : "";
    say(`The model ${modelId} is waking up${detail ? `: ${detail}` : ""}${share}…`);
    showProgress(total_bytes ? done_bytes / total_bytes : undefined);
  };
  return setInterval(look, MODEL_POLL_MS);
}

// ---- the image

// Options of a request that the user waits for.
function waiting(signal) {
  return {
    signal,
    onWait: (sentence) => say(sentence),
    onUpload: (share) => {
      showProgress(share < 1 ? share : undefined);
      say(share < 1 ? `Uploading the image: ${Math.round(100 * share)} %` : "The model looks at the image…");
    },
  };
}

async function embed(signal) {
  const opened = session;
  const watch = watchModel(signal);
  $("cancel").hidden = false;
  try {
    const { width, height } = await opened.imageId(modelId, waiting(signal));
    if (opened !== session) return;
    if (view.isEmpty) throw new Fault("image", "The service can read this file, but this browser cannot show it. Save it as PNG or JPEG.");
    if (width !== view.width || height !== view.height) {
      throw new Fault("image", `The service sees ${width}×${height} pixels here, this browser ${view.width}×${view.height}. Save the image as PNG.`);
    }
  } finally {
    clearInterval(watch);
  }
  say("Ready: click on something in the image.");
}

async function open(file) {
  if (!file) return;
  session = new Session(file);
  fileName = file.name || "image.png";
  restartNumbers();
  history = new History();
  preview = null;
  $("latency").textContent = "";
  const opened = session;
  const url = URL.createObjectURL(file);
  try {
    await view.show(url);
    if (opened !== session) return;
    $("welcome").hidden = true;
    view.stage.setAttribute("aria-label", `Image to segment: ${fileName}, ${view.width} by ${view.height} pixels`);
  } catch {
    // No image, or of a kind that only the service reads: it says which.
    if (opened !== session) return;
    view.clear();
    $("welcome").hidden = false;
  } finally {
    URL.revokeObjectURL(url);
  }
  render();
  await run(async (signal) => {
    if (!modelId) await loadModels();
    await embed(signal);
  });
}

// ---- prompts

// An object's prompts without an answer yet. With the logits of the mask that the user saw, as mask_input.
function fresh(object = null) {
  const candidate = object && candidateOf(object);
  const goesOn = candidate?.logits && object.slot.answer.modelId === modelId;
  const previous = goesOn ? { logits: candidate.logits, steps: stepsOf(object) } : null;
  return { previous, slot: { answer: null }, picked: 0 };
}

// Where it is not clear what is meant, three candidates.
const isAmbiguous = ({ points, box, previous }) => points.length === 1 && !box && !previous;

const stepsOf = (object) => [
  ...(object.previous?.steps ?? []),
  { fields: fieldsOf(object, isAmbiguous(object)), picked: object.picked },
];

function ask(object) {
  preview = null;
  render();
  const { slot } = object;
  run(async (signal) => {
    const fields = fieldsOf(object, isAmbiguous(object));
    fields.return_logits = "true";
    if (object.previous) fields.mask_input = JSON.stringify(object.previous.logits);
    if (!$("latency").textContent) say("The model looks at the image…");
    const watch = watchModel(signal);
    try {
      const asked = modelId;
      const answer = await session.segment(fields, asked, waiting(signal));
      slot.answer = { modelId: asked, candidates: answer.candidates };
      $("latency").textContent = latency(answer);
      const { score, mask } = answer.candidates[0];
      say(`${object.name}: ${mask.area ? `found, score ${score.toFixed(2)}` : "nothing found there"}.`);
    } finally {
      clearInterval(watch);
    }
    render();
  });
}

view.addEventListener("click", ({ detail: { x, y, label } }) => {
  const { selected } = history;
  ask(history.change(selected.id, { points: [...selected.points, { x, y, label }], ...fresh(selected) }));
});

view.addEventListener("box", ({ detail: { box } }) => {
  ask(history.change(history.selected.id, { box, ...fresh() }));
});

view.addEventListener("cross", ({ detail: { x, y } }) => say(`Cross at ${x}, ${y}`));

// ---- preview under the pointer

let pointer = null;
let previewing = false;

view.addEventListener("hover", ({ detail }) => {
  pointer = $("hover").checked && isEmpty(history.selected) ? detail : null;
  if (!pointer && preview) {
    preview = null;
    paint();
  }
  followPointer();
});

async function followPointer() {
  if (previewing || !pointer || !session) return;
  previewing = true;
  const { x, y } = pointer;
  const [opened, state] = [session, history.state];
  try {
    const fields = { point_coords: JSON.stringify([[x, y]]), point_labels: "[1]" };
    const { candidates } = await session.segment(fields, modelId, { signal: work.signal });
    if (opened === session && state === history.state && pointer) {
      preview = candidates[0];
      paint();
    }
  } catch (fault) {
    // Nobody waits for a preview; a click tells what is wrong.
    if (fault.name !== "AbortError") $("hover").checked = false;
  } finally {
    previewing = false;
  }
  if (pointer && (pointer.x !== x || pointer.y !== y)) followPointer();
}

// ---- everything

$("everything").addEventListener("click", () => {
  const started = performance.now();
  run(async (signal) => {
    showProgress(undefined);
    $("cancel").hidden = false;
    const tick = setInterval(() => {
      const seconds = Math.round((performance.now() - started) / 1000);
      if (signal === work.signal) say(`Segmenting everything: ${seconds} s. It can take a minute.`);
    }, 1000);
    try {
      const fields = Object.fromEntries(EVERYTHING_OPTIONS.map((name) => [name, $(name).value]));
      const answer = await session.everything(fields, modelId, { ...waiting(signal), signal });
      const found = answer.found.map(({ mask, score, point: [x, y] }) => ({
        ...newObject(),
        points: [{ x, y, label: 1 }],
        slot: { answer: { modelId, candidates: [{ mask, score }] } },
      }));
      if (found.length) history.add([...found, newObject()]);
      $("latency").textContent = latency(answer);
      say(found.length ? `Found ${found.length} things.` : "Found nothing: lower the options of “everything”.");
    } finally {
      clearInterval(tick);
    }
    render();
  });
});

// ---- what is shown

function paint() {
  const { objects, selected } = history.state;
  const layers = objects
    .filter((object) => candidateOf(object))
    .map((object) => ({ mask: candidateOf(object).mask, hue: object.hue, strength: object.id === selected ? 1 : 0.8 }))
    .sort((one, other) => other.mask.area - one.mask.area);
  if (preview) layers.push({ mask: preview.mask, hue: history.selected.hue, strength: 0.6 });
  view.paint(layers);
}

function pick(index) {
  const { selected } = history;
  if (selected.slot.answer?.candidates[index] && index !== selected.picked) {
    history.change(selected.id, { picked: index });
    render();
  }
}

const finished = () => history.state.objects.filter((object) => candidateOf(object));

function program() {
  const { selected } = history;
  if (!session || (!selected.points.length && !selected.box)) return "";
  const url = new URL("segment-anything-2", location.href);
  const facts = { url: url.origin + url.pathname, fileName, modelId, needsToken: Boolean(token.get()), steps: stepsOf(selected) };
  return document.querySelector('[name="language"]:checked').value === "curl" ? curl(facts) : pythonProgram(facts);
}

function render() {
  const { selected } = history;
  view.mark(selected);
  if (!view.isEmpty) paint();
  showCandidates($("candidates"), selected, view.image, pick);
  $("candidates-none").hidden = Boolean(selected.slot.answer);
  const change = (act) => (...given) => {
    act(...given);
    render();
  };
  showObjects($("objects"), history.state, {
    select: change((id) => history.select(id)),
    rename: change((id, name) => history.rename(id, name)),
    remove: change((id) => history.remove(id)),
  });
  const objects = finished();
  $("undo").disabled = !history.canUndo;
  $("redo").disabled = !history.canRedo;
  $("clear").disabled = history.state.objects.every(isEmpty);
  $("new").disabled = isEmpty(selected);
  $("everything").disabled = view.isEmpty;
  for (const id of ["zoom-in", "zoom-out", "zoom-fit"]) $(id).disabled = view.isEmpty;
  for (const button of document.querySelectorAll("[data-download]")) {
    const single = ["mask", "cutout"].includes(button.dataset.download);
    button.disabled = single ? !candidateOf(selected)?.mask.area : !objects.length;
  }
  renderProgram();
}

function renderProgram() {
  const text = program();
  $("code").textContent = text || "Click on something first.";
  $("copy").disabled = !text;
}

// ---- controls

const acts = {
  open: () => $("file").click(),
  choose: () => $("file").click(),
  undo: () => step(() => history.undo()),
  redo: () => step(() => history.redo()),
  clear: () => step(() => history.clear()),
  new: () => step(() => history.add([newObject()])),
  "zoom-in": () => view.zoom(1.4),
  "zoom-out": () => view.zoom(1 / 1.4),
  "zoom-fit": () => view.fit(),
  copy,
};
for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);

async function copy() {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(program());
  } else {
    // Without https, browsers have only the old way.
    getSelection().selectAllChildren($("code"));
    document.execCommand("copy");
  }
  say("Copied.");
}

function step(act) {
  act();
  preview = null;
  render();
  const { selected } = history;
  // A prompt whose answer never came, since it was undone before.
  if (!selected.slot.answer && (selected.points.length || selected.box)) ask(selected);
}

$("file").addEventListener("change", () => {
  open($("file").files[0]);
  $("file").value = "";
});

for (const radio of document.querySelectorAll('[name="tool"]')) {
  radio.addEventListener("change", () => (view.tool = view.stage.dataset.tool = radio.value));
}
for (const radio of document.querySelectorAll('[name="language"]')) radio.addEventListener("change", renderProgram);

const savers = {
  mask: async () => [await downloads.maskPng(candidateOf(history.selected).mask), `${history.selected.name}.png`],
  cutout: async () => [
    await downloads.cutout(candidateOf(history.selected).mask, view.image),
    `${history.selected.name} cut-out.png`,
  ],
  labels: async () => [await downloads.labelPng(finished(), view.width, view.height), "labels.png"],
  coco: () => [downloads.coco(finished(), fileName, view.width, view.height), "coco.json"],
  polygons: () => [downloads.polygons(finished()), "polygons.geojson"],
};
for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", async () => downloads.save(...(await savers[button.dataset.download]())));
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=text], input[type=password], input[type=number]")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    const act = key === "y" || (key === "z" && event.shiftKey) ? acts.redo : key === "z" ? acts.undo : null;
    if (act) {
      event.preventDefault();
      act();
    }
  }
});

view.stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (["1", "2", "3"].includes(key)) pick(Number(key) - 1);
  else if (key === "n" && !$("new").disabled) acts.new();
  else if (key === "delete") step(() => history.remove(history.state.selected));
  else if (key === "h") $("hover").checked = !$("hover").checked;
});

// ---- dropped and pasted images

addEventListener("dragover", (event) => {
  event.preventDefault();
  view.stage.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? view.stage.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  view.stage.classList.remove("over");
  open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => open([...event.clipboardData.files][0]));

for (const { file, text } of EXAMPLES) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  [button.type, picture.src, picture.alt] = ["button", file, text];
  button.append(picture);
  button.addEventListener("click", async () => {
    const blob = await (await fetch(file)).blob();
    open(new File([blob], file.split("/").at(-1), { type: blob.type }));
  });
  $("examples").append(button);
}

render();
run(loadModels);
