// Estimate: poses in pictures and videos; and what refinement does for a picture with a part hidden.

import { estimateInBackground, get, lines, parts, request } from "./api.js";
import { listAll, loadPrior, nothingYet, versionSelect } from "./choose.js";
import { button, dropZone, explain, field, h, notice, percent, plural, s, save, select, slider, toggle } from "./dom.js";
import { SAMPLES } from "./palette.js";
import { colour, lightUp, linkMap, poseLayer } from "./skeleton.js";
import { BOX_LOOK, Stage, boxShape, readPicture, squareOf, toBlob, toCanvas } from "./stage.js";

const STEPS = 5;
const VIDEO = /\.(mp4|m4v|mov|avi|mkv|webm)$/i;
const isVideo = (file) => file.type.startsWith("video/") || VIDEO.test(file.name);

export async function show(place, { query, signal }) {
  // a category may have versions of which none is active, as while its first training goes on
  const priors = (await listAll("priors", {}, signal)).filter((entry) => entry.version || entry.category === query.get("category"));
  const head = h("header", {}, h("h1", {}, "Find poses"), h("p", { class: "lead" }, "In pictures or a video, by what was learned before."));
  if (!priors.length) { place.append(head, nothingYet()); return; }
  const view = new Estimate(priors, query, signal);
  place.append(head, view.element);
  await view.setCategory(query.get("category") ?? priors[0].category, query.get("version"));
  if (query.has("sample")) await view.addSamples();
}

class Estimate {
  constructor(priors, query, signal) {
    this.signal = signal;
    this.items = [];
    this.current = null;
    this.shown = { links: true, keypoints: true, numbers: false, marks: true, map: false };
    this.landmarks = "";
    this.step = 0;
    this.isPainting = this.isMarking = false;
    this.stage = new Stage("The picture with the pose that was found");
    this.stage.onBox(() => this.isPainting && this.current?.bitmap, { fill: "#000", opacity: 0.75 }, (box) => this.hide(box));
    this.stage.onBox(() => this.isMarking && this.current?.bitmap, BOX_LOOK, (box) => this.mark(box));
    this.map = h("canvas", { class: "over", "aria-hidden": "true" });
    this.thumbs = h("div", { class: "thumbs", role: "group", "aria-label": "Pictures" });
    this.message = h("div", { "aria-live": "polite" });
    this.scores = h("div", {});
    this.versionPlace = h("div", {});
    this.landmarksPlace = h("div", {});
    this.refine = slider("Refinement", { max: STEPS, value: 0 }, (step) => (step ? `after ${plural(step, "step")}` : "before any"), (step) => { this.step = step; this.draw(); });
    const zone = (title, hint, small) => dropZone({ title, hint, small, accept: "image/*,video/*,.heic,.avif,.tif,.tiff,.mkv,.avi", onfiles: (files) => this.add(files), signal });
    const category = select(priors.map((entry) => [entry.category, entry.category]), query.get("category") ?? undefined, (name) => this.setCategory(name));
    this.advice = h("p", { class: "small soft" });
    this.chooser = h("div", { class: "card stack" }, field("Category", category), this.versionPlace, this.landmarksPlace, this.advice);
    const sample = priors.some((entry) => entry.category === "dog") && button("Try sample pictures of a dog", async () => {
      if (category.value !== "dog") { category.value = "dog"; await this.setCategory("dog"); }
      await this.addSamples();
    });
    this.start = h("div", { class: "two" }, h("div", { class: "stack" },
      zone("Drop or paste pictures or a video", "You get poses as JSON, CSV or COCO, and a video with the poses drawn on it."), h("div", { class: "row centre" }, sample)), this.chooser);
    this.side = this.makeSide();
    const more = h("div", { style: { marginTop: "1.2rem" } }, zone("Add more", null, true));
    this.work = h("div", { class: "two", hidden: true }, h("div", {}, this.stage.element, this.thumbs, more), this.side);
    this.player = h("div", {});
    this.element = h("div", {}, this.start, this.work, this.player);
  }

