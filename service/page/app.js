// Routing by the address, the title of each view, and the theme.

import { explain, h, isIncomplete, unsaved } from "./dom.js";

const VIEWS = {
  start: { title: "Start", load: () => import("./start.js") },
  datasets: { title: "Dataset", load: () => import("./start.js"), nav: "start" },
  estimate: { title: "Estimate", load: () => import("./estimate.js") },
  jobs: { title: "Jobs", load: () => import("./jobs.js") },
  priors: { title: "Priors", load: () => import("./priors.js") },
};
const main = document.getElementById("main");
let left = new AbortController(), address = location.hash;

// #/priors/dog/memory?version=… → { view: "priors", path: ["dog", "memory"], query }
function parse(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [view = "", ...rest] = path.split("/");
  // ids and categories need no escapes, and a link must not lead requests elsewhere
  return { view: Object.hasOwn(VIEWS, view) ? view : "start", path: rest.filter((part) => /^[a-z0-9][\w-]*$/i.test(part)), query: new URLSearchParams(query) };
}

async function show(isFirst) {
  left.abort();
  left = new AbortController();
  unsaved.text = "";
  address = location.hash;
  const { signal } = left;
  const { view, path, query } = parse(location.hash);
  const { title, load, nav = view } = VIEWS[view];
  for (const link of document.querySelectorAll(".bar nav a")) {
    link.toggleAttribute("aria-current", false);
    if (link.getAttribute("href") === `#/${nav}`) link.setAttribute("aria-current", "page");
  }
  document.title = `${path.length ? `${path[0]} · ` : ""}${title} · Pose Prior Learner`;
  const place = h("div", { class: `view view-${view}` });
  main.replaceChildren(place);
  if (!isFirst) { window.scrollTo(0, 0); main.focus({ preventScroll: true }); }
  try {
    await (await load()).show(place, { path, query, signal });
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    place.append(h("div", { class: "problem", role: "alert" }, h("h2", {}, error.title ?? "This did not work"), h("p", {}, explain(error)),
      h("button", { type: "button", onclick: () => (isIncomplete(error) ? location.reload() : show()) }, "Try again")));
  }
  place.dataset.ready = "true";
}

const theme = document.getElementById("theme"), THEMES = ["auto", "light", "dark"];
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  theme.textContent = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" }[name];
  theme.setAttribute("aria-label", `Theme: ${name}`);
  try { localStorage.setItem("ppl-theme", name); } catch { /* storage is off: the choice lasts as long as the tab */ }
}
theme.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
let stored = "auto";
try { stored = localStorage.getItem("ppl-theme") ?? "auto"; } catch { /* as above */ }
setTheme(THEMES.includes(stored) ? stored : "auto");

window.addEventListener("hashchange", () => {
  if (unsaved.text && !window.confirm(`${unsaved.text} Leave this page?`)) history.pushState(null, "", address);
  else show(false);
});
window.addEventListener("beforeunload", (event) => { if (unsaved.text) event.preventDefault(); });
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
show(true);
