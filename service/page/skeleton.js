// Draw poses as SVG: links by strength, keypoints in the product's colours, numbers or names beside them.

import COLOURS from "./palette.js";
import { s } from "./dom.js";

export const colour = (index) => COLOURS[index % COLOURS.length];
const OUTLINE = "#101218";
// dark colours get a light rim, so that they stand out from dark pictures
export const rim = (index) => {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour(index).slice(at, at + 2), 16));
  return 0.3 * red + 0.6 * green + 0.1 * blue < 96 ? "#e8e8ec" : OUTLINE;
};

// The layer of one pose. `unit` is a hundredth of the side of what the model saw; names end at `right` at the latest.
export function poseLayer({ points, links = [], unit, labels = null, marks = [], opacity = 1, dots = true, lines = true, ids = null, right = Infinity }) {
  const layer = s("g", { opacity }), end = (index) => (ids ? ids[index] : index);
  const strongest = Math.max(...links.map((link) => link.weight), 1e-9);
  if (lines) for (const { i, j, weight } of [...links].sort((a, b) => a.weight - b.weight)) {
    if (!points[i] || !points[j] || weight <= 0) continue;
    const strength = Math.max(weight / strongest, 0.3), [a, b] = [points[i], points[j]];
    const place = { x1: a.x, y1: a.y, x2: b.x, y2: b.y, "stroke-linecap": "round" };
    layer.append(s("g", { class: "link", "data-i": i, "data-j": j, opacity: 0.3 + 0.65 * strength },
      s("line", { ...place, stroke: rim(end(i)), "stroke-width": unit * (0.95 + 0.9 * strength), opacity: 0.55 }),
      s("line", { ...place, stroke: colour(end(i)), "stroke-width": unit * (0.45 + 0.85 * strength) })));
  }
  if (dots) points.forEach((point, index) => {
    if (!point) return;
    layer.append(s("g", { class: "dot", "data-id": end(index) },
      s("circle", { cx: point.x, cy: point.y, r: unit * 1.35, fill: colour(end(index)), stroke: rim(end(index)), "stroke-width": unit * 0.35 })));
  });
  if (labels) points.forEach((point, index) => point && layer.append(label(point, labels[index], unit, right)));
  for (const mark of marks) {
    layer.append(s("circle", { cx: mark.x, cy: mark.y, r: unit * 1.1, fill: "#fff", stroke: OUTLINE, "stroke-width": unit * 0.35 }),
      label(mark, mark.name, unit, right));
  }
  return layer;
}

function label(point, text, unit, right) {
  const width = 0.6 * 3.2 * unit * String(text).length; // about
  return s("text", { x: Math.min(point.x + 1.9 * unit, right - width), y: point.y - 1.2 * unit, style: { fontSize: `${3.2 * unit}px` }, "stroke-width": 0.7 * unit }, String(text));
}

// A pose in the model's square, [-1, 1], is drawn in thousandths of its side: browsers round smaller letters.
export const SCALE = 500;
export const toPoints = (pairs) => pairs.map(([x, y]) => ({ x: SCALE * x, y: SCALE * y }));

export function skeleton(pairs, links, { labels = null, title, ...more } = {}) {
  return s("svg", { class: "skeleton", viewBox: "-540 -540 1080 1080", role: "img", "aria-label": title ?? "Skeleton" },
    poseLayer({ points: toPoints(pairs), links, unit: 14, labels, right: 540, ...more }));
}

// Draw the link map (PPL eq. 3): at each pixel the maximum of weight · exp(-d² / width) over the links.
const STOPS = [[13, 15, 33], [74, 31, 110], [178, 46, 105], [243, 120, 64], [253, 209, 105], [255, 252, 235]];
export function linkMap(canvas, points, links, width, side = 160) {
  const best = new Float32Array(side * side);
  for (const { i, j, weight } of links) {
    if (weight <= 0) continue;
    const [ax, ay] = points[i], dx = points[j][0] - ax, dy = points[j][1] - ay, length = Math.max(dx * dx + dy * dy, 1e-12);
    const reach = Math.sqrt(width * 7);
    const span = (low, high) => [Math.max(0, Math.floor((Math.min(low, high) - reach + 1) / 2 * side)), Math.min(side, Math.ceil((Math.max(low, high) + reach + 1) / 2 * side))];
    const [x0, x1] = span(ax, points[j][0]), [y0, y1] = span(ay, points[j][1]);
    for (let y = y0; y < y1; y += 1) for (let x = x0; x < x1; x += 1) {
      const px = (2 * x + 1) / side - 1 - ax, py = (2 * y + 1) / side - 1 - ay;
      const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
      const value = weight * Math.exp(-((px - along * dx) ** 2 + (py - along * dy) ** 2) / width);
      if (value > best[y * side + x]) best[y * side + x] = value;
    }
  }
  const top = best.reduce((a, b) => Math.max(a, b), 1e-9), image = new ImageData(side, side);
  best.forEach((value, place) => image.data.set([...heat((value / top) ** 0.75), 255], 4 * place));
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export function heat(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (STOPS.length - 1), low = Math.floor(at), part = at - low;
  return STOPS[low].map((value, channel) => Math.round(value + part * (STOPS[low + 1][channel] - value)));
}

// Show which links a keypoint has while it is pointed at.
export function lightUp(svg, id) {
  svg.classList.toggle("dim", id !== null);
  for (const element of svg.querySelectorAll(".link, .dot")) {
    const { i, j, id: own } = element.dataset;
    element.classList.toggle("lit", id !== null && [i, j, own].includes(String(id)));
  }
}
