// The history of a curve as a heat map: training step from left to right, a click goes there.

import { NOT_FINITE, drawable, show } from "./format.js";
import { fill, h, placeTip, theme } from "./dom.js";
import { saveCsv, savePng } from "./save.js";

const [NARROWEST, WIDEST] = [64, 0.4]; // room for the labels of the rows: pixels, a share of the width
const DECADES = 3; // that colours of one hue show at most
const FONT = "11px system-ui";
const BELOW = 20;

/** Cells of a run: `rows` are their centres (numbers, from below) or names (from above). */
export class HeatMap {
  constructor({ title, of, onclick, height = 130 }) {
    this.height = height;
    this.name = `${of}: ${title}`;
    this.onclick = onclick;
    this.left = NARROWEST;
    this.title = h("h4", { textContent: title });
    this.canvas = h("canvas", { role: "img", tabIndex: 0, "aria-label": this.name });
    this.marker = h("div", { className: "now", hidden: true });
    this.tip = h("div", { className: "tip", hidden: true });
    this.scale = h("div", { className: "scale" });
    this.stage = h("div", { className: "stage map" }, this.canvas, this.marker, this.tip);
    const button = (text, label, onclick) => h("button", { textContent: text, title: label, "aria-label": `${of}, ${title}: ${label}`, onclick });
    const tools = h("span", { className: "tools" },
      button("PNG", "save as a picture", () => savePng(this)), button("CSV", "save the numbers", () => saveCsv(this)));
    this.element = h("figure", { role: "group", "aria-label": this.name }, h("div", { className: "head" }, this.title, tools), this.stage, this.scale);
    this.canvas.addEventListener("click", (event) => this.cells && onclick(this.steps[this.column(event)]));
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => (this.tip.hidden = true));
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  /** Show `cells[k]`, the column of `steps[k]`; with `largest`, which maps share, on both sides of 0, else from the least up. */
  show({ steps, rows, cells, largest, rowName, cellName }) {
    const finite = cells.flat().map(drawable).filter((value) => value !== null);
    this.stage.hidden = !finite.length;
    const known = finite.filter((value) => value > 0);
    const most = largest ?? (known.reduce((a, b) => Math.max(a, b), 0) || 1);
    const least = Math.max(known.reduce((a, b) => Math.min(a, b), most), most / 10 ** DECADES);
    const diverging = largest !== undefined;
    Object.assign(this, { steps, rows, cells, least, largest: most, diverging, rowName, cellName });
    this.edges = borders(steps);
    this.draw();
    const bar = h("i", { className: diverging ? "bar diverging" : "bar" });
    if (this.stage.hidden) fill(this.scale, NOT_FINITE);
    else fill(this.scale, `${cellName}: `, show(diverging ? -most : least), bar, show(most));
  }

  restyle() {
    this.draw();
  }

  mark(step) {
    this.marked = step;
    const k = this.steps ? this.steps.indexOf(step) : -1;
    this.marker.hidden = k < 0 || !this.stage.clientWidth;
    if (!this.marker.hidden) this.marker.style.left = `${this.place((this.edges[k] + this.edges[k + 1]) / 2)}px`;
  }

  place(x) {
    const [first, last] = [this.edges[0], this.edges[this.edges.length - 1]];
    return this.left + ((x - first) / (last - first)) * (this.stage.clientWidth - this.left);
  }

