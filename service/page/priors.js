// Priors: the list of what was learned, and the header and tabs of one of them.

import { listAll, loadPrior, nothingYet, versionSelect } from "./choose.js";
import { h } from "./dom.js";
import { priorCard } from "./start.js";

const TABS = { skeleton: ["Skeleton", () => import("./prior.js")], memory: ["Memory", () => import("./memory.js")], landmarks: ["Landmarks", () => import("./landmarks.js")] };

export async function show(place, { path: [category, tab = "skeleton"], query, signal }) {
  if (!category) {
    const priors = await listAll("priors", {}, signal);
    place.append(h("header", {}, h("h1", {}, "Priors"), h("p", { class: "lead" }, "What was learned, a category each.")),
      priors.length ? h("ul", { class: "cards" }, priors.map((entry) => priorCard(entry, signal))) : nothingYet());
    return;
  }
  const version = query.get("version") ?? undefined, name = Object.hasOwn(TABS, tab) ? tab : "skeleton";
  const [chosen, module] = await Promise.all([versionSelect(category, version, (next) => { location.hash = link(category, name, next); }, signal), TABS[name][1]()]);
  // a category may have versions of which none is active: its newest is shown then
  const prior = await loadPrior(category, chosen.control.value, signal);
  const { quality } = prior;
  place.append(h("header", { class: "two" },
    h("div", {}, h("h1", {}, category), h("p", { class: "lead" }, `${prior.num_keypoints} keypoints, learned from ${prior.training.images?.toLocaleString("en") ?? "some"} pictures. `,
      quality && h("span", { class: `verdict ${quality.verdict}` }, `Quality: ${quality.verdict}.`))), chosen.element),
  h("nav", { class: "tabs", "aria-label": `Parts of the prior ${category}` }, Object.entries(TABS).map(([key, [text]]) => h("a", { href: link(category, key, version), "aria-current": key === name && "page" }, text)),
    h("a", { href: `#/estimate?category=${category}${version ? `&version=${version}` : ""}` }, "Find poses with it")));
  const body = h("div", {});
  place.append(body);
  await module.show(body, { prior, versions: chosen.versions, signal });
}

export const link = (category, tab, version) => `#/priors/${category}${tab === "skeleton" ? "" : `/${tab}`}${version ? `?version=${version}` : ""}`;
