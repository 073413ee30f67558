// One artifact's answers about one user: map, merged list, history, a card for each interest.

import { ask, colourOf, el, nameOf, number, percent, plural, showFault } from "./kit.js";
import { CatalogueMap, place } from "./map.js";

const CARD_ITEMS = 10;
const MAP_ITEMS = 3000;
let made = 0;

export class Panel {
  constructor(facts, host, openCode) {
    this.facts = facts;
    this.openCode = openCode;
    this.known = new Map(); // facts of items, by the id as text
    this.turn = 0;
    this.items = [];
    const root = document.querySelector("#panel-template").content.cloneNode(true).firstElementChild;
    this.root = root;
    made += 1;
    const name = root.querySelector(".name");
    name.id = `panel-${made}`;
    name.textContent = `${facts.variant} · ${facts.model}`;
    name.title = facts.version;
    root.setAttribute("aria-labelledby", name.id);
    root.querySelector("canvas").setAttribute("aria-label", "Map of the catalogue. Arrow keys move it, plus and minus "
      + "zoom, 0 shows all, N and P go from mark to mark.");
    this.fault = root.querySelector(".fault");
    this.map = new CatalogueMap(...[".frame", ".tools", ".said"].map((part) => root.querySelector(part)));
    host.append(root);
    this.draw();
  }

  ask(path, body, signal) {
    return ask(path, { body, query: { variant: this.facts.variant }, signal });
  }

  async draw() {
    try {
      const query = { variant: this.facts.variant, count: MAP_ITEMS };
      const { items, total, source } = await ask("map", { query });
      for (const item of items) this.known.set(String(item.item_id), item);
      this.map.set("all", items.map((item) => place(item, "all", null, plural(item.count, "event"))));
      const part = items.length < total ? `${number(items.length)} of ${number(total)} items, evenly from the most to `
        + "the least popular" : plural(total, "item");
      const drawn = source === "export" ? "the map of gemirec export" : "the item vectors' two principal components";
      this.say(".map-source", `${part}, by ${drawn}. An interest stands amid the items it brings. `
        + "Drag or arrow keys to move, N and P to go through the marks.");
    } catch (fault) {
      showFault(this.fault, fault);
    }
  }

  say(where, text) {
    this.root.querySelector(where).textContent = text;
  }

  async learn(ids) { // facts of items that were not met yet
    const missing = [...new Set(ids.map(String))].filter((id) => !this.known.has(id));
    for (let start = 0; start < missing.length; start += 2000) {
      const { items, unknown } = await this.ask("items", { item_ids: missing.slice(start, start + 2000) });
      for (const item of items) this.known.set(String(item.item_id), item);
      for (const id of unknown) this.known.set(String(id), nothingOf(id));
    }
  }

  of(id) {
    return this.known.get(String(id)) ?? nothingOf(id);
  }

  // Whom it is about; history is what is stored or given, oldest first.
  async load(whom, history) {
    const turn = (this.turn += 1);
    this.whom = whom;
    this.busy(true);
    try {
      const [why, found] = await Promise.all([
        this.ask("explain", { ...whom, items: CARD_ITEMS, history_items: 50, words: 6 }),
        this.ask("interests", { ...whom, items: 20 }),
      ]);
      const ids = why.interests.flatMap((each) => [...each.items, ...each.history.map((item) => item.item_id)]);
      await this.learn([...ids, ...history]);
      if (turn !== this.turn) return;
      showFault(this.fault, null);
      this.why = why;
      this.codes = new Map(found.interests.map((each) => [each.interest, each.codes]));
      const scores = found.interests.flatMap((each) => each.items.map((item) => item.score));
      this.range = scores.length ? rounded(Math.max(...scores) - Math.min(...scores)) : 0;
      this.showPast(history);
      this.showCards();
    } catch (fault) {
      if (turn === this.turn) this.failed(fault);
    }
  }

  lambdaAt(part) { // squared: most of what can be seen happens at its low end
    return part ** 2 * this.range;
  }

  get count() {
    return this.why?.interests.length ?? 0;
  }

  busy(on) {
    this.root.setAttribute("aria-busy", String(on));
  }

  failed(fault) {
    if (fault.name === "AbortError") return;
    this.busy(false);
    this.items = [];
    showFault(this.fault, fault);
  }

