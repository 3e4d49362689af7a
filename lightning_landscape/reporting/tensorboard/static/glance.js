// What the step shows at a glance: a row for each run, a verdict in each cell.

import { interval, percent, show, signed } from "./format.js";
import { h, table } from "./dom.js";
import { swatch } from "./chart.js";

const QUESTIONS = {
  line: (name) => `Would averaging help now? (${name})`,
  breakdown: (name) => `Is the step too large? (${name})`,
  family: (name) => `Is one side steeper? (${name})`,
  plane: (name) => `Where is the loss least? (${name})`,
};

const SIGNS = { good: "✔", bad: "▲", plain: "●", none: "○" };

/** Return the heading, the table and the legend of what is shown at the step. */
export function glance({ store, runs, step, colours }) {
  if (!runs.length || step === undefined) {
    return [h("h3", { textContent: "Nothing to show yet" }), h("p", { textContent: store.runs.size ? "Choose a run above." : "No probe has been written. The first one comes when the monitors have measured for the first time." })];
  }
  const head = ["", ...runs.map((run) => h("span", {}, swatch({ colour: colours.of(run) }), run))];
  const rows = Object.entries(QUESTIONS).flatMap(([kind, question]) => store.keys(kind).map(({ key, name }) => [
    h("span", {}, question(name)), ...runs.map((run) => chip(kind, store.at(run, key, step))),
  ]));
  return [
    h("h3", { textContent: `At a glance: step ${step}` }),
    rows.length ? table(head, rows) : null,
    ...remarks(store, runs, step),
    h("p", { className: "note" }, `${SIGNS.good} better · ${SIGNS.bad} worse · ${SIGNS.plain} neither good nor bad by itself · ${SIGNS.none} no verdict`),
  ];
}

/** What monitors said in words of their own, and what the probe cost. */
function remarks(store, runs, step) {
  const of = (kind) => store.keys(kind).flatMap(({ key, monitor }) => runs.map((run) => ({ run, monitor, record: store.at(run, key, step) })));
  const said = of("words").filter(({ record }) => record).map(({ run, record }) => `${run}: ${record.data.text}`);
  const costs = of("cost").filter(({ record }) => record).map(({ run, monitor, record: { data } }) => {
    const share = data.overhead === undefined ? "" : `, ${percent(data.overhead)} of the training time so far`;
    return `${run}: this probe of ${monitor} took ${show(data.seconds)} s${share}.`;
  });
  return [...said.map((textContent) => h("p", { className: "said", textContent })), ...costs.map((textContent) => h("p", { className: "note", textContent }))];
}

function chip(kind, record) {
  if (!record) return h("span", { className: "chip none", textContent: "not measured" });
  const { tone, text } = VERDICTS[kind](record.data);
  return h("span", { className: `chip ${tone}` }, h("i", { "aria-hidden": "true", textContent: SIGNS[tone] }), ` ${text}`);
}

const VERDICTS = {
  line(data) {
    const set = data.validation ? "validation" : "train";
    const { score: found, verdict } = data[set];
    const by = `${show(Math.abs(Number(found.gap)))} ± ${show(found.gap_stderr)}`;
    if (verdict === "no verdict") return { tone: "none", text: `no verdict: ${signed(found.gap)} ± ${show(found.gap_stderr)} ${set} loss` };
    if (set === "train") return { tone: "plain", text: `its train loss is ${verdict} by ${by}; validation was not measured` };
    if (verdict === "lower") return { tone: "good", text: `yes: its validation loss is lower by ${by}` };
    return { tone: "bad", text: `no: its validation loss is higher by ${by}` };
  },
  family(data) {
    const off = Number(data.rate.off_minimum);
    const unresolved = Number(data.rate.unresolved);
    if (off > 0.5) return { tone: "none", text: "no verdict: the loss still falls along most directions" };
    if (unresolved > 0.5) return { tone: "none", text: `no verdict: the batches differ too much, area ${interval(data.area)}` };
    const [, low, high] = data.area.map(Number);
    const side = low > 0 ? "on the whole the + side is steeper, " : high < 0 ? "on the whole the − side is steeper, " : "";
    const none = data.verdict === "no verdict";
    return { tone: none ? "none" : "plain", text: `${none ? "no verdict on most directions" : data.verdict}: ${side}area ${interval(data.area)}` };
  },
  breakdown(data) {
    const limit = Number(data.descent_limit);
    if (Number.isNaN(limit)) return { tone: "none", text: "no verdict: not finite" };
    if (!data.etas.includes(1)) return { tone: "plain", text: `descent up to ${show(limit * Number(data.relative_step))}` };
    if (data.answer) return { tone: data.answer === "No verdict" ? "none" : "plain", text: data.answer };
    return { tone: "plain", text: `step is ${show(1 / Math.max(limit, 1e-300))} times the descent limit` };
  },
  plane({ alphas1, alphas2, mean, points }) {
    let [least, at] = [Infinity, null];
    mean.forEach((row, i) => row.forEach((value, j) => {
      if (Number(value) < least) [least, at] = [Number(value), [alphas1[i], alphas2[j]]];
    }));
    if (!at) return { tone: "none", text: "no verdict: not finite" };
    const far = ([, [x, y]]) => Math.hypot(x - at[0], y - at[1]);
    const [near] = Object.entries(points ?? {}).sort((a, b) => far(a) - far(b));
    const where = near ? `, ${show(far(near))} from ${near[0]}` : "";
    return { tone: "plain", text: `${show(least)} at (${show(at[0])}, ${show(at[1])})${where}` };
  },
};