  makeSide() {
    const layer = (text, name) => toggle(text, this.shown[name], (on) => { this.shown[name] = on; this.draw(); });
    this.paint = button("Hide a part: draw a box", () => this.setPainting(!this.isPainting), { "aria-pressed": "false" });
    this.unhide = button("Remove the boxes", () => this.setBoxes([]), { hidden: true });
    this.refineCard = h("div", { class: "card stack" }, h("h2", {}, "The occlusion test"),
      h("p", { class: "small soft" }, "Draw a black box over a part of the picture. The model has to guess what is behind it; refinement then moves the pose towards poses that its memory knows."),
      h("div", { class: "row" }, this.paint, button("Hide the right half", () => this.hideHalf()), this.unhide), this.refine.element, this.repair = h("p", { class: "small", "aria-live": "polite" }), this.rebuilt = h("figure", { hidden: true }));
    const download = (text, format, name) => button(text, () => this.download(format, name));
    return h("div", { class: "stack keep" },
      h("div", { class: "card stack" }, this.message, this.makeMarker(), h("div", { class: "row" }, layer("Links", "links"), layer("Keypoints", "keypoints"), layer("Numbers", "numbers"), layer("Link map", "map"), this.marks = layer("Landmarks", "marks")),
        h("details", {}, h("summary", {}, "Scores of the keypoints"), this.scores)),
      this.refineCard, this.settings = h("div", {}),
      h("div", { class: "card" }, h("h2", {}, "Download"), h("div", { class: "row" }, download("JSON", "native", "poses.json"), download("CSV", "csv", "poses.csv"),
        download("COCO", "coco", "poses.coco.json"), button("Picture", () => this.downloadPicture()))));
  }

  // Where the thing is in a picture, for priors that were learned from boxes around it.
  makeMarker() {
    this.marking = button("Draw a box around it", () => this.setMarking(!this.isMarking), { "aria-pressed": "false" });
    this.heading = slider("Heading", { max: 359, value: 0 }, (angle) => `${angle}° clockwise from up`, (angle) => { if (this.current?.place) { this.current.place[4] = angle; this.draw(); } });
    this.heading.control.addEventListener("change", () => this.current?.place && this.again(this.current));
    this.marker = h("div", { class: "stack", hidden: true }, h("div", { class: "row" }, this.marking), this.heading.element);
    return this.marker;
  }

  get isAligned() { return this.prior.settings.align === "heading"; }

  async setCategory(category, version = null) {
    this.category = category;
    const { element, control } = await versionSelect(category, version ?? undefined, (name) => this.setVersion(name), this.signal);
    if (category !== this.category) return; // another one was chosen meanwhile
    this.versionPlace.replaceChildren(element);
    await this.setVersion(control.value);
  }

  async setVersion(version) {
    const { category } = this;
    [this.version, this.landmarks] = [version, ""];
    const prior = await loadPrior(category, version, this.signal);
    const sets = (await get(`priors/${category}/landmarks`, { version }, this.signal)).items;
    if (category !== this.category || version !== this.version) return;
    this.prior = prior;
    this.steps = this.prior.method === "autolink" ? 0 : STEPS;
    this.refineCard.hidden = !this.steps;
    this.marker.hidden = !this.prior.training.located;
    const { located, zoomed } = this.prior.training;
    this.advice.textContent = located ? "In a video the thing is found where it moves before a fixed camera. In a picture you draw a box around it."
      : zoomed ? "One thing in each picture. It is cropped to, as in training." : "One thing in each picture, of about the size it had in training.";
    this.landmarks = sets[0]?.name ?? "";
    this.marks.hidden = !sets.length;
    const control = select([["", "None"], ...sets.map((set) => [set.name, set.name])], this.landmarks, (name) => { this.landmarks = name; this.estimate(this.items); });
    this.landmarksPlace.replaceChildren(sets.length ? field("Landmarks", control) : "");
    if (this.items.length) { for (const item of this.items) item.clean = null; await this.estimate(this.items); }
  }

  async addSamples() {
    const names = Array.from({ length: SAMPLES }, (_, number) => `sample${number}.jpg`);
    const files = await Promise.all(names.map(async (name) => new File([await (await fetch(new URL(name, import.meta.url), { signal: this.signal })).blob()], name, { type: "image/jpeg" })));
    await this.add(files);
  }

