// Mouse and fingers on the stage: clicks, boxes, moving and zooming.

import { boxBetween, clamp } from "./geometry.js";

const DRAG_PIXELS = 5; // a pointer that moves less has clicked
const LINE_PIXELS = 30; // of a mouse wheel that counts lines

export class Pointers {
  constructor(view) {
    this._view = view;
    this._pointers = new Map(); // those that are down, by id: {start, at, from, purpose, label, moved}
    const { stage } = view;
    stage.addEventListener("pointerdown", (event) => this._down(event));
    stage.addEventListener("pointermove", (event) => this._move(event));
    stage.addEventListener("pointerup", (event) => this._up(event));
    stage.addEventListener("pointercancel", (event) => this._forget(event));
    stage.addEventListener("pointerleave", () => view.tell("hover", null));
    // The middle button would start the browser's own scrolling.
    stage.addEventListener("mousedown", (event) => event.button === 1 && event.preventDefault());
    stage.addEventListener("contextmenu", (event) => !view.isEmpty && event.preventDefault());
    stage.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
  }

  reset() {
    this._pointers.clear();
  }

  _wheel(event) {
    if (this._view.isEmpty) return;
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : LINE_PIXELS * event.deltaY;
    this._view.zoom(Math.exp(clamp(-pixels, -120, 120) / 300), ...this._view.onStage(event));
  }

  _down(event) {
    const view = this._view;
    if (view.isEmpty || event.button > 2 || event.target.closest("button, a")) return;
    view.leaveKeyboard();
    view.stage.setPointerCapture(event.pointerId);
    const purpose =
      event.button === 1 || view.tool === "move" ? "pan"
      : event.pointerType === "touch" && view.tool !== "box" ? "tap"
      : event.button === 0 && !event.altKey && !event.ctrlKey ? "box"
      : "click";
    // Ctrl-click is a Mac's right click.
    const label = view.tool === "remove" || event.button === 2 || event.altKey || event.ctrlKey ? 0 : 1;
    const at = { x: event.clientX, y: event.clientY };
    this._pointers.set(event.pointerId, { start: at, at, from: view.toImage(event), purpose, label, moved: false });
    if (this._pointers.size > 1) this._beginPinch();
  }

  // Two fingers zoom and move; a click or box that one of them had begun is void.
  _beginPinch() {
    for (const pointer of this._pointers.values()) pointer.purpose = "pinch";
    this._view.drawBox(null);
  }

  _move(event) {
    const view = this._view;
    const pointer = this._pointers.get(event.pointerId);
    if (!pointer) {
      if (!view.isEmpty && event.pointerType !== "touch") this._hover(event);
      return;
    }
    const before = pointer.at;
    pointer.at = { x: event.clientX, y: event.clientY };
    pointer.moved ||= Math.hypot(pointer.at.x - pointer.start.x, pointer.at.y - pointer.start.y) > DRAG_PIXELS;
    if (pointer.purpose === "pinch") this._pinch(pointer, before);
    else if (!pointer.moved) return;
    else if (pointer.purpose === "box") view.drawBox(boxBetween(pointer.from, view.toImage(event), view));
    else if (pointer.purpose !== "click") view.pan(pointer.at.x - before.x, pointer.at.y - before.y);
  }

  _pinch(moved, before) {
    const other = [...this._pointers.values()].find((pointer) => pointer !== moved);
    if (!other) return;
    const distance = (one) => Math.hypot(one.x - other.at.x, one.y - other.at.y);
    this._view.pan((moved.at.x - before.x) / 2, (moved.at.y - before.y) / 2);
    const middle = { clientX: (moved.at.x + other.at.x) / 2, clientY: (moved.at.y + other.at.y) / 2 };
    if (distance(before) > 0) this._view.zoom(distance(moved.at) / distance(before), ...this._view.onStage(middle));
  }

  _hover(event) {
    const at = this._view.toImage(event);
    this._view.tell("hover", this._view.holds(at) ? at : null);
  }

  _up(event) {
    const view = this._view;
    const pointer = this._pointers.get(event.pointerId);
    this._forget(event);
    if (!pointer || pointer.purpose === "pan" || pointer.purpose === "pinch") return;
    const at = view.toImage(event);
    if (pointer.moved && pointer.purpose === "box") {
      const box = boxBetween(pointer.from, at, view);
      if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) view.tell("box", { box });
    } else if (!pointer.moved && view.holds(at)) {
      view.tell("click", { ...at, label: pointer.label });
    }
  }

  _forget(event) {
    this._pointers.delete(event.pointerId);
    this._view.drawBox(null);
  }
}
