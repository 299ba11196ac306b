// Jobs: every training, and one of them live: progress, losses, the pictures it draws, and what can be done with it.

import { blobUrl, events, get, pages, send } from "./api.js";
import { button, duration, h, plural, s, sentence, when } from "./dom.js";
import { shortVersion, verdictCaveat } from "./choose.js";

const STATUS_WORDS = { validating: "reading its pictures", queued: "waiting", running: "training", paused: "paused", succeeded: "succeeded", failed: "failed", cancelled: "cancelled" };
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

export async function show(place, { path, query, signal }) {
  if (path[0]) { await new JobView(place, path[0], signal).start(); return; }
  const list = h("ul", { class: "list" }), more = button("Show more", () => next(), { hidden: true });
  place.append(h("header", {}, h("h1", {}, "Jobs"), h("p", { class: "lead" }, "Every training, the newest first.")), list, h("div", { class: "row centre", style: { marginTop: "1.5rem" } }, more));
  const source = pages("train-jobs", { limit: 100, category: query.get("category") }, signal);
  let count = 0, ahead = await source.next();
  async function next() {
    const { value: items, done } = ahead;
    if (done) { more.hidden = true; return; }
    count += items.length;
    list.append(...items.map(row));
    ahead = await source.next(); // a page ahead: the button shows at once whether there is more
    more.hidden = Boolean(ahead.done);
    more.textContent = `Show more (${count} so far)`;
  }
  await next();
  if (!count) list.replaceWith(h("div", { class: "card empty" }, h("h2", {}, "No training yet"), h("a", { class: "button primary", href: "#/start" }, "Start one")));
}

function row(job) {
  const { progress, status } = job;
  return h("li", {}, h("a", { href: `#/jobs/${job.id}` }, h("strong", {}, job.category), h("span", {}, chip(status)),
    h("span", { class: "soft small" }, ENDED.has(status) ? job.error?.detail ?? (job.quality ? `${job.quality.verdict}: ${job.quality.advice}`.slice(0, 90) : plural(progress.step, "step"))
      : h("progress", { max: 1, value: progress.fraction, "aria-label": `Progress of ${job.category}` })), h("span", { class: "soft small" }, when(job.created_at))));
}

const chip = (status) => h("span", { class: `chip ${{ succeeded: "good", failed: "bad" }[status] ?? ""}` }, STATUS_WORDS[status]);

class JobView {
  constructor(place, id, signal) {
    Object.assign(this, { id, signal, losses: new Map(), hasPreview: false });
    this.title = h("h1", {}, "Training");
    this.status = h("p", { class: "lead", "aria-live": "polite" });
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.left = h("p", { class: "soft number" });
    this.actions = h("div", { class: "row" });
    this.messages = h("div", {});
    this.preview = h("div", {});
    this.charts = h("div", { class: "halves" });
    this.facts = h("div", { class: "card", hidden: true });
    place.append(h("header", {}, this.title, this.status), h("section", { class: "stack" }, this.bar, this.left, this.actions, this.messages),
      h("section", {}, this.preview), h("section", {}, this.charts), this.facts);
  }

  async start() {
    await this.refresh();
    await this.replay();
    await this.showPreview();
    if (!ENDED.has(this.job.status)) this.follow().catch((error) => { if (!this.signal.aborted) this.messages.append(h("p", { class: "bad" }, error.message)); });
  }

  async refresh() {
    this.job = await get(`train-jobs/${this.id}`, {}, this.signal);
    const { job } = this, { progress } = job, ended = ENDED.has(job.status);
    this.title.textContent = `Training of ${job.category}`;
    document.title = `${job.category}: ${STATUS_WORDS[job.status]} · Pose Prior Learner`; // seen in another tab
    const place = job.queue_position ? `, number ${job.queue_position} in the queue` : "";
    this.status.textContent = job.status === "succeeded" ? "It succeeded." : job.status === "failed" ? "It failed." : ended ? "It was cancelled." : `It is ${progress.stage === "evaluating" ? "being evaluated" : STATUS_WORDS[job.status]}${place}.`;
    this.showProgress(progress);
    this.bar.hidden = ended && job.status !== "succeeded";
    this.showActions();
    this.showMessages();
    this.showFacts();
  }

