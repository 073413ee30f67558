// The map: dots for the catalogue, diamonds for the history, numbered discs for interests, rings for the list.

import { nameOf } from "./kit.js";

const REACH = 12; // pixels between pointer and mark
const RANK = { all: 0, list: 1, history: 2, interest: 3 }; // what lies on top

export class CatalogueMap {
  constructor(frame, tools, said) {
    this.canvas = frame.querySelector("canvas");
    this.tip = frame.querySelector(".tip");
    this.said = said;
    this.marks = { all: [], list: [], history: [], interest: [] };
    this.lit = null; // a test of items, from the dictionary
    this.at = null; // the mark under the pointer or the keyboard
    this.step = -1;
    this.pointers = new Map();
    this.view = { x: 0, y: 0, scale: 1 };
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.keyed(event));
    const acts = { in: () => this.zoom(1.5), out: () => this.zoom(1 / 1.5), fit: () => this.fit() };
    for (const button of tools.querySelectorAll("button")) {
      button.addEventListener("click", acts[button.dataset.do]);
    }
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  set(layer, marks) {
    this.marks[layer] = marks.filter((mark) => mark.x !== null && mark.x !== undefined);
    this.step = -1;
    if (layer === "all") this.fit();
    else this.draw();
  }

  light(test) {
    this.lit = test;
    this.draw();
  }

  show(item) { // from a list: the item's mark, if it has a place
    const id = String(item);
    const found = ["interest", "history", "list", "all"].flatMap((layer) => this.marks[layer])
      .find((mark) => String(mark.item?.item_id) === id);
    this.point(found ?? null);
  }

  fit() {
    const all = this.marks.all;
    const [left, right] = bounds(all.map((mark) => mark.x));
    const [bottom, top] = bounds(all.map((mark) => mark.y));
    const span = Math.max(right - left, top - bottom, 1e-6);
    this.view = { x: (left + right) / 2, y: (bottom + top) / 2, scale: 1.88 / span };
    this.draw();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const [x, y] = this.there(px, py);
    this.view.scale = Math.min(Math.max(this.view.scale * factor, 0.3), 200);
    const [nx, ny] = this.there(px, py);
    this.view.x += x - nx;
    this.view.y += y - ny;
    this.draw();
  }

  pan(dx, dy) {
    const unit = this.view.scale * this.half;
    this.view.x -= dx / unit;
    this.view.y += dy / unit;
    this.draw();
  }

  get width() { return this.canvas.clientWidth; }
  get height() { return this.canvas.clientHeight; }
  get half() { return Math.min(this.width, this.height) / 2; }

  here(mark) {
    const unit = this.view.scale * this.half;
    const aside = mark.aside ?? 0;
    return [this.width / 2 + (mark.x - this.view.x) * unit + aside, this.height / 2 - (mark.y - this.view.y) * unit];
  }

  there(px, py) {
    const unit = this.view.scale * this.half;
    return [this.view.x + (px - this.width / 2) / unit, this.view.y - (py - this.height / 2) / unit];
  }

