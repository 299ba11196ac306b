// Start: pictures, an archive or a video become a dataset; what was found in it; and a training of it.

import { blobUrl, get, pause, send, upload } from "./api.js";
import { listAll, loadPrior } from "./choose.js";
import { button, dropZone, duration, field, h, notice, pathOf, plural, select, size, toggle, unsaved, when } from "./dom.js";
import { skeleton } from "./skeleton.js";

const PACKED = /\.(zip|tar|tgz|tar\.gz|mp4|m4v|mov|avi|mkv|webm)$/i;
const ARCHIVE = /\.(zip|tar|tgz|gz)$/i;
const PICTURE = /\.(jpe?g|png|webp|avif|heic|heif|bmp|tiff?)$/i;
// steps: in words, and how many
const LENGTHS = [["300", "A first look: 300 steps"], ["1500", "Good for most: 1,500 steps"], ["6000", "Thorough: 6,000 steps"]];
const MOST_FRAMES = 200; // of each video, unless a setting says otherwise

export async function show(place, { path, query, signal }) {
  if (path[0]) { await showDataset(place, path[0], query, signal); return; }
  const learned = h("ul", { class: "cards" }), kept = h("div", {});
  const bar = h("progress", { max: 1, hidden: true, "aria-label": "Upload" }), text = h("p", { class: "hint", "aria-live": "polite" });
  const busy = (share, words) => { bar.hidden = false; if (share === null) bar.removeAttribute("value"); else bar.value = share; text.textContent = words; };
  const create = async (files) => {
    busy(0, "Sending …");
    try {
      const dataset = await upload("datasets", makeForm(files), { signal, onprogress: (share) => busy(share, share < 1 ? `Sending: ${Math.round(100 * share)} %` : "Storing …") });
      location.hash = `#/datasets/${dataset.id}`;
    } finally { bar.hidden = true; text.textContent = ""; }
  };
  const zone = dropZone({ title: "Drop pictures, a folder, an archive or a video here", hint: "JPEG, PNG, WebP, HEIC, TIFF; zip or tar; MP4, MOV, AVI, MKV, WebM. You can also paste.",
    accept: "image/*,video/*,.heic,.avif,.tif,.tiff,.zip,.tar,.gz,.tgz,.mkv,.avi", folder: true, onfiles: create, signal });
  const sample = async () => {
    busy(null, "Fetching the sample …");
    const file = await (await fetch(new URL("sample.zip", import.meta.url), { signal })).blob();
    await create([new File([file], "dog.zip")]);
  };
  place.append(
    h("header", {}, h("h1", {}, "Learn a skeleton from your pictures"),
      h("p", { class: "lead" }, "Some hundreds of pictures, or one video, of one kind of thing: dogs, hands, flies. No labels. You get its keypoints, the links between them, and its pose in every new picture.")),
    h("section", {}, zone, h("div", { style: { marginTop: "1rem" } }, bar, text),
      h("div", { class: "row centre" }, h("span", { class: "soft" }, "No pictures at hand?"), button("Train on the sample dog", sample), h("a", { class: "button", href: "#/estimate?sample" }, "See poses of the sample dog"))),
    h("section", {}, h("h2", {}, "Learned so far"), learned), kept);
  const priors = (await listAll("priors", {}, signal)).filter((entry) => entry.version);
  if (!priors.length) learned.replaceWith(h("p", { class: "soft" }, "Nothing yet."));
  priors.slice(0, 8).forEach((entry) => learned.append(priorCard(entry, signal)));
  if (priors.length > 8) learned.after(h("p", {}, h("a", { href: "#/priors" }, `All ${priors.length} priors`)));
  const { items } = await get("datasets", { limit: 6 }, signal);
  if (items.length) kept.append(h("section", {}, h("h2", {}, "Your datasets"), h("ul", { class: "list" }, items.map((dataset) => h("li", {}, h("a", { href: `#/datasets/${dataset.id}` },
    h("strong", {}, dataset.name ?? "Without a name"), h("span", {}, h("span", { class: "chip" }, dataset.status)), h("span", { class: "soft" }, `${plural(dataset.files, "file")}, ${size(dataset.size_bytes)}`), h("span", { class: "soft small" }, when(dataset.created_at))))))));
}

export function priorCard(entry, signal) {
  const picture = h("div", { class: "skeleton" });
  if (entry.version) loadPrior(entry.category, undefined, signal).then((prior) => picture.replaceWith(skeleton(prior.keypoint_prior, prior.drawn, { title: `The skeleton of ${entry.category}` })), () => {});
  return h("li", {}, h("a", { class: "card", href: `#/priors/${entry.category}` }, picture, h("h3", {}, entry.category), h("p", { class: "soft small" }, plural(entry.num_versions, "version") + (entry.version ? "" : ", none active"))));
}

