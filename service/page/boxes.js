// Where the thing is in each picture or frame of a dataset: boxes found by motion, corrected or drawn with the mouse, or
// corrected from an earlier job.

import { blobUrl, pause, request } from "./api.js";
import { listAll } from "./choose.js";
import { button, h, plural, s, slider, unsaved } from "./dom.js";
import { BOX_LOOK, Stage, boxShape } from "./stage.js";

const NEEDED = 8; // pictures that a training needs
const CORNER_PX = 12; // on the screen: how near a corner is dragged
const COLUMNS = ["image", "x", "y", "width", "height", "angle"]; // the last only of boxes that have one
const ITSELF = "Where one thing moves before a fixed camera, a training finds it by itself: start one, then follow “Correct its boxes” on its page to see and mend what it found.";
const FOUND = "Dashed boxes were found by movement. Where they are right, leave them: training finds the box of each of its frames in the same way. A box that you correct, add or remove holds for its picture, and for those beside it as long as what moves stays in its place; all others keep what was found.";
const FOUND_LOOK = { "stroke-dasharray": "8 5", "fill-opacity": 0.05 };
const KEYS = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], "+": [-0.5, -0.5, 1], "-": [0.5, 0.5, -1] };

export class BoxEditor {
  // `boxes` are those that the user set, `found` those of motion: of a picture that is in `boxes`, they are not used.
  constructor(dataset, signal) {
    Object.assign(this, { dataset, signal, boxes: new Map(), found: new Map(), file: null, at: 0, withHeading: false });
    this.body = h("div", { class: "stack" });
    this.state = h("span", { class: "state", "aria-live": "polite" });
    this.element = h("details", { class: "card", ontoggle: () => this.open() }, h("summary", {}, this.title = h("span", {}, "Where is the thing? Draw boxes"), this.state), this.body);
  }

  // Take what the inspection found, unless boxes of a job are there.
  setDataset(dataset) {
    this.dataset = dataset;
    const { motion } = dataset.found;
    if (motion?.sure && !this.boxes.size) for (const { image, x, y, width, height, angle } of motion.boxes) this.found.set(image, [[x, y, width, height, ...(angle === null ? [] : [angle])]]);
    if (this.found.size) this.title.textContent = "Where is the thing? See and correct its boxes";
    this.describe();
  }

  // The file to send with a training; null where the user set no box.
  toFile() {
    if (this.file) return this.file;
    const all = this.all(), count = this.count();
    if (!this.boxes.size || (!count && !this.found.size)) return null;
    if (!this.isFresh && !this.found.size && count < NEEDED) throw new Error(`Only ${plural(count, "picture has", "pictures have")} a box. Pictures without one are left out, and a training needs ${NEEDED}: draw more, or remove them all.`);
    if (!count) throw new Error("No picture has a box. Draw one, or go back to the boxes that were found.");
    const named = this.found.size ? this.corrections() : this.isFresh ? [...all, ...between(all, this.dataset.found.frames)] : [...all];
    const rows = named.flatMap(([name, boxes]) => (boxes.length ? boxes : [["", "", "", ""]]).map(([x, y, width, height, angle = ""]) => [`"${name.replaceAll('"', '""')}"`, x, y, width, height, angle].join(",")));
    return new File([[COLUMNS.join(","), ...rows].join("\n")], "boxes.csv", { type: "text/csv" });
  }

  // What the user changed; motion fills the rest. Of a video in which it found nothing, its boxes go on in between.
  corrections() {
    const moving = new Set([...this.found.keys()].map(videoOf)), own = [...this.boxes];
    return [...own, ...between(own.filter(([name]) => !moving.has(videoOf(name))), this.dataset.found.frames)];
  }

  // Take the boxes that an earlier job found or was sent; rows without numbers are pictures without a box.
  async loadJob(job) {
    const text = await (await request(`train-jobs/${encodeURIComponent(job)}/boxes`, { signal: this.signal })).text();
    this.boxes = readBoxes(text);
    this.isLoaded = true;
    this.element.open = true;
  }