  down(event) {
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.canvas.setPointerCapture(event.pointerId);
    if (event.pointerType !== "mouse") this.point(this.nearest(event.offsetX, event.offsetY));
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    const now = [event.offsetX, event.offsetY];
    if (!before) {
      this.point(this.nearest(...now));
      return;
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
      const is = Math.hypot(now[0] - other[0], now[1] - other[1]);
      this.zoom(is / Math.max(was, 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else {
      this.pan(now[0] - before[0], now[1] - before[1]);
    }
    this.pointers.set(event.pointerId, now);
  }

  wheel(event) { // the page scrolls past a map that nobody works with
    if (document.activeElement !== this.canvas && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }

  keyed(event) {
    const acts = {
      ArrowLeft: () => this.pan(40, 0),
      ArrowRight: () => this.pan(-40, 0),
      ArrowUp: () => this.pan(0, 40),
      ArrowDown: () => this.pan(0, -40),
      "+": () => this.zoom(1.3),
      "=": () => this.zoom(1.3),
      "-": () => this.zoom(1 / 1.3),
      0: () => this.fit(),
      n: () => this.next(1),
      p: () => this.next(-1),
      Escape: () => this.point(null),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }

  next(by) { // from mark to mark, saying each
    const all = [...this.marks.interest, ...this.marks.list, ...this.marks.history];
    if (!all.length) return;
    this.step = this.step < 0 && by < 0 ? all.length - 1 : (this.step + by + all.length) % all.length;
    const mark = all[this.step];
    const [px, py] = this.here(mark);
    if (px < 0 || py < 0 || px > this.width || py > this.height) Object.assign(this.view, { x: mark.x, y: mark.y });
    this.point(mark);
    this.said.textContent = `${mark.says}. ${this.step + 1} of ${all.length}`;
  }

  nearest(px, py) {
    let found = null;
    let best = REACH;
    for (const layer of ["interest", "history", "list", "all"]) {
      for (const mark of this.marks[layer]) {
        const [x, y] = this.here(mark);
        const distance = Math.hypot(x - px, y - py);
        if (distance < best) [found, best] = [mark, distance];
      }
      if (found) return found;
    }
    return null;
  }

  point(mark) {
    this.at = mark;
    this.tip.hidden = !mark;
    if (mark) {
      const [px, py] = this.here(mark);
      this.tip.textContent = mark.says;
      this.tip.classList.toggle("left", px > this.width / 2);
      this.tip.style.left = `${px}px`;
      this.tip.style.top = `${py}px`;
    }
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const dense = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(this.width * dense), Math.round(this.height * dense)];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      Object.assign(this.canvas, { width: wide, height: high });
    }
    const style = getComputedStyle(this.canvas);
    const ink = (name) => style.getPropertyValue(name).trim();
    const pen = this.canvas.getContext("2d");
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const dot = Math.min(4, 1.4 * Math.sqrt(this.view.scale + 0.5));
    for (const mark of this.marks.all) {
      const lit = this.lit?.(mark.item);
      pen.globalAlpha = lit ? 1 : this.lit ? 0.25 : 0.6;
      pen.fillStyle = ink(lit ? "--text" : "--dot");
      disc(pen, ...this.here(mark), lit ? dot + 1.5 : dot);
    }
    pen.globalAlpha = 1;
    this.spread();
    for (const layer of ["list", "history", "interest"]) {
      for (const mark of this.marks[layer]) this.mark(pen, layer, mark, ink);
    }
    if (this.at) {
      pen.strokeStyle = ink("--text");
      pen.lineWidth = 2;
      ring(pen, ...this.here(this.at), RANK[this.at.layer] === 3 ? 14 : 9);
    }
    this.canvas.dataset.marks = ["list", "history", "interest"].map((layer) => this.marks[layer].length).join(" ");
  }

  spread() { // interests in one place stand in a row, not on each other
    const stand = [];
    for (const mark of this.marks.interest) {
      mark.aside = 0;
      while (stand.some(([x, y]) => Math.hypot(x - this.here(mark)[0], y - this.here(mark)[1]) < 20)) mark.aside += 4;
      stand.push(this.here(mark));
    }
  }

  mark(pen, layer, mark, ink) {
    const [x, y] = this.here(mark);
    const colour = ink(mark.colour === null ? "--muted" : `--${mark.colour}`);
    pen.fillStyle = colour;
    pen.strokeStyle = ink("--box");
    pen.lineWidth = 1.5;
    if (layer === "list") {
      disc(pen, x, y, 5);
      ring(pen, x, y, 5);
    } else if (layer === "history") {
      pen.strokeStyle = colour;
      pen.fillStyle = ink("--box");
      pen.lineWidth = 2;
      pen.beginPath();
      for (const [dx, dy] of [[0, -6], [6, 0], [0, 6], [-6, 0]]) pen.lineTo(x + dx, y + dy);
      pen.closePath();
      pen.fill();
      pen.stroke();
    } else {
      pen.globalAlpha = mark.used ? 1 : 0.45;
      disc(pen, x, y, 11);
      ring(pen, x, y, 11);
      pen.fillStyle = ink("--box");
      pen.font = "bold 12px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillText(mark.label, x, y + 0.5);
      pen.globalAlpha = 1;
    }
  }
}

export function place(facts, layer, colour, role) {
  const about = [nameOf(facts), facts.category, role].filter(Boolean).join(" · ");
  return { x: facts.x, y: facts.y, item: facts, layer, colour, says: about };
}

function bounds(values) {
  if (!values.length) return [-1, 1];
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [1e9, -1e9]);
}

function disc(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fill();
}

function ring(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.stroke();
}