function makeForm(files) {
  const form = new FormData(), packed = files.filter((file) => PACKED.test(file.name)), pictures = files.filter((file) => PICTURE.test(file.name));
  const left = files.length - packed.length - pictures.length, archives = packed.filter((file) => ARCHIVE.test(file.name)).length;
  if (archives && packed.length + pictures.length > 1) throw new Error("An archive is sent by itself. Drop one archive, or pictures and videos without one.");
  if (packed.length === 1 && !pictures.length) {
    form.append("archive", packed[0], packed[0].name);
    form.append("name", packed[0].name.slice(0, 100));
  } else {
    const all = [...pictures, ...packed];
    if (!all.length) throw new Error("These are no pictures, no archive and no video. Drop JPEG, PNG, WebP, HEIC or TIFF pictures, a zip, or a video.");
    for (const file of all) form.append("images", file, pathOf(file));
    const folder = pathOf(all[0]).split("/").slice(0, -1)[0];
    form.append("name", (folder ?? (all.length > 1 ? `${all.length} files` : all[0].name)).slice(0, 100));
  }
  if (left) notice(`${plural(left, "file")} left out: no pictures or videos.`);
  return form;
}

async function showDataset(place, id, query, signal) {
  const found = h("div", { class: "stack" }), side = h("div", { class: "stack keep" }), heading = h("h1", {}, "Dataset"), lead = h("p", { class: "lead", "aria-live": "polite" });
  place.append(h("header", {}, heading, lead), h("div", { class: "two" }, found, side));
  let dataset = await get(`datasets/${id}`, {}, signal);
  heading.textContent = dataset.name ?? "Dataset without a name";
  const { BoxEditor } = await import("./boxes.js"); // not for the first picture of the start
  const editor = new BoxEditor(dataset, signal);
  if (query.has("boxes")) await editor.loadJob(query.get("boxes"));
  const card = trainCard(dataset, editor, signal);
  side.append(card);
  const busy = h("progress", { "aria-label": "Inspection" });
  if (dataset.status === "inspecting") found.append(busy, h("p", { class: "soft" }, "Here you will see what was found, and can correct it. A training may be started before that."));
  while (dataset.status === "inspecting") {
    const seen = dataset.found.pictures + dataset.found.videos;
    lead.textContent = `Reading ${plural(dataset.files, "file")}, and looking for what moves${seen ? `: ${seen.toLocaleString("en")} so far` : ""} …`;
    await pause(700, signal);
    if (signal.aborted) return;
    dataset = await get(`datasets/${id}`, {}, signal);
  }
  found.replaceChildren();
  if (dataset.status === "failed") {
    lead.textContent = "This dataset can't be used.";
    found.append(h("div", { class: "problem" }, h("p", {}, dataset.error?.detail)));
    side.replaceChildren(forget(dataset));
    return;
  }
  editor.setDataset(dataset);
  card.presume(dataset.found);
  lead.textContent = describe(dataset.found);
  found.append(...dataset.found.warnings.map((warning) => h("div", { class: "warn" }, h("p", {}, h("strong", {}, "Before you train: "), warning.detail))), ...details(dataset), editor.element);
  side.append(forget(dataset));
  const sheet = await blobUrl(`datasets/${id}/contact-sheet`, {}, signal);
  found.prepend(h("figure", {}, h("img", { class: "sheet", src: sheet, alt: `Pictures spread over the dataset ${dataset.name ?? ""}` }),
    h("figcaption", { class: "small soft" }, dataset.found.motion?.sure ? "What moves is in a box, as it was found by itself. Training crops to it. Is a box wrong? Correct it below."
      : "This overview is cropped to the middle. Training uses the whole picture, or a crop around the object where its position varies or it moves before a fixed camera.")));
}

function describe(found) {
  const what = [found.pictures && plural(found.pictures, "picture"), found.videos && plural(found.videos, "video")].filter(Boolean).join(" and ");
  const few = found.videos === 0 && found.pictures < 100 ? " That is few: some hundreds give a better skeleton." : "";
  const frames = found.videos ? ` Training takes up to ${MOST_FRAMES} frames of ${found.videos === 1 ? "it" : "each video"}, spread over its length.` : "";
  return `${what || "Nothing"} can be read.${frames}${few}`;
}

