// The card of a gradient breakdown: each layer's change along a direction, and its history.

import { Card, named } from "./card.js";
import { Chart } from "./chart.js";
import { HeatMap } from "./heatmap.js";
import { number, relativeStep, show } from "./format.js";
import { fill, h, table } from "./dom.js";

/** Colours from the first layer, violet, to the last, ochre: all are seen on white and on dark. */
const layerColour = (k, n) => {
  const share = n > 1 ? k / (n - 1) : 0;
  const ends = [[132, 104, 204], [38, 150, 130], [190, 128, 20]];
  const [from, to, at] = share < 0.5 ? [ends[0], ends[1], 2 * share] : [ends[1], ends[2], 2 * share - 1];
  return `#${from.map((x, i) => Math.round(x + (to[i] - x) * at).toString(16).padStart(2, "0")).join("")}`;
};
const NUMBERS = {
  "step measured (eta = 1)": (data) => (data.etas.includes(1) ? show(data.relative_step) : null),
  "descent limit": (data) => relativeStep(data, data.descent_limit),
  "break-even": (data) => relativeStep(data, data.break_even),
  "trust_lr of deep relative trust (model)": (data) => show(data.trust_lr),
};
const MOST_NAMED = 8; // layers in the legend

export class BreakdownCard extends Card {
  constructor(context, { key, title }) {
    super(context, { title, note: "How much each layer's gradient changes along the direction, relative to its size." });
    this.key = key;
    this.numbers = h("div", { className: "numbers" });
    this.layers = h("div", { className: "values" });
    this.chart = new Chart({ title: "Change of the gradient", of: title });
    this.map = new HeatMap({ title: "History of the layers", of: title, onclick: context.goTo, height: 170 });
    this.add(this.chart);
    this.body.append(this.sentences, this.numbers);
    this.add(this.map);
    this.summary = h("summary");
    this.body.append(h("details", {}, this.summary, this.layers));
  }

  update(shown, changes) {
    this.say(shown);
    this.fillNumbers(shown);
    this.showChange(shown);
    this.fillLayers(shown[0].record.data);
    if (changes.history) this.showMap(shown[0].run);
    this.map.mark(shown[0].record.step);
    this.map.title.textContent = `History of the layers: ${shown[0].run}`;
    this.summary.textContent = `All layers of ${shown[0].run}`;
  }

  fillNumbers(shown) {
    const rows = Object.entries(NUMBERS).map(([label, write]) => [label, ...shown.map(({ record }) => write(record.data))])
      .filter(([, ...cells]) => cells.some((cell) => cell !== null)).map((row) => row.map((cell) => cell ?? "not measured"));
    fill(this.numbers, table(["as relative steps, ‖D‖ / ‖W‖", ...shown.map(named)], rows));
  }

  /** Of several runs, the layer of each that changed most; of one run, all layers. */
  showChange(shown) {
    const axes = { xLabel: "eta: how far along the direction", xName: "eta", yLabel: "breakdown", logX: true, logY: true };
    if (shown.length === 1) {
      this.chart.show(this.layerLines(shown[0].record.data), { ...axes, marks: marks(shown[0].record.data) });
    } else {
      const lines = shown.flatMap(({ run, colour, record: { data } }) => [
        { label: `${run}, largest layer`, x: data.etas, y: largest(data), colour, style: "strong" },
        { label: `${run}, deep relative trust (model)`, x: data.etas, y: data.model, colour, style: "dashed" },
      ]);
      this.chart.show(lines, axes);
    }
  }

  layerLines(data) {
    const n = data.names.length;
    const totals = data.breakdown.map((row) => row.reduce((sum, value) => sum + (number(value) || 0), 0));
    const most = [...totals.keys()].sort((a, b) => totals[b] - totals[a]).slice(0, MOST_NAMED);
    const lines = data.names.map((label, k) => (
      { label, x: data.etas, y: data.breakdown[k], colour: layerColour(k, n), style: most.includes(k) ? "strong" : "faint" }));
    lines.push({ label: "deep relative trust (model)", x: data.etas, y: data.model, colour: "#888888", style: "dashed" });
    return lines;
  }

  fillLayers(data) {
    const column = wholeStep(data.etas);
    const step = data.step ?? { names: [] };
    const of = (name, values) => (step.names.includes(name) ? show(values[step.names.indexOf(name)]) : "–");
    const rows = data.names.map((name, k) => [
      name, show(data.breakdown[k][column]), show(data.excess[k][column]), of(name, step.relative_update), of(name, step.relative_gradient)]);
    fill(this.layers, table(["layer", `breakdown at eta = ${show(data.etas[column])}`, "times the model", "‖ΔW‖ / ‖W‖", "‖g‖ / ‖W‖"], rows));
  }

  showMap(run) {
    const records = this.context.store.history(run, this.key);
    this.map.element.hidden = records.length < 2;  // no history yet
    if (this.map.element.hidden) return;
    const names = [...new Set(records.flatMap(({ data }) => data.names))];
    const cells = records.map(({ data }) => {
      const column = wholeStep(data.etas);
      return names.map((name) => (data.names.includes(name) ? data.breakdown[data.names.indexOf(name)][column] : null));
    });
    this.map.show({
      steps: records.map(({ step }) => step), rows: names, cells, rowName: "layer", cellName: "breakdown",
    });
  }
}

const marks = (data) => [[data.descent_limit, "descent limit"], [data.break_even, "break-even"]]
  .filter(([eta]) => Number.isFinite(number(eta)) && number(eta) > 0).map(([eta, label]) => ({ x: number(eta), label }));

const largest = (data) => data.etas.map((_, k) => data.breakdown.reduce((most, row) => Math.max(most, number(row[k]) || 0), 0));

/** The column of eta = 1, the whole step, or the last one. */
function wholeStep(etas) {
  const at = etas.indexOf(1);
  return at < 0 ? etas.length - 1 : at;
}
