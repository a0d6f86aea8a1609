// The image with masks and prompts over it: shows them, zooms and moves them.
//
// Image and overlay are elements at the image's own resolution, which the browser scales and moves. Mouse, fingers and
// keys become events, in pixels of the image: "click" {x, y, label}, "box" {box}, "hover" {x, y} or null, and "cross"
// {x, y}.

import { clamp } from "./geometry.js";
import { KeyboardCross } from "./keyboard_cross.js";
import { drawMarks } from "./marks.js";
import { Overlay } from "./overlay.js";
import { Pointers } from "./pointers.js";

const MOST_ZOOM = 40;
const MARGIN_PIXELS = 40; // so much of the image always stays in sight

const round = (value) => Math.round(value * 10) / 10;

export class View extends EventTarget {
  constructor(stage) {
    super();
    this.stage = stage;
    this.image = stage.querySelector("#image");
    this.tool = "add"; // the purpose of a click: "add", "remove", "box" or "move"
    this.width = this.height = 0;
    this.isFitted = true;
    this._world = stage.querySelector("#world");
    this._marks = stage.querySelector("#marks");
    this._overlay = new Overlay(stage.querySelector("#overlay"));
    this._scale = 1;
    this._left = this._top = 0;
    this._object = null;
    this._drawn = null;
    this._turn = 0; // counts the pictures that were shown
    this._cross = new KeyboardCross(this);
    this._pointers = new Pointers(this);
    new ResizeObserver(() => !this.isEmpty && (this.isFitted ? this.fit() : this._place())).observe(stage);
  }

  get isEmpty() {
    return !this.width;
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // ---- content

  async show(url) {
    await this.swap(url);
    [this.width, this.height] = [this.image.naturalWidth, this.image.naturalHeight];
    this._overlay.resize(this.width, this.height);
    for (const element of [this._world, this.image]) {
      element.style.width = `${this.width}px`;
      element.style.height = `${this.height}px`;
    }
    this._world.hidden = false;
    this._object = this._drawn = null;
    this._cross.reset();
    this.fit();
  }

  // Shows another picture of the same size in place of the present one. Until it is decoded, that one stays.
  async swap(url) {
    const turn = ++this._turn;
    const next = new Image();
    next.src = url;
    await next.decode();
    // Meanwhile a newer picture may have been shown, or none is wanted any more.
    if (turn !== this._turn) throw new DOMException("Another picture is shown.", "AbortError");
    this.image.src = url;
    await this.image.decode();
  }

  clear() {
    this._turn++;
    this._world.hidden = true;
    this.image.removeAttribute("src");
    this.width = this.height = 0;
    this._overlay.clear();
    this._pointers.reset();
    this._cross.reset();
    this._drawn = null;
    this.mark(null);
  }

  // layers: [{mask, hue, strength 0 to 1}], the first at the bottom.
  paint(layers) {
    this._overlay.paint(layers);
  }

  // Marks the prompts of an object.
  mark(object) {
    this._object = object;
    this.drawMarks();
  }

  // Shows a box that the user is drawing; null for none.
  drawBox(box) {
    this._drawn = box;
    this.drawMarks();
  }

  drawMarks() {
    const { points = [], box = null } = this._object ?? {};
    const marks = { points, box, drawn: this._drawn, cross: this._cross.at };
    drawMarks(this._marks, (x, y) => this.toStage(x, y), marks);
  }

  leaveKeyboard() {
    this._cross.leave();
  }

  // ---- zoom

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    this._scale = Math.min(clientWidth / this.width, clientHeight / this.height, MOST_ZOOM);
    this._left = (clientWidth - this.width * this._scale) / 2;
    this._top = (clientHeight - this.height * this._scale) / 2;
    this.isFitted = true;
    this._place();
  }

  // x, y: the point of the stage that stays where it is; its middle if not given.
  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const least = Math.min(1, this.stage.clientWidth / this.width, this.stage.clientHeight / this.height) / 2;
    const scale = clamp(this._scale * factor, least, MOST_ZOOM);
    this._left = x - ((x - this._left) * scale) / this._scale;
    this._top = y - ((y - this._top) * scale) / this._scale;
    this._scale = scale;
    this.isFitted = false;
    this._place();
  }

  pan(dx, dy) {
    this._left += dx;
    this._top += dy;
    this.isFitted = false;
    this._place();
  }

  _place() {
    const { clientWidth, clientHeight } = this.stage;
    this._left = clamp(this._left, MARGIN_PIXELS - this.width * this._scale, clientWidth - MARGIN_PIXELS);
    this._top = clamp(this._top, MARGIN_PIXELS - this.height * this._scale, clientHeight - MARGIN_PIXELS);
    this._world.style.transform = `translate(${this._left}px, ${this._top}px) scale(${this._scale})`;
    this._world.classList.toggle("pixels", this._scale * devicePixelRatio > 3);
    this.drawMarks();
  }

  // ---- from the screen to the image and back

  // Returns where on the stage an event is, in its pixels.
  onStage({ clientX, clientY }) {
    const frame = this.stage.getBoundingClientRect();
    return [clientX - frame.left, clientY - frame.top];
  }

  // Returns where in the image an event is, in its pixels, rounded to tenths.
  toImage(event) {
    const [x, y] = this.onStage(event);
    return { x: round((x - this._left) / this._scale), y: round((y - this._top) / this._scale) };
  }

  toStage(x, y) {
    return [this._left + x * this._scale, this._top + y * this._scale];
  }

  holds({ x, y }) {
    return x >= 0 && y >= 0 && x <= this.width && y <= this.height;
  }
}