function details({ found, labels, boxes, mode }) {
  const facts = [["Read as", mode === "clips" ? `${plural(found.clips, "clip")}: pictures that follow each other` : "single pictures"], ["Formats", Object.entries(found.formats).map(([name, count]) => `${count} ${name}`).join(", ")],
    found.sizes && ["Size", describeSizes(found.sizes)],
    labels && ["Labels", `of ${plural(found.labels?.pictures ?? 0, "picture")}`], boxes && ["Boxes", "as sent with it"]].filter((fact) => fact && fact[1]);
  const list = (title, items, text) => items.length > 0 && h("details", {}, h("summary", {}, title), h("ul", { class: "small" }, items.map((item) => h("li", {}, text(item)))));
  return [h("dl", { class: "facts" }, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    list(`${plural(found.skipped, "file")} left out`, found.skipped_files, (file) => `${file.name}: ${file.reason}`),
    list(`${plural(found.duplicates, "duplicate")}`, found.duplicate_files, (file) => `${file.name} is ${file.same_as}`)].filter(Boolean);
}

function describeSizes({ smallest, median, largest }) {
  const [least, middle, most] = [smallest, median, largest].map((size) => size.join(" × "));
  return least === most ? `${least} pixels` : `${least} to ${most} pixels, ${middle} in the middle`;
}

export const toCategory = (name) => (name ?? "").toLowerCase().replace(/\.\w+(\.gz)?$/, "").replace(/[^a-z0-9_-]+/g, "-").replace(/^[^a-z0-9]+|-+$/g, "").slice(0, 64);

function trainCard(dataset, editor, signal) {
  const name = h("input", { required: true, pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", maxlength: 64, autocomplete: "off", spellcheck: "false", value: toCategory(dataset.name), "aria-describedby": "name-hint" });
  const length = h("span", { "aria-live": "polite" }), steps = select(LENGTHS, "1500", () => showTime()), keypoints = h("input", { type: "number", min: 4, max: 32, placeholder: "16" });
  let isChosen = editor.hasAngles; // else the training decides by all of its frames, which may be more than those looked at
  const isAligned = toggle("Seen from above: turn it to head up", isChosen || Boolean(dataset.found.motion?.from_above), () => {}), turn = isAligned.querySelector("input");
  editor.setHeadings(turn.checked);
  turn.addEventListener("change", () => { isChosen = true; editor.setHeadings(turn.checked); });
  const align = h("div", { class: "field" }, isAligned,
    h("small", {}, "For animals filmed from above: each picture is turned so that head and tail are not confused. The heading is found where one thing moves before a fixed camera, and this is then set by itself; else draw boxes and set it."));
  const existing = h("p", { class: "small soft", "aria-live": "polite" });
  const form = h("form", { class: "card stack", novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    if (!name.checkValidity()) { notice("A name has small letters a to z, digits, - and _, and begins with a letter or digit.", "error"); name.focus(); return; }
    start.disabled = true;
    try {
      const body = { category: name.value, dataset: dataset.id, steps: Number(steps.value), ...(keypoints.value ? { num_keypoints: Number(keypoints.value) } : {}), ...(isChosen ? { align: turn.checked ? "heading" : "off" } : {}) };
      const boxes = editor.toFile(), form = new FormData();
      for (const [field, value] of Object.entries(body)) form.append(field, value);
      if (boxes) form.append("boxes", boxes, boxes.name);
      const job = await upload("train-jobs", form, { headers: { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) }, signal });
      unsaved.text = "";
      location.hash = `#/jobs/${job.id}`;
    } catch (error) { if (error.name !== "AbortError") notice(error.detail ?? error.message, "error"); } finally { start.disabled = false; }
  } });
  // What the inspection found while the form was there already.
  form.presume = ({ motion }) => { if (!isChosen) { turn.checked = Boolean(motion?.from_above); editor.setHeadings(turn.checked); } };
  const start = h("button", { class: "primary", type: "submit" }, "Start the training");
  form.append(h("h2", {}, "Train"), field("What do the pictures show?", name, h("span", { id: "name-hint" }, "One word, such as dog; here from the name of the file. Choose it later to find poses in new pictures.")),
    field("How long?", steps, [length, " You can pause it, and use a version before it ends."]), align, h("details", {}, h("summary", {}, "More"), field("Number of keypoints", keypoints, "16 unless you choose. Few for simple things, more for many limbs.")), existing, start);
  const showTime = () => {
    // another number of keypoints has another pace
    length.textContent = dataset.step_s && !keypoints.value ? `About ${duration(dataset.step_s * Number(steps.value))}, as the last training here went, and a little for the pictures before and the measurements after.`
      : "The job page shows the time left: it is not known until the training has begun.";
  };
  keypoints.addEventListener("input", showTime);
  showTime();
  const known = listAll("priors", {}, signal).then((priors) => new Set(priors.map((prior) => prior.category)));
  const check = async () => { existing.textContent = (await known).has(name.value) ? `${name.value} has versions already: this makes a new one, which replaces the active one if it is good.` : ""; };
  name.addEventListener("input", check); // not once it is left: the button would move away from the pointer that presses it
  check().catch(() => {}); // only a hint
  return form;
}

const forget = (dataset) => h("details", {}, h("summary", {}, "Delete this dataset"), h("p", { class: "small" }, "What was learned from it stays."), button("Delete it for good", async () => {
  await send("DELETE", `datasets/${dataset.id}`);
  location.hash = "#/start";
}, { class: "danger" }));
