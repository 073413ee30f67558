// The dictionary: codes below codes, opened one by one, with what each holds.

import { ask, el, nameOf, percent, plural, showFault } from "./kit.js";

const PAGE = 40; // codes of one level shown at once

export class Dictionary {
  constructor(section, light) {
    this.section = section;
    this.list = section.querySelector("#codes");
    this.hint = section.querySelector("#dictionary-hint");
    this.light = light; // shows a code's items on the map
    this.variant = null;
  }

  async of(facts) {
    if (this.variant === facts.variant) return;
    this.variant = facts.variant;
    const levels = plural(facts.sizes.length, "level");
    this.hint.textContent = facts.sizes.length
      ? `${levels} of ${facts.sizes.join(", ")} codes. A path of codes, one of each level, is an interest.`
      : `${facts.model} has no dictionary: its interests are vectors of each user alone.`;
    this.list.replaceChildren();
    this.first = facts.sizes.length ? this.fill(this.list, "") : Promise.resolve();
    await this.first;
  }

  async fill(list, path) {
    list.replaceChildren(el("li", { class: "hint" }, "Loading …"));
    try {
      const { here, codes } = await ask("dictionary", { query: { variant: this.variant, path } });
      list.replaceChildren();
      if (path && here) list.append(el("li", {}, this.items(here)));
      this.page(list, codes);
      if (!here) list.append(el("li", { class: "hint" }, "No item has this path."));
    } catch (fault) {
      const box = el("li", { class: "fault", role: "alert" });
      showFault(box, fault);
      list.replaceChildren(box);
    }
  }

  page(list, codes, largest = codes[0]?.items) {
    list.append(...codes.slice(0, PAGE).map((code) => this.code(code, largest)));
    if (codes.length <= PAGE) return;
    const rest = codes.slice(PAGE);
    const more = el("button", { type: "button", class: "more" }, plural(rest.length, "further code"));
    const row = el("li", {}, more);
    more.addEventListener("click", () => {
      row.remove();
      this.page(list, rest, largest);
      list.querySelector(`[data-path="${rest[0].path.join(".")}"] > summary`).focus();
    });
    list.append(row);
  }

  code(code, largest) {
    const path = code.path.join(".");
    const about = code.categories.map(({ category, share }) => `${category} ${percent(share)}`).join(", ")
      || code.top.slice(0, 3).map(nameOf).join("; ");
    const below = el("ul", { class: "tree" });
    const bar = el("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", code.items / largest);
    const summary = el("summary", {}, el("code", {}, code.path.join(" › ")), bar,
      el("span", { class: "size" }, `${plural(code.items, "item")}, ${percent(code.share)}`),
      el("span", { class: "about" }, about));
    const details = el("details", { "data-path": path }, summary, below);
    details.addEventListener("toggle", () => {
      if (details.open && !details.filled) details.filled = this.fill(below, path);
    });
    return el("li", {}, details);
  }

  items(code) {
    const show = el("button", { type: "button", class: "quiet" }, "On the map");
    show.addEventListener("click", () => {
      const on = show.getAttribute("aria-pressed") !== "true";
      for (const other of this.list.querySelectorAll("[aria-pressed=true]")) {
        other.setAttribute("aria-pressed", "false");
      }
      show.setAttribute("aria-pressed", String(on));
      const within = (item) => code.path.every((part, level) => item?.codes?.[level] === part);
      this.light(this.variant, on ? within : null);
    });
    show.setAttribute("aria-pressed", "false");
    const names = code.top.map((item) => el("li", {}, nameOf(item), el("small", {}, ` ${item.category ?? ""}`)));
    const head = code.items > code.top.length ? `The ${code.top.length} with the most events:` : "Its items:";
    return el("div", { class: "holds" }, el("p", { class: "hint" }, head, " ", show),
      el("ol", { class: "items" }, ...names));
  }

  async open(facts, path) { // level by level, then to the code
    await this.of(facts);
    await this.first;
    let found = null;
    for (let depth = 1; depth <= path.length; depth += 1) {
      const at = path.slice(0, depth).join(".");
      const next = this.find(at) ?? this.turn(at);
      if (!next) break;
      found = next;
      found.open = true;
      found.filled ??= this.fill(found.querySelector("ul"), at);
      await found.filled;
    }
    const to = found?.querySelector("summary") ?? this.section.querySelector("h2");
    to.focus({ preventScroll: true });
    to.scrollIntoView({ block: "center" });
    return found !== null;
  }

  find(path) {
    return this.list.querySelector(`details[data-path="${path}"]`);
  }

  turn(path) { // the code may stand on a later page
    for (;;) {
      const more = this.list.querySelector("li > button.more");
      if (!more) return null;
      more.click();
      if (this.find(path)) return this.find(path);
    }
  }
}
