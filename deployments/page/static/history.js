// The objects of one image or video, each with its prompts and their answer, and all their earlier states. A state is
// never changed, only followed by a new one, so that undo and redo need no request; only an answer is added when it
// arrives.
//
// In a video a state has a present frame. An object's own points, box and answer are its prompt on that frame; those on
// other frames wait in `others`. An image is a video of one frame.

const GOLDEN_ANGLE = 137.508;

const MOST_STATES = 200;

let lastNumber = 0;

const noPrompt = () => ({
  points: [], // {x, y, label}, in pixels of the image; label 1 or 0
  box: null, // [x0, y0, x1, y1]
  previous: null, // {candidate, modelId, steps}: what becomes mask_input, its model, and the prompts that led to it
  before: null, // the candidate that is shown until the answer comes
  everything: null, // {fields, index}: the request for everything that found the object, and its place in the answer
  slot: { answer: null }, // {modelId, candidates: [{mask, score, logits}]}; shared by versions of the same prompts
  picked: 0,
});

export function newObject(name) {
  const number = ++lastNumber;
  return {
    id: number,
    name: name ?? `object ${number}`,
    hue: (265 + (number - 1) * GOLDEN_ANGLE) % 360,
    others: {}, // by frame: the prompts on other frames than the present one
    ...noPrompt(),
  };
}

export function restartNumbers() {
  lastNumber = 0;
}

export const candidateOf = (object) => object?.slot.answer?.candidates[object.picked] ?? null;

export const isAsked = ({ points, box }) => points.length > 0 || box !== null;

const hasPrompt = (prompt) => isAsked(prompt) || prompt.slot.answer !== null;

export const isEmpty = (object) => !hasPrompt(object) && !Object.keys(object.others).length;

// Returns the object with its prompt on another frame as its own.
function movedTo(frame, present, object) {
  const { id, name, hue, others, ...prompt } = object;
  const waiting = hasPrompt(object) ? { ...others, [present]: prompt } : others;
  const { [frame]: there = noPrompt(), ...left } = waiting;
  return { id, name, hue, others: left, ...there };
}

export class History {
  constructor() {
    const first = newObject();
    this._states = [{ objects: [first], selected: first.id, frame: 0 }];
    this._at = 0;
  }

  get state() {
    return this._states[this._at];
  }

  get frame() {
    return this.state.frame;
  }

  get selected() {
    return this.state.objects.find(({ id }) => id === this.state.selected);
  }

  // The objects that have a mask.
  get finished() {
    return this.state.objects.filter((object) => candidateOf(object));
  }

  get canUndo() {
    return this._at > 0;
  }

  get canRedo() {
    return this._at < this._states.length - 1;
  }

  undo() {
    if (this.canUndo) this._at--;
  }

  redo() {
    if (this.canRedo) this._at++;
  }

  _push(state) {
    this._states.length = this._at + 1;
    this._states.push(state);
    if (this._states.length > MOST_STATES) this._states.shift();
    this._at = this._states.length - 1;
  }

  // Replaces an object by a version with these changes; returns that version.
  change(id, changes) {
    const changed = { ...this.state.objects.find((object) => object.id === id), ...changes };
    this._push({ ...this.state, objects: this.state.objects.map((object) => (object.id === id ? changed : object)) });
    return changed;
  }

  add(objects) {
    const kept = this.state.objects.filter((object) => !isEmpty(object));
    this._push({ ...this.state, objects: [...kept, ...objects], selected: objects.at(-1).id });
  }

  remove(id) {
    const place = this.state.objects.findIndex((object) => object.id === id);
    const left = this.state.objects.filter((object) => object.id !== id);
    if (!left.length) left.push(newObject());
    const selected = this.state.selected === id ? left[Math.min(place, left.length - 1)].id : this.state.selected;
    this._push({ ...this.state, objects: left, selected });
  }

  clear() {
    const first = newObject();
    this._push({ ...this.state, objects: [first], selected: first.id });
  }

  // Returns all prompts of an object, [frame, prompt], in the order of their frames.
  promptsOf(object) {
    const { others, ...own } = object;
    const all = Object.entries(others).map(([frame, prompt]) => [Number(frame), prompt]);
    if (hasPrompt(object)) all.push([this.frame, own]);
    return all.sort(([one], [other]) => one - other);
  }

  // Returns what is asked of an object on a frame.
  promptOn(frame, object) {
    return frame === this.frame ? object : (object.others[frame] ?? noPrompt());
  }

  // Neither select nor rename nor another frame is a step to undo: nothing is lost by them.
  moveTo(frame) {
    const { state } = this;
    if (frame === state.frame) return;
    const objects = state.objects.map((object) => movedTo(frame, state.frame, object));
    this._states[this._at] = { ...state, objects, frame };
  }

  select(id) {
    this._states[this._at] = { ...this.state, selected: id };
  }

  rename(id, name) {
    const renamed = (object) => (object.id === id ? { ...object, name } : object);
    this._states = this._states.map((state) => ({ ...state, objects: state.objects.map(renamed) }));
  }
}