  // The merged list under the sliders' values.
  async refresh({ k, diversity, most }) {
    if (!this.why) return;
    this.asked?.abort();
    this.asked = new AbortController();
    const { signal } = this.asked;
    this.busy(true);
    const lambda = this.facts.categories ? this.lambdaAt(diversity) : 0;
    const body = { ...this.whom, k, per_interest: 1 };
    if (lambda > 0) body.lambda = lambda;
    if (most < this.count) body.max_interests = most;
    try {
      const answer = await this.ask("recommend", body, signal);
      await this.learn(answer.items.map((item) => item.item_id));
      if (signal.aborted) return;
      showFault(this.fault, null);
      this.lambda = lambda;
      this.items = answer.items;
      this.used = new Set((answer.interests ?? []).map((each) => each.interest));
      this.showList(answer);
      this.showMarks();
      this.busy(false);
    } catch (fault) {
      if (!signal.aborted) this.failed(fault);
    }
  }

  showPast(history) {
    const box = this.root.querySelector(".past");
    const strongest = new Map(); // the interest that each item of the history forms most
    for (const each of this.why.interests) {
      for (const { item_id: id, weight } of each.history) {
        if (weight > (strongest.get(String(id))?.weight ?? 0)) strongest.set(String(id), { weight, of: each.interest });
      }
    }
    this.strongest = strongest;
    this.past = history;
    box.hidden = !history.length;
    const read = `The last ${history.length}, newest first; the colour is the interest that an item forms most.`;
    box.querySelector(".hint").textContent = strongest.size ? read : "";
    box.querySelector("ol").replaceChildren(...runs([...history].reverse()).map(([id, times]) => {
      const of = strongest.get(String(id))?.of;
      const note = of === undefined ? "not read by the model" : `interest ${of + 1}`;
      return this.row(id, of, times > 1 ? `${times} times, ${note}` : note);
    }));
  }

  showCards() {
    const { interests, source, skipped, user_id: user } = this.why;
    this.say(".cards-name", interests.length ? plural(interests.length, "interest") : "");
    const are = skipped === 1 ? "is" : "are";
    const lost = skipped ? ` ${plural(skipped, "item")} of the history ${are} unknown to it.` : "";
    this.say(".summary", interests.length ? `${this.facts.version}.${lost}` : "");
    this.root.querySelector(".cards").replaceChildren(...interests.map((each) => this.card(each)));
    this.root.querySelector(".nothing").replaceChildren(
      ...(source === "model" ? [] : [nothingKnown(user, skipped, source)]));
  }

  card(each) {
    const label = each.interest + 1;
    const id = `${this.root.getAttribute("aria-labelledby")}-${label}`;
    const path = this.path(each.interest);
    const share = el("div", { class: "share" }, el("span", {}, `${percent(each.history_share)} of the history`),
      el("span", { class: "bar", "aria-hidden": "true" }));
    share.lastChild.style.setProperty("--share", each.history_share);
    if (each.weight !== null) share.append(el("span", {}, `weight ${each.weight.toFixed(3)}`));
    const words = each.words.map(({ word, lift }) =>
      el("li", { title: `${lift.toFixed(1)} times as frequent as in the catalogue` }, word));
    const past = together(each.history).slice(0, 5).map(({ id, weight, times }) =>
      this.row(id, each.interest, times > 1 ? `${percent(weight)}, ${times} times` : percent(weight)));
    const brings = each.items.map((item) => this.row(item, each.interest, this.of(item).category ?? ""));
    const from = each.weights_from === "model" ? "the model's attention" : "nearness to the interest";
    return el("article", { class: `box card ${colourOf(each.interest)}`, "aria-labelledby": id,
      "data-interest": each.interest },
    el("div", { class: "head" }, el("span", { class: "disc", "aria-hidden": "true" }, String(label)),
      el("h4", { id }, `Interest ${label}`), path),
    share,
    words.length ? el("ul", { class: "words", "aria-label": "About" }, ...words) : null,
    el("h5", { title: `Weights: ${from}` }, "The history behind it"),
    past.length ? el("ol", { class: "items behind" }, ...past) : el("p", { class: "hint" }, "No item in particular."),
    el("h5", {}, "Its top items"), el("ol", { class: "items brings" }, ...brings));
  }

  path(interest) { // its place in the dictionary, if the model has one
    const codes = this.codes.get(interest);
    if (!codes) return null;
    if (codes[0] < 0) return el("small", { class: "path" }, "the user's own vector, no code");
    const says = `Dictionary path ${codes.join(", ")}: open it in the dictionary`;
    const open = el("button", { type: "button", class: "path", "aria-label": says },
      "code ", el("code", {}, codes.join(" › ")));
    open.addEventListener("click", () => this.openCode(this.facts, codes));
    return open;
  }

