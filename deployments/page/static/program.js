// The panel that shows the selected object's request as a program.

import { isAsked } from "./history.js";
import { stepsOf } from "./prompts.js";
import { token } from "./service.js";
import { curl, curlOfVideo, everythingProgram, pythonOfVideo, pythonProgram } from "./snippets.js";
import { $, page } from "./state.js";
import { say } from "./status.js";
import { requestOfPage } from "./track_request.js";

const address = (route) => new URL(route, location.origin + location.pathname).href;
const isCurl = () => document.querySelector('[name="language"]:checked').value === "curl";

function program() {
  if (page.video) return videoProgram();
  const { selected } = page.history;
  if (!page.session || !isAsked(selected)) return "";
  const facts = {
    url: address("segment-anything-2"),
    fileName: page.fileName,
    modelId: selected.slot.answer?.modelId ?? page.modelId,
    needsToken: Boolean(token.get()),
    steps: stepsOf(selected),
  };
  if (selected.everything) {
    const all = { ...facts, url: address("segment-anything-2/auto"), everything: selected.everything };
    return isCurl() ? curl({ ...all, steps: [{ fields: selected.everything.fields }] }) : everythingProgram(all);
  }
  return isCurl() ? curl(facts) : pythonProgram(facts);
}

// The request that “Track forward” would send.
function videoProgram() {
  const request = requestOfPage("forward");
  if (!request) return "";
  const facts = {
    url: address("segment-anything-2/video"),
    fileName: page.fileName,
    modelId: page.modelId,
    needsToken: Boolean(token.get()),
    fields: request.fields,
  };
  return isCurl() ? curlOfVideo(facts) : pythonOfVideo(facts);
}

export function showProgram() {
  const text = program();
  $("code").textContent = text || "Click on something first.";
  $("copy").disabled = !text;
}

export async function copyProgram() {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(program());
  } else {
    // Without https, browsers offer no clipboard but this command.
    getSelection().selectAllChildren($("code"));
    document.execCommand("copy");
  }
  say("Copied.");
}
