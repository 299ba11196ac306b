// Where the thing is in each picture of a dataset: boxes drawn with the mouse, or corrected from a file or an earlier job.

import { blobUrl, request } from "./api.js";
import { listAll } from "./choose.js";
import { button, h, plural, s, slider } from "./dom.js";
import { Stage } from "./stage.js";

const LOOK = { fill: "#f0e442", "fill-opacity": 0.12, stroke: "#f0e442", "stroke-width": 3, "vector-effect": "non-scaling-stroke" };
const LEAST = 8; // pictures that a training needs
const COLUMNS = ["image", "x", "y", "width", "height", "angle"]; // the last only of boxes that have one

export class BoxEditor {
  constructor(dataset, signal) {
    Object.assign(this, { dataset, signal, boxes: new Map(), file: null, at: 0 });
    this.body = h("div", { class: "stack" });
    this.element = h("details", { class: "card", ontoggle: () => this.open() }, h("summary", {}, "Where is the thing? Draw boxes"), this.body);
  }

  // The file to send with a training; null without any box.
  toFile() {
    if (this.file) return this.file;
    const count = this.count();
    if (!count) return null;
    if (count < LEAST) throw new Error(`Only ${plural(count, "picture has", "pictures have")} a box. Pictures without one are left out, and a training needs ${LEAST}: draw more, or remove them all.`);
    const rows = [...this.boxes].flatMap(([name, boxes]) => boxes.map(([x, y, width, height, angle = ""]) => [`"${name.replaceAll('"', '""')}"`, x, y, width, height, angle].join(",")));
    return new File([[COLUMNS.join(","), ...rows].join("\n")], "boxes.csv", { type: "text/csv" });
  }

  // Take the boxes that an earlier job found.
  async loadJob(job) {
    const text = await (await request(`train-jobs/${encodeURIComponent(job)}/boxes`, { signal: this.signal })).text();
    const [head, ...rows] = text.trim().split("\n").map(splitRow), places = COLUMNS.map((name) => head.indexOf(name));
    for (const row of rows) {
      const [name, ...cells] = places.map((place) => row[place]), box = cells.filter((value) => value?.trim()).map(Number);
      if (box.length >= 4) this.boxes.set(name, [...(this.boxes.get(name) ?? []), box]);
    }
    this.element.open = true;
  }

  async open() {
    if (!this.element.open || this.stage) return;
    this.stage = new Stage("A picture of the dataset with its boxes");
    const input = h("input", { type: "file", accept: ".csv,.json", "aria-label": "A file of boxes", onchange: () => { [this.file = null] = input.files; this.tell(); } });
    this.body.replaceChildren(h("p", { class: "small soft" }, "Only needed where the thing is small in its picture or not always in the middle. Training then sees the boxes alone: pictures without one are left out. Where one thing moves before a fixed camera, it is found without boxes."),
      h("label", { class: "field" }, h("span", {}, "A file of boxes (CSV, COCO or MegaDetector)"), input));
    this.pictures = await listAll(`datasets/${this.dataset.id}/pictures`, {}, this.signal, 10000);
    if (!this.pictures.length) return;
    this.said = h("p", { class: "small", "aria-live": "polite" });
    this.stage.element.classList.add("painting");
    this.stage.onBox(() => Boolean(this.stage.width), LOOK, (box) => { this.own().push(box); this.keep(); });
    const { element, set } = slider("Picture", { max: this.pictures.length - 1, value: 0 }, (at) => `${at + 1} of ${this.pictures.length}`, (at) => this.show(at));
    const step = (by) => () => set(Math.min(this.pictures.length - 1, Math.max(0, this.at + by)));
    this.body.append(this.stage.element, element, this.said, h("div", { class: "row" }, button("Previous", step(-1)), button("Next", step(1)),
      button("Box of the picture before", () => { const before = this.boxes.get(this.pictures[this.at - 1]?.name); if (before) { this.boxes.set(this.name, before.map((box) => [...box])); this.keep(); } }),
      button("This box for all pictures", () => { const boxes = this.boxes.get(this.name); if (boxes) { for (const { name } of this.pictures) this.boxes.set(name, boxes.map((box) => [...box])); this.keep(); } }),
      button("Remove", () => { this.boxes.delete(this.name); this.keep(); })));
    await this.show(0);
  }

  count() { return [...this.boxes.values()].filter((boxes) => boxes.length).length; }

  get name() { return this.pictures[this.at].name; }

  own() { if (!this.boxes.has(this.name)) this.boxes.set(this.name, []); return this.boxes.get(this.name); }

  keep() { this.file = null; this.draw(); }

  async show(at) {
    this.at = at;
    this.tell();
    const image = h("img", { alt: "" });
    try {
      image.src = await blobUrl(`datasets/${this.dataset.id}/pictures/${this.pictures[at].number}`, {}, this.signal);
      await image.decode();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.said.textContent = `${this.name}: ${error.message}`;
      return;
    }
    if (at !== this.at) return;
    this.stage.setPicture(image, image.naturalWidth, image.naturalHeight);
    this.draw();
  }

  draw() {
    this.tell();
    this.stage.draw(...(this.boxes.get(this.name) ?? []).map(([x, y, width, height, angle = 0]) => s("rect", { ...LOOK, x: x - 0.5, y: y - 0.5, width, height, transform: `rotate(${angle} ${x + width / 2 - 0.5} ${y + height / 2 - 0.5})` })));
  }

  tell() {
    if (!this.said) return;
    const count = this.count();
    this.said.textContent = this.file ? `The boxes of ${this.file.name} are used.` : count ? `${this.name}. ${plural(count, "picture")} of ${this.pictures.length} with a box; the others would be left out.` : `${this.name}. No boxes: whole pictures are used. Drag over the picture to draw one.`;
  }
}

function splitRow(line) {
  return [...line.replace(/\r$/, "").matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)].map(([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain);
}
