// Runs the user's requests as jobs, one at a time for each purpose: a job can be cancelled, waits for a token if the
// service asks for one, and tells its fault as a sentence.

import { Fault } from "./faults.js";
import { token } from "./service.js";
import { $, page } from "./state.js";
import { complain, keepFocus, say, showProgress } from "./status.js";

const CANCEL_AFTER_MS = 700; // until then, "Cancel" is not offered

const jobs = new Map(); // by purpose ("image", "everything", an object's id, …): the job's AbortController
const waitingForToken = new Map(); // by purpose: the action to run when there is a token

export const isRunning = (key) => jobs.has(key);

// Runs action(signal, controller); an earlier job of the same purpose is aborted.
export async function run(key, action) {
  jobs.get(key)?.abort();
  const controller = new AbortController();
  jobs.set(key, controller);
  complain("");
  const timer = setTimeout(() => ($("cancel").hidden = false), CANCEL_AFTER_MS);
  try {
    await action(controller.signal, controller);
  } catch (fault) {
    if (jobs.get(key) !== controller || fault.name === "AbortError") return;
    say("");
    if (fault.kind === "token") askForToken(fault.message, key, action);
    else complain(fault instanceof Fault ? fault.message : `Something went wrong in this page: ${fault.message}`);
    if (!(fault instanceof Fault)) console.error(fault);
  } finally {
    clearTimeout(timer);
    if (jobs.get(key) === controller) jobs.delete(key);
    if (!jobs.size) {
      showProgress(null);
      keepFocus(() => ($("cancel").hidden = true));
    }
  }
}

// Runs an action that may fail but takes too little time to be a job.
export async function attempt(action) {
  try {
    await action();
  } catch (fault) {
    console.error(fault);
    complain(`That did not work: ${fault.message}`);
  }
}

export function cancel(key) {
  jobs.get(key)?.abort();
}

export function cancelAll() {
  for (const controller of jobs.values()) controller.abort();
  page.session?.cancel();
}

function askForToken(sentence, key, action) {
  complain(token.get() ? sentence : "");
  waitingForToken.set(key, action);
  $("token-form").hidden = false;
  $("token").focus();
}

// Takes the token from its form, tries it with loadModels, then runs the jobs that wait for it.
export function useToken(loadModels) {
  token.set($("token").value.trim());
  $("token").value = "";
  keepFocus(() => ($("token-form").hidden = true));
  run("models", async (signal) => {
    await loadModels(signal);
    waitingForToken.delete("models");
    for (const [key, action] of waitingForToken) run(key, action);
    waitingForToken.clear();
  });
}
