// A line chart on uPlot: bands, gaps, hover values, zoom, log scale, PNG, CSV and a table.

import { NOT_FINITE, drawable, faded, show } from "./format.js";
import { fill, h, placeTip, table, theme } from "./dom.js";
import { saveCsv, savePng } from "./save.js";

const HEIGHT = 260;
const ABOVE = 18; // room for the names of marked places

/**
 * A chart of lines `{label, x, y, colour, style, low, high}`; the style is "strong", "faint" or
 * "dashed". `low` and `high` make a band. Faint lines have no hover value.
 */
export class Chart {
  constructor({ title, of, onclick = null, height = HEIGHT }) {
    this.height = height;
    this.name = `${of}: ${title}`;
    this.onclick = onclick;
    this.plot = null;
    this.zoom = null;
    this.shape = "";
    this.tip = h("div", { className: "tip", hidden: true });
    this.stage = h("div", { className: "stage" }, this.tip);
    this.missing = h("p", { className: "note", hidden: true });
    this.marker = h("div", { className: "now", hidden: true });
    this.values = h("div", { className: "values", hidden: true });
    this.legend = h("div", { className: "legend" });
    this.title = h("h4", { textContent: title });
    const button = (text, label, onclick) => h("button", { textContent: text, "aria-label": `${of}, ${title}: ${label}`, title: label, onclick });
    this.head = h("div", { className: "head" }, this.title, h("span", { className: "tools" },
      button("PNG", "save as a picture", () => savePng(this)),
      button("CSV", "save the numbers", () => saveCsv(this)),
      button("Table", "show the numbers", () => this.toggleValues()),
    ));
    this.element = h("figure", { role: "group", "aria-label": this.name }, this.head, this.missing, this.stage, this.legend, this.values);
    // a hidden tab has no width
    new ResizeObserver(() => this.resize()).observe(this.stage);
  }

  /** Show lines; `axes` has xLabel, yLabel, logX, logY, yRange, marks and mark names. */
  show(lines, axes) {
    this.lines = lines;
    this.axes = axes;
    this.grid = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    this.element.hidden = !lines.length;
    this.missing.textContent = this.whyEmpty();
    this.missing.hidden = !this.missing.textContent;
    this.stage.hidden = this.legend.hidden = !this.missing.hidden;
    if (lines.length) this.draw();
    if (!this.values.hidden) this.fillValues();
  }