  showProgress({ step, total_steps: total, fraction, eta_s: left }) {
    if (this.job.status === "validating") this.bar.removeAttribute("value"); else this.bar.value = fraction;
    const speed = this.job.metrics.steps_per_s, ended = ENDED.has(this.job.status);
    this.left.textContent = [`step ${step.toLocaleString("en")} of ${total.toLocaleString("en")}`, !ended && left !== null && `about ${duration(left)} left`, !ended && speed && (speed < 0.1 ? `${duration(1 / speed)} a step` : `${speed.toFixed(1)} steps a second`)].filter(Boolean).join(", ") + (ended ? "" : ". You can leave this page: the training goes on.");
  }

  showActions() {
    const { job } = this, act = (what) => async () => { await send("POST", `train-jobs/${this.id}/${what}`, { signal: this.signal }); await this.refresh(); };
    const buttons = {
      pause: ["queued", "running", "validating"].includes(job.status) && button("Pause", act("pause")),
      resume: job.status === "paused" && button("Resume", act("resume"), { class: "primary" }),
      publish: job.status === "running" && button("Make a version now", act("publish"), { title: "A version of what it has learned so far, to try while it trains on" }),
      cancel: !ENDED.has(job.status) && button("Cancel", act("cancel"), { class: "danger" }),
      estimate: job.version && h("a", { class: "button primary", href: `#/estimate?category=${job.category}&version=${job.version}` }, "Find poses in pictures or a video"),
      prior: job.version && h("a", { class: "button", href: `#/priors/${job.category}?version=${job.version}` }, "See what it learned"),
      boxes: job.dataset && job.metrics.located && job.status !== "validating" && h("a", { class: "button", href: `#/datasets/${job.dataset.id}?boxes=${this.id}` }, "Correct its boxes"),
      again: job.dataset && ["failed", "cancelled"].includes(job.status) && h("a", { class: "button", href: `#/datasets/${job.dataset.id}` }, "Train on its dataset again"),
      forget: ENDED.has(job.status) && button("Delete the record", async () => { await send("DELETE", `train-jobs/${this.id}`); location.hash = "#/jobs"; }, { class: "quiet" }),
    };
    this.actions.replaceChildren(...Object.values(buttons).filter(Boolean));
  }

  showMessages() {
    const { job } = this, { quality } = job;
    this.messages.replaceChildren(...[
      job.error && h("div", { class: "problem", role: "alert" }, h("h2", {}, "Why it failed"), h("p", {}, sentence(job.error.detail)),
        job.settings.align === "heading" && job.dataset && h("p", {}, "On the page of its dataset you can leave “Seen from above” off, or draw boxes and set the heading of each.")),
      quality && h("div", { class: "card" }, h("p", { class: `verdict ${quality.verdict}` }, `Quality: ${quality.verdict}`), h("p", {}, sentence(quality.advice)), verdictCaveat()),
      ...job.warnings.map((warning) => h("div", { class: "warn" }, h("p", {}, warning.detail))),
      job.metrics.located?.note && h("p", { class: "soft" }, job.metrics.located.note),
      ...job.checkpoint_versions.map((made) => h("p", {}, `A version of step ${made.step}: `, h("a", { href: `#/estimate?category=${job.category}&version=${made.version}` }, shortVersion(made.version)))),
    ].filter(Boolean));
  }

