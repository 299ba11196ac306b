// A video with the poses of its frames over it, and a curve for each keypoint.

import { blobUrl, estimateInBackground, request } from "./api.js";
import { button, h, notice, plural, s, save, select, field, slider } from "./dom.js";
import { colour, poseLayer, rim } from "./skeleton.js";
import { Stage } from "./stage.js";

export async function playVideo(place, options) {
  const { file, signal } = options;
  const bar = h("progress", { max: 1, "aria-label": "Frames that are done" }), text = h("p", { class: "soft", "aria-live": "polite" }, "Sending the video …");
  const stop = new AbortController();
  signal.addEventListener("abort", () => stop.abort());
  const waiting = h("div", { class: "card stack" }, h("h2", {}, file.name), text, bar, h("div", { class: "row" }, h("button", { type: "button", onclick: () => stop.abort() }, "Stop"), h("span", { class: "small soft" }, "Stay here until it is done: leaving this view stops it.")));
  place.append(waiting);
  const form = new FormData();
  const fields = { category: options.category, version: options.version, landmarks: options.landmarks, include: "overlay", smooth: "savgol" };
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("video", file, file.name);
  let estimate;
  try {
    estimate = await estimateInBackground(form, {
      signal: stop.signal,
      onupload: (share) => { bar.value = share; },
      onprogress: ({ done, total }) => {
        text.textContent = !done ? "Reading the video, and looking for what moves in it …" : total ? `${done} of ${plural(total, "frame")}` : `${plural(done, "frame")} so far`;
        if (total) bar.value = done / total; else bar.removeAttribute("value");
      },
    });
  } finally { waiting.remove(); }
  await new Player(place, estimate, options).start();
}

class Player {
  constructor(place, estimate, { file, prior, landmarks, signal }) {
    Object.assign(this, { estimate, file, prior, landmarks, signal, isSmooth: true });
    this.frames = estimate.result.images.filter((frame) => frame.keypoints.length);
    this.names = this.frames[0]?.keypoints.map((point) => point.name ?? `keypoint ${point.id}`) ?? [];
    this.stage = new Stage("The video with the poses that were found");
    this.video = h("video", { muted: true, playsinline: true, loop: true, controls: true, preload: "auto" });
    this.curves = h("div", { class: "card scroll" });
    this.where = h("p", { class: "small soft number" });
    const errors = estimate.result.errors ?? [];
    place.append(h("div", { class: "two" },
      h("div", { class: "stack" }, this.stage.element, this.where),
      h("div", { class: "stack keep" },
        h("div", { class: "card stack" }, h("h2", {}, file.name),
          h("p", {}, `${plural(this.frames.length, "frame")} with a pose${errors.length ? `, ${errors.length} without` : ""}.`),
          errors.length > 0 && h("details", {}, h("summary", {}, "Why some have none"), h("ul", { class: "small" }, errors.slice(0, 20).map((error) => h("li", {}, `Frame ${error.frame ?? error.index}: ${error.detail ?? error.error?.detail ?? ""}`)))),
          field("Shown", select([["smooth", "Smoothed over time"], ["raw", "As found in each frame"]], "smooth", (value) => { this.isSmooth = value === "smooth"; this.drawCurves(); this.draw(); })),
          slider("Speed", { min: 1, max: 4, value: 3 }, (value) => `${["", "¼", "½", "1", "2"][value]} ×`, (value) => { this.video.playbackRate = [0, 0.25, 0.5, 1, 2][value]; }).element),
        h("div", { class: "card" }, h("h2", {}, "Download"), h("div", { class: "row" },
          button("Labelled video", async () => save(await (await request(`estimates/${estimate.id}/overlay`, { signal })).blob(), `${this.stem}.poses.mp4`)),
          button("JSON", () => save(new Blob([JSON.stringify(estimate.result)], { type: "application/json" }), `${this.stem}.json`)),
          button("CSV", () => this.downloadAs("csv", `${this.stem}.csv`)), button("COCO", () => this.downloadAs("coco", `${this.stem}.coco.json`)))),
        h("a", { class: "button", href: `#/estimate?category=${estimate.category}`, onclick: (event) => { event.preventDefault(); window.dispatchEvent(new HashChangeEvent("hashchange")); } }, "Other pictures or videos"))), h("div", { style: { marginTop: "1.6rem" } }, this.curves));
  }

  get stem() { return this.file.name.replace(/\.\w+$/, ""); }

  async downloadAs(format, name) {
    const form = new FormData();
    for (const [key, value] of Object.entries({ category: this.estimate.category, version: this.estimate.version, landmarks: this.landmarks, smooth: "savgol", format })) if (value) form.append(key, value);
    form.append("video", this.file, this.file.name);
    const { id } = await estimateInBackground(form, { signal: this.signal });
    save(await (await request(`estimates/${id}/result`, { signal: this.signal })).blob(), name);
  }

