// The card of the line from the current weights to an average.

import { Card, isWhole, named, span } from "./card.js";
import { Chart } from "./chart.js";
import { number, show, signed } from "./format.js";
import { fill, h, table } from "./dom.js";

const NUMBERS = {
  "loss of the average minus current": ({ gap, gap_stderr: stderr }) => (Number.isFinite(number(gap)) ? `${signed(gap)} ± ${show(stderr)}` : "not finite"),
  "lowest loss at t": ({ minimum }) => show(minimum),
};

export class LineCard extends Card {
  constructor(context, { key, title }) {
    super(context, { title, note: "The loss on the straight line from the current weights (t = 0) through the average (t = 1)." });
    this.key = key;
    this.numbers = h("div", { className: "numbers" });
    this.chart = new Chart({ title: "Loss along the line", of: title });
    this.trend = new Chart({ title: "Average minus current, over training (below 0: the average is lower)", of: title, onclick: context.goTo, height: 170 });
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
    else this.showLines(shown);
    if (changes.history) this.showTrend();
    this.trend.mark(shown[0].record.step);
  }

  fillNumbers(shown) {
    const rows = ["train", "validation"].flatMap((name) => Object.entries(NUMBERS).map(([label, write]) => [
      `${label}, ${name}`, ...shown.map(({ record }) => (record.data[name] ? write(record.data[name].score) : "not measured")),
    ]));
    const distance = ["distance to the average (L2)", ...shown.map(({ record }) => show(record.data.train.score.distance))];
    fill(this.numbers, table(["", ...shown.map(named)], [...rows, distance]));
  }

  showLines(shown) {
    const { state } = this.context;
    const lines = shown.flatMap(({ run, colour, record }) => sets(record).filter(([name]) => name === "train" || state.validation).map(([name, part]) => {
      const zero = isWhole(state) ? 0 : Number(part.mean[record.data.alphas.indexOf(0)]);
      const y = part.mean.map((value) => Number(value) - zero);
      const line = { label: `${run}, ${name}`, x: record.data.alphas, y, colour, style: name === "train" ? "strong" : "dashed" };
      if (!state.band || part.n_batches < 2) return line;
      const error = (!isWhole(state) && part.rise_stderr) || part.stderr;  // older records have one
      const edge = (side) => y.map((value, k) => value + side * Number(error[k]));
      return { ...line, low: edge(-1), high: edge(1) };
    }));
    const label = isWhole(state) ? "loss" : "rise of the loss";
    this.chart.show(lines, { ...this.axes(), yLabel: label, yRange: state.fixed ? this.wanted : null });
  }

  showDifference([first, second]) {
    const [a, b] = [first.record.data, second.record.data];
    const fit = JSON.stringify(a.alphas) === JSON.stringify(b.alphas);
    const lines = !fit ? [] : sets(second.record).filter(([name]) => a[name]).map(([name, part]) => ({
      label: `${second.run} minus ${first.run}, ${name}`, x: b.alphas, colour: second.colour, style: name === "train" ? "strong" : "dashed",
      y: part.mean.map((value, k) => Number(value) - Number(a[name].mean[k])),
    }));
    this.chart.show(lines, { ...this.axes(), logY: false, yLabel: "difference of the loss", yRange: null });
  }

  axes() {
    return {
      xLabel: "t along the line", xName: "t", logY: this.context.state.log,
      marks: [{ x: 0, label: "current" }, { x: 1, label: "average" }],
    };
  }

  range() {
    const { runs, store, state } = this.context;
    const lists = runs.flatMap((run) => store.history(run, this.key).flatMap((record) => sets(record).map(([, part]) => {
      const zero = isWhole(state) ? 0 : Number(part.mean[record.data.alphas.indexOf(0)]);
      return part.mean.map((value) => Number(value) - zero);
    })));
    return span(lists);
  }

  showTrend() {
    const { store, colours, runs } = this.context;
    const lines = runs.flatMap((run) => ["train", "validation"].map((name) => {
      const records = store.history(run, this.key).filter(({ data }) => data[name]);
      const scores = records.map(({ data }) => data[name].score);
      const edge = (side) => scores.map((score) => Number(score.gap) + side * Number(score.gap_stderr));
      return {
        label: `${run}, ${name}`, x: records.map(({ step }) => step), y: scores.map((score) => score.gap),
        low: edge(-1), high: edge(1), colour: colours.of(run), style: name === "train" ? "strong" : "dashed",
      };
    })).filter((line) => line.x.length > 1);
    this.trend.show(lines, { xLabel: "training step", xName: "step", yLabel: "difference of the loss", yRange: null, marks: [] });
  }
}

const sets = (record) => ["train", "validation"].filter((name) => record.data[name]).map((name) => [name, record.data[name]]);