  async open() {
    if (this.element.open && this.stage?.width) this.draw(); // its size on the screen is known again
    if (!this.element.open || this.stage) return;
    this.stage = new Stage("A picture of the dataset with its boxes. Arrow keys move a box, plus and minus change its size, Enter draws one.");
    const input = h("input", { type: "file", accept: ".csv,.json", "aria-label": "A file of boxes", onchange: () => { [this.file = null] = input.files; this.describe(); } });
    this.body.replaceChildren(h("p", { class: "small soft" }, this.found.size ? FOUND : "Optional: boxes are more exact than the crops that training finds itself. Training then sees the boxes alone: pictures without one are left out."));
    const file = h("details", {}, h("summary", {}, "Use a file of boxes"), h("label", { class: "field" }, h("span", {}, "A file of boxes (CSV, COCO or MegaDetector)"), input));
    const listed = await listAll(`datasets/${this.dataset.id}/pictures`, {}, this.signal, 10000), known = new Set(listed.map(({ name }) => name));
    // frames of videos are those that the earlier job took, or else some of each
    const taken = [...this.boxes.keys()].filter((name) => name.includes("#") && !known.has(name)), frames = taken.length ? taken : this.dataset.found.frames;
    this.isFresh = !taken.length && frames.length > 0;
    this.pictures = [...listed, ...frames.map((name) => ({ name, isFrame: true }))];
    const advice = [!this.dataset.found.motion && ITSELF, this.isFresh && "If the camera moves, draw boxes here: the frames between two with a box get one in between."].filter(Boolean);
    if (frames.length && !this.found.size && advice.length) this.body.append(h("p", { class: "small soft" }, advice.join(" ")));
    if (!this.pictures.length) { this.body.append(file); return; }
    this.message = h("p", { class: "small", "aria-live": "polite" });
    this.warning = h("p", { class: "small warn", hidden: true });
    this.stage.element.classList.add("painting");
    this.stage.onBox(() => Boolean(this.stage.width), BOX_LOOK, (box) => this.add(box), (place) => this.grab(place));
    this.stage.element.tabIndex = 0;
    this.stage.element.addEventListener("keydown", (event) => this.press(event));
    const { element, set } = slider("Picture", { max: this.pictures.length - 1, value: 0 }, (at) => `${at + 1} of ${this.pictures.length}`, (at) => this.show(at));
    this.heading = slider("Heading", { max: 359, value: 0 }, (angle) => `${angle}° clockwise from up`, (angle) => { for (const box of this.own()) box[4] = angle; this.keep(); });
    this.back = button("Back to the boxes found", () => { this.boxes.clear(); this.keep(); }, { hidden: true });
    const step = (by) => () => set(Math.min(this.pictures.length - 1, Math.max(0, this.at + by)));
    this.body.append(this.stage.element, element, this.message, this.warning, this.heading.element, h("div", { class: "row" }, button("Previous", step(-1)), button("Next", step(1)),
      this.before = button("Box of the picture before", () => { const before = this.of(this.pictures[this.at - 1]?.name); if (before.length) { this.boxes.set(this.name, copy(before)); this.keep(); } }, { hidden: true }),
      button("This box for all pictures", () => { const boxes = this.of(this.name); if (boxes.length) { for (const { name } of this.pictures) this.boxes.set(name, copy(boxes)); this.keep(); } }, { hidden: this.found.size > 0 }),
      button("Remove the box", () => { if (this.found.size || this.isLoaded) this.boxes.set(this.name, []); else this.boxes.delete(this.name); this.keep(); }), this.back), file);
    await this.show(0);
  }

  get hasAngles() { return [...this.boxes.values()].flat().some((box) => box[4] !== undefined); }

  // The boxes of each picture: those that the user set, else those found. Of frames in which nothing was found, none.
  all() {
    const frames = this.found.size ? this.dataset.found.frames.map((name) => [name, []]) : [];
    return new Map([...frames, ...this.found, ...this.boxes]);
  }

  of(name) { return this.boxes.get(name) ?? this.found.get(name) ?? []; }

  count() { return [...this.all().values()].filter((boxes) => boxes.length).length; }

  get name() { return this.pictures[this.at].name; }

  // The boxes of this picture, to be changed.
  own() {
    if (!this.boxes.has(this.name)) this.boxes.set(this.name, copy(this.of(this.name)));
    return this.boxes.get(this.name);
  }

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