  async add(files) {
    const videos = files.filter(isVideo), pictures = files.filter((file) => !isVideo(file));
    if (videos.length) {
      if (pictures.length || videos.length > 1) notice("One video at a time: the first one is taken.");
      const { playVideo } = await import("./video.js");
      this.start.hidden = true;
      this.work.hidden = true;
      this.player.replaceChildren();
      try { await playVideo(this.player, { file: videos[0], category: this.category, version: this.version, landmarks: this.landmarks, prior: this.prior, signal: this.signal }); }
      catch (error) { // stopped, or no video after all: back to what was there
        this.player.replaceChildren();
        this.start.hidden = this.items.length > 0;
        this.work.hidden = !this.items.length;
        throw error;
      }
      return;
    }
    const items = pictures.map((file) => ({ file, url: URL.createObjectURL(file), boxes: [], sent: file }));
    this.signal.addEventListener("abort", () => items.forEach((item) => URL.revokeObjectURL(item.url)));
    this.items.push(...items);
    this.player.replaceChildren();
    this.start.hidden = true;
    this.work.hidden = false;
    this.settings.replaceChildren(this.chooser);
    for (const item of items) {
      item.svg = s("svg", { "aria-hidden": "true" });
      item.thumb = h("button", { type: "button", class: "thumb", "aria-label": item.file.name, "aria-pressed": "false", onclick: () => this.select(item) },
        h("img", { src: item.url, alt: "", loading: "lazy", onerror: (event) => event.target.remove() }), item.svg);
      this.thumbs.append(item.thumb);
    }
    this.thumbs.hidden = this.items.length < 2;
    const first = this.select(items[0]);
    await this.estimate(items);
    await first;
  }

  form(items, fields) {
    const form = new FormData();
    for (const [name, value] of Object.entries({ category: this.category, version: this.version, landmarks: this.landmarks, ...fields })) if (value !== "") form.append(name, value);
    for (const item of items) form.append("images", item.sent, item.file.name);
    if (items.some((item) => item.place)) form.append("boxes", JSON.stringify(items.map((item) => item.place ?? null)));
    return form;
  }

  // Poses come line by line: a picture that can't be read does not affect the others.
  async estimate(all) {
    const items = all.filter((item) => item.place || !this.isAligned), asked = {};
    for (const item of all) item.asked = asked; // what comes later for an earlier request is not of what is shown
    for (const item of all.filter((each) => !items.includes(each))) {
      Object.assign(item, { result: null, error: { detail: `What ${this.category} looks like was learned from boxes that are turned to face up. Draw a box around it here, or drop a video: in a video it is found by itself.` } });
      this.drawThumb(item);
      if (item === this.current) this.draw();
    }
    for (const all of parts(items, ({ sent }) => sent.size, 1)) { // the first alone, so that it is there soon
      const part = all.filter((item) => item.asked === asked);
      if (!part.length) continue;
      // reconstructions are many bytes: of a picture by itself, which is the one that is shown
      const fields = this.steps ? { refine_steps: this.steps, include: part.length > 1 ? "trajectory" : "trajectory,reconstructions" } : {};
      try {
        for await (const line of lines("estimate", { method: "POST", body: this.form(part, fields), signal: this.signal })) {
          if (line.summary) continue;
          const item = part[line.index];
          if (item.asked !== asked) continue;
          Object.assign(item, line.error ? { result: null, error: line.error } : { result: line, error: null });
          if (this.isAligned && item.place?.length === 4 && line.region) item.place = [...item.place, line.region.angle]; // found by trying; can be corrected
          if (item.error) item.error.detail = item.error.detail?.replace(/^images\[\d+\]( \(.*?\))?: /, ""); // the picture is in view
          if (!item.boxes.length) item.clean = item.result;
          this.drawThumb(item);
          if (item === this.current) this.draw();
        }
      } catch (error) {
        if (error.name === "AbortError") throw error;
        for (const item of items.slice(items.indexOf(part[0]))) if (!item.result && item.asked === asked) { item.error = { detail: explain(error) }; this.drawThumb(item); }
        this.draw();
        notice(explain(error), "error");
        return;
      }
    }
  }

  drawThumb(item) {
    item.thumb.classList.toggle("failed", !item.result);
    if (!item.result) return;
    const { width, height, keypoints } = item.result;
    item.svg.setAttribute("viewBox", `-0.5 -0.5 ${width} ${height}`);
    item.svg.replaceChildren(poseLayer({ points: keypoints, links: this.prior.drawn, unit: Math.max(width, height) / 60 }));
  }

  async select(item) {
    this.current?.thumb.setAttribute("aria-pressed", "false");
    this.current = item;
    item.thumb.setAttribute("aria-pressed", "true");
    item.bitmap ??= await readPicture(item.file);
    if (item !== this.current) return;
    if (item.bitmap) this.stage.setPicture(toCanvas(item.bitmap, item.boxes), item.bitmap.width, item.bitmap.height);
    else await this.showDrawn(item);
    this.refine.set(item.boxes.length ? this.steps : 0);
  }

