// Requests to the page's own server, and elements.

let key = null; // an API key lives here and nowhere else
let askForKey = null;
let asking = null;

export class Fault extends Error {
  constructor(status, { error, got, fix }) {
    super(error);
    Object.assign(this, { status, got, fix });
  }
}

export function onKeyWanted(how) {
  askForKey = how;
}

// Ids beyond 2^53 stay as they were written: JavaScript's numbers would round them.
const exact = (_, value, context) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source
    ? context.source
    : value;

export async function ask(path, { body, query = {}, signal } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const url = path + (given.length ? `?${new URLSearchParams(given)}` : "");
  for (;;) {
    const used = key;
    const response = await send(url, body, signal);
    const text = await response.text();
    if (response.ok) return JSON.parse(text, exact);
    const fault = new Fault(response.status, said(text, response.status));
    if (response.status !== 401 && !(response.status === 403 && key !== null)) throw fault;
    if (used === key) {
      asking ??= askForKey(used === null ? null : fault).finally(() => { asking = null; });
      key = await asking;
    }
  }
}

async function send(url, body, signal) {
  const headers = { "X-Deadline-Ms": "20000" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(url, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const fix = "see whether gemirec serve still runs, then try again";
    throw new Fault(0, { error: "the server does not answer", got: String(error.message), fix });
  }
}

function said(text, status) {
  try {
    const { error, got, fix } = JSON.parse(text);
    if (error) return { error, got, fix };
  } catch { /* not one of the server's own errors */ }
  return { error: "something between this page and the server failed", got: `status ${status}`, fix: "try again" };
}

export function el(tag, attributes = {}, ...children) {
  const out = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) out.addEventListener(name.slice(2), value);
    else if (value === true) out.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) out.setAttribute(name, value);
  }
  out.append(...children.filter((child) => child !== null && child !== undefined));
  return out;
}

export function showFault(box, fault) {
  box.hidden = !fault;
  box.replaceChildren();
  if (!fault) return;
  const known = fault instanceof Fault;
  box.append(el("strong", {}, known ? fault.message : "the page failed"));
  box.append(el("span", {}, `Got: ${known ? fault.got : fault.message}`));
  box.append(el("span", {}, `Fix: ${known ? fault.fix : "load the page again; if it stays, report it"}`));
}

export const colourOf = (interest) => `i${interest % 8}`;
export const nameOf = (facts) => facts.title ?? String(facts.item_id);
export const number = (value) => value.toLocaleString("en");
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function debounced(call, wait) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, wait);
  };
}
