// The bar on top: the step, play, the runs, and how curves are drawn.

import { fill, h } from "./dom.js";
import { swatch } from "./chart.js";

const PLAY_MS = 250;

const OPTIONS = [
  ["directions", "each direction", "a faint line for every direction"],
  ["band", "interval", "the 95 % interval of the median; of a line, one standard error"],
  ["validation", "validation", "dashed: the same on validation batches"],
  ["absolute", "absolute loss", "the loss itself, not its rise from the current weights"],
  ["log", "log scale", "a logarithmic axis, of the loss itself"],
  ["fixed", "same scale at every step", "keep the loss axis while the step changes"],
];

const CURVES = ["family", "line", "breakdown"]; // kinds of records that the options are about

export class Controls {
  constructor(context) {
    this.context = context;
    this.timer = null;
    this.slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "training step", oninput: () => this.choose(this.slider.valueAsNumber) });
    this.play = h("button", { className: "play", textContent: "▶", title: "play (space)", "aria-label": "play through training", onclick: () => this.togglePlay() });
    this.label = h("output", { className: "step" });
    this.runs = h("div", { className: "runs", role: "group", "aria-label": "runs" });
    this.compare = h("div", { className: "compare", role: "group", "aria-label": "difference of two runs" });
    this.options = h("div", { className: "options", role: "group", "aria-label": "how curves are drawn" });
    this.time = h("div", { className: "time" }, this.play, this.slider, this.label);
    this.element = h("header", { className: "bar" }, this.time, this.runs, this.compare, this.options);
    document.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Go to the k-th step; the last one means: follow the training. */
  choose(k) {
    const { steps, state } = this.context;
    const at = Math.min(Math.max(k, 0), steps.length - 1);
    state.set({ step: at === steps.length - 1 ? null : steps[at] });
  }

  onKey(event) {
    const typing = event.target.matches?.("input, select, textarea, button, summary");
    if (typing && event.target !== this.play || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
    if (event.key in moves) {
      event.preventDefault();
      this.choose(this.context.place + moves[event.key]);
    } else if (event.key === " " && !typing) {
      event.preventDefault();
      this.togglePlay();
    }
  }

  togglePlay() {
    if (this.timer) return this.stop();
    if (this.context.place === this.context.steps.length - 1) this.choose(0);
    this.timer = setInterval(() => {
      this.choose(this.context.place + 1);
      if (this.context.place >= this.context.steps.length - 1) this.stop();
    }, PLAY_MS);
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "stop");
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "▶";
    this.play.setAttribute("aria-label", "play through training");
  }

  update() {
    const { steps, place, step } = this.context;
    this.slider.max = Math.max(steps.length - 1, 0);
    this.slider.value = place;
    this.time.hidden = steps.length < 2; // nowhere to go
    const text = steps.length ? `step ${step} · probe ${place + 1} of ${steps.length}` : "no probe";
    this.label.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }

  /** Build the boxes again: there are other runs, or another choice of them. */
  updateRuns() {
    const { store, state, colours } = this.context;
    const all = [...store.runs.keys()].sort();
    fill(this.runs, all.map((run) => {
      const toggle = () => state.set({ hidden: state.hidden.includes(run) ? state.hidden.filter((r) => r !== run) : [...state.hidden, run] });
      return h("label", {}, h("input", { type: "checkbox", checked: !state.hidden.includes(run), onchange: toggle }), swatch({ colour: colours.of(run) }), run);
    }));
    this.compare.hidden = all.length < 2;
    if (!this.compare.hidden) this.fillCompare(all);
    this.options.hidden = !CURVES.some((kind) => store.keys(kind).length);
    fill(this.options, OPTIONS.map(([name, label, title]) => h("label", { title },
      h("input", { type: "checkbox", name, checked: state[name], onchange: (event) => state.set({ [name]: event.target.checked }) }), label)));
  }

  fillCompare(all) {
    const { state } = this.context;
    const chosen = state.difference ?? [all[0], all[1]];
    const select = (at) => h("select", { "aria-label": at ? "of this run" : "minus this run", disabled: !state.difference,
      onchange: (event) => state.set({ difference: chosen.map((run, k) => (k === at ? event.target.value : run)) }) },
      all.map((run) => h("option", { value: run, textContent: run, selected: run === chosen[at] })));
    const box = h("input", { type: "checkbox", checked: state.difference !== null, onchange: (event) => state.set({ difference: event.target.checked ? chosen : null }) });
    fill(this.compare, h("label", {}, box, "difference: "), select(1), " minus ", select(0));
  }
}
