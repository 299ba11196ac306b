// One prior: its skeleton, history, names, quality and connectivity; its aliases; and how it differs from another.

import { get, request, send } from "./api.js";
import { givenNames, loadPrior, shortVersion, verdictCaveat } from "./choose.js";
import { button, explain, field, h, notice, percent, plural, s, save, select, sentence, slider, toggle, when } from "./dom.js";
import { colour, heat, lightUp, poseLayer, skeleton, toPoints } from "./skeleton.js";

export async function show(place, { prior, versions, signal }) {
  const { category, version } = prior;
  const [drawing, redraw] = skeletonCard(prior, signal);
  place.append(h("section", { class: "two" }, drawing, h("div", { class: "stack" }, qualityCard(prior), aliasCard(category, version, versions, signal), fileCard(prior, versions, signal))),
    h("section", { class: "halves" }, await namesCard(prior, signal, redraw), heatCard(prior)));
  if (versions.length > 1) place.append(compareSection(prior, versions, signal));
}

const nameOf = (prior, id) => prior.names[id] ?? `keypoint ${id}`;

function skeletonCard(prior, signal) {
  const all = [...prior.links].sort((a, b) => a.i - b.i || a.j - b.j), strongest = Math.max(...all.map((link) => link.weight), 1e-9);
  const state = { pose: prior.keypoint_prior, weights: null, onlySkeleton: true, share: 0.25, numbers: true };
  const holder = h("div", {}), message = h("p", { class: "small soft number", "aria-live": "polite" }), idle = "Point at a keypoint to see its links.";
  const draw = () => {
    const weights = state.weights ?? all.map((link) => link.weight), top = Math.max(...weights, 1e-9);
    const links = state.onlySkeleton && !state.weights ? prior.drawn
      : all.map((link, index) => ({ ...link, weight: weights[index] })).filter((link) => link.weight >= state.share * top);
    const labels = state.numbers ? prior.names.map((name, id) => name ?? id) : null;
    const svg = skeleton(state.pose, links, { labels, title: `The skeleton of ${prior.category}: ${plural(links.length, "link")} between ${prior.num_keypoints} keypoints` });
    for (const dot of svg.querySelectorAll(".dot")) {
      dot.addEventListener("pointerenter", () => { lightUp(svg, Number(dot.dataset.id)); describe(Number(dot.dataset.id)); });
      dot.addEventListener("pointerleave", () => { lightUp(svg, null); message.textContent = idle; });
    }
    holder.replaceChildren(svg);
  };
  const describe = (id) => {
    const own = all.filter(({ i, j }) => i === id || j === id).sort((a, b) => b.weight - a.weight).slice(0, 4);
    message.textContent = `${nameOf(prior, id)}: ${own.map(({ i, j, weight }) => `to ${nameOf(prior, i === id ? j : i)} ${percent(weight / strongest)}`).join(", ")} of the strongest link.`;
  };
  message.textContent = idle;
  const only = toggle("Only the skeleton", true, (on) => { state.onlySkeleton = on; draw(); });
  const threshold = slider("Links from", { max: 100, value: 25 }, (value) => `${value} % of the strongest`, (value) => { state.share = value / 100; state.onlySkeleton = false; only.querySelector("input").checked = false; draw(); });
  const history = h("div", {});
  get(`priors/${prior.category}/history`, { version: prior.version }, signal).then(({ snapshots }) => {
    if (snapshots.length < 2) return;
    const last = snapshots.length - 1;
    const time = slider("Training", { max: last, value: last }, (at) => `step ${snapshots[at].step.toLocaleString("en")}`, (at) => {
      state.pose = snapshots[at].keypoint_prior ?? prior.keypoint_prior;
      state.weights = at === last ? null : snapshots[at].link_weights;
      draw();
    });
    const play = button("Play", async () => { for (let at = 0; at <= last && !signal.aborted; at += 1) { time.set(at); await new Promise((resolve) => setTimeout(resolve, 90)); } });
    history.append(time.element, play);
  }, () => {}); // versions of older releases have none
  draw();
  const controls = h("div", { class: "card stack" }, h("div", { class: "row apart" }, only, toggle("Numbers and names", true, (on) => { state.numbers = on; draw(); })), threshold.element, history);
  return [h("div", { class: "stack" }, holder, message, controls), draw];
}

