// Where the thing is in each picture or frame of a dataset: boxes drawn with the mouse, or corrected from an earlier job.

import { blobUrl, pause, request } from "./api.js";
import { listAll } from "./choose.js";
import { button, h, plural, slider } from "./dom.js";
import { BOX_LOOK, Stage, boxShape } from "./stage.js";

const NEEDED = 8; // pictures that a training needs
const COLUMNS = ["image", "x", "y", "width", "height", "angle"]; // the last only of boxes that have one
const ITSELF = "Where one thing moves before a fixed camera, a training finds it by itself: start one, then follow “Correct its boxes” on its page to see and mend what it found.";

export class BoxEditor {
  constructor(dataset, signal) {
    Object.assign(this, { dataset, signal, boxes: new Map(), file: null, at: 0, withHeading: false });
    this.body = h("div", { class: "stack" });
    this.element = h("details", { class: "card", ontoggle: () => this.open() }, h("summary", {}, "Where is the thing? Draw boxes"), this.body);
  }

  // The file to send with a training; null without any box.
  toFile() {
    if (this.file) return this.file;
    const count = this.count();
    if (!count) return null;
    if (!this.isFresh && count < NEEDED) throw new Error(`Only ${plural(count, "picture has", "pictures have")} a box. Pictures without one are left out, and a training needs ${NEEDED}: draw more, or remove them all.`);
    const named = this.isFresh ? [...this.boxes, ...between(this.boxes, this.dataset.found.frames)] : [...this.boxes];
    const rows = named.flatMap(([name, boxes]) => boxes.map(([x, y, width, height, angle = ""]) => [`"${name.replaceAll('"', '""')}"`, x, y, width, height, angle].join(",")));
    return new File([[COLUMNS.join(","), ...rows].join("\n")], "boxes.csv", { type: "text/csv" });
  }

  // Take the boxes that an earlier job found or was sent; rows without numbers are pictures without a box.
  async loadJob(job) {
    const text = await (await request(`train-jobs/${encodeURIComponent(job)}/boxes`, { signal: this.signal })).text();
    const [head, ...rows] = text.trim().split("\n").map(splitRow), places = COLUMNS.map((name) => head.indexOf(name));
    for (const row of rows) {
      const [name, ...cells] = places.map((place) => row[place]), box = cells.filter((value) => value?.trim()).map(Number);
      this.boxes.set(name, [...(this.boxes.get(name) ?? []), ...(box.length >= 4 ? [box] : [])]);
    }
    this.element.open = true;
  }

  async open() {
    if (!this.element.open || this.stage) return;
    this.stage = new Stage("A picture of the dataset with its boxes");
    const input = h("input", { type: "file", accept: ".csv,.json", "aria-label": "A file of boxes", onchange: () => { [this.file = null] = input.files; this.describe(); } });
    this.body.replaceChildren(h("p", { class: "small soft" }, "Optional: boxes are more exact than the crops that training finds itself. Training then sees the boxes alone: pictures without one are left out."),
      h("label", { class: "field" }, h("span", {}, "A file of boxes (CSV, COCO or MegaDetector)"), input));
    const listed = await listAll(`datasets/${this.dataset.id}/pictures`, {}, this.signal, 10000), known = new Set(listed.map(({ name }) => name));
    // frames of videos are those that the earlier job took, or else some of each
    const taken = [...this.boxes.keys()].filter((name) => name.includes("#") && !known.has(name)), frames = taken.length ? taken : this.dataset.found.frames;
    this.isFresh = !taken.length && frames.length > 0;
    this.pictures = [...listed, ...frames.map((name) => ({ name, isFrame: true }))];
    if (frames.length) this.body.append(h("p", { class: "small soft" }, ITSELF, this.isFresh && " If the camera moves, draw boxes here: the frames between two with a box get one in between."));
    if (!this.pictures.length) return;
    this.message = h("p", { class: "small", "aria-live": "polite" });
    this.stage.element.classList.add("painting");
    this.stage.onBox(() => Boolean(this.stage.width), BOX_LOOK, (box) => this.add(box), (place) => this.grab(place));
    const { element, set } = slider("Picture", { max: this.pictures.length - 1, value: 0 }, (at) => `${at + 1} of ${this.pictures.length}`, (at) => this.show(at));
    this.heading = slider("Heading", { max: 359, value: 0 }, (angle) => `${angle}° clockwise from up`, (angle) => { for (const box of this.own()) box[4] = angle; this.keep(); });
    const step = (by) => () => set(Math.min(this.pictures.length - 1, Math.max(0, this.at + by)));
    this.body.append(this.stage.element, element, this.message, this.heading.element, h("div", { class: "row" }, button("Previous", step(-1)), button("Next", step(1)),
      button("Box of the picture before", () => { const before = this.boxes.get(this.pictures[this.at - 1]?.name); if (before) { this.boxes.set(this.name, before.map((box) => [...box])); this.keep(); } }),
      button("This box for all pictures", () => { const boxes = this.boxes.get(this.name); if (boxes) { for (const { name } of this.pictures) this.boxes.set(name, boxes.map((box) => [...box])); this.keep(); } }),
      button("Remove", () => { this.boxes.delete(this.name); this.keep(); })));
    await this.show(0);
  }

