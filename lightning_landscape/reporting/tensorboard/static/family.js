// The card of a family of directions: slices at the step, the area over training, the history.

import { Card, isWhole, medianInterval, named, span } from "./card.js";
import { Chart } from "./chart.js";
import { HeatMap } from "./heatmap.js";
import { describeFamily, interval, number, percent, rate, show } from "./format.js";
import { fill, h, table } from "./dom.js";

const NUMBERS = {
  "area, −1 to +1": (data) => interval(data.area),
  "asymmetric directions": (data) => (isKnown(data) ? rate(data.rate) : "–"),
  "off their minimum": (data) => (isKnown(data) ? percent(data.rate.off_minimum) : "–"),
  "unresolved": (data) => (isKnown(data) ? percent(data.rate.unresolved) : "–"),
  "loss at alpha = 0": (data) => show(data.median[data.alphas.indexOf(0)]),
};
const isKnown = (data) => Number.isFinite(number(data.median[data.alphas.indexOf(0)]));
const MOST_WITH_DIRECTIONS = 3; // runs; more of them hide each other

export class FamilyCard extends Card {
  constructor(context, { key, name, title }) {
    super(context, { title, note: `${describeFamily(name)}.` });
    this.key = key;
    this.numbers = h("div", { className: "numbers" });
    this.title = title;
    this.chart = new Chart({ title: "Loss along the directions", of: title });
    this.trend = new Chart({ title: "Asymmetry over training", of: title, onclick: context.goTo, height: 170 });
    this.maps = new Map();
    this.add(this.chart);
    this.body.append(this.sentences, this.numbers);
    this.add(this.trend);
  }

  update(shown, changes) {
    this.say(shown);
    this.fillNumbers(shown);
    if (changes.history) this.wanted = this.range();
    const pair = this.pair(this.key);
    if (pair) this.showDifference(pair);
    else this.showSlices(shown);
    if (changes.history) {
      this.showTrend();
      this.showMaps();
    }
    for (const part of [this.trend, ...this.maps.values()]) part.mark(this.at(part, shown));
  }

  /** The step of the probe that is shown: a map marks its own run's. */
  at(part, shown) {
    const own = shown.find(({ run }) => this.maps.get(run) === part) ?? shown[0];
    return own.record.step;
  }

  fillNumbers(shown) {
    const rows = Object.entries(NUMBERS).map(([label, write]) => [label, ...shown.map(({ record }) => write(record.data))]);
    fill(this.numbers, table(["", ...shown.map(named)], rows));
  }

  lines({ run, colour, record }, set, prefix) {
    const { state } = this.context;
    const { data } = record;
    const part = set === "train" ? data : data.validation;
    const zero = isWhole(state) ? 0 : part.median[data.alphas.indexOf(0)];
    const moved = (values) => values.map((value) => Number(value) - Number(zero));
    const style = set === "train" ? "strong" : "dashed";
    const middle = { label: prefix, x: data.alphas, y: moved(part.median), colour, style };
    if (state.band) Object.assign(middle, { low: moved(part.low), high: moved(part.high) });
    const few = this.context.runs.length <= MOST_WITH_DIRECTIONS;
    if (!state.directions || !few || set !== "train") return [middle];
    const faint = part.slices.map((values, k) => (
      { label: `${run}, direction ${k + 1}`, x: data.alphas, y: moved(values), colour, style: "faint" }));
    return [...faint, middle];
  }

  showSlices(shown) {
    const { state } = this.context;
    const lines = shown.flatMap((each) => {
      const both = state.validation && each.record.data.validation;
      const train = this.lines(each, "train", `${each.run}, ${both ? "train, " : ""}median direction`);
      return both ? [...train, ...this.lines(each, "validation", `${each.run}, validation, median direction`)] : train;
    });
    const { data } = shown[0].record;
    this.chart.show(lines, {
      ...this.axes(data),
      yLabel: isWhole(state) ? `loss, mean of ${data.n_batches} batches` : "rise of the loss",
      yRange: state.fixed ? this.wanted : null,
    });
  }

