// The click page: wires each control to its action.

import * as downloads from "./downloads.js";
import * as editing from "./editing.js";
import { segmentEverything } from "./everything.js";
import { wireFilm } from "./film_controls.js";
import { isAsked } from "./history.js";
import { embed } from "./images.js";
import { attempt, cancelAll, run, useToken } from "./jobs.js";
import { loadModels } from "./models.js";
import { EXAMPLES, open, openExample } from "./opening.js";
import { endPreview, previewAt } from "./preview.js";
import { copyProgram, showProgram } from "./program.js";
import { connect, render } from "./render.js";
import { addPoint, changePrompt, setBox } from "./segmenting.js";
import { shownOf } from "./shown.js";
import { $, page, view } from "./state.js";
import { complain, say } from "./status.js";
import * as toolfiles from "./toolfiles.js";

// ---- buttons

const clicks = {
  open: () => $("file").click(),
  choose: () => $("file").click(),
  undo: editing.undo,
  redo: editing.redo,
  clear: editing.clear,
  new: editing.addObject,
  everything: segmentEverything,
  "zoom-in": () => view.zoom(1.4),
  "zoom-out": () => view.zoom(1 / 1.4),
  "zoom-fit": () => view.fit(),
  copy: () => attempt(copyProgram),
  "fault-close": () => complain(""),
  cancel() {
    cancelAll();
    say("Cancelled.");
  },
};
for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", () => act());

for (const radio of document.querySelectorAll('[name="tool"]')) {
  radio.addEventListener("change", () => (view.tool = view.stage.dataset.tool = radio.value));
}
for (const radio of document.querySelectorAll('[name="language"]')) radio.addEventListener("change", showProgram);

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(loadModels);
});

$("model").addEventListener("change", () => {
  page.modelId = $("model").value;
  if (!page.session) return;
  page.session.cancel();
  if (isAsked(page.history.selected)) changePrompt({});
  else run("image", embed);
});

// ---- downloads

const stem = () => page.fileName.replace(/\.[^.]*$/, "");
const annotated = () => [page.history.finished, page.fileName, view.width, view.height];

const files = {
  mask: async ({ name, mask }) => [await downloads.maskPng(mask), `${name}.png`],
  cutout: async ({ name, mask }) => [await downloads.cutout(mask, view.image), `${name} cut-out.png`],
  labels: async () => [await downloads.labelPng(page.history.finished, view.width, view.height), "labels.png"],
  coco: () => [downloads.coco(page.history.finished, page.fileName, view.width, view.height), "coco.json"],
  polygons: () => [downloads.polygons(page.history.finished), "polygons.geojson"],
  cvat: () => [toolfiles.cvat(...annotated()), "annotations.xml"],
  labelstudio: () => [toolfiles.labelStudio(...annotated()), "label-studio.json"],
  labelme: async () => [await toolfiles.labelMe(...annotated()), `${stem()}.json`],
  qupath: () => [toolfiles.quPath(...annotated()), "qupath.geojson"],
  yolo: () => [toolfiles.yolo(...annotated()), `${stem()}.txt`],
  davis: async () => [await toolfiles.davis(...annotated()), "davis.png"],
  napari: async () => [await toolfiles.napari(...annotated()), "napari.tif"],
};
for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () =>
    attempt(async () => {
      const { selected } = page.history;
      const chosen = { name: selected.name, mask: shownOf(selected)?.mask };
      downloads.save(...(await files[button.dataset.download](chosen)));
    }),
  );
}

// ---- mouse, fingers and keys on the image

view.addEventListener("click", ({ detail }) => addPoint(detail));
view.addEventListener("box", ({ detail: { box } }) => setBox(box));
view.addEventListener("cross", ({ detail: { x, y } }) => say(`Cross at ${x}, ${y}`));
view.addEventListener("hover", ({ detail }) => previewAt(detail));
$("hover").addEventListener("change", endPreview);

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=text], input[type=password], input[type=number]")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    const act = key === "y" || (key === "z" && event.shiftKey) ? editing.redo : key === "z" ? editing.undo : null;
    if (act) {
      event.preventDefault();
      act();
    }
  }
});

view.stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (["1", "2", "3"].includes(key)) editing.pick(Number(key) - 1);
  else if (key === "n" && !$("new").disabled) editing.addObject();
  else if (key === "delete" || key === "backspace") editing.remove(page.history.state.selected);
  else if (key === "h") $("hover").click();
});

// ---- images and videos: chosen, dropped, pasted, examples

$("file").addEventListener("change", () => {
  open($("file").files[0]);
  $("file").value = "";
});
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

for (const { file, text, picture: shown = file } of EXAMPLES) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  [button.type, picture.src, picture.alt] = ["button", shown, text];
  button.append(picture);
  button.addEventListener("click", () => attempt(() => openExample(file)));
  $("examples").append(button);
}

connect(editing);
wireFilm();
render();
run("models", loadModels);