  showFacts() {
    const { job } = this, { metrics } = job;
    const facts = [["Pictures", metrics.images?.toLocaleString("en")], ["Left out", metrics.skipped || null], ["Read as", metrics.mode], ["Cut out", metrics.located && describeLocated(metrics.located)], ["Device", metrics.device], ["Started", when(job.started_at)],
      ["Dataset", job.dataset && h("a", { href: `#/datasets/${job.dataset.id}` }, job.dataset.name ?? job.dataset.id)], ["Continues", job.continued_from?.version], ["Keypoints", job.settings.num_keypoints], ["Preset", job.settings.preset], ["Job", job.id]];
    this.facts.hidden = false;
    this.facts.replaceChildren(h("h2", {}, "About it"), h("dl", { class: "facts" }, facts.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      metrics.skipped_files?.length ? h("details", {}, h("summary", {}, "Files left out"), h("ul", { class: "small" }, metrics.skipped_files.map((file) => h("li", {}, `${file.name}: ${file.reason}`)))) : "");
  }

  async showPreview() {
    const isKept = !ENDED.has(this.job.status) || this.job.version;
    if (!this.hasPreview || !isKept) {
      if (isKept) this.preview.replaceChildren(h("p", { class: "soft" }, "The first picture of the skeleton comes with the first step."));
      return;
    }
    try {
      const url = await blobUrl(`train-jobs/${this.id}/preview`, {}, this.signal), image = h("img", { class: "sheet preview", src: url, alt: "Training pictures with the poses found so far, what the model reconstructs from them, and the prior" });
      await image.decode();
      this.preview.replaceChildren(h("h2", {}, ENDED.has(this.job.status) ? "What it learned" : "What it has learned so far"), h("p", { class: "soft small" }, "Training pictures with their poses; beside each what the model reconstructs from the links and a masked copy; at the right the skeleton."), image);
    } catch (error) {
      if (error.code !== "no_preview") throw error; // its version was deleted
    }
  }

  // What happened before this page was opened.
  async replay() {
    let after = 0, page;
    do { page = await get(`train-jobs/${this.id}/events`, { after, limit: 500 }, this.signal); page.items.forEach((event) => this.take(event)); after = page.next; } while (page.has_more);
    this.drawCharts();
    this.after = after;
  }

  take({ kind, data }) {
    if (kind === "preview") this.hasPreview = true;
    if (kind === "metric") for (const [name, value] of Object.entries(data)) {
      if (name === "step" || name === "steps_per_s" || typeof value !== "number") continue;
      if (!this.losses.has(name)) this.losses.set(name, []);
      this.losses.get(name).push([data.step, value]);
    }
  }

  async follow() {
    for await (const event of events(this.id, this.signal, this.after)) {
      this.take(event);
      if (event.kind === "progress") { this.job.progress = event.data; this.showProgress(event.data); }
      else if (event.kind === "metric") { this.job.metrics.steps_per_s = event.data.steps_per_s ?? this.job.metrics.steps_per_s; this.drawCharts(); }
      else if (event.kind === "preview") await this.showPreview();
      else await this.refresh();
    }
    if (this.signal.aborted) return;
    await this.refresh(); // first: a cancelled job has no preview any more
    await this.showPreview();
  }

  drawCharts() {
    const names = [...this.losses.keys()].sort((a, b) => (b === "total") - (a === "total"));
    this.charts.replaceChildren(...names.map((name) => h("div", { class: "card" }, h("h3", {}, name === "total" ? "Loss (weighted sum)" : `Loss: ${name.replaceAll("_", " ")}`), chart(this.losses.get(name), this.job.progress.total_steps))));
  }
}

function describeLocated({ by, found, side_px: side, headings, sent, corrected }) {
  if (by === "boxes") return "as the boxes say";
  if (by !== "motion") return `as the boxes say in ${plural(sent, "picture")}; what moves before the camera in ${plural(found, "other", "others")}${corrected ? `, corrected beside your boxes in ${corrected.toLocaleString("en")}` : ""}`;
  return `what moves before the camera: found in ${plural(found, "picture")}, in boxes ${Math.round(side)} pixels wide${headings === undefined ? "" : `, with its heading in ${headings.toLocaleString("en")}`}`;
}

// A curve on a logarithmic scale, as losses fall fast and then slowly.
function chart(points, steps) {
  const values = points.map(([, value]) => value).filter((value) => value > 0), isFlat = new Set(values).size < 2;
  const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 0];
  const x = (step) => 44 + (350 * step) / Math.max(1, steps), y = (value) => isFlat ? 118 : 118 - (108 * (Math.log(Math.max(value, low)) - Math.log(low))) / Math.max(1e-9, Math.log(high) - Math.log(low));
  const last = points.at(-1);
  return s("svg", { viewBox: "0 0 400 140", class: "chart", role: "img", "aria-label": `From ${high.toPrecision(3)} to ${last[1].toPrecision(3)} at step ${last[0]}` },
    [...new Set([high, low])].map((value) => [s("line", { class: "grid", x1: 44, x2: 394, y1: y(value), y2: y(value) }), s("text", { x: 38, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(2))]),
    s("text", { x: 44, y: 136 }, "step 0"), s("text", { x: 394, y: 136, "text-anchor": "end" }, steps.toLocaleString("en")),
    s("path", { class: "line", stroke: "var(--accent)", d: points.map(([step, value], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("") }));
}
