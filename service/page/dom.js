// Build elements. Text from elsewhere only ever becomes text nodes, so that no name or label can inject markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "value" || name === "checked" || name === "indeterminate") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// What would be lost by leaving the view, in words; empty if nothing would.
export const unsaved = { text: "" };

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits).replace(/^-(0(\.0+)?)$/, "$1")} %`;
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/[^.!?]$/, "$&.");
export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return `${hours} h ${Math.round((seconds % 3600) / 60)} min`;
}

export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let step = 0;
  while (bytes >= 1000 && step < 3) { bytes /= 1000; step += 1; }
  return `${bytes.toFixed(step && bytes < 10 ? 1 : 0)} ${units[step]}`;
}

export function when(text) {
  if (!text) return "";
  const date = new Date(text), ago = (Date.now() - date) / 1000;
  if (ago < 60) return "just now";
  return ago < 86400 ? `${duration(ago)} ago` : date.toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
}

export function notice(text, kind = "info") {
  const box = h("div", { class: `notice ${kind}` }, h("p", {}, text),
    h("button", { type: "button", class: "quiet", onclick: () => box.remove() }, "Close"));
  document.getElementById("notices").append(box);
  if (kind === "info") setTimeout(() => box.remove(), 8000);
}

// Whether a module of the page did not arrive. Browsers remember that, so only loading the page again helps.
export const isIncomplete = (error) => error instanceof TypeError && /module/i.test(error.message);

export const explain = (error) => isIncomplete(error) ? "A part of this page did not arrive: the server does not answer, or was updated. Check that it is running, then load the page again."
  : error?.detail ?? error?.message ?? String(error);

// Run the action of a click once at a time, and show its error.
export const click = (action) => async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  try { await action(event); } catch (error) { if (error.name !== "AbortError") notice(explain(error), "error"); }
  finally { button.disabled = false; }
};

export const button = (text, action, attributes) => h("button", { type: "button", onclick: click(action), ...attributes }, text);

export function field(text, control, hint) {
  return h("label", { class: "field" }, h("span", {}, text), control, hint && h("small", {}, hint));
}

export function select(options, value, onchange, attributes) {
  const change = async () => { try { await onchange?.(control.value); } catch (error) { if (error.name !== "AbortError") notice(explain(error), "error"); } };
  const control = h("select", { onchange: change, ...attributes },
    options.map(([key, text]) => h("option", { value: key }, text)));
  if (value !== undefined) control.value = value;
  return control;
}

export function toggle(text, checked, onchange) {
  const box = h("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return h("label", { class: "toggle" }, box, h("span", {}, text));
}

// A slider with its value in words beside it. `set` moves it from a program.
export function slider(text, { min = 0, max, step = 1, value }, describe, oninput) {
  const output = h("output", {}, describe(value));
  const control = h("input", { type: "range", min, max, step, "aria-label": text, "aria-valuetext": describe(value), oninput: () => show() });
  control.value = value;
  function describeNow() {
    output.textContent = describe(Number(control.value));
    control.setAttribute("aria-valuetext", output.textContent);
  }
  function show() { describeNow(); oninput(Number(control.value)); }
  const element = h("div", { class: "slider" }, h("span", { class: "slider-text" }, text, output), control);
  // `show` moves the slider without the consequences of `set`
  return { element, control, set: (now) => { control.value = now; show(); }, show: (now) => { control.value = now; describeNow(); } };
}

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// A place to drop, paste or choose files. Folders are read with their subfolders.
export function dropZone({ title, hint, accept, multiple = true, onfiles, signal, folder = false, small = false }) {
  const take = async (promise) => {
    try { const files = (await promise).filter((file) => !file.name.startsWith(".")); if (files.length) await onfiles(files); }
    catch (error) { if (error.name !== "AbortError") notice(explain(error), "error"); }
  };
  const chooser = (attributes) => {
    const input = h("input", { type: "file", hidden: true, tabindex: -1, "aria-hidden": "true", ...attributes,
      onchange: () => { take(Promise.resolve([...input.files])); input.value = ""; } });
    return input;
  };
  const input = chooser({ accept, multiple }), folders = folder && chooser({ webkitdirectory: true });
  const zone = h("div", { class: `drop ${small ? "small-drop" : ""}` },
    s("svg", { viewBox: "0 0 48 48", class: "drop-icon", "aria-hidden": "true" },
      s("path", { d: "M24 31V11m0 0-8 8m8-8 8 8M9 32v5a3 3 0 0 0 3 3h24a3 3 0 0 0 3-3v-5" })),
    h("p", { class: "drop-title" }, title), hint && h("p", { class: "hint" }, hint),
    h("div", { class: "row centre" }, h("button", { type: "button", class: "primary", onclick: () => input.click() }, "Choose files"),
      folders && h("button", { type: "button", onclick: () => folders.click() }, "Choose a folder")), input, folders);
  const over = (event) => { event.preventDefault(); zone.classList.add("over"); };
  zone.addEventListener("dragover", over);
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); zone.classList.remove("over"); take(dropped(event.dataTransfer)); });
  window.addEventListener("dragover", (event) => event.preventDefault(), { signal });
  window.addEventListener("drop", (event) => event.preventDefault(), { signal });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length && !event.defaultPrevented) { event.preventDefault(); take(Promise.resolve(files)); }
  }, { signal });
  return zone;
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

// The path of a file in the folder that was dropped or chosen: subfolders may be clips, and names may repeat in them.
const paths = new WeakMap();
export const pathOf = (file) => paths.get(file) || file.webkitRelativePath || file.name;

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    paths.set(file, entry.fullPath.replace(/^\//, ""));
    return [file];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return (await Promise.all(found.map(filesOf))).flat();
    found.push(...part);
  }
}
