// The timeline of a video: small pictures of some frames, a lane for each object, and the place of the present frame.
// It is a slider: pointer and keys become the event "seek" {frame}.

import { clamp } from "./geometry.js";
import { ABSENT, PRESENT } from "./tracks.js";

const LANE = 14; // pixels from one lane to the next
const BAR = 9; // the height of what is painted in a lane
const ABSENT_BAR = 2;
const PICTURE_HEIGHT = 44;
const PAGE_FRAMES = 10;

export class Timeline extends EventTarget {
  constructor(element) {
    super();
    this._element = element;
    this._strip = element.querySelector("#strip");
    this._lanes = element.querySelector("#lanes");
    this._head = element.querySelector("#playhead");
    this._count = 0;
    this._content = { lanes: [], frame: 0 };
    this._isAwaited = false;
    this._pictures = new Map(); // by frame: an ImageBitmap of the strip's size
    this._wanted = () => {};
    element.addEventListener("pointerdown", (event) => this._press(event));
    element.addEventListener("pointermove", (event) => event.buttons & 1 && this._point(event));
    element.addEventListener("keydown", (event) => this._key(event));
    new ResizeObserver(() => this._count && element.clientWidth !== this._width && this._resize()).observe(element);
  }

  // Shows a video of so many frames; none if 0. wantPictures(frames) is called with the frames whose pictures are wanted.
  show(count, aspect, wantPictures) {
    this._count = count;
    this._aspect = aspect;
    this._wanted = wantPictures;
    for (const picture of this._pictures.values()) picture.close();
    this._pictures.clear();
    this._element.setAttribute("aria-valuemax", String(Math.max(0, count - 1)));
    if (count) this._resize();
  }

  // lanes: [{hue, states, prompts, isSelected}]; states: see Tracks, prompts: frames. text: what a screen reader says.
  draw(lanes, frame, text) {
    this._content = { lanes, frame };
    this._element.setAttribute("aria-valuenow", String(frame));
    this._element.setAttribute("aria-valuetext", text);
    if (this._isAwaited) return;
    this._isAwaited = true;
    requestAnimationFrame(() => {
      this._isAwaited = false;
      if (this._count) this._paint();
    });
  }

  get pictureHeight() {
    return PICTURE_HEIGHT * devicePixelRatio;
  }

  addPicture(frame, bitmap) {
    this._pictures.get(frame)?.close();
    this._pictures.set(frame, bitmap);
    this._paintStrip();
  }

  // ---- painting

  _resize() {
    const width = this._element.clientWidth;
    if (!width) return; // It is hidden.
    this._width = width;
    const places = clamp(Math.floor(width / (PICTURE_HEIGHT * this._aspect)), 1, this._count);
    this._shown = Array.from({ length: places }, (_, place) => Math.floor(((place + 0.5) * this._count) / places));
    for (const [frame, picture] of this._pictures) {
      if (this._shown.includes(frame)) continue;
      picture.close();
      this._pictures.delete(frame);
    }
    this._paintStrip();
    this._paint();
    this._wanted(this._shown.filter((frame) => !this._pictures.has(frame)));
  }

  // Returns the canvas's context, in CSS pixels, cleared.
  _context(canvas, height) {
    const width = this._element.clientWidth;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    return context;
  }

  _paintStrip() {
    const context = this._context(this._strip, PICTURE_HEIGHT);
    const width = this._element.clientWidth / this._shown.length;
    this._shown.forEach((frame, place) => {
      const picture = this._pictures.get(frame);
      if (!picture) return;
      // As much of the picture as fits into its place, from its middle.
      const seen = Math.min(picture.width, (picture.height * width) / PICTURE_HEIGHT);
      const from = (picture.width - seen) / 2;
      context.drawImage(picture, from, 0, seen, picture.height, place * width, 0, width, PICTURE_HEIGHT);
    });
  }

  _paint() {
    const { lanes, frame } = this._content;
    const context = this._context(this._lanes, Math.max(1, lanes.length) * LANE + 3);
    const width = this._element.clientWidth;
    lanes.forEach((lane, index) => this._paintLane(context, lane, index * LANE + 3, width));
    this._head.style.transform = `translateX(${((frame + 0.5) / this._count) * width}px)`;
  }

  _paintLane(context, { hue, states, prompts, isSelected }, top, width) {
    const middle = top + BAR / 2;
    context.fillStyle = `hsl(${hue} 90% 55% / ${isSelected ? 0.25 : 0.12})`;
    context.fillRect(0, top, width, BAR);
    context.fillStyle = `hsl(${hue} 90% 55%)`;
    for (const { state, from, to } of this._runs(states)) {
      const height = state === PRESENT ? BAR : ABSENT_BAR;
      const left = (from / this._count) * width;
      // A frame is seen, however many there are.
      context.fillRect(left, middle - height / 2, Math.max(1, ((to - from) / this._count) * width), height);
    }
    for (const frame of prompts) {
      const x = ((frame + 0.5) / this._count) * width;
      context.beginPath();
      context.ellipse(x, middle, 4, 4, 0, 0, 2 * Math.PI);
      context.fillStyle = "#fff";
      context.strokeStyle = "#000";
      context.fill();
      context.stroke();
    }
  }

  // Returns [{state, from, to}]: where the object is, and where it is absent.
  _runs(states) {
    const runs = [];
    for (let from = 0, to = 0; from < states.length; from = to) {
      while (to < states.length && states[to] === states[from]) to++;
      if (states[from] === PRESENT || states[from] === ABSENT) runs.push({ state: states[from], from, to });
    }
    return runs;
  }

  // ---- pointer and keys

  _seek(frame) {
    this.dispatchEvent(new CustomEvent("seek", { detail: { frame: clamp(frame, 0, this._count - 1) } }));
  }

  _press(event) {
    if (event.button !== 0) return;
    this._element.setPointerCapture(event.pointerId);
    this._point(event);
  }

  _point(event) {
    const { left, width } = this._element.getBoundingClientRect();
    this._seek(Math.floor(((event.clientX - left) / width) * this._count));
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { frame } = this._content;
    const frames = {
      ArrowLeft: frame - 1,
      ArrowDown: frame - 1,
      ArrowRight: frame + 1,
      ArrowUp: frame + 1,
      PageDown: frame - PAGE_FRAMES,
      PageUp: frame + PAGE_FRAMES,
      Home: 0,
      End: this._count - 1,
    };
    if (!(event.key in frames)) return;
    event.preventDefault();
    this._seek(frames[event.key]);
  }
}
