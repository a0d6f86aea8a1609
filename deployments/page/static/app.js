// The click page: what each control does.

import * as downloads from "./downloads.js";
import { candidateOf, History, isEmpty, newObject, restartNumbers } from "./history.js";
import { latency, showCandidates, showModels, showObjects } from "./panels.js";
import { Fault, models as askModels, token } from "./service.js";
import { Session } from "./session.js";
import { curl, everythingProgram, fieldsOf, pythonProgram } from "./snippets.js";
import { View } from "./view.js";

const EXAMPLES = [
  { file: "page/examples/drawn.png", text: "Drawn things on a table" },
  { file: "page/examples/photograph.jpg", text: "A photograph of a man with a camera" },
];
const MODEL_POLL_MS = 1500;
const PATIENCE_MS = 700; // before "Cancel" is offered
const EVERYTHING_OPTIONS = ["points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"];

const $ = (id) => document.getElementById(id);
const view = new View($("stage"));

let session = null;
let fileName = "image.png";
let history = new History();
let modelId = "";
let known = []; // what /models said last

// ---- words

function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("fault-text").textContent = text;
  keepFocus(() => ($("fault").hidden = !text));
}

function showProgress(share) {
  $("progress").hidden = share === null;
  if (share === undefined) $("progress").removeAttribute("value");
  else if (share !== null) $("progress").value = share;
}

// Does what may hide or disable the control that has the keyboard, which then goes to the image.
function keepFocus(act) {
  const focused = document.activeElement;
  act();
  if (focused && focused !== document.body && (!focused.isConnected || focused.disabled || !focused.checkVisibility())) {
    view.stage.focus();
  }
}

// ---- what is under way

const jobs = new Map(); // by what it is for ("image", "everything", an object's id, …): its AbortController
const waitingForToken = new Map(); // likewise: what to do once there is a token

// Does what the user asked for, in place of what is under way for the same thing; faults become sentences.
async function run(key, action) {
  jobs.get(key)?.abort();
  const controller = new AbortController();
  jobs.set(key, controller);
  complain("");
  const patience = setTimeout(() => ($("cancel").hidden = false), PATIENCE_MS);
  try {
    await action(controller.signal, controller);
  } catch (fault) {
    if (jobs.get(key) !== controller || fault.name === "AbortError") return;
    say("");
    if (fault.kind === "token") askForToken(fault.message, key, action);
    else complain(fault instanceof Fault ? fault.message : `Something went wrong in this page: ${fault.message}`);
    if (!(fault instanceof Fault)) console.error(fault);
  } finally {
    clearTimeout(patience);
    if (jobs.get(key) === controller) jobs.delete(key);
    if (!jobs.size) {
      showProgress(null);
      keepFocus(() => ($("cancel").hidden = true));
    }
  }
}

function cancelAll() {
  for (const controller of jobs.values()) controller.abort();
  session?.cancel();
}

$("cancel").addEventListener("click", () => {
  cancelAll();
  say("Cancelled.");
});
$("fault-close").addEventListener("click", () => complain(""));

function askForToken(sentence, key, action) {
  complain(token.get() ? sentence : "");
  waitingForToken.set(key, action);
  $("token-form").hidden = false;
  $("token").focus();
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set($("token").value.trim());
  $("token").value = "";
  keepFocus(() => ($("token-form").hidden = true));
  run("models", async (signal) => {
    await loadModels(signal);
    waitingForToken.delete("models");
    for (const [key, action] of waitingForToken) run(key, action);
    waitingForToken.clear();
  });
});

// ---- models

async function loadModels(signal) {
  known = await askModels(signal);
  if (!known.some(({ model_id }) => model_id === modelId)) modelId = known.find((model) => model.default).model_id;
  showModels($("model"), known, modelId);
}

$("model").addEventListener("change", () => {
  modelId = $("model").value;
  if (!session) return;
  session.cancel();
  const { selected } = history;
  if (selected.points.length || selected.box) ask(history.change(selected.id, fresh(selected)));
  else run("image", embed);
});

