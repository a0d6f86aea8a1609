// The objects of one image, each with its prompts and their answer, and all their earlier states. A state is never
// changed, only followed by a new one, so that undo and redo need no request; only an answer is added when it arrives.

const GOLDEN_ANGLE = 137.508;

const MOST_STATES = 200;

let lastNumber = 0;

export function newObject(name) {
  const number = ++lastNumber;
  return {
    id: number,
    name: name ?? `object ${number}`,
    hue: (265 + (number - 1) * GOLDEN_ANGLE) % 360,
    points: [], // {x, y, label}, in pixels of the image; label 1 or 0
    box: null, // [x0, y0, x1, y1]
    previous: null, // {logits, modelId, steps}: mask_input, its model, and the prompts that led to it
    before: null, // the candidate that is shown until the answer comes
    everything: null, // {fields, index}: the request for everything that found the object, and its place in the answer
    slot: { answer: null }, // {modelId, candidates: [{mask, score, logits}]}; shared by versions of the same prompts
    picked: 0,
  };
}

export function restartNumbers() {
  lastNumber = 0;
}

export const candidateOf = (object) => object?.slot.answer?.candidates[object.picked] ?? null;

export const isEmpty = (object) => !object.points.length && !object.box && !object.slot.answer;

export class History {
  constructor() {
    const first = newObject();
    this._states = [{ objects: [first], selected: first.id }];
    this._at = 0;
  }

  get state() {
    return this._states[this._at];
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
    this._push({ objects: [...kept, ...objects], selected: objects.at(-1).id });
  }

  remove(id) {
    const place = this.state.objects.findIndex((object) => object.id === id);
    const left = this.state.objects.filter((object) => object.id !== id);
    if (!left.length) left.push(newObject());
    const selected = this.state.selected === id ? left[Math.min(place, left.length - 1)].id : this.state.selected;
    this._push({ objects: left, selected });
  }

  clear() {
    const first = newObject();
    this._push({ objects: [first], selected: first.id });
  }

  // Neither select nor rename is a step to undo: nothing is lost by them.
  select(id) {
    this._states[this._at] = { ...this.state, selected: id };
  }

  rename(id, name) {
    const renamed = (object) => (object.id === id ? { ...object, name } : object);
    this._states = this._states.map((state) => ({ ...state, objects: state.objects.map(renamed) }));
  }
}