  // Drag a box that is there, or one of its corners; the opposite corner then stays.
  grab({ x, y }) {
    for (const [at, [left, top, width, height, angle]] of this.of(this.name).entries()) {
      const change = (...values) => { this.own()[at].splice(0, values.length, ...values.map(Math.round)); this.keep(); };
      const heading = this.withHeading ? angle ?? 0 : 0, [mx, my] = [left + width / 2, top + height / 2], [u, v] = turned(x - mx, y - my, -heading);
      if (Math.hypot(Math.abs(u) - width / 2, Math.abs(v) - height / 2) <= Math.min(CORNER_PX * this.scale, width / 4, height / 4)) {
        const [fx, fy] = turned(-Math.sign(u) * width / 2, -Math.sign(v) * height / 2, heading);
        return (dx, dy) => {
          const [px, py] = [x + dx - mx - fx, y + dy - my - fy], [wide, high] = turned(px, py, -heading).map((side) => Math.max(2, Math.abs(side)));
          change(mx + fx + px / 2 - wide / 2, my + fy + py / 2 - high / 2, wide, high);
        };
      }
      if (Math.abs(u) <= width / 2 && Math.abs(v) <= height / 2) return (dx, dy) => change(left + dx, top + dy);
    }
    return null;
  }

  // Pixels of the picture in one of the screen.
  get scale() { return this.stage.width / (this.stage.element.clientWidth || this.stage.width); }

  // Move the first box by a hundredth of the picture, or by a pixel with Shift; draw one in the middle.
  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.stage.width) return;
    const { width, height } = this.stage, step = event.shiftKey && event.key.startsWith("Arrow") ? 1 : Math.max(1, Math.round(width / 100)), change = KEYS[event.key];
    const side = Math.round(Math.min(width, height) / 3);
    if (change && this.of(this.name).length) {
      const box = this.own()[0], [dx, dy, wider] = change.map((by) => by * step);
      if (Math.min(box[2], box[3]) + wider > 1) box.splice(0, 4, box[0] + dx, box[1] + dy, box[2] + wider, box[3] + wider);
      this.keep();
    } else if (event.key === "Enter") this.add([Math.round((width - side) / 2), Math.round((height - side) / 2), side, side]);
    else return;
    event.preventDefault();
  }

  keep() {
    this.file = null;
    unsaved.text = this.boxes.size ? "The boxes that you changed are sent with a training; none was started, and they would be lost." : "";
    this.draw();
  }

  async show(at) {
    this.at = at;
    this.describe();
    const { isFrame, name, number } = this.pictures[at], image = h("img", { alt: "", "data-name": at }), folder = `datasets/${this.dataset.id}`;
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
    const boxes = this.of(this.name), angle = boxes[0]?.[4], look = this.boxes.has(this.name) ? {} : FOUND_LOOK;
    this.heading.element.hidden = !boxes.length || !this.withHeading;
    this.heading.show(Math.round((angle ?? 0) + 360) % 360);
    this.stage.draw(...boxes.map((box) => {
      const shape = boxShape(this.withHeading ? box : box.slice(0, 4), look), [x, y, width, height] = box;
      shape.append(...[[0, 0], [1, 0], [0, 1], [1, 1]].map(([right, down]) => s("circle", { cx: x - 0.5 + right * width, cy: y - 0.5 + down * height, r: 5 * this.scale, fill: BOX_LOOK.stroke })));
      return shape;
    }));
  }

  // Say what was found and what is sent.
  describe() {
    this.state.textContent = this.describeState();
    if (!this.message) return;
    const count = this.count(), boxes = this.of(this.name), isOwn = this.boxes.has(this.name), isChanged = this.boxes.size > 0;
    this.back.hidden = !this.found.size || !isChanged;
    this.before.hidden = !this.at;
    const how = boxes.length ? "Drag the box to move it, a corner to change its size; drag beside it for a new one. Keys: arrows, + and −." : "Drag over the picture to draw one.";
    if (this.file) this.message.textContent = `The boxes of ${this.file.name} are used.`;
    else if (this.found.size && !isOwn) this.message.textContent = `${this.name}. ${boxes.length ? "Found by its movement." : "No box was found here."} ${how}`;
    else if (this.found.size) this.message.textContent = `${this.name}. ${boxes.length ? "Your box." : "You removed its box: it is left out."} ${how}`;
    else if (!count) this.message.textContent = `${this.name}. No boxes yet. Without boxes, training crops to the object itself where its position varies. Drag over the picture to draw one.`;
    else this.message.textContent = `${this.name}. ${plural(count, "picture")} of ${this.pictures.length} with a box${this.isFresh ? "; frames between get one in between" : count < this.pictures.length ? "; the others would be left out" : ""}. ${how}`;
    const warnings = isChanged && this.isFresh && !this.file ? this.doubts() : [];
    this.warning.hidden = !warnings.length;
    this.warning.textContent = warnings.join(" ");
  }

  describeState() {
    const { motion, videos, clips } = this.dataset.found, changed = this.boxes.size;
    if (this.file) return `The boxes of ${this.file.name} are used.`;
    if (changed && this.found.size) return `Boxes of ${plural(changed, "picture")} changed by you.`; // one line: the picture below stays where it is while a box is dragged
    if (changed || !motion) return "";
    const what = videos ? "frame" : "picture";
    if (motion.sure) return `Found by its movement in ${motion.found.toLocaleString("en")} of ${plural(motion.frames, what)}${motion.clips < Math.max(videos, clips) ? ` of the first ${motion.clips} videos or folders` : ""}.`;
    if (!videos && this.dataset.mode !== "clips") return "";
    return `Nothing was found by movement${motion.note ? ` (${motion.note})` : ""}: draw boxes, or training crops to the thing by its looks.`;
  }

  // Where boxes in between would be guesses, and videos that would be left out.
  doubts() {
    if (this.found.size) return [];
    const { frames, videos } = this.dataset.found, all = this.all(), shown = new Set(frames.map(videoOf)).size;
    const isFar = frames.some((name, index) => {
      const [one, other] = [frames[index - 1], name].map((each) => all.get(each)?.[0]);
      return one && other && videoOf(frames[index - 1]) === videoOf(name) && Math.hypot(...[0, 1].map((axis) => other[axis] + other[axis + 2] / 2 - one[axis] - one[axis + 2] / 2)) > Math.max(one[2], one[3]);
    });
    return [isFar && "It moves further than its own size from one of these frames to the next, so boxes in between are guesses.",
      videos > shown && `The ${plural(videos - shown, "video")} not shown here would be left out.`].filter(Boolean);
  }
}

