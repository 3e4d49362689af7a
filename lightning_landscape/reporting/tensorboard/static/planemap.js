// The loss on a plane as a map: colours and contours by rank, marked points, a point to choose.

import { borders } from "./heatmap.js";
import { NOT_FINITE, drawable, show } from "./format.js";
import { fill, h, placeTip, theme } from "./dom.js";
import { saveCsv, savePng } from "./save.js";

const [LEFT, BELOW, RIGHT] = [52, 34, 8]; // room for the labels
const [LOWEST, HIGHEST] = [160, 420]; // pixels
const N_LEVELS = 12;
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };

export class PlaneMap {
  /** `onchoose(x, y)` is called with a point of the grid. */
  constructor({ title, of, onchoose }) {
    this.name = `${of}: ${title}`;
    this.onchoose = onchoose;
    this.canvas = h("canvas", { role: "img", tabIndex: 0, "aria-label": this.name });
    this.tip = h("div", { className: "tip", hidden: true });
    this.stage = h("div", { className: "stage map" }, this.canvas, this.tip);
    this.scale = h("div", { className: "scale" });
    const button = (text, label, onclick) => h("button", { textContent: text, title: label, "aria-label": `${of}, ${title}: ${label}`, onclick });
    const tools = h("span", { className: "tools" },
      button("PNG", "save as a picture", () => savePng(this)), button("CSV", "save the numbers", () => saveCsv(this)));
    this.element = h("figure", { role: "group", "aria-label": this.name }, h("div", { className: "head" }, h("h4", { textContent: title }), tools), this.stage, this.scale);
    this.canvas.addEventListener("click", (event) => this.choose(...this.nearest(event)));
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  /** Show `values[i][j]` at `x[i]`, `y[j]`, with `points` by name; `chosen` is `[i, j]`. */
  show({ x, y, values, points, chosen, unit, ofBatches }) {
    const sorted = values.flat().map(drawable).filter((value) => value !== null).sort((a, b) => a - b);
    Object.assign(this, { x, y, values, points, chosen, unit, ofBatches, sorted });
    const at = (k) => sorted[Math.round((k / N_LEVELS) * (sorted.length - 1))];
    this.levels = sorted.length ? [...new Set(Array.from({ length: N_LEVELS - 1 }, (_, k) => at(k + 1)))] : [];
    const [i, j] = chosen;
    this.canvas.setAttribute("aria-label", `${this.name}. At (${show(x[i])}, ${show(y[j])}) the loss is ${show(values[i][j])}; arrow keys move.`);
    this.stage.hidden = !sorted.length;
    if (this.stage.hidden) fill(this.scale, NOT_FINITE);
    else fill(this.scale, "loss: ", show(at(0)), h("i", { className: "bar ranks" }), show(at(N_LEVELS)), ` · median ${show(at(N_LEVELS / 2))} · lines and colours: equal shares of the points`);
    this.draw();
  }

  restyle() {
    this.draw();
  }

  draw() {
    const room = this.stage.clientWidth - LEFT - RIGHT;
    if (room <= 0 || !this.values) return;
    const [xs, ys] = [borders(this.x), borders(this.y)];
    const aspect = (ys[ys.length - 1] - ys[0]) / (xs[xs.length - 1] - xs[0]); // one unit is as long on both axes
    this.height = Math.min(HIGHEST, Math.max(LOWEST, room * aspect));
    this.width = Math.min(room, this.height / aspect);
    if (this.height === LOWEST) this.width = room;
    const ratio = devicePixelRatio;
    this.canvas.width = this.stage.clientWidth * ratio;
    this.canvas.height = (this.height + BELOW) * ratio;
    this.canvas.style.height = `${this.height + BELOW}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui";
    this.drawCells(pen, xs, ys);
    this.drawContours(pen);
    this.drawChosen(pen);
    this.drawAxes(pen);
    this.drawPoints(pen);
  }

  left(x) {
    const edges = borders(this.x);
    return LEFT + ((x - edges[0]) / (edges[edges.length - 1] - edges[0])) * this.width;
  }

  top(y) {
    const edges = borders(this.y);
    return this.height - ((y - edges[0]) / (edges[edges.length - 1] - edges[0])) * this.height;
  }

  drawCells(pen, xs, ys) {
    this.x.forEach((_, i) => this.y.forEach((__, j) => {
      const value = drawable(this.values[i][j]);
      if (value === null) return;
      pen.fillStyle = this.colour(value);
      const [left, above] = [Math.floor(this.left(xs[i])), Math.floor(this.top(ys[j + 1]))];
      pen.fillRect(left, above, Math.ceil(this.left(xs[i + 1])) - left, Math.ceil(this.top(ys[j])) - above);
    }));
  }

  /** Return the colour of the share of the points that are lower. */
  colour(value) {
    let [low, high] = [0, this.sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    const place = (low / Math.max(1, this.sorted.length - 1)) * (COLOURS.length - 1);
    const k = Math.min(COLOURS.length - 2, Math.floor(place));
    return `rgb(${COLOURS[k].map((from, part) => Math.round(from + (COLOURS[k + 1][part] - from) * (place - k))).join(",")})`;
  }

  drawContours(pen) {
    pen.strokeStyle = "#ffffffb0";
    pen.lineWidth = 1;
    pen.beginPath();
    for (const level of this.levels) {
      for (const [[ax, ay], [bx, by]] of contour(this.x, this.y, this.values, level)) {
        pen.moveTo(this.left(ax), this.top(ay));
        pen.lineTo(this.left(bx), this.top(by));
      }
    }
    pen.stroke();
  }

  drawChosen(pen) {
    const [left, top] = [this.left(this.x[this.chosen[0]]), this.top(this.y[this.chosen[1]])];
    pen.strokeStyle = "#fff";
    pen.setLineDash([5, 4]);
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.moveTo(left, 0);
    pen.lineTo(left, this.height);
    pen.moveTo(LEFT, top);
    pen.lineTo(LEFT + this.width, top);
    pen.stroke();
    pen.setLineDash([]);
  }

  drawAxes(pen) {
    pen.fillStyle = theme(this.stage).text;
    pen.textAlign = "center";
    for (const x of ticks(this.x)) pen.fillText(show(x), this.left(x), this.height + 13);
    pen.fillText(`first axis, ${this.unit}`, LEFT + this.width / 2, this.height + 28);
    pen.textAlign = "right";
    for (const y of ticks(this.y)) pen.fillText(show(y), LEFT - 5, this.top(y) + 4);
    pen.save();
    pen.translate(11, this.height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText("second axis", 0, 0);
    pen.restore();
  }

  drawPoints(pen) {
    pen.font = "bold 12px system-ui";
    for (const [name, [x, y]] of Object.entries(this.points)) {
      const [left, top] = [this.left(x), this.top(y)];
      pen.beginPath();
      pen.arc(left, top, 5, 0, 2 * Math.PI);
      pen.fillStyle = "#d9702b";
      pen.strokeStyle = "#fff";
      pen.lineWidth = 2;
      pen.fill();
      pen.stroke();
      const before = left > LEFT + 0.65 * this.width;
      const below = top < 18;
      pen.textAlign = before ? "right" : "left";
      pen.strokeStyle = "#000b";
      pen.lineWidth = 3;
      const place = [name, left + (before ? -9 : 9), top + (below ? 16 : -7)];
      pen.strokeText(...place);
      pen.fillStyle = "#fff";
      pen.fillText(...place);
    }
  }

  nearest(event) {
    const at = (grid, place, where) => grid.reduce((best, value, k) => (Math.abs(place(value) - where) < Math.abs(place(grid[best]) - where) ? k : best), 0);
    return [at(this.x, (x) => this.left(x), event.offsetX), at(this.y, (y) => this.top(y), event.offsetY)];
  }

  choose(i, j) {
    this.onchoose(this.x[i], this.y[j]);
  }

  onKey(event) {
    if (!(event.key in MOVES)) return;
    event.preventDefault();
    event.stopPropagation(); // else it moves the training step
    const within = (k, n) => Math.min(n - 1, Math.max(0, k));
    const [right, up] = MOVES[event.key];
    this.choose(within(this.chosen[0] + right, this.x.length), within(this.chosen[1] + up, this.y.length));
  }

  hover(event) {
    if (!this.values) return;
    const [i, j] = this.nearest(event);
    const [x, y, value] = [this.x[i], this.y[j], this.values[i][j]];
    const least = this.sorted.length && drawable(value) !== null ? `${show(value - this.sorted[0])} above the least` : "not finite";
    fill(this.tip, h("b", { textContent: `(${show(x)}, ${show(y)}), ${this.unit}` }),
      h("div", { textContent: `loss: ${show(value, 4)}${this.ofBatches}` }), h("div", { textContent: least }));
    this.tip.hidden = false;
    placeTip(this.tip, event.offsetX, event.offsetY, this.stage.clientWidth);
  }

  /** Return the names of the columns and the rows of numbers. */
  numbers() {
    return [["first axis", "second axis", "loss"], this.x.flatMap((x, i) => this.y.map((y, j) => [x, y, this.values[i][j]]))];
  }
}

const ticks = (grid) => [...new Set([0, (grid.length - 1) >> 1, grid.length - 1])].map((k) => grid[k]);

/** Return the pieces of the contour at a level: marching squares, a piece a pair of crossed edges. */
function contour(x, y, values, level) {
  const pieces = [];
  for (let i = 0; i < x.length - 1; i++) {
    for (let j = 0; j < y.length - 1; j++) {
      const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
      const heights = corners.map(([a, b]) => drawable(values[a][b]));
      if (heights.includes(null)) continue;
      const crossed = [];
      corners.forEach(([a, b], k) => {
        const next = (k + 1) % 4;
        if (heights[k] < level === heights[next] < level) return;
        const share = (level - heights[k]) / (heights[next] - heights[k]);
        const [c, d] = corners[next];
        crossed.push([x[a] + share * (x[c] - x[a]), y[b] + share * (y[d] - y[b])]);
      });
      for (let k = 0; k + 1 < crossed.length; k += 2) pieces.push([crossed[k], crossed[k + 1]]);
    }
  }
  return pieces;
}
