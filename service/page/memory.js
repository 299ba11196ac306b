// The memory behind a prior: prototypical poses as a wall, how often the vectors of a bank are used, and what they vary.

import { get } from "./api.js";
import { explain, field, h, notice, percent, plural, s, select, slider } from "./dom.js";
import { poseLayer, skeleton, toPoints } from "./skeleton.js";

const MOST_SHADOWS = 32;
const LITTLE = 0.002; // of the side, that a bank hardly moves keypoints

export async function show(place, { prior, signal }) {
  const memory = await get(`priors/${prior.category}/memory`, { version: prior.version }, signal);
  if (!memory.num_banks) { place.append(h("p", { class: "lead" }, "Versions of the method AutoLink have no memory.")); return; }
  const total = memory.prototypes.reduce((sum, prototype) => sum + prototype.count, 0);
  const figures = memory.prototypes.map((prototype) => h("li", {}, skeleton(prototype.keypoints, prior.drawn, { title: `A prototypical pose of ${plural(prototype.count, "picture")}` }),
    h("p", { class: "small number" }, plural(prototype.count, "picture"), h("span", { class: "soft" }, ` · ${Math.round((100 * prototype.count) / total)} %`))));
  place.append(h("section", {}, h("h2", {}, "Prototypical poses"), h("p", { class: "soft" }, "Each stands for a cluster of training pictures with similar codes; the largest first."), h("ul", { class: "wall" }, figures)));
  await new Banks(place, prior, memory, figures, signal).show(0);
}

class Banks {
  constructor(place, prior, memory, figures, signal) {
    Object.assign(this, { prior, memory, figures, signal, bank: 0, prototype: "", poses: [] });
    this.drawing = h("div", { class: "bank" });
    this.chart = h("div", {});
    this.use = h("p", { class: "small soft" });
    this.effect = h("p", { class: "small", "aria-live": "polite" });
    this.vector = slider("Vector", { max: memory.bank_size - 1, value: 0 }, (vector) => `${vector} of ${memory.bank_size - 1}`, () => this.draw());
    const banks = slider("Bank", { max: memory.num_banks - 1, value: 0 }, (bank) => `${bank} of ${memory.num_banks - 1}`, (bank) => this.show(bank));
    const choices = memory.prototypes.map(({ count }, index) => [String(index), `Prototype ${index + 1} (${plural(count, "picture")})`]);
    const pose = select([["", "The typical pose"], ...choices], "", (chosen) => { this.prototype = chosen; this.show(this.bank); });
    place.append(h("section", {}, h("h2", {}, "Banks"),
      h("p", { class: "soft" }, `A pose is stored as one vector of each of ${memory.num_banks} banks. A bank has ${memory.bank_size} vectors of ${memory.token_dim} numbers. Here the vectors of one bank take turns in a pose; the other banks keep theirs.`),
      h("div", { class: "two" }, h("div", { class: "stack" }, this.drawing, this.effect),
        h("div", { class: "card stack" }, banks.element, field("In which pose", pose), this.vector.element, this.chart, this.use))));
  }

  async show(bank) {
    this.bank = bank;
    this.showUse();
    const asked = `${bank} ${this.prototype}`;
    this.asked = asked;
    try {
      const { variation } = await get(`priors/${this.prior.category}/memory`, { version: this.prior.version, bank, prototype: this.prototype }, this.signal);
      if (asked !== this.asked) return; // the slider has moved on
      this.poses = variation.keypoints;
      this.draw();
      this.describe();
    } catch (error) { if (error.name !== "AbortError") notice(explain(error), "error"); }
  }

  get counts() { return this.memory.use_counts[this.bank]; }

  get used() {
    const top = Math.max(...this.counts, 1e-9);
    return [...this.counts.keys()].filter((vector) => this.counts[vector] > top / 1000).sort((a, b) => this.counts[b] - this.counts[a]);
  }

  draw() {
    const vector = Number(this.vector.control.value), links = this.prior.drawn;
    if (!this.poses.length) return;
    const svg = skeleton(this.poses[vector], links, { title: `The pose with vector ${vector} of bank ${this.bank}` });
    svg.prepend(...this.used.slice(0, MOST_SHADOWS).map((other) => poseLayer({ points: toPoints(this.poses[other]), links, unit: 9, opacity: 0.16, dots: false })));
    this.drawing.replaceChildren(svg);
    this.chart.querySelectorAll("rect").forEach((bar, index) => bar.classList.toggle("chosen", index === vector));
  }

  showUse() {
    const { counts, used } = this, top = Math.max(...counts, 1e-9), { prototypes } = this.memory;
    this.chart.replaceChildren(s("svg", { viewBox: `0 0 ${counts.length * 10} 60`, class: "chart bars", preserveAspectRatio: "none", role: "img", "aria-label": `How often each of the ${counts.length} vectors of bank ${this.bank} is used` },
      counts.map((count, vector) => s("rect", { x: vector * 10 + 1, y: 58 - (56 * count) / top, width: 8, height: Math.max(0.6, (56 * count) / top), rx: 1 }))));
    const kinds = new Set(prototypes.map((prototype) => prototype.codes[this.bank])), common = prototypes[0]?.codes[this.bank];
    this.use.textContent = `How often each vector was used: ${used.length} of ${counts.length} were. The prototypes use ${kinds.size === 1 ? "one of them" : `${kinds.size} of them; those that share the first one's are framed above`}.`;
    this.figures.forEach((figure, index) => figure.firstChild.classList.toggle("shared", kinds.size > 1 && prototypes[index].codes[this.bank] === common));
  }

  // How far the bank moves each keypoint: the root mean square distance from the mean place, over the used vectors.
  describe() {
    const poses = this.used.map((vector) => this.poses[vector]);
    const spread = this.prior.keypoint_prior.map((_, id) => {
      const mean = [0, 1].map((axis) => poses.reduce((sum, pose) => sum + pose[id][axis], 0) / poses.length);
      return Math.sqrt(poses.reduce((sum, pose) => sum + (pose[id][0] - mean[0]) ** 2 + (pose[id][1] - mean[1]) ** 2, 0) / poses.length) / 2;
    });
    const most = [...spread.keys()].sort((a, b) => spread[b] - spread[a]).slice(0, 3);
    const list = most.map((id) => `${this.prior.names[id] ?? `keypoint ${id}`} by ${percent(spread[id], 1)} of the side`).join(", ");
    this.effect.textContent = spread[most[0]] < LITTLE ? "This bank hardly moves a keypoint: all its vectors give about the same pose." : `This bank moves ${list}. Faint: the poses of all used vectors.`;
  }
}