function qualityCard({ quality, training, mode, method }) {
  const facts = quality ? [["Agreement with a frozen network", Number.isFinite(quality.agreement) ? percent(quality.agreement) : "not measured"], ["Follows changes of the picture", percent(quality.consistency)], ["Keypoints move by", `${quality.movement_percent.toFixed(1)} % of the side`], ["Explains", `${percent(quality.explained)} of the reconstruction error of the mean pose`],
    ["Idle keypoints", quality.idle_keypoints.length ? quality.idle_keypoints.join(", ") : "none"], ["Mean score", quality.mean_score.toFixed(2)]] : [];
  const made = [["Steps", training.steps?.toLocaleString("en")], ["Learned from", mode], ["Method", method === "ppl" ? null : method]].filter(([, value]) => value);
  return h("div", { class: "card" }, h("h2", {}, "Quality"), quality ? [h("p", { class: `verdict ${quality.verdict}` }, quality.verdict), h("p", { class: "small" }, sentence(quality.advice)), verdictCaveat()] : h("p", { class: "small soft" }, "This version was not measured."),
    h("dl", { class: "facts small" }, [...facts, ...made].flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

function aliasCard(category, version, versions, signal) {
  const body = h("tbody", {}), message = h("div", { "aria-live": "polite" });
  const names = h("input", { placeholder: "such as champion", maxlength: 64, "aria-label": "Name of a new alias", autocomplete: "off" });
  const made = new Map(versions.map((entry) => [entry.version, entry.created_at]));
  async function move(alias, to) {
    const exists = (await get(`priors/${category}/aliases`, {}, signal)).items.some((entry) => entry.alias === alias);
    const response = exists ? await request(`priors/${category}/aliases/${encodeURIComponent(alias)}`, { signal }) : null;
    const before = response && (await response.json()).version, headers = response ? { "If-Match": response.headers.get("ETag") } : {};
    await send("PUT", `priors/${category}/aliases/${encodeURIComponent(alias)}`, { json: { version: to }, headers, signal });
    await list();
    message.replaceChildren(h("p", { class: "small" }, `“${alias}” now points to ${shortVersion(to)}. `, before && before !== to && button("Undo", () => move(alias, before), { class: "quiet" })));
  }
  async function list() {
    const { items } = await get(`priors/${category}/aliases`, {}, signal);
    const known = items.some(({ alias }) => alias === "active") ? items : [{ alias: "active", version: null }, ...items];
    body.replaceChildren(...known.map((entry) => h("tr", {}, h("td", {}, h("strong", {}, entry.alias)), h("td", { class: "small soft" }, entry.version === version ? "this version" : entry.version === null ? "none" : `${shortVersion(entry.version)} ${when(made.get(entry.version))}`),
      h("td", {}, entry.version !== version && button("Move here", () => move(entry.alias, version)), entry.version === version && entry.alias !== "active" && button("Remove", async () => { await send("DELETE", `priors/${category}/aliases/${encodeURIComponent(entry.alias)}`); await list(); }, { class: "quiet" })))));
  }
  list().catch(() => {});
  return h("div", { class: "card stack" }, h("h2", {}, "Aliases"), h("p", { class: "small soft" }, "Requests that name no version get “active”. Move it here, or to an older version to roll back."), h("table", {}, body), message,
    h("div", { class: "row" }, names, button("Add", async () => { const alias = names.value.trim(); if (!alias) return; await move(alias, version); names.value = ""; })));
}

function fileCard({ category, version }, versions, signal) {
  const remove = button("Delete this version", async () => { await send("DELETE", `priors/${category}/versions/${version}`); notice("The version is deleted."); const next = versions.length > 1 ? `#/priors/${category}` : "#/priors"; if (location.hash === next) window.dispatchEvent(new HashChangeEvent("hashchange")); else location.hash = next; }, { class: "danger" });
  return h("div", { class: "card stack" }, h("h2", {}, "This version"), h("p", { class: "small soft" }, version), h("div", { class: "row" },
    button("Export", async () => save(await (await request(`priors/${category}/versions/${version}/export`, { signal })).blob(), `${category}-${version}.zip`))), h("details", {}, h("summary", {}, "Delete"), h("p", { class: "small" }, "For good. Refused while an alias points to it."), remove));
}

// Names are stored as soon as a field is left.
async function namesCard(prior, signal, onnamed) {
  const path = `priors/${prior.category}/keypoint-names`, query = { version: prior.version };
  let names, tag;
  const load = async () => {
    const response = await request(path, { query, signal });
    tag = response.headers.get("ETag");
    ({ names } = await response.json());
  };
  await load();
  const message = h("p", { class: "small soft", "aria-live": "polite" }, "Click into a field to name a keypoint.");
  const isDefault = (name, id) => name === `keypoint_${id}`, inputs = [], shown = (id) => (isDefault(names[id], id) ? "" : names[id]);
  // Store one name. Names that were stored elsewhere meanwhile are kept, and shown.
  async function store(id, typed) {
    for (let before = names; ;) {
      const next = names.map((old, index) => (index === id ? typed || `keypoint_${id}` : old));
      try {
        const response = await request(path, { method: "PUT", query, json: { names: next }, headers: { "If-Match": tag }, signal });
        tag = response.headers.get("ETag");
        ({ names } = await response.json());
        return;
      } catch (error) {
        if (error.status !== 412) throw error;
        await load();
        names.forEach((name, index) => { if (name !== before[index] && index !== id) inputs[index].value = shown(index); });
        if (names[id] !== before[id]) throw new Error(`Keypoint ${id} was named “${names[id]}” elsewhere meanwhile. Name it again to replace that.`);
        before = names;
      }
    }
  }
  let last = Promise.resolve(); // one after the other: each is stored with the names before it
  const rows = names.map((name, id) => {
    const input = inputs[id] = h("input", { value: isDefault(name, id) ? "" : name, placeholder: `keypoint_${id}`, maxlength: 64, "aria-label": `Name of keypoint ${id}`, autocomplete: "off" });
    input.addEventListener("change", async () => {
      const typed = input.value.trim();
      try {
        await (last = last.catch(() => {}).then(() => store(id, typed)));
        prior.names = givenNames(names);
        onnamed();
        message.textContent = `Keypoint ${id} is now called ${names[id]}.`;
      } catch (error) {
        if (error.name === "AbortError") return;
        notice(explain(error), "error");
        input.value = shown(id);
      }
    });
    return h("tr", {}, h("td", {}, h("span", { class: "swatch", style: { background: colour(id) } })), h("td", { class: "number" }, id), h("td", {}, input));
  });
  return h("div", { class: "card" }, h("h2", {}, "Names of the keypoints"), message, h("table", {}, h("tbody", {}, rows)));
}

function heatCard(prior) {
  const matrix = prior.connectivity_prior, count = matrix.length, top = Math.max(...matrix.flat(), 1e-9), idle = "Point at a cell to read it.";
  const message = h("p", { class: "small soft number" }, idle);
  const cells = matrix.flatMap((row, i) => row.map((value, j) => {
    const cell = s("rect", { x: j, y: i, width: 1.02, height: 1.02, fill: `rgb(${heat((Math.max(0, value) / top) ** 0.75)})` });
    cell.addEventListener("pointerenter", () => { message.textContent = i === j ? "A keypoint and itself." : `${nameOf(prior, i)} – ${nameOf(prior, j)}: ${percent(value / top)} of the strongest link`; });
    return cell;
  }));
  const svg = s("svg", { class: "skeleton", viewBox: `-1.2 -1.2 ${count + 1.4} ${count + 1.4}`, role: "img", "aria-label": "The strength of the link between each two keypoints", onpointerleave: () => { message.textContent = idle; } },
    cells, matrix.map((_, id) => [s("circle", { cx: id + 0.5, cy: -0.6, r: 0.28, fill: colour(id) }), s("circle", { cx: -0.6, cy: id + 0.5, r: 0.28, fill: colour(id) })]));
  return h("div", { class: "card" }, h("h2", {}, "Connectivity"), h("p", { class: "small soft" }, "How strongly each two keypoints are linked; bright is strong."), svg, message);
}

function compareSection(prior, versions, signal) {
  const others = versions.filter((entry) => entry.version !== prior.version), body = h("div", { "aria-live": "polite" });
  const control = select([["", "Choose a version"], ...others.map((entry) => [entry.version, `${shortVersion(entry.version)}${entry.aliases.length ? ` (${entry.aliases.join(", ")})` : ""}`])], "", async (version) => {
    if (!version) { body.replaceChildren(); return; }
    try { body.replaceChildren(await difference(prior, version, signal)); } catch (error) { notice(error.detail ?? error.message, "error"); }
  });
  return h("section", {}, h("h2", {}, "Compare with another version"), h("div", { class: "row", style: { marginBottom: "1.2rem", maxWidth: "28rem" } }, field("The other version", control)), body);
}

async function difference(prior, version, signal) {
  const [other, diff] = await Promise.all([loadPrior(prior.category, version, signal), get(`priors/${prior.category}/diff`, { from: version, to: prior.version }, signal)]);
  // a keypoint has the colour and number of its match in the shown version
  const ids = other.keypoint_prior.map((_, id) => diff.keypoints.find((change) => change.from_id === id)?.to_id ?? id);
  const left = skeleton(other.keypoint_prior, other.drawn, { ids, labels: ids, title: `The skeleton of ${version}` });
  const right = skeleton(prior.keypoint_prior, prior.drawn, { labels: prior.keypoint_prior.map((_, id) => id), title: `The skeleton of ${prior.version}` });
  right.prepend(poseLayer({ points: toPoints(other.keypoint_prior), links: other.drawn, unit: 10, dots: false, opacity: 0.3 }),
    ...diff.keypoints.map(({ from_id: from, to_id: to }) => { const [a, b] = toPoints([other.keypoint_prior[from], prior.keypoint_prior[to]]); return s("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, stroke: "#fff", "stroke-width": 4, "stroke-dasharray": "10 10" }); }));
  const moved = [...diff.keypoints].sort((a, b) => b.moved - a.moved).slice(0, 6);
  const ends = (link) => (link.to_ends ?? link.from_ends).map((id) => (link.to_ends ? nameOf(prior, id) : nameOf(other, id))).join(" – ");
  const list = (title, links) => links.length > 0 && h("div", {}, h("h3", {}, title), h("ul", { class: "small" }, links.slice(0, 8).map((link) => h("li", {}, ends(link)))));
  return h("div", { class: "stack" }, h("div", { class: "halves" }, h("div", {}, h("h3", {}, shortVersion(version)), left), h("div", {}, h("h3", {}, `${shortVersion(prior.version)}, shown above`), right)),
    h("p", {}, `Keypoints moved by ${percent(diff.mean_moved / 2, 1)} of the side on average. Matched by ${diff.matched_by}: ${diff.why}.`),
    h("div", { class: "halves" }, h("div", {}, h("h3", {}, "Moved most"), h("table", {}, h("tbody", {}, moved.map((change) => h("tr", {}, h("td", {}, h("span", { class: "swatch", style: { background: colour(change.to_id) } })), h("td", {}, change.name ?? `keypoint ${change.to_id}`), h("td", { class: "number" }, `${percent(change.moved / 2, 1)} of the side`)))))),
      h("div", {}, list("New strong links", diff.gained_links), list("Strong links that are gone", diff.lost_links), !diff.gained_links.length && !diff.lost_links.length && h("p", { class: "soft" }, "The same links are strong in both."))));
}
