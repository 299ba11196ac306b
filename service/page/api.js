// A client of the public API: problem documents, keys, pages of lists, uploads and event streams.

import { duration, h, notice } from "./dom.js";

// this file is at …/page/HASH/api.js: two folders up is the gateway, also below a proxy's prefix
export const ROOT = new URL("../../", import.meta.url);
let key = null; // only in this tab's memory
let asking = null;

export class Problem extends Error {
  constructor(document) {
    super(document.detail || document.title);
    Object.assign(this, document, { name: "Problem" });
  }
}

export const address = (path, query = {}) => {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of Object.entries(query)) if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  return url;
};

export async function request(path, { query, headers = {}, json, signal, ...options } = {}) {
  for (;;) {
    const used = key, all = { ...headers };
    if (key) all.Authorization = `Bearer ${key}`;
    if (json !== undefined) { options.body = JSON.stringify(json); all["Content-Type"] = "application/json"; }
    let response;
    try { response = await fetch(address(path, query), { ...options, headers: all, signal }); }
    catch (error) { throw error.name === "AbortError" ? error : unreachable(); }
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status === 401) await askKey(problem, used);
    else if (!(await waited(response.status, response.headers.get("Retry-After"), signal))) throw problem;
  }
}

// Return whether a busy server said when to try again, after waiting as long. Longer waits are left to the visitor.
const LONGEST_WAIT_S = 15;
let noticedAt = 0;
async function waited(status, after, signal) {
  const seconds = Number(after);
  if (status !== 429 || !seconds || seconds > LONGEST_WAIT_S) return false;
  if (Date.now() > noticedAt + 8000) { notice(`The server is busy. This continues by itself in ${duration(seconds)}.`); noticedAt = Date.now(); }
  await pause(1000 * seconds, signal);
  if (signal?.aborted) throw new DOMException("left", "AbortError");
  return true;
}

const unreachable = () => new Problem({ code: "unreachable", status: 0, detail: "The server does not answer. Check that it is still running, then try again." });

async function problemOf(response) {
  const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  return new Problem(isProblem ? await response.json()
    : { code: "no_problem_document", status: response.status, detail: `The server answered ${response.status} ${response.statusText}.` });
}

export const get = async (path, query, signal) => (await request(path, { query, signal })).json();
export const send = async (method, path, options) => {
  const response = await request(path, { method, ...options });
  return response.status === 204 ? null : response.json();
};

// A picture or video that needs the key, as an address for an element. It is revoked with the view.
export async function blobUrl(path, query, signal) {
  const url = URL.createObjectURL(await (await request(path, { query, signal })).blob());
  signal?.addEventListener("abort", () => URL.revokeObjectURL(url));
  return url;
}

export async function* pages(path, query, signal) {
  let cursor;
  do {
    const page = await get(path, { ...query, cursor }, signal);
    yield page.items;
    cursor = page.next_cursor;
  } while (cursor);
}

// Send a form and report how much of it has arrived, which fetch can't.
export async function upload(path, form, { headers = {}, onprogress, signal } = {}) {
  for (;;) {
    const used = key;
    const answer = await new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", address(path));
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
      request.upload.onprogress = (event) => event.lengthComputable && onprogress?.(event.loaded / event.total);
      request.onload = () => resolve(request);
      request.onerror = () => reject(unreachable());
      request.onabort = () => reject(new DOMException("left", "AbortError"));
      signal?.addEventListener("abort", () => request.abort());
      request.send(form);
    });
    const type = answer.getResponseHeader("Content-Type") ?? "";
    const document = type.includes("json") ? JSON.parse(answer.responseText) : { status: answer.status, detail: `The server answered ${answer.status}.` };
    if (answer.status < 300) return document;
    if (answer.status === 401) await askKey(new Problem(document), used);
    else if (!(await waited(answer.status, answer.getResponseHeader("Retry-After"), signal))) throw new Problem(document);
  }
}

// Divide pictures into requests of at most 32 and 32 MB, half of what a server takes unless its settings say otherwise.
const MOST = 32, MOST_BYTES = 32e6;
export function* parts(items, bytesOf, first = MOST) {
  for (let start = 0, end = 0; start < items.length; start = end) {
    const most = start + (start ? MOST : first);
    for (let bytes = 0; end < items.length && end < most && (end === start || bytes + bytesOf(items[end]) <= MOST_BYTES); end += 1) bytes += bytesOf(items[end]);
    yield items.slice(start, end);
  }
}

// Lines of JSON as they come.
export async function* lines(path, options) {
  const response = await request(path, { ...options, headers: { Accept: "application/jsonl" } });
  for await (const line of splitStream(response.body, "\n")) if (line.trim()) yield JSON.parse(line);
}

// The events of a job until it ends; a broken stream is resumed.
export async function* events(job, signal, after = 0) {
  while (!signal.aborted) {
    try {
      const response = await request(`train-jobs/${job}/events`, { query: { after }, headers: { Accept: "text/event-stream" }, signal });
      for await (const block of splitStream(response.body, "\n\n")) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (!data) continue;
        const event = JSON.parse(data);
        after = event.id;
        yield event;
        if (event.kind === "completed") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status >= 400 && error.status < 500) throw error;
    }
    await pause(2000, signal);
  }
}

async function* splitStream(body, separator) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += value ?? "";
      const parts = rest.replaceAll("\r\n", "\n").split(separator);
      rest = parts.pop();
      yield* parts;
      if (done) { if (rest) yield rest; return; }
    }
  } finally { reader.cancel().catch(() => {}); }
}

export const pause = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
});

// Ask for the key once for all requests that wait for it.
function askKey(problem, used) {
  if (key !== used) return Promise.resolve(); // another request has asked meanwhile
  asking ??= new Promise((resolve, reject) => {
    const input = h("input", { type: "password", autocomplete: "off", required: true, id: "key" });
    const dialog = h("dialog", { class: "ask", "aria-labelledby": "key-title" }, h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, "This server needs an API key"),
      h("p", {}, used ? problem.detail : "The operator of the server makes keys with “ppl keys create”. The key stays in the memory of this tab."),
      h("label", { class: "field" }, h("span", {}, "API key"), input),
      h("div", { class: "row end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        h("button", { class: "primary", value: "ok" }, "Use this key"))));
    dialog.addEventListener("close", () => {
      const given = input.value.trim();
      dialog.remove();
      asking = null;
      if (dialog.returnValue === "ok" && given) { key = given; resolve(); } else reject(problem);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

// Estimate in the background: long videos, and more pictures than a request at once may have.
export async function estimateInBackground(form, { onprogress, onupload, signal }) {
  let estimate = await upload("estimate", form, { headers: { Prefer: "respond-async" }, onprogress: onupload, signal });
  const { id } = estimate;
  signal?.addEventListener("abort", () => { if (!["succeeded", "failed", "cancelled"].includes(estimate.status)) send("POST", `estimates/${id}/cancel`).catch(() => {}); });
  while (!["succeeded", "failed", "cancelled"].includes(estimate.status)) {
    await pause(700, signal);
    if (signal?.aborted) throw new DOMException("left", "AbortError");
    // the first document of a finished one has all poses: ask for it once
    estimate = await get(`estimates/${id}`, {}, signal);
    onprogress?.(estimate.progress);
  }
  if (estimate.status !== "succeeded") throw new Problem({ title: "The estimate did not succeed", detail: estimate.error?.detail ?? `It was ${estimate.status}.` });
  return estimate;
}