  /** The second run's directions minus the first's, one by one where they are the same ones. */
  showDifference([first, second]) {
    const [a, b] = [first.record.data, second.record.data];
    const fit = JSON.stringify(a.alphas) === JSON.stringify(b.alphas) && a.slices.length === b.slices.length;
    const label = `${second.run} minus ${first.run}`;
    const each = fit ? b.slices.map((values, k) => values.map((value, i) => Number(value) - Number(a.slices[k][i]))) : [];
    const columns = a.alphas.map((_, i) => medianInterval(each.map((values) => values[i])));
    const [y, low, high] = [0, 1, 2].map((k) => columns.map((column) => column[k]));
    const colour = second.colour;
    const faint = each.map((values, k) => ({ label: `direction ${k + 1}`, x: a.alphas, y: values, colour, style: "faint" }));
    const lines = fit ? [...(this.context.state.directions ? faint : []), { label, x: a.alphas, y, low, high, colour, style: "strong" }] : [];
    this.chart.show(lines, { ...this.axes(a), logY: false, yLabel: "difference of the loss", yRange: null });
    if (!fit) this.sentences.append(h("p", { textContent: "These two runs were measured on different grids: there is no difference to show." }));
  }

  axes(data) {
    return {
      xLabel: `alpha${data.unit ? `, ${data.unit}` : ""}`, xName: "alpha",
      logY: this.context.state.log, marks: [{ x: 0, label: "current weights" }],
    };
  }

  /** The range of the medians over the whole training, so that curves can be compared. */
  range() {
    const { runs, store, state } = this.context;
    const lists = runs.flatMap((run) => store.history(run, this.key).flatMap(({ data }) => {
      return [data, state.validation ? data.validation : null].filter(Boolean).map((part) => {
        const zero = isWhole(state) ? 0 : Number(part.median[data.alphas.indexOf(0)]);
        return [...part.median, ...part.low, ...part.high].map((value) => Number(value) - zero);
      });
    }));
    return span(lists);
  }

  showTrend() {
    const { store, colours, runs } = this.context;
    const lines = runs.map((run) => {
      const records = store.history(run, this.key);
      const column = (k) => records.map(({ data }) => data.area[k]);
      return { label: run, x: records.map(({ step }) => step), y: column(0), low: column(1), high: column(2), colour: colours.of(run), style: "strong" };
    }).filter((line) => line.x.length > 1);
    this.trend.show(lines, { xLabel: "training step", xName: "step", yLabel: "area", yRange: [-1, 1], marks: [] });
  }

  showMaps() {
    const { store, runs, goTo } = this.context;
    const rises = new Map(runs.map((run) => [run, store.history(run, this.key).filter(sameGrid).map(({ step, data }) => {
      const zero = Number(data.median[data.alphas.indexOf(0)]);
      return { step, alphas: data.alphas, rise: data.median.map((value) => Number(value) - zero) };
    })]));
    const ends = span([...rises.values()].flat().map(({ rise }) => rise)) ?? [0, 1];
    const largest = Math.max(Math.abs(ends[0]), Math.abs(ends[1])) || 1;
    for (const [run, map] of this.maps) {
      if (!(rises.get(run)?.length > 1)) {
        map.element.remove();
        this.maps.delete(run);
        this.parts = this.parts.filter((part) => part !== map);
      }
    }
    for (const [run, probes] of rises) {
      if (probes.length < 2) continue;  // no history yet
      if (!this.maps.has(run)) {
        this.maps.set(run, new HeatMap({ title: `History of ${run}`, of: this.title, onclick: goTo }));
        this.add(this.maps.get(run));
      }
      this.maps.get(run).show({
        steps: probes.map(({ step }) => step), rows: probes[0].alphas, cells: probes.map(({ rise }) => rise),
        largest, rowName: "alpha", cellName: "rise of the loss",
      });
    }
  }
}

const sameGrid = ({ data }, k, all) => JSON.stringify(data.alphas) === JSON.stringify(all[all.length - 1].data.alphas);
