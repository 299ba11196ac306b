// Choose pictures and frames of a dataset, with the boxes around the thing in them.

import { get, pause, request } from "./api.js";
import { readBoxes } from "./boxes.js";
import { listAll } from "./choose.js";
import { button, field, h, plural, select, slider } from "./dom.js";
import { Stage, boxShape, toCanvas } from "./stage.js";

const SPREAD = 10; // pictures taken at once, spread over the dataset

export class Picker {
  // `job` made the version; `onchosen` gets files and the box of each, null where the picture is taken whole.
  constructor(prior, job, signal, onchosen) {
    Object.assign(this, { prior, job, signal, onchosen, choices: [], taken: new Set(), at: 0 });
    this.body = h("div", { class: "stack" });
    this.element = h("details", { class: "card", ontoggle: () => this.element.open && !this.stage && this.open() }, h("summary", {}, "Choose pictures or frames of a dataset"), this.body);
  }

  async open() {
    this.stage = new Stage("A picture of the dataset with its box");
    const datasets = (await listAll("datasets", {}, this.signal)).filter(({ status }) => status === "ready"), own = this.prior.training.dataset?.id;
    if (!datasets.length) { this.body.replaceChildren(h("p", { class: "soft" }, "There is no dataset. Pictures and videos become one on the page Start.")); return; }
    const chosen = datasets.find(({ id }) => id === own)?.id ?? datasets[0].id;
    const control = select(datasets.map(({ id, name }) => [id, `${name ?? id}${id === own ? " (learned from)" : ""}`]), chosen, (id) => this.load(id));
    this.message = h("p", { class: "small soft", "aria-live": "polite" });
    this.work = h("div", { class: "stack" });
    this.body.replaceChildren(field("Dataset", control), this.message, this.work);
    await this.load(chosen);
  }

  async load(id) {
    this.id = id;
    this.message.textContent = "Reading …";
    this.work.replaceChildren();
    const { located } = this.prior.training, dataset = await get(`datasets/${id}`, {}, this.signal), listed = await listAll(`datasets/${id}/pictures`, {}, this.signal, 10000);
    const boxes = located ? await this.boxesOf(dataset) : new Map(), known = new Set(listed.map(({ name }) => name)), frames = [...boxes.keys()].filter((name) => name.includes("#") && !known.has(name));
    // a point is of one thing: pictures without a box, and with several, are left out where the version learned from boxes
    const all = [...listed, ...(frames.length ? frames : dataset.found.frames).map((name) => ({ name, isFrame: true }))].map((picture) => ({ ...picture, folder: `datasets/${id}`, box: boxes.get(picture.name)?.[0] ?? null }));
    if (id !== this.id || this.signal.aborted) return; // another one was chosen meanwhile
    this.choices = located ? all.filter(({ name }) => boxes.get(name)?.length === 1) : all;
    this.message.textContent = this.choices.length ? `${plural(this.choices.length, "picture")}${located ? ", each with its box: points are placed in it" : ""}.`
      : located ? "No box is known in it, and this version learned from boxes around the thing. Train on it, or choose the dataset that this version learned from." : "It has no pictures.";
    if (!this.choices.length) return;
    const { element } = slider("Picture of the dataset", { max: this.choices.length - 1, value: 0 }, (at) => `${at + 1} of ${this.choices.length}`, (at) => this.show(at));
    this.name = h("p", { class: "small" });
    this.work.replaceChildren(h("div", { class: "peek" }, this.stage.element), element, this.name, h("div", { class: "row" }, button("Use this picture", () => this.take([this.choices[this.at]])),
      this.choices.length > 1 && button(`Use ${Math.min(SPREAD, this.choices.length)} spread over it`, () => this.take(spread(this.choices)))));
    await this.show(0);
  }

  // The boxes that the version's training used, else those that motion found in the inspection.
  async boxesOf(dataset) {
    if (this.job && dataset.id === this.prior.training.dataset?.id) {
      try { return readBoxes(await (await request(`train-jobs/${encodeURIComponent(this.job)}/boxes`, { signal: this.signal })).text()); }
      catch (error) { if (error.status !== 404) throw error; } // the record of the job was deleted
    }
    const isTurned = this.prior.settings.align === "heading";
    return new Map((dataset.found.motion?.boxes ?? []).map(({ image, x, y, width, height, angle }) => [image, [[x, y, width, height, ...(isTurned && angle !== null ? [angle] : [])]]]));
  }

  async fetchFile({ folder, name, number, isFrame }) {
    const response = await (isFrame ? request(`${folder}/frame`, { query: { name }, signal: this.signal }) : request(`${folder}/pictures/${number}`, { signal: this.signal }));
    return new File([await response.blob()], name, { type: "image/jpeg" });
  }

  async show(at) {
    this.at = at;
    const choice = this.choices[at];
    this.name.textContent = choice.name;
    if (choice.isFrame) await pause(150, this.signal); // not for those that a slider passes
    if (at !== this.at || this.signal.aborted) return;
    const bitmap = await createImageBitmap(await this.fetchFile(choice));
    if (choice !== this.choices[this.at]) return;
    this.stage.setPicture(toCanvas(bitmap), bitmap.width, bitmap.height);
    this.stage.draw(choice.box && boxShape(choice.box));
  }

  async take(wanted) {
    const choices = wanted.filter(({ folder, name }) => !this.taken.has(`${folder} ${name}`));
    if (!choices.length) { this.message.textContent = "It is among your pictures already."; return; }
    const files = [], rest = `${plural(this.choices.length, "picture")}.`;
    for (const choice of choices) {
      this.message.textContent = `Reading ${files.length + 1} of ${choices.length} …`;
      files.push(await this.fetchFile(choice));
    }
    for (const { folder, name } of choices) this.taken.add(`${folder} ${name}`);
    this.message.textContent = rest;
    await this.onchosen(files, choices.map(({ box }) => box));
  }
}

const spread = (choices) => { const count = Math.min(SPREAD, choices.length); return Array.from({ length: count }, (_, n) => choices[Math.floor(((2 * n + 1) * choices.length) / (2 * count))]); };