  async start() {
    const url = URL.createObjectURL(this.file);
    this.signal.addEventListener("abort", () => URL.revokeObjectURL(url));
    const [first] = this.frames;
    if (!first) { notice("No frame of this video has a pose.", "error"); return; }
    this.stage.setPicture(this.video, first.width, first.height);
    this.isDrawn = !(await this.load(url)); // a kind that browsers do not play: the server's drawing of it is H.264
    if (this.isDrawn && !(await this.load(await blobUrl(`estimates/${this.estimate.id}/overlay`, {}, this.signal)))) {
      notice("This browser plays neither the video nor the labelled one; download it instead.", "error");
    }
    this.drawCurves();
    const tick = (_, data) => { this.draw(data?.mediaTime); if (!this.signal.aborted) this.next(tick); };
    this.next(tick);
    this.video.addEventListener("seeked", () => this.draw());
    this.draw(0);
    this.video.play().catch(() => {}); // a browser may wait for a click
  }

  next(tick) {
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(tick); else requestAnimationFrame(() => tick());
  }

  load(url) {
    return new Promise((resolve) => {
      this.video.onloadeddata = () => resolve(true);
      this.video.onerror = () => resolve(false);
      this.video.src = url;
    });
  }

  points(frame) { return (this.isSmooth && frame.smoothed) || frame.keypoints; }

  draw(time = this.video.currentTime) {
    let low = 0, high = this.frames.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (this.frames[middle].time_s <= time + 1e-3) low = middle; else high = middle - 1; }
    const frame = this.frames[low];
    if (!frame) return;
    const side = frame.region ? Math.max(frame.region.width, frame.region.height) : Math.max(frame.width, frame.height);
    this.stage.draw(this.isDrawn ? null : poseLayer({ points: this.points(frame), links: this.prior.drawn, unit: Math.max(side / 100, frame.width / 300), marks: frame.landmarks ?? [] }));
    this.where.textContent = `Frame ${frame.frame}, ${frame.time_s.toFixed(2)} s${frame.present === null ? "" : `, present ${(100 * frame.present).toFixed(0)} %`}${frame.surprise === null ? "" : `, surprise ${frame.surprise.toFixed(2)}`}`;
    for (const head of this.heads ?? []) { const x = this.x(frame); head.setAttribute("x1", x); head.setAttribute("x2", x); }
  }

  x(frame) { const first = this.frames[0].time_s; return (1000 * (frame.time_s - first)) / Math.max(1e-6, this.frames.at(-1).time_s - first); }

  // One row a keypoint: x solid, y dashed. A click goes there.
  drawCurves() {
    const thin = Math.max(1, Math.floor(this.frames.length / 800)), shown = this.frames.filter((_, index) => index % thin === 0);
    this.heads = [];
    const rows = this.names.map((name, id) => {
      const values = (axis) => shown.map((frame) => this.points(frame)[id]?.[axis] ?? null);
      const line = (axis, dash) => {
        const all = values(axis), known = all.filter((value) => value !== null), low = Math.min(...known), span = Math.max(Math.max(...known) - low, shown[0].width / 50);
        let path = "";
        all.forEach((value, index) => { path += value === null ? "" : `${path && all[index - 1] !== null ? "L" : "M"}${this.x(shown[index]).toFixed(1)} ${(46 - (42 * (value - low)) / span).toFixed(1)}`; });
        const look = { d: path, class: "line", "stroke-dasharray": dash, "vector-effect": "non-scaling-stroke" };
        return [s("path", { ...look, stroke: rim(id), style: { strokeWidth: 3.5, opacity: 0.45 } }), s("path", { ...look, stroke: colour(id) })];
      };
      const head = s("line", { x1: 0, x2: 0, y1: 0, y2: 50, stroke: "currentColor", "vector-effect": "non-scaling-stroke" });
      this.heads.push(head);
      const chart = s("svg", { viewBox: "0 0 1000 50", preserveAspectRatio: "none", class: "chart curve", "aria-hidden": "true",
        onclick: (event) => this.seek((event.clientX - chart.getBoundingClientRect().left) / chart.getBoundingClientRect().width) }, line("x", null), line("y", "5 4"), head);
      return h("tr", {}, h("td", { class: "small named" }, h("span", { class: "swatch", style: { background: colour(id) } }), " ", name), h("td", { class: "curves" }, chart));
    });
    this.curves.replaceChildren(h("h2", {}, "Where each keypoint goes"), h("p", { class: "small soft" }, "Solid: to the right. Dashed: down. Click a curve to go there."), h("table", {}, h("tbody", {}, rows)));
  }

  seek(share) {
    const [first, last] = [this.frames[0].time_s, this.frames.at(-1).time_s];
    this.video.currentTime = first + share * (last - first) + 1e-3;
  }
}
