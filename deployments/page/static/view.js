// The image with masks and prompts over it, and what mouse, fingers and keys do to it.
//
// Image and overlay are elements at the image's own resolution, which the browser scales and moves; marks are drawn over
// them at the screen's resolution. Events: "click" {x, y, label}, "box" {box}, "hover" {x, y} or null, "cross" {x, y}.

const SVG = "http://www.w3.org/2000/svg";
const DRAG_PIXELS = 5;
const MOST_ZOOM = 40;
const FILL = 0.45;

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const round = (value) => Math.round(value * 10) / 10;

// "hsl(hue 90% 55%)" as [red, green, blue].
export function rgbOf(hue) {
  const channel = (shift) => {
    const at = (shift + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.405 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export class View extends EventTarget {
  constructor(stage) {
    super();
    this.stage = stage;
    this.world = stage.querySelector("#world");
    this.image = stage.querySelector("#image");
    this.overlay = stage.querySelector("#overlay");
    this.marks = stage.querySelector("#marks");
    this.tool = "add";
    this.width = this.height = 0;
    this._scale = 1;
    this._left = this._top = 0;
    this._fitted = true;
    this._cross = null;
    this._corner = null; // first corner of a box that the keyboard draws
    this._drawn = null;
    this._object = null;
    this._pointers = new Map();
    this._listen();
  }

  get isEmpty() {
    return !this.width;
  }

  _tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // ---- what is shown

  async show(url) {
    this.image.src = url;
    await this.image.decode();
    [this.width, this.height] = [this.image.naturalWidth, this.image.naturalHeight];
    [this.overlay.width, this.overlay.height] = [this.width, this.height];
    for (const element of [this.world, this.image]) {
      element.style.width = `${this.width}px`;
      element.style.height = `${this.height}px`;
    }
    this.world.hidden = false;
    this._cross = this._corner = this._drawn = this._object = null;
    this.fit();
  }

  clear() {
    this.world.hidden = true;
    this.image.removeAttribute("src");
    this.width = this.height = 0;
    this._pixels = null;
    this._pointers.clear();
    this._cross = this._corner = this._drawn = null;
    this.mark(null);
  }

  // layers: [{mask, hue, strength 0 to 1}], the first at the bottom.
  paint(layers) {
    const context = this.overlay.getContext("2d", { willReadFrequently: true });
    if (this._pixels?.width !== this.width || this._pixels.height !== this.height) {
      this._pixels = context.createImageData(this.width, this.height);
    }
    const pixels = this._pixels;
    pixels.data.fill(0);
    const reach = Math.max(1, Math.round(Math.max(this.width, this.height) / 700));
    for (const { mask, hue, strength } of layers) {
      const [red, green, blue] = rgbOf(hue);
      mask.visit(reach, (x, y, onEdge) => {
        const at = 4 * (y * this.width + x);
        pixels.data[at] = red;
        pixels.data[at + 1] = green;
        pixels.data[at + 2] = blue;
        pixels.data[at + 3] = 255 * strength * (onEdge ? 1 : FILL);
      });
    }
    context.putImageData(pixels, 0, 0);
  }

  // The object whose prompts are drawn.
  mark(object) {
    this._object = object;
    this._drawMarks();
  }

  // ---- zoom

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    this._scale = Math.min(clientWidth / this.width, clientHeight / this.height, MOST_ZOOM);
    this._left = (clientWidth - this.width * this._scale) / 2;
    this._top = (clientHeight - this.height * this._scale) / 2;
    this._fitted = true;
    this._place();
  }

  // x, y: the point of the stage that stays where it is; its middle if not given.
  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const least = Math.min(1, this.stage.clientWidth / this.width, this.stage.clientHeight / this.height) / 2;
    const scale = clamp(this._scale * factor, least, MOST_ZOOM);
    this._left = x - ((x - this._left) * scale) / this._scale;
    this._top = y - ((y - this._top) * scale) / this._scale;
    this._scale = scale;
    this._fitted = false;
    this._place();
  }

  pan(dx, dy) {
    this._left += dx;
    this._top += dy;
    this._fitted = false;
    this._place();
  }

  _place() {
    // Some of the image always stays in sight.
    const margin = 40;
    this._left = clamp(this._left, margin - this.width * this._scale, this.stage.clientWidth - margin);
    this._top = clamp(this._top, margin - this.height * this._scale, this.stage.clientHeight - margin);
    this.world.style.transform = `translate(${this._left}px, ${this._top}px) scale(${this._scale})`;
    this.world.classList.toggle("pixels", this._scale * devicePixelRatio > 3);
    this._drawMarks();
  }

  _toImage(event) {
    const frame = this.stage.getBoundingClientRect();
    return {
      x: round((event.clientX - frame.left - this._left) / this._scale),
      y: round((event.clientY - frame.top - this._top) / this._scale),
    };
  }

  _toStage(x, y) {
    return [this._left + x * this._scale, this._top + y * this._scale];
  }

  _holds({ x, y }) {
    return x >= 0 && y >= 0 && x <= this.width && y <= this.height;
  }

  // ---- marks

  _drawMarks() {
    const drawn = [];
    const add = (name, attributes) => {
      const element = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      drawn.push(element);
    };
    const box = (corners, kind) => {
      const [left, top] = this._toStage(corners[0], corners[1]);
      const [right, bottom] = this._toStage(corners[2], corners[3]);
      add("rect", { class: `box ${kind}`, x: left, y: top, width: right - left, height: bottom - top });
    };
    if (this._object?.box) box(this._object.box, "");
    if (this._drawn) box(this._drawn, "drawn");
    for (const { x, y, label } of this._object?.points ?? []) {
      const [cx, cy] = this._toStage(x, y);
      add("circle", { class: label ? "foreground" : "background", cx, cy, r: 7 });
      // A sign too, for who does not tell red from green.
      add("path", { class: "sign", d: `M${cx - 3.5} ${cy}h7${label ? `M${cx} ${cy - 3.5}v7` : ""}` });
    }
    if (this._cross) {
      const [x, y] = this._toStage(this._cross.x, this._cross.y);
      add("path", { class: "cross", d: `M${x - 14} ${y}h28M${x} ${y - 14}v28`, fill: "none" });
    }
    this.marks.replaceChildren(...drawn);
  }

  _boxOf(one, other) {
    const x = [one.x, other.x].map((value) => clamp(value, 0, this.width)).sort((a, b) => a - b);
    const y = [one.y, other.y].map((value) => clamp(value, 0, this.height)).sort((a, b) => a - b);
    return [x[0], y[0], x[1], y[1]];
  }

  // ---- mouse and fingers

  _listen() {
    const { stage } = this;
    stage.addEventListener("pointerdown", (event) => this._down(event));
    stage.addEventListener("pointermove", (event) => this._move(event));
    stage.addEventListener("pointerup", (event) => this._up(event));
    stage.addEventListener("pointercancel", (event) => this._forget(event));
    stage.addEventListener("pointerleave", () => this._tell("hover", null));
    // The middle button would start the browser's own scrolling.
    stage.addEventListener("mousedown", (event) => event.button === 1 && event.preventDefault());
    stage.addEventListener("contextmenu", (event) => !this.isEmpty && event.preventDefault());
    stage.addEventListener("keydown", (event) => this._key(event));
    stage.addEventListener("blur", () => this._leaveKeys());
    stage.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
    new ResizeObserver(() => !this.isEmpty && (this._fitted ? this.fit() : this._place())).observe(stage);
  }

  _wheel(event) {
    if (this.isEmpty) return;
    event.preventDefault();
    const frame = this.stage.getBoundingClientRect();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : 30 * event.deltaY;
    this.zoom(Math.exp(clamp(-pixels, -120, 120) / 300), event.clientX - frame.left, event.clientY - frame.top);
  }

  _down(event) {
    if (this.isEmpty || event.button > 2 || event.target.closest("button, a")) return;
    this._leaveKeys();
    this.stage.setPointerCapture(event.pointerId);
    const purpose =
      event.button === 1 || this.tool === "move" ? "pan"
      : event.pointerType === "touch" && this.tool !== "box" ? "tap"
      : event.button === 0 && !event.altKey && !event.ctrlKey ? "box"
      : "click";
    // Ctrl-click is a Mac's right click.
    const label = this.tool === "remove" || event.button === 2 || event.altKey || event.ctrlKey ? 0 : 1;
    const at = { x: event.clientX, y: event.clientY };
    this._pointers.set(event.pointerId, { start: at, at, from: this._toImage(event), purpose, label, moved: false });
    if (this._pointers.size > 1) this._endDrawing();
  }

  // Two fingers zoom and move; what one of them had begun is void.
  _endDrawing() {
    this._drawn = null;
    for (const pointer of this._pointers.values()) pointer.purpose = "pinch";
    this._drawMarks();
  }

  _move(event) {
    const pointer = this._pointers.get(event.pointerId);
    if (!pointer) {
      if (!this.isEmpty && event.pointerType !== "touch") this._hover(event);
      return;
    }
    const before = pointer.at;
    pointer.at = { x: event.clientX, y: event.clientY };
    pointer.moved ||= Math.hypot(pointer.at.x - pointer.start.x, pointer.at.y - pointer.start.y) > DRAG_PIXELS;
    if (pointer.purpose === "pinch") this._pinch(pointer, before);
    else if (!pointer.moved) return;
    else if (pointer.purpose === "box") {
      this._drawn = this._boxOf(pointer.from, this._toImage(event));
      this._drawMarks();
    } else if (pointer.purpose !== "click") this.pan(pointer.at.x - before.x, pointer.at.y - before.y);
  }

  _pinch(moved, before) {
    const other = [...this._pointers.values()].find((pointer) => pointer !== moved);
    if (!other) return;
    const distance = (one) => Math.hypot(one.x - other.at.x, one.y - other.at.y);
    const frame = this.stage.getBoundingClientRect();
    this.pan((moved.at.x - before.x) / 2, (moved.at.y - before.y) / 2);
    const x = (moved.at.x + other.at.x) / 2 - frame.left;
    const y = (moved.at.y + other.at.y) / 2 - frame.top;
    if (distance(before) > 0) this.zoom(distance(moved.at) / distance(before), x, y);
  }

  _hover(event) {
    const at = this._toImage(event);
    this._tell("hover", this._holds(at) ? at : null);
  }

  _up(event) {
    const pointer = this._pointers.get(event.pointerId);
    this._forget(event);
    if (!pointer || pointer.purpose === "pan" || pointer.purpose === "pinch") return;
    const at = this._toImage(event);
    if (pointer.moved && pointer.purpose === "box") {
      const box = this._boxOf(pointer.from, at);
      if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) this._tell("box", { box });
    } else if (!pointer.moved && this._holds(at)) {
      this._tell("click", { ...at, label: pointer.label });
    }
  }

  _forget(event) {
    this._pointers.delete(event.pointerId);
    this._drawn = null;
    this._drawMarks();
  }

  // ---- keys

  _leaveKeys() {
    if (!this._cross) return;
    this._cross = this._corner = this._drawn = null;
    this._tell("hover", null);
    this._drawMarks();
  }

  _key(event) {
    if (this.isEmpty || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(this.width, this.height) / 50));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const actions = {
      Enter: () => this._tell("click", { ...this._cross, label: 1 }),
      b: () => this._tell("click", { ...this._cross, label: 0 }),
      x: () => this._keyBox(),
      "+": () => this._zoomAtCross(1.25),
      "=": () => this._zoomAtCross(1.25),
      "-": () => this._zoomAtCross(0.8),
      0: () => this.fit(),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!moves[key] && !actions[key]) return;
    event.preventDefault();
    if (event.repeat && ["Enter", "b", "x"].includes(key)) return;
    this._cross ??= { x: Math.round(this.width / 2), y: Math.round(this.height / 2) };
    if (moves[key]) this._moveCross(...moves[key]);
    else actions[key]();
    this._drawMarks();
  }

  _moveCross(dx, dy) {
    this._cross = { x: clamp(this._cross.x + dx, 0, this.width), y: clamp(this._cross.y + dy, 0, this.height) };
    if (this._corner) this._drawn = this._boxOf(this._corner, this._cross);
    this._followCross();
    this._tell("cross", this._cross);
    this._tell("hover", this._cross);
  }

  // The image moves under a cross that would leave the stage: so the keyboard pans.
  _followCross() {
    const margin = 30;
    const { clientWidth, clientHeight } = this.stage;
    const [x, y] = this._toStage(this._cross.x, this._cross.y);
    const [dx, dy] = [clamp(x, margin, clientWidth - margin) - x, clamp(y, margin, clientHeight - margin) - y];
    if (!this._fitted && (dx || dy)) this.pan(dx, dy);
  }

  _zoomAtCross(factor) {
    this.zoom(factor, ...this._toStage(this._cross.x, this._cross.y));
  }

  _keyBox() {
    if (!this._corner) {
      this._corner = this._cross;
      return;
    }
    const box = this._boxOf(this._corner, this._cross);
    this._corner = this._drawn = null;
    if (box[2] > box[0] && box[3] > box[1]) this._tell("box", { box });
  }
}