const copy = (boxes) => boxes.map((box) => [...box]);
const turned = (x, y, degrees) => { const [c, d] = [Math.cos, Math.sin].map((of) => of((degrees * Math.PI) / 180)); return [c * x - d * y, d * x + c * y]; };
const videoOf = (name) => name.slice(0, name.lastIndexOf("#"));

// Boxes for all frames of the videos in which some have one: in between the nearest of those, at the ends as the nearest.
// A frame that is known to have none speaks for those that are nearest to it. Of the frames that are shown, "shown", the
// last one may not be the video's last.
function between(boxes, shown) {
  const known = new Map(), found = [];
  for (const [name, [box]] of boxes) {
    const [, video, number] = /^(.*)#(\d+)$/s.exec(name) ?? [];
    if (number) known.set(video, [...(known.get(video) ?? []), [Number(number), box]]);
  }
  for (const [video, list] of known) {
    if (!list.some(([, box]) => box)) continue;
    list.sort(([a], [b]) => a - b);
    const numbers = shown.filter((name) => videoOf(name) === video).map((name) => Number(name.slice(video.length + 1)));
    const end = Math.max(...numbers) + (numbers.length > 1 ? numbers.at(-1) - numbers.at(-2) : 0);
    for (let number = 0, next = 0; number <= end; number++) {
      while (next < list.length && list[next][0] < number) next++;
      if (list[next]?.[0] === number) continue;
      const first = list[Math.max(next - 1, 0)], last = list[Math.min(next, list.length - 1)];
      const nearest = Math.abs(number - first[0]) <= Math.abs(last[0] - number) ? first : last;
      if (!nearest[1]) continue;
      const [from, to] = first[1] && last[1] ? [first, last] : [nearest, nearest];
      const share = to[0] > from[0] ? (number - from[0]) / (to[0] - from[0]) : 0;
      found.push([`${video}#${String(number).padStart(6, "0")}`, [from[1].map((value, index) => {
        const step = (to[1][index] ?? value) - value;
        return value + share * (index === 4 ? ((step + 540) % 360) - 180 : step); // an angle turns the short way
      })]]);
    }
  }
  return found;
}

// The boxes of each picture in our CSV; none of a row without numbers.
export function readBoxes(text) {
  const found = new Map(), [head, ...rows] = text.trim().split("\n").map(splitRow), places = COLUMNS.map((name) => head.indexOf(name));
  for (const row of rows) {
    const [name, ...cells] = places.map((place) => row[place]), box = cells.filter((value) => value?.trim()).map(Number);
    found.set(name, [...(found.get(name) ?? []), ...(box.length >= 4 ? [box] : [])]);
  }
  return found;
}

function splitRow(line) {
  return [...line.replace(/\r$/, "").matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)].map(([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain);
}
