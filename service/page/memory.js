// The memory behind a prior: prototypical poses as a wall, and how often the vectors of a bank are used.

import { get } from "./api.js";
import { h, plural, s, slider } from "./dom.js";
import { skeleton } from "./skeleton.js";

export async function show(place, { prior, signal }) {
  const memory = await get(`priors/${prior.category}/memory`, { version: prior.version }, signal);
  if (!memory.num_banks) { place.append(h("p", { class: "lead" }, "Versions of the method AutoLink have no memory.")); return; }
  const total = memory.prototypes.reduce((sum, prototype) => sum + prototype.count, 0);
  const figures = memory.prototypes.map((prototype) => h("li", {}, skeleton(prototype.keypoints, prior.drawn, { title: `A prototypical pose of ${plural(prototype.count, "picture")}` }),
    h("p", { class: "small number" }, plural(prototype.count, "picture"), h("span", { class: "soft" }, ` · ${Math.round((100 * prototype.count) / total)} %`))));
  const chart = h("div", {}), said = h("p", { class: "small soft", "aria-live": "polite" });
  const showBank = (bank) => {
    const counts = memory.use_counts[bank], top = Math.max(...counts, 1e-9), used = counts.filter((count) => count > top / 1000).length;
    chart.replaceChildren(s("svg", { viewBox: `0 0 ${counts.length * 10} 60`, class: "chart bars", preserveAspectRatio: "none", role: "img", "aria-label": `How often each of the ${counts.length} vectors of bank ${bank} is used` },
      counts.map((count, vector) => s("rect", { x: vector * 10 + 1, y: 58 - (56 * count) / top, width: 8, height: Math.max(0.6, (56 * count) / top), rx: 1, fill: "var(--accent)" }))));
    const kinds = new Set(memory.prototypes.map((prototype) => prototype.codes[bank]));
    said.textContent = `${used} of ${counts.length} vectors are used. The prototypes use ${kinds.size === 1 ? "one of them: this bank hardly distinguishes poses" : `${kinds.size} of them; those that share one are marked`}.`;
    const common = memory.prototypes[0]?.codes[bank];
    figures.forEach((figure, index) => figure.firstChild.classList.toggle("shared", kinds.size > 1 && memory.prototypes[index].codes[bank] === common));
  };
  place.append(h("section", {}, h("h2", {}, "Prototypical poses"), h("p", { class: "soft" }, "Each stands for a cluster of training pictures with similar codes; the largest first."), h("ul", { class: "wall" }, figures)),
    h("section", { class: "card stack" }, h("h2", {}, "Banks"), h("p", { class: "small soft" }, `A pose is stored as one vector of each of ${memory.num_banks} banks. A bank has ${memory.bank_size} vectors of ${memory.token_dim} numbers.`),
      slider("Bank", { max: memory.num_banks - 1, value: 0 }, (bank) => `${bank} of ${memory.num_banks - 1}`, showBank).element, chart, said));
  showBank(0);
}
