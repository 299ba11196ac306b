// Landmarks: place named points on a few pictures by clicking, fit them to the keypoints, and see how well that works.

import { get, lines, parts, send, upload } from "./api.js";
import { button, click, dropZone, field, h, notice, percent, plural, s, unsaved } from "./dom.js";
import { SAMPLES } from "./palette.js";
import { Picker } from "./picker.js";
import { Stage, boxShape, readPicture } from "./stage.js";

const NEEDED = 5, GOOD = 10;
const AROUND = 1.5; // times the side of a box: the part of a picture in which points are placed
const BOX_LOOK = { "fill-opacity": 0, "stroke-dasharray": "8 5" };

export async function show(place, { prior, versions, signal }) {
  const job = versions.find(({ version }) => version === prior.version)?.job_id;
  const sets = h("div", {}), maker = new Maker(prior, job, signal, () => list());
  async function list() {
    const { items } = await get(`priors/${prior.category}/landmarks`, { version: prior.version }, signal);
    sets.replaceChildren(...(items.length ? [h("h2", {}, "Landmarks of this version"), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["Name", "Points", "Pictures", "Error", ""].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, items.map((set) => h("tr", {}, h("td", {}, h("strong", {}, set.name)), h("td", { class: "small" }, set.landmarks.join(", ")), h("td", {}, set.images), h("td", { class: "number" }, `${set.error_percent.toFixed(1)} % of the side`),
        h("td", {}, button("Delete", async () => { await send("DELETE", `priors/${prior.category}/landmarks/${encodeURIComponent(set.name)}?version=${prior.version}`); await list(); }, { class: "quiet" })))))))] : []));
  }
  place.append(h("section", {}, sets), maker.element);
  await list();
}

