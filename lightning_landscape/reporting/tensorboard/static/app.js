// The viewer: puts the controls and the cards together and keeps them up to date.

import { BreakdownCard } from "./breakdown.js";
import { Colours, show, titled } from "./format.js";
import { Controls } from "./controls.js";
import { FamilyCard } from "./family.js";
import { LineCard } from "./line.js";
import { PlaneCard } from "./plane.js";
import { State } from "./state.js";
import { Store } from "./store.js";
import { fill, h } from "./dom.js";
import { glance } from "./glance.js";

const KINDS = [["line", LineCard], ["breakdown", BreakdownCard], ["family", FamilyCard], ["plane", PlaneCard]];

const LOCAL = ["step", "chosen"]; // what changes no history

export class App {
  /** Show a viewer in `root`; `address` keeps its state, see `State`. */
  constructor(root, address) {
    this.store = new Store();
    this.state = new State(address);
    this.colours = new Colours();
    this.cards = new Map();
    this.goTo = (step) => this.controls.choose(this.steps.indexOf(step) < 0 ? before(this.steps, step) : this.steps.indexOf(step));
    this.controls = new Controls(this);
    this.message = h("p", { className: "message", role: "status", hidden: true });
    this.problems = h("details", { className: "problems", hidden: true });
    this.glance = h("section", { className: "card glance", "aria-live": "polite" });
    this.deck = h("main", {}, this.glance);
    this.timer = null; // until the cards that nobody sees are brought up to date
    this.observer = new IntersectionObserver((entries) => this.follow(entries), { rootMargin: "400px" });
    this.root = root;
    root.classList.add("landscape");
    root.replaceChildren(this.controls.element, this.message, this.problems, this.deck);
    this.state.listeners.push((changes) => this.update({ history: Object.keys(changes).some((name) => !LOCAL.includes(name)) }));
    this.update({ history: true });
  }

  /** Choose the colours of runs, the earlier names first, before their records come. */
  expect(runs) {
    for (const run of runs) this.colours.of(run);
  }

  /** Take in new records of a run. */
  add(run, records, problems) {
    this.store.add(run, records, problems);
    this.update({ history: true });
  }

  /** Say something to the person, such as that the server does not answer; "" for nothing. */
  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  restyle(dark) {
    this.root.classList.toggle("dark", dark);
    for (const card of this.cards.values()) card.restyle();
  }

  /** Bring everything up to date; `history` where more than the step has changed. */
  update(changes) {
    this.runs = [...this.store.runs.keys()].sort().filter((run) => !this.state.hidden.includes(run));
    this.steps = this.store.steps(this.runs);
    this.place = this.state.step === null ? this.steps.length - 1 : before(this.steps, this.state.step);
    this.step = this.steps[this.place];
    this.controls.update();
    if (changes.history) {
      this.controls.updateRuns();
      this.makeCards();
      this.showProblems();
    }
    fill(this.glance, glance(this));
    for (const card of this.cards.values()) card.refresh(changes);
    this.finish();
  }

  /** Bring the cards that nobody sees up to date, one at a time. */
  finish() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      if ([...this.cards.values()].some((card) => card.flush())) this.finish();
    }, 50);
  }

  /** Show the cards at once that a person sees, or would with a little scrolling. */
  follow(entries) {
    for (const { target, isIntersecting } of entries) {
      const card = [...this.cards.values()].find(({ element }) => element === target);
      card.isNear = isIntersecting;
      if (isIntersecting) card.flush();
    }
  }

  makeCards() {
    for (const [kind, Kind] of KINDS) {
      const keys = this.store.keys(kind);
      const monitors = new Set(keys.map(({ monitor }) => monitor));
      for (const { key, monitor, name } of keys) {
        if (this.cards.has(key)) continue;
        const title = `${titled(TITLES[kind], kind, name)}${monitors.size > 1 ? ` (${monitor})` : ""}`;
        const card = new Kind(this, { key, name, title });
        card.order = KINDS.findIndex(([other]) => other === kind);
        this.cards.set(key, card);
        const next = [...this.deck.children].find((child) => child.order > card.order);
        card.element.order = card.order;
        this.deck.insertBefore(card.element, next ?? null);
        this.observer.observe(card.element);
      }
    }
  }

  showProblems() {
    const found = [...this.store.problems].flatMap(([run, problems]) => problems.map((problem) => `${run}: ${problem}`));
    this.problems.hidden = !found.length;
    fill(this.problems, h("summary", { textContent: `${show(found.length)} record${found.length > 1 ? "s" : ""} cannot be read; the rest is shown` }),
      h("ul", {}, found.map((problem) => h("li", { textContent: problem }))));
  }
}

const TITLES = { line: "Line to the average", family: "Directions", breakdown: "Gradient breakdown", plane: "Plane" };

/** Return the place of the latest step that is not after one, or of the first. */
function before(steps, step) {
  let k = 0;
  while (k < steps.length - 1 && steps[k + 1] <= step) k += 1;
  return k;
}
