// Lists, the choice of a version, and a prior with its names: what several views share.

import { get, pages } from "./api.js";
import { field, h, select } from "./dom.js";

export async function listAll(path, query, signal, most = 1000) {
  const found = [];
  for await (const items of pages(path, { limit: 200, ...query }, signal)) {
    found.push(...items);
    if (found.length >= most) break;
  }
  return found;
}

export const shortVersion = (name) => name.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d).*-(.*)$/, "$1-$2-$3 $4:$5 ($6)");

// A select of all versions of a category: aliases first, then the newest versions.
export async function versionSelect(category, chosen, onchange, signal, text = "Version") {
  const versions = await listAll(`priors/${category}/versions`, {}, signal);
  const aliases = versions.flatMap((entry) => entry.aliases.map((alias) => [alias, `${alias}: ${shortVersion(entry.version)}`]));
  aliases.sort((a, b) => (b[0] === "active") - (a[0] === "active") || a[0].localeCompare(b[0]));
  const options = [...aliases, ...versions.map((entry) => [entry.version, shortVersion(entry.version)])];
  // one that was deleted stays what was asked for: the server then says so, and no other is shown in its place
  if (chosen && !options.some(([key]) => key === chosen)) options.push([chosen, `${shortVersion(chosen)}, not there`]);
  const control = select(options,
    chosen ?? aliases[0]?.[0] ?? versions[0]?.version, onchange);
  return { element: field(text, control), control, versions };
}

// What users called keypoints; null where they did not.
export const givenNames = (names) => names.map((name, id) => (name === `keypoint_${id}` ? null : name));

export async function loadPrior(category, version, signal) {
  const prior = await get(`priors/${category}`, { version, include: "links" }, signal);
  const skeleton = new Set(prior.skeleton.map(([i, j]) => `${i}-${j}`));
  return { ...prior, names: givenNames(prior.keypoint_names ?? prior.keypoint_prior.map((_, id) => `keypoint_${id}`)), drawn: prior.links.filter(({ i, j }) => skeleton.has(`${i}-${j}`)) };
}

export const nothingYet = () => h("div", { class: "card empty" }, h("h2", {}, "Nothing has been learned yet"),
  h("p", { style: { margin: "0 auto 1rem" } }, "Train on pictures of your own first, or on the sample."), h("a", { class: "button primary", href: "#/start" }, "Go to Start"));

// What no verdict says: it is measured without labels.
export const verdictCaveat = () => h("p", { class: "small soft" }, "The verdict judges whether keypoints follow what the pictures show, also by their agreement with a frozen network where that was measured. It does not judge anatomy: look at the skeleton, and at poses in pictures.");