  get hasAngles() { return [...this.boxes.values()].flat().some((box) => box[4] !== undefined); }

  count() { return [...this.boxes.values()].filter((boxes) => boxes.length).length; }

  get name() { return this.pictures[this.at].name; }

  own() { if (!this.boxes.has(this.name)) this.boxes.set(this.name, []); return this.boxes.get(this.name); }

  // Let the headings of boxes be set; new boxes face up.
  setHeadings(on) {
    this.withHeading = on;
    if (this.stage?.width) this.draw();
  }

  // A frame shows one thing: a new box takes the place of the one that was found, and its heading.
  add(box) {
    const own = this.own(), { isFrame } = this.pictures[this.at], angle = (isFrame ? own[0]?.[4] : undefined) ?? (this.withHeading ? 0 : undefined);
    own.splice(isFrame ? 0 : own.length, own.length, angle === undefined ? box : [...box, angle]);
    this.keep();
  }

  // Drag a box that is there.
  grab({ x, y }) {
    const box = this.own().find(([left, top, width, height]) => x >= left && x <= left + width && y >= top && y <= top + height);
    if (!box) return null;
    const [left, top] = box;
    return (dx, dy) => { box[0] = Math.round(left + dx); box[1] = Math.round(top + dy); this.keep(); };
  }

  keep() { this.file = null; this.draw(); }

  async show(at) {
    this.at = at;
    this.describe();
    const { isFrame, name, number } = this.pictures[at], image = h("img", { alt: "" }), folder = `datasets/${this.dataset.id}`;
    try {
      if (isFrame) { // a video is decoded for each: not for those that a slider passes
        this.stage.draw();
        await pause(150, this.signal);
        if (at !== this.at) return;
      }
      image.src = await (isFrame ? blobUrl(`${folder}/frame`, { name }, this.signal) : blobUrl(`${folder}/pictures/${number}`, {}, this.signal));
      await image.decode();
    } catch (error) {
      if (error.name !== "AbortError" && at === this.at) this.message.textContent = `${name}: ${error.message}`;
      return;
    }
    if (at !== this.at) return;
    this.stage.setPicture(image, image.naturalWidth, image.naturalHeight);
    this.draw();
  }

  draw() {
    this.describe();
    const own = this.boxes.get(this.name) ?? [], angle = own[0]?.[4];
    this.heading.element.hidden = !own.length || (angle === undefined && !this.withHeading);
    this.heading.show(Math.round((angle ?? 0) + 360) % 360);
    this.stage.draw(...own.map((box) => boxShape(box)));
  }

  describe() {
    if (!this.message) return;
    const count = this.count(), own = this.boxes.get(this.name)?.length;
    this.message.textContent = this.file ? `The boxes of ${this.file.name} are used.` : !count ? `${this.name}. No boxes yet. Without boxes, training crops to the object itself where its position varies. Drag over the picture to draw one.`
      : `${this.name}. ${plural(count, "picture")} of ${this.pictures.length} with a box; ${this.isFresh ? "frames between get one in between" : "the others would be left out"}. ${own ? "Drag the box to move it, or drag beside it to draw a new one." : "Drag over the picture to draw one."}`;
  }
}

// Boxes for all frames of the videos in which some have one: in between the nearest of those, at the ends as the nearest.
// Of the frames that are shown, "shown", the last one may not be the video's last.
function between(boxes, shown) {
  const drawn = new Map(), found = [];
  for (const [name, [box]] of boxes) {
    const [, video, number] = /^(.*)#(\d+)$/s.exec(name) ?? [];
    if (box && number) drawn.set(video, [...(drawn.get(video) ?? []), [Number(number), box]]);
  }
  for (const [video, known] of drawn) {
    known.sort(([a], [b]) => a - b);
    const numbers = shown.filter((name) => name.startsWith(`${video}#`)).map((name) => Number(name.slice(video.length + 1)));
    const end = Math.max(...numbers) + (numbers.length > 1 ? numbers.at(-1) - numbers.at(-2) : 0);
    for (let number = 0, next = 0; number <= end; number++) {
      while (next < known.length && known[next][0] < number) next++;
      if (known[next]?.[0] === number) continue;
      const [first, last] = [known[Math.max(next - 1, 0)], known[Math.min(next, known.length - 1)]];
      const share = last[0] > first[0] ? (number - first[0]) / (last[0] - first[0]) : 0;
      found.push([`${video}#${String(number).padStart(6, "0")}`, [first[1].map((value, index) => {
        const step = (last[1][index] ?? value) - value;
        return value + share * (index === 4 ? ((step + 540) % 360) - 180 : step); // an angle turns the short way
      })]]);
    }
  }
  return found;
}

function splitRow(line) {
  return [...line.replace(/\r$/, "").matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)].map(([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain);
}