  draw() {
    const width = this.stage.clientWidth;
    if (!width || !this.cells) return;
    const ratio = devicePixelRatio;
    this.canvas.width = width * ratio;
    this.canvas.height = (this.height + BELOW) * ratio;
    this.canvas.style.height = `${this.height + BELOW}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    this.makeRoom(pen, width);
    const colours = theme(this.stage);
    const dark = isDark(colours.surface);
    const n = this.rows.length;
    this.cells.forEach((column, k) => {
      const [left, right] = [this.place(this.edges[k]), this.place(this.edges[k + 1])];
      for (let row = 0; row < n; row++) {
        const value = drawable(column[row]);
        if (value === null) continue;
        pen.fillStyle = this.colour(value, dark);
        const [top, bottom] = [this.top(row, n), this.top(row, n) + this.height / n];
        pen.fillRect(Math.floor(left), Math.floor(top), Math.ceil(right - Math.floor(left)), Math.ceil(bottom - Math.floor(top)));
      }
    });
    this.drawLabels(pen, colours, width);
    this.mark(this.marked);
  }

  /** Leave room on the left for the longest name, as far as there is any. */
  makeRoom(pen, width) {
    pen.font = FONT;
    const wanted = this.rows.map((row) => (typeof row === "string" ? pen.measureText(row).width + 8 : 0));
    this.left = Math.max(NARROWEST, Math.min(WIDEST * width, Math.max(...wanted)));
    this.scale.style.paddingLeft = `${this.left}px`;
  }

  top(row, n) {
    const fromAbove = typeof this.rows[0] === "string" ? row : n - 1 - row;
    return (fromAbove * this.height) / n;
  }

  drawLabels(pen, colours, width) {
    pen.fillStyle = colours.text;
    pen.font = FONT;
    pen.textAlign = "right";
    const n = this.rows.length;
    const every = typeof this.rows[0] === "string" ? Math.ceil(n / (this.height / 13)) : (n - 1) / 2 || 1;
    for (let row = 0; row < n; row += every) {
      const label = this.rows[Math.round(row)];
      const text = typeof label === "string" ? short(label, (part) => pen.measureText(part).width <= this.left - 6) : show(label);
      pen.fillText(text, this.left - 4, Math.min(this.height, Math.max(9, this.top(Math.round(row), n) + this.height / n / 2 + 4)));
    }
    const [first, last] = [this.steps[0], this.steps[this.steps.length - 1]];
    pen.textAlign = "left";
    pen.fillText(`step ${show(first, 6)}`, this.left, this.height + 14);
    if (last > first) {
      pen.textAlign = "right";
      pen.fillText(`step ${show(last, 6)}`, width - 1, this.height + 14);
    }
  }

  colour(value, dark) {
    const share = this.diverging ? symmetric(value, this.largest) : between(value, this.least, this.largest);
    const strength = Math.min(1, Math.abs(share));
    const neutral = dark ? [48, 48, 52] : [244, 244, 244];
    const end = share < 0 ? [37, 99, 190] : this.diverging ? [200, 55, 45] : dark ? [250, 190, 90] : [120, 28, 109];
    const mixed = neutral.map((from, k) => Math.round(from + (end[k] - from) * strength));
    return `rgb(${mixed.join(",")})`;
  }

  column(event) {
    const x = event.offsetX;
    let k = 0;
    while (k < this.steps.length - 1 && this.place(this.edges[k + 1]) <= x) k += 1;
    return k;
  }

  hover(event) {
    if (!this.cells) return;
    const k = this.column(event);
    const n = this.rows.length;
    const fromAbove = Math.min(n - 1, Math.max(0, Math.floor((event.offsetY / this.height) * n)));
    const row = typeof this.rows[0] === "string" ? fromAbove : n - 1 - fromAbove;
    const where = typeof this.rows[row] === "string" ? this.rows[row] : `${this.rowName} = ${show(this.rows[row])}`;
    fill(this.tip, h("b", { textContent: `step ${this.steps[k]}` }), h("div", { textContent: where }), h("div", { textContent: `${this.cellName}: ${show(this.cells[k][row])}` }));
    this.tip.hidden = false;
    placeTip(this.tip, event.offsetX, event.offsetY, this.stage.clientWidth);
  }

  /** Return the names of the columns and the rows of numbers. */
  numbers() {
    return [["step", ...this.rows.map(String)], this.cells.map((column, k) => [this.steps[k], ...column])];
  }
}

/** Small values must be seen beside large ones: a signed logarithm over two decades. */
function symmetric(value, largest) {
  const size = Math.log10(1 + (100 * Math.abs(value)) / (largest || 1)) / Math.log10(101);
  return Math.sign(value) * size;
}

/** Return where a value lies between two others on a logarithmic scale: 0 to 1. */
function between(value, least, largest) {
  if (least === largest) return value < least ? 0 : 1;
  return Math.max(0, Math.log(Math.max(value, least) / least) / Math.log(largest / least));
}

export function borders(centres) {
  if (centres.length === 1) return [centres[0] - 0.5, centres[0] + 0.5];
  const between = centres.slice(1).map((x, k) => (x + centres[k]) / 2);
  const last = centres.length - 1;
  return [2 * centres[0] - between[0], ...between, 2 * centres[last] - between[last - 1]];
}

/** Return a name, or as much of its end as fits. */
function short(name, fits) {
  if (fits(name)) return name;
  let k = 1;
  while (k < name.length && !fits(`…${name.slice(k)}`)) k += 1;
  return `…${name.slice(k)}`;
}

function isDark(colour) {
  const parts = colour.match(/[\da-f]{2}/gi) ?? ["ff"];
  return parseInt(parts[0], 16) < 128;
}