// Tells, while an answer is waited for, how far its model is; ends the wait if it failed to load.
async function watchingModel(signal, controller, wait) {
  const wanted = modelId;
  let isOver = false;
  const look = async () => {
    try {
      await loadModels(signal);
    } catch {
      return; // What is waited for tells what is wrong.
    }
    const { state, detail, done_bytes, total_bytes } = known.find(({ model_id }) => model_id === wanted) ?? {};
    if (isOver || signal.aborted || state === "ready") return;
    if (state === "failed") controller.abort(new Fault("failed", `The model ${wanted} failed to load: ${detail}.`));
    const share = total_bytes ? ` (${Math.round((100 * done_bytes) / total_bytes)} %)` : "";
    say(`The model ${wanted} is waking up${detail ? `: ${detail}` : ""}${share}…`);
    showProgress(total_bytes ? done_bytes / total_bytes : undefined);
  };
  const timer = setInterval(look, MODEL_POLL_MS);
  try {
    return await wait();
  } finally {
    isOver = true;
    clearInterval(timer);
    if (known.find(({ model_id }) => model_id === wanted)?.state !== "ready") {
      loadModels().catch((fault) => console.info(fault.message));
    }
  }
}

// ---- the image

const told = {
  onWait: say,
  onUpload(share) {
    showProgress(share < 1 ? share : undefined);
    // Not each percent: a screen reader would read them all.
    say(share < 1 ? `Uploading the image: ${10 * Math.floor(10 * share)} %` : "The model looks at the image…");
  },
};

function drop(sentence) {
  session = null;
  showNothing();
  throw new Fault("image", sentence);
}

function showNothing() {
  view.clear();
  view.stage.setAttribute("aria-label", "Image to segment");
  $("welcome").hidden = false;
  history = new History();
  render();
}

async function embed(signal, controller) {
  const { width, height } = await watchingModel(signal, controller, () => session.image(modelId, signal, told));
  if (view.isEmpty) drop("The service can read this file, but this browser cannot show it. Save it as PNG or JPEG.");
  if (width !== view.width || height !== view.height) {
    drop(`The service sees ${width}×${height} pixels, this browser ${view.width}×${view.height}. Save the image as PNG.`);
  }
  say("Ready: click on something in the image.");
}

async function open(file) {
  if (!file) return;
  cancelAll();
  session = new Session(file);
  fileName = file.name || "image.png";
  restartNumbers();
  $("latency").textContent = "";
  await run("image", async (signal, controller) => {
    showNothing();
    const url = URL.createObjectURL(file);
    try {
      await view.show(url);
    } catch {
      // No image, or of a kind that only the service reads: it says which.
      if (!signal.aborted) view.clear();
    } finally {
      URL.revokeObjectURL(url);
    }
    signal.throwIfAborted();
    if (!view.isEmpty) {
      keepFocus(() => ($("welcome").hidden = true));
      view.stage.setAttribute("aria-label", `Image to segment: ${fileName}, ${view.width} by ${view.height} pixels`);
    }
    render();
    if (!modelId) await loadModels(signal);
    await embed(signal, controller);
  });
}

// ---- prompts

// What a version of an object with other prompts begins with: no answer, and the logits of the mask that the user saw,
// as mask_input.
function fresh(object) {
  const candidate = candidateOf(object);
  let previous = object.previous?.modelId === modelId && !object.slot.answer ? object.previous : null;
  if (candidate?.logits && object.slot.answer.modelId === modelId) {
    previous = { logits: candidate.logits, modelId, steps: stepsOf(object) };
  }
  return { previous, before: candidate ?? object.before, everything: null, slot: { answer: null }, picked: 0 };
}

// Where it is not clear what is meant, three candidates.
const isAmbiguous = ({ points, box, previous }) => points.length === 1 && !box && !previous;

const stepsOf = (object) => [
  ...(object.previous?.steps ?? []),
  { fields: fieldsOf(object, isAmbiguous(object)), picked: object.picked },
];

const isAsked = ({ points, box }) => points.length > 0 || box !== null;