class Maker {
  constructor(prior, job, signal, onfitted) {
    Object.assign(this, { prior, signal, onfitted, pictures: [], names: [], active: 0, current: null });
    this.stage = new Stage("The picture to place points on");
    this.stage.element.classList.add("painting");
    this.stage.element.addEventListener("click", (event) => this.placePoint(event));
    this.thumbs = h("div", { class: "thumbs", role: "group", "aria-label": "Pictures" });
    this.list = h("div", { class: "stack" });
    this.newName = h("input", { placeholder: "such as nose", maxlength: 60, "aria-label": "Name of a new point", autocomplete: "off" });
    this.setName = h("input", { value: "anatomy", maxlength: 64, autocomplete: "off" });
    this.state = h("p", { class: "small soft", "aria-live": "polite" });
    this.result = h("section", { "aria-live": "polite" });
    const choose = (title, hint, small) => dropZone({ title, hint, small, accept: "image/*", onfiles: (files) => this.add(files), signal });
    const zone = choose("Drop ten to fifty pictures", `You place the same points on each.${prior.training.located ? " This version learned from boxes around the thing: use pictures that are cut out around it, or choose some of a dataset below, with their boxes." : ""}`);
    this.intro = h("div", { class: "stack" }, zone, prior.category === "dog" && h("div", { class: "row centre" }, button("Use sample pictures of a dog", () => this.addSamples())));
    const add = async () => { const name = this.newName.value.trim(); if (name && !this.names.includes(name)) { this.names.push(name); this.active = this.names.length - 1; this.newName.value = ""; this.draw(); } this.newName.focus(); };
    this.newName.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); add(); } });
    this.work = h("div", { class: "two", hidden: true }, h("div", {}, this.stage.element, this.thumbs, h("div", { style: { marginTop: "1.2rem" } }, choose("Add more", null, true))),
      h("div", { class: "stack keep" }, h("div", { class: "card stack" }, h("h2", {}, "Points"), this.list, h("div", { class: "row" }, this.newName, button("Add", add))),
        h("div", { class: "card stack" }, h("h2", {}, "Fit"), this.state, field("Name of the set", this.setName), h("button", { type: "button", class: "primary", onclick: click(() => this.fit()) }, "Fit the landmarks"))));
    const picker = new Picker(prior, job, signal, (files, boxes) => this.add(files, boxes));
    this.element = h("div", {}, h("section", {}, h("h2", {}, "Your own points"), h("p", { class: "soft" }, "Keypoints have no names that an anatomist would give. Name some points, click them in a few pictures, and they are computed from the keypoints in every other picture."), this.intro, this.work), h("section", {}, picker.element), this.result);
  }

  async addSamples() {
    await this.add(await Promise.all(Array.from({ length: SAMPLES }, async (_, number) => new File([await (await fetch(new URL(`sample${number}.jpg`, import.meta.url))).blob()], `sample${number}.jpg`, { type: "image/jpeg" }))));
  }

  async add(files, boxes = []) {
    for (const [number, file] of files.entries()) {
      const bitmap = await readPicture(file);
      if (!bitmap) { notice(`This browser can't show ${file.name}; it is left out.`, "error"); continue; }
      if (this.pictures.some((picture) => picture.file.name === file.name)) { notice(`There is a picture called ${file.name} already; it is left out.`, "error"); continue; }
      const box = boxes[number] ?? null, view = viewOf(bitmap, box);
      const picture = { file, bitmap, box, view, points: new Map(), svg: s("svg", { viewBox: `${view.x - 0.5} ${view.y - 0.5} ${view.width} ${view.height}`, preserveAspectRatio: "xMidYMid meet", "aria-hidden": "true" }) };
      picture.thumb = h("button", { type: "button", class: "thumb", "aria-label": file.name, "aria-pressed": "false", onclick: () => this.select(picture) }, cut(picture), picture.svg);
      this.thumbs.append(picture.thumb);
      this.pictures.push(picture);
    }
    if (!this.pictures.length) return;
    this.intro.hidden = true;
    this.work.hidden = false;
    this.select(this.current ?? this.pictures[0]);
    this.newName.focus();
  }

  select(picture) {
    this.current?.thumb.setAttribute("aria-pressed", "false");
    this.current = picture;
    picture.thumb.setAttribute("aria-pressed", "true");
    this.stage.setPicture(cut(picture), picture.view.width, picture.view.height);
    this.active = Math.max(0, this.names.findIndex((name) => !picture.points.has(name)));
    this.draw();
  }

  placePoint(event) {
    if (!this.current) return;
    if (!this.names.length) { notice("Name a point first, at the right."); this.newName.focus(); return; }
    const { x, y } = this.stage.place(event), { view } = this.current, name = this.names[this.active];
    this.current.points.set(name, { x: Math.round((view.x + x - 0.5) * 10) / 10, y: Math.round((view.y + y - 0.5) * 10) / 10 });
    unsaved.text = "The points that you placed are not fitted yet, and would be lost.";
    const next = this.names.findIndex((other) => !this.current.points.has(other));
    if (next >= 0) this.active = next;
    this.draw();
  }

  marks(picture, unit) {
    return [...picture.points].map(([name, point]) => s("g", { class: "mark" }, s("circle", { cx: point.x, cy: point.y, r: unit * 1.4, fill: "#fff", stroke: "#101218", "stroke-width": unit * 0.4 }),
      s("text", { x: point.x + 2 * unit, y: point.y - 1.2 * unit, style: { fontSize: `${3.4 * unit}px` }, "stroke-width": 0.7 * unit }, name)));
  }

  draw() {
    const { current } = this, unit = Math.max(current.view.width, current.view.height) / 100;
    this.stage.draw(shift(current, current.box && boxShape(current.box, BOX_LOOK), ...this.marks(current, unit)));
    current.svg.replaceChildren(...[...current.points.values()].map((point) => s("circle", { cx: point.x, cy: point.y, r: 3.5 * unit, fill: "#fff", stroke: "#101218", "stroke-width": unit })));
    this.list.replaceChildren(...(this.names.length ? this.names.map((name, index) => {
      const set = current.points.has(name);
      return h("div", { class: "row apart" }, h("button", { type: "button", "aria-pressed": String(index === this.active), onclick: () => { this.active = index; this.draw(); } }, name),
        set ? button("Not visible", async () => { current.points.delete(name); this.active = index; this.draw(); }, { class: "quiet" }) : h("span", { class: "small soft" }, "click it, or leave it out"));
    }) : [h("p", { class: "small soft" }, "Name the first point, then click it in the picture.")]));
    const done = this.pictures.filter((picture) => picture.points.size).length;
    this.state.textContent = `${plural(done, "picture")} with points${done < NEEDED ? `; ${NEEDED} are needed, ${GOOD} or more are better` : done < GOOD ? "; ten or more are better" : ""}.`;
    const all = this.names.length && this.names.every((name) => current.points.has(name));
    if (all && done < this.pictures.length) this.state.textContent += " Choose the next picture below.";
  }

  labelled() { return this.pictures.filter((picture) => picture.points.size); }

  async fit() {
    const labelled = this.labelled(), form = new FormData(), quote = (text) => `"${text.replaceAll('"', '""')}"`;
    const rows = labelled.flatMap(({ file, points }) => [...points].map(([name, { x, y }]) => [quote(sentAs(file.name)), quote(name), x, y].join(",")));
    form.append("name", this.setName.value.trim());
    form.append("version", this.prior.version);
    this.appendPictures(form, labelled);
    form.append("labels", new Blob([["image,keypoint,x,y", ...rows].join("\n")], { type: "text/csv" }), "labels.csv");
    const fitted = await upload(`priors/${this.prior.category}/landmarks`, form, { signal: this.signal });
    unsaved.text = "";
    await Promise.all([this.showErrors(fitted), this.onfitted()]);
  }

  async showErrors({ name, cross_validation: errors }) {
    const better = errors.error_percent < errors.mean_place_percent;
    const worst = [...errors.per_landmark].sort((a, b) => (b.error_percent ?? 0) - (a.error_percent ?? 0));
    this.result.replaceChildren(h("div", { class: "card stack" }, h("h2", {}, `How well “${name}” fits`),
      h("p", { class: `verdict ${better ? "good" : "bad"}` }, `Cross-validated error: ${errors.error_percent.toFixed(1)} % of the side (${errors.error_px.toFixed(1)} pixels)`),
      h("p", { class: "small" }, `Guessing each point's mean place would be off by ${errors.mean_place_percent.toFixed(1)} %. ${better ? "" : "The fit is no better: place points on more pictures, or train a better version. "}Each picture was predicted by a fit without it (${errors.folds} parts).`),
      h("table", {}, h("thead", {}, h("tr", {}, ["Point", "Error", "Visible in"].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, worst.map((mark) => h("tr", {}, h("td", {}, mark.name), h("td", { class: "number" }, mark.error_percent === null ? "too few pictures" : `${mark.error_percent.toFixed(1)} %`), h("td", {}, plural(mark.visible, "picture")))))),
      h("p", {}, "They now come with each pose that this version finds. ", h("a", { href: `#/estimate?category=${this.prior.category}&version=${this.prior.version}` }, "Find poses with them")),
      this.worst = h("div", {})));
    this.result.scrollIntoView({ block: "nearest" });
    await this.showWorst(name);
  }

  form(pictures, fields) {
    const form = new FormData();
    for (const [key, value] of Object.entries(fields)) form.append(key, value);
    this.appendPictures(form, pictures);
    return form;
  }

  appendPictures(form, pictures) {
    for (const { file } of pictures) form.append("images", file, file.name);
    if (pictures.some(({ box }) => box)) form.append("boxes", JSON.stringify(pictures.map(({ box }) => box)));
  }

  // The labelled pictures again, with the fitted points beside the clicked ones.
  async showWorst(name) {
    const found = [], fields = { category: this.prior.category, version: this.prior.version, landmarks: name };
    for (const part of parts(this.labelled(), ({ file }) => file.size)) for await (const line of lines("estimate", { method: "POST", body: this.form(part, fields), signal: this.signal })) {
      if (line.summary || line.error || !line.landmarks?.length) continue;
      const picture = part[line.index], side = Math.max(...(picture.box?.slice(2, 4) ?? [line.width, line.height]));
      const pairs = line.landmarks.filter((mark) => picture.points.has(mark.name)).map((mark) => [picture.points.get(mark.name), mark]);
      found.push({ picture, side, pairs, error: pairs.reduce((sum, [a, b]) => sum + Math.hypot(a.x - b.x, a.y - b.y), 0) / pairs.length / side });
    }
    const figures = found.sort((a, b) => b.error - a.error).slice(0, 4).map(({ picture, side, pairs, error }) => {
      const stage = new Stage(`Clicked and fitted points in ${picture.file.name}`), unit = side / 100;
      stage.setPicture(cut(picture), picture.view.width, picture.view.height);
      stage.draw(shift(picture, ...pairs.flatMap(([a, b]) => [s("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, stroke: "#fff", "stroke-width": unit * 0.6 }), s("circle", { cx: a.x, cy: a.y, r: unit * 1.5, fill: "none", stroke: "#fff", "stroke-width": unit * 0.7 }), s("circle", { cx: b.x, cy: b.y, r: unit * 1.4, fill: "#e69f00", stroke: "#101218", "stroke-width": unit * 0.4 })])));
      return h("li", {}, stage.element, h("p", { class: "small" }, `${picture.file.name}: ${percent(error, 1)}`));
    });
    this.worst.replaceChildren(h("h3", {}, "Where the fit is worst"), h("p", { class: "small soft" }, "Rings: where you clicked. Orange: the fitted points of the same pictures."), h("ul", { class: "wall" }, figures));
  }
}

// The name of a file as a browser writes it into a form.
const sentAs = (name) => name.replaceAll("\n", "%0D%0A").replaceAll("\r", "%0D%0A").replaceAll('"', "%22");

// The part of a picture around its box, in whole pixels; without a box all of it.
function viewOf({ width, height }, box) {
  if (!box) return { x: 0, y: 0, width, height };
  const half = (AROUND * Math.max(box[2], box[3])) / 2, within = (value, most) => Math.round(Math.min(most, Math.max(0, value)));
  const [left, top] = [within(box[0] + box[2] / 2 - half, width - 2), within(box[1] + box[3] / 2 - half, height - 2)];
  return { x: left, y: top, width: within(left + 2 * half, width) - left, height: within(top + 2 * half, height) - top };
}

function cut({ bitmap, view }) {
  const canvas = h("canvas", { width: view.width, height: view.height });
  canvas.getContext("2d").drawImage(bitmap, -view.x, -view.y);
  return canvas;
}

const shift = ({ view }, ...shapes) => s("g", { transform: `translate(${-view.x} ${-view.y})` }, ...shapes);
