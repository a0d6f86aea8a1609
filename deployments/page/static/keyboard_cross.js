// The keyboard on the stage: a cross that the arrow keys move, and the keys that click, draw a box and zoom there.

import { boxBetween, clamp } from "./geometry.js";

const MARGIN_PIXELS = 30; // how near the cross comes to the stage's edge in an enlarged image

export class KeyboardCross {
  constructor(view) {
    this._view = view;
    this.reset();
    view.stage.addEventListener("keydown", (event) => this._press(event));
    view.stage.addEventListener("blur", () => this.leave());
  }

  reset() {
    this.at = null; // {x, y} in the image; null until a key is pressed
    this._corner = null; // the first corner of a box
  }

  leave() {
    if (!this.at) return;
    this.reset();
    this._view.tell("hover", null);
    this._view.drawBox(null);
  }

  _press(event) {
    const view = this._view;
    if (view.isEmpty || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(view.width, view.height) / 50));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const actions = {
      Enter: () => view.tell("click", { ...this.at, label: 1 }),
      b: () => view.tell("click", { ...this.at, label: 0 }),
      x: () => this._setCorner(),
      "+": () => this._zoom(1.25),
      "=": () => this._zoom(1.25),
      "-": () => this._zoom(0.8),
      0: () => view.fit(),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!moves[key] && !actions[key]) return;
    event.preventDefault();
    if (event.repeat && ["Enter", "b", "x"].includes(key)) return;
    this.at ??= { x: Math.round(view.width / 2), y: Math.round(view.height / 2) };
    if (moves[key]) this._move(...moves[key]);
    else actions[key]();
    view.drawMarks();
  }

  _move(dx, dy) {
    const view = this._view;
    this.at = { x: clamp(this.at.x + dx, 0, view.width), y: clamp(this.at.y + dy, 0, view.height) };
    if (this._corner) view.drawBox(boxBetween(this._corner, this.at, view));
    this._keepInSight();
    view.tell("cross", this.at);
    view.tell("hover", this.at);
  }

  // Moves an enlarged image under a cross that would leave the stage.
  _keepInSight() {
    const view = this._view;
    const { clientWidth, clientHeight } = view.stage;
    const [x, y] = view.toStage(this.at.x, this.at.y);
    const dx = clamp(x, MARGIN_PIXELS, clientWidth - MARGIN_PIXELS) - x;
    const dy = clamp(y, MARGIN_PIXELS, clientHeight - MARGIN_PIXELS) - y;
    if (!view.isFitted && (dx || dy)) view.pan(dx, dy);
  }

  _zoom(factor) {
    this._view.zoom(factor, ...this._view.toStage(this.at.x, this.at.y));
  }

  // Sets the first, then the second corner of a box.
  _setCorner() {
    if (!this._corner) {
      this._corner = this.at;
      return;
    }
    const box = boxBetween(this._corner, this.at, this._view);
    this._corner = null;
    this._view.drawBox(null);
    if (box[2] > box[0] && box[3] > box[1]) this._view.tell("box", { box });
  }
}