function ask(object) {
  endPreview();
  render();
  const { slot } = object;
  run(object.id, async (signal, controller) => {
    const fields = { ...fieldsOf(object, isAmbiguous(object)), return_logits: "true" };
    if (object.previous) fields.mask_input = JSON.stringify(object.previous.logits);
    const asked = modelId;
    const wait = () => session.segment(fields, asked, { signal, told });
    const answer = await watchingModel(signal, controller, wait);
    signal.throwIfAborted();
    slot.answer = { modelId: asked, candidates: answer.candidates };
    $("latency").textContent = latency(answer);
    const { score, mask } = answer.candidates[0];
    if (history.selected.slot === slot) {
      say(`${history.selected.name}: ${mask.area ? `found, score ${score.toFixed(2)}` : "nothing found there"}.`);
    }
    render();
  });
}

view.addEventListener("click", ({ detail: { x, y, label } }) => {
  const { selected } = history;
  ask(history.change(selected.id, { points: [...selected.points, { x, y, label }], ...fresh(selected) }));
});

view.addEventListener("box", ({ detail: { box } }) => {
  const { selected } = history;
  // A box says anew what is meant: nothing goes on from before.
  ask(history.change(selected.id, { box, ...fresh(selected), previous: null }));
});

view.addEventListener("cross", ({ detail: { x, y } }) => say(`Cross at ${x}, ${y}`));

// ---- preview under the pointer

let pointer = null; // where it is, if a preview is wanted there
let preview = null; // the candidate that is shown
let previewing = null; // the request's AbortController

function endPreview() {
  pointer = null;
  previewing?.abort();
  if (preview) {
    preview = null;
    paint();
  }
}

const mayPreview = () => $("hover").checked && session !== null && isEmpty(history.selected);

view.addEventListener("hover", ({ detail }) => {
  if (!detail || !mayPreview()) return endPreview();
  pointer = detail;
  if (!previewing) followPointer();
});

$("hover").addEventListener("change", endPreview);

async function followPointer() {
  const { x, y } = pointer;
  const controller = new AbortController();
  previewing = controller;
  try {
    const fields = { point_coords: JSON.stringify([[x, y]]), point_labels: "[1]" };
    const { candidates } = await session.segment(fields, modelId, { signal: controller.signal });
    if (pointer && mayPreview()) {
      preview = candidates[0];
      paint();
    }
  } catch (fault) {
    // Nobody waits for a preview; a click tells what is wrong.
    if (fault.name !== "AbortError") $("hover").checked = false;
  } finally {
    previewing = null;
  }
  if (pointer && mayPreview() && (pointer.x !== x || pointer.y !== y)) followPointer();
}

// ---- everything

