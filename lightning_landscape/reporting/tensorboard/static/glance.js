// What the step shows at a glance: the questions, and below each a line for every run that was measured.

import { interval, number, percent, relativeStep, show, signed, titled } from "./format.js";
import { h } from "./dom.js";
import { swatch } from "./chart.js";

const QUESTIONS = {
  line: "Would averaging help now?",
  breakdown: "Is the step too large?",
  family: "Is one side steeper?",
  plane: "Where is the loss least?",
};
const ALONG = "How far does the loss fall along it?"; // of a direction that is no step

const SIGNS = { good: "✔", bad: "▲", plain: "●", none: "○" };

/** Return the heading, the table and the legend of what is shown at the step. */
export function glance(context) {
  const { store, runs, step } = context;
  if (!runs.length || step === undefined) {
    return [h("h3", { textContent: "Nothing to show yet" }), h("p", { textContent: store.runs.size ? "Choose a run above." : "No probe has been written. The first one comes when the monitors have measured for the first time." })];
  }
  const rows = Object.entries(QUESTIONS).flatMap(([kind, question]) => (
    store.keys(kind).flatMap(({ key, name }) => answers(context, { kind, key, question: titled(kind === "breakdown" && !name.endsWith("update") ? ALONG : question, kind, name, " (", ")") }))));
  return [
    h("h3", { textContent: step ? `At a glance: step ${step}` : "At a glance" }),
    rows.length ? h("table", {}, h("tbody", {}, rows)) : null,
    ...remarks(store, runs, step),
    h("p", { className: "note" }, `${SIGNS.good} better · ${SIGNS.bad} worse · ${SIGNS.plain} neither good nor bad by itself · ${SIGNS.none} no verdict`),
  ];
}

/** Return the rows of a question: one for each run that was measured, with the step where it is an earlier one. */
function answers({ store, runs, step, colours }, { kind, key, question }) {
  const found = runs.map((run) => ({ run, record: store.at(run, key, step) })).filter(({ record }) => record);
  return found.map(({ run, record }, k) => h("tr", { className: k ? "" : "first" },
    k ? null : h("th", { scope: "rowgroup", rowSpan: found.length, textContent: question }),
    h("td", { className: "whose" }, runs.length > 1 ? [swatch({ colour: colours.of(run) }), run] : null, late(record, step)),
    h("td", {}, chip(kind, record.data))));
}

const late = (record, step) => (record.step < step ? ` (step ${record.step})` : "");

/** What monitors said in words of their own, and what the probe cost. */
function remarks(store, runs, step) {
  const of = (kind) => store.keys(kind).flatMap(({ key, monitor }) => runs.map((run) => ({ run, monitor, record: store.at(run, key, step) })));
  const said = of("words").filter(({ record }) => record).map(({ run, record }) => `${run}${late(record, step)}: ${record.data.text}`);
  const costs = of("cost").filter(({ record }) => record).map(({ run, monitor, record }) => {
    const { data } = record;
    const share = data.overhead === undefined ? "" : `, ${percent(data.overhead)} of the training time so far`;
    return `${run}${late(record, step)}: this probe of ${monitor} took ${show(data.seconds)} s${share}.`;
  });
  return [...said.map((textContent) => h("p", { className: "said", textContent })), ...costs.map((textContent) => h("p", { className: "note", textContent }))];
}

function chip(kind, data) {
  const { tone, text } = VERDICTS[kind](data);
  return h("span", { className: `chip ${tone}` }, h("i", { "aria-hidden": "true", textContent: SIGNS[tone] }), ` ${text}`);
}

const VERDICTS = {
  line(data) {
    const set = data.validation ? "validation" : "train";
    const { score: found, verdict, interval: between, n_batches: n } = data[set];
    if (!Number.isFinite(number(found.gap))) return { tone: "none", text: `no verdict: the ${set} loss is not finite` };
    const batches = `${n} ${set} ${n === 1 ? "batch" : "batches"}`;
    const by = `${signed(found.gap)} (${between || `± ${show(found.gap_stderr)}`}; ${batches})`;
    if (verdict === "the same") return { tone: "plain", text: `no difference: its ${set} loss is the same (${batches})` };
    if (verdict === "no verdict") return { tone: "none", text: `no verdict: its ${set} loss differs by ${by}` };
    if (set === "train") return { tone: "plain", text: `its train loss is ${verdict}: ${by}; validation was not measured` };
    if (verdict === "lower") return { tone: "good", text: `yes, its validation loss is lower: ${by}` };
    return { tone: "bad", text: `no, its validation loss is higher: ${by}` };
  },
  family(data) {
    const off = Number(data.rate.off_minimum);
    const unresolved = Number(data.rate.unresolved);
    if (!data.median.some((value) => Number.isFinite(number(value)))) return { tone: "none", text: "no verdict: the loss is not finite" };
    if (off > 0.5) return { tone: "none", text: "no verdict: the loss still falls along most directions" };
    if (unresolved > 0.5) return { tone: "none", text: `no verdict: the batches differ too much, area ${interval(data.area)}` };
    const [, low, high] = data.area.map(Number);
    const side = low > 0 ? "on the whole the + side is steeper, " : high < 0 ? "on the whole the − side is steeper, " : "";
    const none = data.verdict === "no verdict";
    return { tone: none ? "none" : "plain", text: `${none ? "no verdict on whether most directions are asymmetric" : data.verdict}: ${side}area ${interval(data.area)}` };
  },
  breakdown(data) {
    const limit = Number(data.descent_limit);
    if (Number.isNaN(limit)) return { tone: "none", text: "no verdict: the loss is not finite" };
    if (data.answer) return { tone: data.answer.startsWith("No verdict") ? "none" : "plain", text: data.answer };
    if (!data.etas.includes(1) || limit === Infinity) {
      return { tone: "plain", text: `descent ${limit === Infinity ? "" : "up to "}${relativeStep(data, limit)}` };
    }
    return { tone: "plain", text: `step is ${show(1 / Math.max(limit, 1e-300))} times the descent limit` };
  },
  plane({ alphas1, alphas2, mean, points }) {
    let [least, at] = [Infinity, null];
    mean.forEach((row, i) => row.forEach((value, j) => {
      if (Number(value) < least) [least, at] = [Number(value), [alphas1[i], alphas2[j]]];
    }));
    if (!at) return { tone: "none", text: "no verdict: the loss is not finite" };
    const far = ([, [x, y]]) => Math.hypot(x - at[0], y - at[1]);
    const [near] = Object.entries(points ?? {}).sort((a, b) => far(a) - far(b));
    const where = near ? `, ${show(far(near))} from ${near[0]}` : "";
    return { tone: "plain", text: `${show(least)} at (${show(at[0])}, ${show(at[1])})${where}` };
  },
};