  row(id, interest, note) {
    const facts = this.of(id);
    const own = interest === undefined || interest === null ? "" : colourOf(interest);
    const row = el("li", { class: own, "data-id": String(id) },
      el("span", { class: "what" }, nameOf(facts)), " ", note ? el("small", {}, note) : null);
    row.addEventListener("pointerenter", () => this.map.show(id));
    row.addEventListener("pointerleave", () => this.map.point(null));
    return row;
  }

  showList({ items, source }) {
    this.say(".list h3", plural(items.length, "item"));
    const used = [...this.used].map((each) => each + 1).join(", ");
    const how = [`interest${this.used.size === 1 ? "" : "s"} ${used}`];
    const lambda = this.lambda ? this.lambda.toPrecision(2) : "0";
    how.push(this.facts.categories ? `λ ${lambda}` : "no λ: the data had no categories");
    const none = { popularity: "The most popular items: nothing is known of this user.", none: "No items." };
    this.say(".list-says", source === "model" ? `From ${how.join("; ")}.` : none[source]);
    this.root.querySelector(".list ol").replaceChildren(...items.map((item) => {
      const by = item.interest === null ? "popular" : `interest ${item.interest + 1}, its no. ${item.interest_rank}`;
      return this.row(item.item_id, item.interest, `${by} · ${item.score.toPrecision(3)}`);
    }));
    for (const card of this.root.querySelectorAll(".card")) {
      const off = !this.used.has(Number(card.dataset.interest));
      card.classList.toggle("off", off);
      card.querySelector(".disc").textContent = String(Number(card.dataset.interest) + 1);
      card.querySelector("h4").textContent = `Interest ${Number(card.dataset.interest) + 1}${off ? " (not used)" : ""}`;
    }
  }

  showMarks() {
    const named = (layer, id, interest, role) =>
      place(this.of(id), layer, interest === undefined || interest === null ? null : colourOf(interest), role);
    this.map.set("list", this.items.map((item) => named("list", item.item_id, item.interest,
      `no. ${item.rank} of the list${item.interest === null ? "" : `, interest ${item.interest + 1}`}`)));
    const past = [...new Set(this.past.map(String))];
    this.map.set("history", past.map((id) => named("history", id, this.strongest.get(id)?.of, "history")));
    this.map.set("interest", this.why.interests.map((each) => this.centre(each)));
  }

  centre(each) { // amid its own items
    const placed = each.items.map((id) => this.of(id)).filter((item) => item.x !== null);
    const mean = (name) => placed.length ? placed.reduce((sum, item) => sum + item[name], 0) / placed.length : null;
    const about = each.words.slice(0, 3).map(({ word }) => word).join(", ");
    return { x: mean("x"), y: mean("y"), layer: "interest", colour: colourOf(each.interest),
      label: String(each.interest + 1), used: this.used.has(each.interest),
      says: [`Interest ${each.interest + 1}`, about].filter(Boolean).join(" · ") };
  }

  markShared(others) { // items that the other artifact's list has, too
    for (const row of this.root.querySelectorAll(".list li")) row.classList.toggle("both", others.has(row.dataset.id));
  }
}

function nothingOf(id) { // an item of which nothing is known
  return { item_id: id, title: null, category: null, x: null, y: null };
}

function together(history) { // an item that comes several times is one row
  const found = new Map();
  for (const { item_id: id, weight } of history) {
    const row = found.get(String(id)) ?? { id, weight: 0, times: 0 };
    found.set(String(id), Object.assign(row, { weight: row.weight + weight, times: row.times + 1 }));
  }
  return [...found.values()].filter((row) => row.weight >= 0.01).sort((one, other) => other.weight - one.weight);
}

function runs(ids) { // [id, times in a row]
  const out = [];
  for (const id of ids) {
    if (out.length && String(out.at(-1)[0]) === String(id)) out.at(-1)[1] += 1;
    else out.push([id, 1]);
  }
  return out;
}

function nothingKnown(user, skipped, source) {
  const what = user === null ? "None of these items is known to the model" : `Nothing is known of user ${user}`;
  const got = user === null ? plural(skipped, "unknown item id") : "no stored history and no events since";
  const instead = source === "popularity" ? " The list shows the most popular items instead." : "";
  return el("div", { class: "box empty" }, el("strong", {}, `${what}.`), el("span", {}, `Got: ${got}.`),
    el("span", {}, `Fix: search for a part of the id, or paste a history of item ids as in the log.${instead}`));
}

function rounded(range) { // up to 1, 2 or 5 times a power of ten, so that the slider's steps read well
  if (!(range > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(range));
  return [1, 2, 5, 10].find((step) => step * power >= range) * power;
}