$("everything").addEventListener("click", () => {
  const started = performance.now();
  run("everything", async (signal, controller) => {
    showProgress(undefined);
    say("Segmenting everything. It can take a minute.");
    const tick = setInterval(() => {
      const seconds = Math.round((performance.now() - started) / 1000);
      $("latency").textContent = `${seconds} s`;
    }, 1000);
    const fields = Object.fromEntries(EVERYTHING_OPTIONS.map((name) => [name, $(name).value]));
    const asked = modelId;
    try {
      const wait = () => session.everything(fields, asked, { signal, told });
      const answer = await watchingModel(signal, controller, wait);
      signal.throwIfAborted();
      const found = answer.found.map(({ mask, score, point: [x, y] }, index) => ({
        ...newObject(),
        points: [{ x, y, label: 1 }],
        everything: { fields, index },
        slot: { answer: { modelId: asked, candidates: [{ mask, score }] } },
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

// What stands for an object in the image: until its answer comes, what was there before.
const shownOf = (object) => candidateOf(object) ?? (object.slot.answer ? null : object.before);

function paint() {
  if (view.isEmpty) return;
  const { objects, selected } = history.state;
  const layers = objects
    .filter(shownOf)
    .map((object) => ({ mask: shownOf(object).mask, hue: object.hue, strength: object.id === selected ? 1 : 0.8 }))
    .sort((one, other) => other.mask.area - one.mask.area);
  if (preview) layers.push({ mask: preview.mask, hue: history.selected.hue, strength: 0.6 });
  view.paint(layers);
}

const finished = () => history.state.objects.filter((object) => candidateOf(object));

function program() {
  const { selected } = history;
  if (!session || !isAsked(selected)) return "";
  const address = (route) => new URL(route, location.origin + location.pathname).href;
  const facts = {
    url: address("segment-anything-2"),
    fileName,
    modelId: selected.slot.answer?.modelId ?? modelId,
    needsToken: Boolean(token.get()),
    steps: stepsOf(selected),
  };
  const isCurl = document.querySelector('[name="language"]:checked').value === "curl";
  if (selected.everything) {
    const all = { ...facts, url: address("segment-anything-2/auto"), everything: selected.everything };
    return isCurl ? curl({ ...all, steps: [{ fields: selected.everything.fields }] }) : everythingProgram(all);
  }
  return isCurl ? curl(facts) : pythonProgram(facts);
}

function render() {
  keepFocus(() => {
    const { selected } = history;
    view.mark(selected);
    paint();
    showCandidates($("candidates"), selected, view.image, pick);
    $("candidates-none").hidden = Boolean(selected.slot.answer);
    showObjects($("objects"), history.state, objectActs);
    renderControls(selected);
    renderProgram();
  });
}

function renderControls(selected) {
  const objects = finished();
  $("undo").disabled = !history.canUndo;
  $("redo").disabled = !history.canRedo;
  $("clear").disabled = history.state.objects.every(isEmpty);
  $("new").disabled = isEmpty(selected);
  $("everything").disabled = view.isEmpty;
  for (const id of ["zoom-in", "zoom-out", "zoom-fit"]) $(id).disabled = view.isEmpty;
  for (const button of document.querySelectorAll("[data-download]")) {
    const isSingle = ["mask", "cutout"].includes(button.dataset.download);
    button.disabled = isSingle ? !candidateOf(selected)?.mask.area : !objects.length;
  }
}

function renderProgram() {
  const text = program();
  $("code").textContent = text || "Click on something first.";
  $("copy").disabled = !text;
}

// ---- controls

function pick(index) {
  const { selected } = history;
  if (selected.slot.answer?.candidates[index] && index !== selected.picked) {
    history.change(selected.id, { picked: index });
    render();
  }
}

// Something that is done to the history. A prompt whose answer never came, since something was done before, is asked now.
function step(act) {
  act();
  endPreview();
  render();
  const { selected } = history;
  if (session && !selected.slot.answer && isAsked(selected) && !jobs.has(selected.id)) ask(selected);
}

const objectActs = {
  select: (id) => step(() => history.select(id)),
  rename(id, name) {
    if (name) history.rename(id, name);
    render();
  },
  remove: (id) => step(() => history.remove(id)),
};

// What may fail without having a job of its own.
async function attempt(act) {
  try {
    await act();
  } catch (fault) {
    console.error(fault);
    complain(`That did not work: ${fault.message}`);
  }
}

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
  copy: () => attempt(copy),
};
for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);

$("file").addEventListener("change", () => {
  open($("file").files[0]);
  $("file").value = "";
});

for (const radio of document.querySelectorAll('[name="tool"]')) {
  radio.addEventListener("change", () => (view.tool = view.stage.dataset.tool = radio.value));
}
for (const radio of document.querySelectorAll('[name="language"]')) radio.addEventListener("change", renderProgram);

const savers = {
  mask: async ({ name, mask }) => [await downloads.maskPng(mask), `${name}.png`],
  cutout: async ({ name, mask }) => [await downloads.cutout(mask, view.image), `${name} cut-out.png`],
  labels: async () => [await downloads.labelPng(finished(), view.width, view.height), "labels.png"],
  coco: () => [downloads.coco(finished(), fileName, view.width, view.height), "coco.json"],
  polygons: () => [downloads.polygons(finished()), "polygons.geojson"],
};
for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () =>
    attempt(async () => {
      const chosen = { name: history.selected.name, mask: candidateOf(history.selected)?.mask };
      downloads.save(...(await savers[button.dataset.download](chosen)));
    }),
  );
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
  else if (key === "delete" || key === "backspace") step(() => history.remove(history.state.selected));
  else if (key === "h") $("hover").click();
});

// ---- dropped and pasted images, examples

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

async function openExample(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
  const blob = await answer.blob();
  await open(new File([blob], file.split("/").at(-1), { type: blob.type }));
}

for (const { file, text } of EXAMPLES) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  [button.type, picture.src, picture.alt] = ["button", file, text];
  button.append(picture);
  button.addEventListener("click", () => attempt(() => openExample(file)));
  $("examples").append(button);
}

render();
run("models", loadModels);