  // A kind of picture that browsers do not read (HEIC, TIFF): the server's drawing in its place.
  async showDrawn(item) {
    const image = h("img", { alt: "" });
    try {
      const response = await request("estimate", { method: "POST", body: this.form([item], { include: "overlay" }), signal: this.signal });
      const [found] = (await response.json()).images;
      image.src = found.overlay;
      this.stage.setPicture(image, found.width, found.height);
    } catch (error) { if (error.name === "AbortError") throw error; item.error = { detail: explain(error) }; }
  }

  pose(result, step) {
    return result?.trajectory?.[Math.min(step, result.trajectory.length - 1)] ?? result?.keypoints;
  }

  draw() {
    const item = this.current, result = item?.result;
    this.unhide.hidden = !item?.boxes.length;
    this.describe(item);
    this.heading.element.hidden = !item?.place || !this.isAligned;
    if (item?.place && this.isAligned) this.heading.show(Math.round(item.place[4] ?? 0));
    const outline = item?.place && boxShape(item.place, { fill: "none" });
    if (!result || !item.bitmap) { this.stage.draw(outline); this.map.remove(); this.rebuilt.hidden = true; return; }
    const side = item.place ? squareOf(item.place).side : Math.max(result.width, result.height);
    const unit = Math.max(side / 100, result.width / 300), points = this.pose(result, this.step);
    const ghost = item.boxes.length && item.clean ? poseLayer({ points: this.pose(item.clean, 0), links: this.prior.drawn, unit: unit * 0.7, opacity: 0.38, dots: false }) : null;
    const names = result.keypoints.map((point) => point.name ?? point.id);
    this.stage.draw(outline, ghost, poseLayer({ points, links: this.prior.drawn, unit, lines: this.shown.links, dots: this.shown.keypoints,
      labels: this.shown.numbers ? names : null, marks: this.shown.marks ? result.landmarks ?? [] : [] }));
    this.drawMap(item, points);
    this.drawRebuilt(item);
  }

  // The picture that the model makes of the shown pose: the model's square, around the box or the whole picture.
  drawRebuilt(item) {
    const { width, height, reconstructions } = item.result;
    this.rebuilt.hidden = !reconstructions;
    if (reconstructions) {
      this.rebuilt.replaceChildren(h("img", { class: "sheet", src: reconstructions[this.step], alt: `The reconstruction ${this.step ? `after ${plural(this.step, "step")}` : "before refinement"}`, style: { objectFit: "cover", aspectRatio: item.place ? "1" : `${width} / ${height}` } }),
        h("figcaption", { class: "small soft" }, "What the model makes of this pose and of what it can see. The next step looks for the keypoints in this picture."));
    } else if (this.steps && item.rebuiltFrom !== item.sent) { // once: a worker of an older release can't
      item.rebuiltFrom = item.sent;
      this.estimate([item]).catch(() => {});
    }
  }

  drawMap({ place, result: { width, height } }, points) {
    if (!this.shown.map) { this.map.remove(); return; }
    const square = h("canvas", {}), { side, middle, turn } = squareOf(place ?? [0, 0, width, height]);
    linkMap(square, points.map(({ x, y }) => {
      const [dx, dy] = [x + 0.5 - middle.x, y + 0.5 - middle.y];
      return [(2 * (dx * Math.cos(turn) + dy * Math.sin(turn))) / side, (2 * (dy * Math.cos(turn) - dx * Math.sin(turn))) / side];
    }), this.prior.links, this.prior.link_width, 256);
    [this.map.width, this.map.height] = [width, height];
    const context = this.map.getContext("2d");
    context.translate(middle.x, middle.y);
    context.rotate(turn);
    context.drawImage(square, -side / 2, -side / 2, side, side);
    this.stage.over.before(this.map);
  }

  describe(item) {
    const { result, error } = item ?? {};
    if (error) { this.message.replaceChildren(h("p", { class: "verdict bad" }, "No pose"), h("p", {}, error.detail)); return; }
    if (!result) { this.message.replaceChildren(h("p", { class: "soft" }, "Looking for the pose …")); this.scores.replaceChildren(); return; }
    const { present, surprise } = result, isThere = present === null || present >= 0.5;
    this.message.replaceChildren(...[
      present !== null && h("p", { class: `verdict ${isThere ? "good" : "bad"}` }, isThere ? `${this.category}: present` : `${this.category}: probably not in this picture`, h("span", { class: "soft number" }, ` ${percent(present)}`)),
      surprise !== null && h("p", { class: "small soft" }, surprise > 1 ? `Surprise ${surprise.toFixed(2)}: above 1, a pose or a thing that was never learned.` : `Surprise ${surprise.toFixed(2)}: below 1, a pose like those of the training pictures.`),
      item.boxes.length > 0 && h("p", { class: "small soft" }, "Both are computed from the visible part, before refinement."),
    ].filter(Boolean));
    this.scores.replaceChildren(h("table", {}, h("tbody", {}, result.keypoints.map((point) => h("tr", {
      onpointerenter: () => lightUp(this.stage.layer, point.id), onpointerleave: () => lightUp(this.stage.layer, null) },
    h("td", {}, h("span", { class: "swatch", style: { background: colour(point.id) } })), h("td", {}, point.name ?? `keypoint ${point.id}`), h("td", { class: "number" }, point.score.toFixed(2)))))));
    this.describeRepair(item);
  }