  draw() {
    if (!this.stage.clientWidth) return;
    const data = this.data();
    const shape = JSON.stringify([this.lines.map((l) => [l.label, l.colour, l.style, !!l.low]), this.axes.logX, this.axes.logY, this.axes.xLabel, this.axes.yLabel]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data);
    } else {
      this.plot?.destroy();
      this.shape = shape;
      this.plot = new uPlot(this.options(), data, this.stage);
      this.plot.over.append(this.marker);
      this.fillLegend();
    }
    this.moveMarker();
  }

  /** Say why no line can be seen; "" where one can. */
  whyEmpty() {
    const values = this.lines.flatMap(({ y }) => y);
    if (!values.length || values.some((value) => this.visible(value) !== null)) return "";
    const finite = values.every((value) => drawable(value) !== null);
    return finite ? "Nothing to plot: no value is above 0, and the axis is logarithmic." : NOT_FINITE;
  }

  /** Draw again with the colours of another theme. */
  restyle() {
    this.shape = "";
    if (this.lines?.length) this.draw();
  }

  resize() {
    if (!this.lines?.length || !this.stage.clientWidth) return;
    if (this.plot) this.plot.setSize({ width: this.stage.clientWidth, height: this.height });
    else this.draw();
    this.moveMarker();
  }

  /** Mark a place on the x axis, such as the step that is shown. */
  mark(x) {
    this.marked = x;
    this.moveMarker();
  }

  moveMarker() {
    const known = this.plot && this.marked !== undefined && this.marked !== null;
    const left = known ? this.plot.valToPos(this.marked, "x") : -1;
    this.marker.hidden = !(known && left >= 0 && left <= this.plot.over.clientWidth);
    if (!this.marker.hidden) this.marker.style.left = `${left}px`;
  }

  /** One column for each line and each edge of a band; undefined where only others have a point. */
  data() {
    const place = new Map(this.grid.map((x, k) => [x, k]));
    const column = (x, y) => {
      const values = new Array(this.grid.length).fill(undefined);
      x.forEach((at, k) => (values[place.get(at)] = this.visible(y[k])));
      return values;
    };
    const columns = this.lines.flatMap((line) => [line.y, ...(line.low ? [line.low, line.high] : [])].map((y) => column(line.x, y)));
    return [this.grid, ...columns];
  }

  visible(value) {
    const y = drawable(value);
    return this.axes.logY && y !== null && y <= 0 ? null : y;
  }

  options() {
    const colours = theme(this.stage);
    const { xLabel, yLabel, logX, logY } = this.axes;
    const axis = (label, size, ticks) => ({
      ...(ticks ? { splits: () => ticks, filter: (plot, splits) => splits } : {}),
      label, size, labelSize: 18, labelGap: 2, stroke: colours.text, font: "11px system-ui", labelFont: "12px system-ui",
      grid: { stroke: colours.grid, width: 1 }, ticks: { stroke: colours.grid, width: 1 },
      values: (plot, ticks) => ticks.map((tick) => (tick === null ? "" : show(tick))),
    });
    const series = [{}];
    const bands = [];
    for (const line of this.lines) {
      const faint = line.style === "faint";
      series.push({
        label: line.label, stroke: faint ? faded(line.colour, 0.55) : line.colour, width: faint ? 1 : 2.4,
        dash: line.style === "dashed" ? [6, 4] : undefined, points: { show: !faint && line.x.length < 2 },
      });
      if (line.low) {
        const at = series.length;
        bands.push({ series: [at + 1, at], fill: faded(line.colour, 0.18) });
        series.push({ points: { show: false }, width: 0 }, { points: { show: false }, width: 0 });
      }
    }
    return {
      width: this.stage.clientWidth, height: this.height, series, bands,
      legend: { show: false },
      padding: [ABOVE, null, null, null],
      axes: [axis(xLabel, 34, logX ? this.grid : null), axis(yLabel, 52)],
      scales: {
        x: { time: false, distr: logX ? 3 : 1, range: () => this.zoom?.x ?? this.ends(this.grid, logX) },
        y: { distr: logY ? 3 : 1, range: (plot, low, high) => this.zoom?.y ?? this.room(low, high) },
      },
      cursor: {
        drag: { x: true, y: true, uni: 30, setScale: false },
        points: { show: false },
        bind: { dblclick: () => () => this.setZoom(null) },
      },
      hooks: {
        setSelect: [(plot) => this.select(plot)],
        setCursor: [(plot) => this.hover(plot)],
        draw: [(plot) => this.drawMarks(plot)],
        ready: [(plot) => this.listen(plot)],
      },
    };
  }

  ends(values, log) {
    const [low, high] = [values[0], values[values.length - 1]];
    if (low < high) return [low, high];
    return log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  }

  room(low, high) {
    const [from, to] = this.axes.yRange ?? [low, high];
    if (this.axes.logY) return to > 0 ? uPlot.rangeLog(Math.max(from, to * 1e-6), to, 10, false) : [0.1, 1];
    if (from === null || !Number.isFinite(from)) return [0, 1];
    const margin = 0.05 * (to - from) || Math.abs(from) * 0.1 || 1;
    return [from - margin, to + margin];
  }

  select(plot) {
    const { left, top, width, height } = plot.select;
    if (width < 4 && height < 4) return;
    const x = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    const y = [plot.posToVal(top + height, "y"), plot.posToVal(top, "y")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.setZoom({ x, y });
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.plot?.setData(this.data());
    this.moveMarker();
  }

  listen(plot) {
    if (!this.onclick) return;
    plot.over.addEventListener("click", () => {
      if (plot.cursor.idx !== null && !plot.select.width) this.onclick(this.grid[plot.cursor.idx]);
    });
  }

  hover(plot) {
    const { left, top, idx } = plot.cursor;
    this.tip.hidden = idx === null || idx === undefined || left < 0;
    if (this.tip.hidden) return;
    const x = this.grid[idx];
    const rows = this.lines.filter((line) => line.style !== "faint").map((line) => this.row(line, x));
    fill(this.tip, h("b", { textContent: `${this.axes.xName ?? "x"} = ${show(x)}` }), ...rows);
    const room = this.stage.clientWidth;
    const place = left + plot.over.offsetLeft;
    placeTip(this.tip, place, Math.max(0, top - 10), room);
  }

  row(line, x) {
    const k = nearest(line.x, x);
    const ends = line.low && drawable(line.low[k]) !== null ? ` [${show(line.low[k])}, ${show(line.high[k])}]` : "";
    const unit = this.axes.unit ? ` ${this.axes.unit}` : "";
    return h("div", {}, swatch(line), `${line.label}: ${show(line.y[k])}${ends}${unit}`);
  }

  /** Draw the marked places: lines through the chart, and above it their names side by side. */
  drawMarks(plot) {
    const { left, top, width, height } = plot.bbox;
    const { ctx } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = theme(this.stage).quiet;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.font = `${11 * devicePixelRatio}px system-ui`;
    ctx.textAlign = "left";
    const marks = (this.axes.marks ?? []).map(({ x, label }) => ({ at: plot.valToPos(x, "x", true), label }))
      .filter(({ at }) => at >= left && at <= left + width).sort((a, b) => a.at - b.at);
    const places = sideBySide(marks.map(({ at, label }) => [at, ctx.measureText(label).width]), 8 * devicePixelRatio, ctx.canvas.width);
    marks.forEach(({ at, label }, k) => {
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
      ctx.fillText(label, places[k], top - 5 * devicePixelRatio);
    });
    ctx.restore();
  }

  fillLegend() {
    const strong = this.lines.filter((line) => line.style !== "faint");
    fill(this.legend, strong.map((line) => h("span", {}, swatch(line), line.label)));
  }

  toggleValues() {
    this.values.hidden = !this.values.hidden;
    if (!this.values.hidden) this.fillValues();
  }

  fillValues() {
    const [head, rows] = this.numbers();
    fill(this.values, table(head, rows.map((row) => row.map((value) => (typeof value === "string" ? value : show(value, 4)))), this.name));
  }

  /** Return the names of the columns and the rows of numbers. */
  numbers() {
    const head = [this.axes.xName ?? "x"];
    for (const line of this.lines) head.push(line.label, ...(line.low ? [`${line.label}, low`, `${line.label}, high`] : []));
    const columns = this.data().slice(1);
    return [head, this.grid.map((x, k) => [x, ...columns.map((column) => column[k] ?? "")])];
  }
}

/** Return where texts begin that stand over their middles, or beside them where they would overlap or leave the room. */
export function sideBySide(texts, gap, room) {
  const begins = [];
  texts.forEach(([middle, size], k) => {
    const free = k ? begins[k - 1] + texts[k - 1][1] + gap : 0;
    begins.push(Math.max(free, middle - size / 2));
  });
  let end = room;
  for (let k = texts.length - 1; k >= 0; k -= 1) {
    begins[k] = Math.min(begins[k], end - texts[k][1]);
    end = begins[k] - gap;
  }
  return begins;
}

export function swatch({ colour, style }) {
  const mark = h("i", { className: `swatch ${style ?? ""}` });
  mark.style.setProperty("--colour", colour);
  return mark;
}

function nearest(values, x) {
  let best = 0;
  values.forEach((value, k) => {
    if (Math.abs(value - x) < Math.abs(values[best] - x)) best = k;
  });
  return best;
}
