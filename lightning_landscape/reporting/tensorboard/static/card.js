// What the cards of all kinds share: who is shown at the step, and where parts go.

import { h } from "./dom.js";
import { swatch } from "./chart.js";

/** A card about one key. A kind of card has `key` and `update(shown, changes)`, which reads `context`. */
export class Card {
  constructor(context, { title, note = "" }) {
    this.context = context;
    this.parts = [];
    this.isNear = false; // what a person sees, or would with a little scrolling
    this.stale = null; // changes that are not shown yet
    this.sentences = h("div", { className: "words" });
    this.body = h("div", { className: "body" });
    this.element = h("section", { className: "card waiting" },
      h("h3", { textContent: title }), note ? h("p", { className: "note", textContent: note }) : null, this.body);
  }

  /** Take note of changes; they are shown at once if the card is near, else by `flush`. */
  refresh(changes) {
    this.element.hidden = !this.shown(this.key).length;
    this.stale = { history: changes.history || !!this.stale?.history };
    if (this.isNear) this.flush();
  }

  /** Show the changes, if there are any; return whether there were. */
  flush() {
    const changes = this.stale;
    if (!changes || this.element.hidden) return false;
    this.stale = null;
    this.element.classList.remove("waiting");
    this.update(this.shown(this.key), changes);
    return true;
  }

  add(...parts) {
    this.parts.push(...parts);
    this.body.append(...parts.map((part) => part.element));
  }

  restyle() {
    for (const part of this.parts) part.restyle();
  }

  /** Return what is shown of a key: `[{run, colour, record, late}]`, runs without any left out. */
  shown(key) {
    const { store, colours, step } = this.context;
    return this.context.runs
      .map((run) => ({ run, colour: colours.of(run), record: store.at(run, key, step) }))
      .filter(({ record }) => record !== null);
  }

  /** Return the two runs to compare, the second minus the first; null if one has nothing. */
  pair(key) {
    const { store, colours, step, state } = this.context;
    if (!state.difference) return null;
    const both = state.difference.map((run) => ({ run, colour: colours.of(run), record: store.at(run, key, step) }));
    return both.every(({ record }) => record) ? both : null;
  }

  /** Put the sentences of every run, and say where a probe is an earlier one. */
  say(shown) {
    const { step, runs } = this.context;
    this.sentences.replaceChildren(...shown.map(({ run, colour, record }) => {
      const late = record.step < step ? ` (step ${record.step}, the latest probe before step ${step})` : "";
      const name = runs.length > 1 ? `${run}${late}: ` : late ? `${late.trim()}: ` : "";
      return h("p", {}, runs.length > 1 ? swatch({ colour }) : null, h("b", { textContent: name }), record.data.words ?? "");
    }));
  }
}

/** Whether curves are the loss itself: its rise is 0 somewhere, which has no logarithm. */
export const isWhole = (state) => state.absolute || state.log;

/** Return the name of a run beside its colour. */
export const named = ({ run, colour }) => h("span", {}, swatch({ colour }), run);

/** Return the least and the largest of many lists; null if there is no finite number. */
export function span(lists) {
  let [low, high] = [Infinity, -Infinity];
  for (const list of lists) {
    for (const value of list) {
      const x = value === null ? NaN : Number(value);
      if (x < low && x > -Infinity) low = x;
      if (x > high && x < Infinity) high = x;
    }
  }
  return low <= high ? [low, high] : null;
}

/** Return the median, and the ends that hold it with 95 % from six values on. */
export function medianInterval(values) {
  const known = values.map(Number).filter((x) => !Number.isNaN(x)).sort((a, b) => a - b);
  const n = known.length;
  if (!n) return [NaN, NaN, NaN];
  const middle = (known[(n - 1) >> 1] + known[n >> 1]) / 2;
  let [outside, k, ways] = [0, 0, 1];
  while (k < n >> 1) {
    outside += (2 * ways) / 2 ** n;
    if (outside > 0.05) break;
    k += 1;
    ways = (ways * (n - k + 1)) / k;
  }
  return k ? [middle, known[k - 1], known[n - k]] : [middle, NaN, NaN];
}
