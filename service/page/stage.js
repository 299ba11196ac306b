// A picture with an SVG over it in the picture's pixels, and boxes that are drawn on it with the mouse.

import { h, s } from "./dom.js";
import { BOX } from "./palette.js";

export class Stage {
  constructor(label) {
    this.over = s("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
    this.boxes = s("g", {});
    this.layer = s("g", {});
    this.over.append(this.boxes, this.layer);
    this.element = h("div", { class: "stage fit", role: "img", "aria-label": label }, this.over);
  }

  // `content` is an img, a canvas or a video.
  setPicture(content, width, height) {
    Object.assign(this, { width, height });
    this.element.replaceChildren(content, this.over);
    this.over.setAttribute("viewBox", `-0.5 -0.5 ${width} ${height}`); // integers are the centres of pixels
    // no larger than the window is high, and small pictures not beyond eight times their size
    this.element.style.maxWidth = `min(100%, ${Math.round(width * 8)}px, calc(74vh * ${width / height}))`;
  }

  draw(...layers) { this.layer.replaceChildren(...layers.filter(Boolean)); }

  // Where a pointer is, in pixels of the picture.
  place(event) {
    const frame = this.element.getBoundingClientRect();
    const within = (share) => Math.min(1, Math.max(0, share));
    return { x: within((event.clientX - frame.left) / frame.width) * this.width, y: within((event.clientY - frame.top) / frame.height) * this.height };
  }

  // Let boxes be drawn while `isOn()`; `onbox` gets each as [x, y, width, height]. What `grab` finds at a place is
  // dragged instead: it returns a function that gets how far.
  onBox(isOn, look, onbox, grab = () => null) {
    this.element.addEventListener("pointerdown", (event) => {
      if (!isOn() || event.button) return;
      event.preventDefault();
      this.element.setPointerCapture(event.pointerId);
      const from = this.place(event), shape = s("rect", look), shift = grab(from);
      let box = null;
      if (!shift) this.boxes.append(shape);
      const move = (next) => {
        const to = this.place(next);
        if (shift) { shift(to.x - from.x, to.y - from.y); return; }
        box = [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.abs(to.x - from.x), Math.abs(to.y - from.y)].map(Math.round);
        ["x", "y", "width", "height"].forEach((name, index) => shape.setAttribute(name, box[index] - (index < 2 ? 0.5 : 0)));
      };
      const end = (last) => {
        this.element.removeEventListener("pointermove", move);
        this.element.removeEventListener("pointerup", end);
        this.element.removeEventListener("pointercancel", end);
        shape.remove();
        if (last.type === "pointerup" && box && box[2] > 1 && box[3] > 1) onbox(box);
      };
      this.element.addEventListener("pointermove", move);
      this.element.addEventListener("pointerup", end);
      this.element.addEventListener("pointercancel", end);
    });
  }
}

// A box [x, y, width, height] in pixels of the picture, turned by its heading in degrees if it has one.
export const BOX_LOOK = { fill: BOX, "fill-opacity": 0.12, stroke: BOX, "stroke-width": 3, "vector-effect": "non-scaling-stroke" };
export function boxShape([x, y, width, height, turn], more) {
  const [left, top] = [x - 0.5, y - 0.5], middle = left + width / 2;
  return s("g", { transform: `rotate(${turn ?? 0} ${middle} ${top + height / 2})` }, s("rect", { ...BOX_LOOK, ...more, x: left, y: top, width, height }),
    turn !== undefined && s("line", { ...BOX_LOOK, x1: middle, x2: middle, y1: top, y2: top - height / 8 }));
}

// The square that the model sees around a box; `middle` counts from the picture's corner.
export const squareOf = ([x, y, width, height, turn = 0]) => ({ side: Math.max(width, height), middle: { x: x + width / 2, y: y + height / 2 }, turn: (turn * Math.PI) / 180 });

// A file as a picture that a browser can draw; null where it can't read that kind.
export async function readPicture(file) {
  try { return await createImageBitmap(file); } catch { return null; }
}

export function toCanvas(bitmap, boxes = []) {
  const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  context.fillStyle = "#000";
  for (const [x, y, width, height] of boxes) context.fillRect(x, y, width, height);
  return canvas;
}

export const toBlob = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