  describeRepair({ boxes, clean, result }) {
    if (!boxes.length || !clean) { this.repair.textContent = ""; return; }
    const target = this.pose(clean, 0), side = Math.max(result.width, result.height);
    const off = (step) => this.pose(result, step).reduce((sum, point, id) => sum + Math.hypot(point.x - target[id].x, point.y - target[id].y), 0) / target.length / side;
    this.repair.textContent = `From the pose without the box (faint lines): ${percent(off(0), 1)} of the side before refinement, ${percent(off(this.step), 1)} ${this.step ? `after ${plural(this.step, "step")}` : "now"}.`;
  }

  setPainting(on) { this.setMode(on, false); }

  setMarking(on) { this.setMode(false, on); }

  setMode(painting, marking) {
    [this.isPainting, this.isMarking] = [painting, marking];
    this.paint.setAttribute("aria-pressed", String(painting));
    this.marking.setAttribute("aria-pressed", String(marking));
    this.stage.element.classList.toggle("painting", painting || marking);
  }

  async mark(box) {
    const item = this.current;
    item.place = box; // the heading of another one says nothing of this one's
    this.setMarking(false);
    await this.again(item);
  }

  async again(item) {
    Object.assign(item, { clean: null, rebuiltFrom: null });
    try { await this.estimate([item]); } catch (error) { if (error.name !== "AbortError") notice(explain(error), "error"); }
  }

  hide(box) { return this.setBoxes([...this.current.boxes, box]).catch((error) => notice(explain(error), "error")); }

  hideHalf() {
    const { bitmap } = this.current ?? {};
    return bitmap ? this.setBoxes([[bitmap.width * 0.52, 0, bitmap.width * 0.48, bitmap.height].map(Math.round)]) : null;
  }

  // Estimate again what is left to see, then play the refinement.
  async setBoxes(boxes) {
    const item = this.current;
    item.boxes = boxes;
    const canvas = toCanvas(item.bitmap, boxes);
    this.stage.setPicture(canvas, canvas.width, canvas.height);
    const sent = boxes.length ? await toBlob(canvas) : item.file;
    if (item.boxes !== boxes) return; // they were changed meanwhile
    item.sent = sent;
    item.result = boxes.length ? null : item.clean;
    this.refine.set(0);
    if (!boxes.length && item.result) { // a request that is under way is of the picture with a box
      Object.assign(item, { asked: null, error: null });
      this.drawThumb(item);
      this.draw();
      return;
    }
    await this.estimate([item]);
    for (let step = 0; boxes.length && step <= this.steps && item === this.current && item.boxes === boxes && item.result; step += 1) {
      this.refine.set(step);
      await new Promise((resolve) => setTimeout(resolve, step ? 260 : 700));
    }
  }

  async download(format, name) {
    const items = this.items.filter((item) => item.result), form = this.form(items, { format, refine_steps: this.items.some((item) => item.boxes.length) ? this.steps : 0 });
    if (!items.length) throw new Error("No picture has a pose.");
    if ([...parts(items, ({ sent }) => sent.size)].length === 1) { save(await (await request("estimate", { method: "POST", body: form, signal: this.signal })).blob(), name); return; }
    const { id } = await estimateInBackground(form, { signal: this.signal });
    save(await (await request(`estimates/${id}/result`, { signal: this.signal })).blob(), name);
  }

  async downloadPicture() {
    const item = this.current, form = this.form([item], { include: "overlay", refine_steps: item.boxes.length ? this.step : 0 });
    const { images } = await (await request("estimate", { method: "POST", body: form, signal: this.signal })).json();
    const bytes = Uint8Array.from(atob(images[0].overlay.split(",")[1]), (letter) => letter.charCodeAt(0));
    save(new Blob([bytes], { type: "image/png" }), `${item.file.name.replace(/\.\w+$/, "")}.pose.png`);
  }
}
