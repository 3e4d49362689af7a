// The card of a plane: the loss as a map, and the slices through a point that is chosen on it.

import { Card } from "./card.js";
import { Chart } from "./chart.js";
import { PlaneMap } from "./planemap.js";
import { h } from "./dom.js";
import { show } from "./format.js";

export class PlaneCard extends Card {
  constructor(context, { key, title }) {
    super(context, { title, note: "The loss on a plane through weight space. Click, or use the arrow keys, to choose where the two slices are taken." });
    this.element.classList.add("wide");
    this.key = key;
    this.title = title;
    this.maps = new Map();
    this.place = h("div", { className: "maps" });
    this.chart = new Chart({ title: "Slices through the chosen point", of: title });
    this.parts.push(this.chart);
    this.place.append(this.chart.element);
    this.body.append(this.place, this.sentences);
  }

  update(found) {
    const shown = found.map((each) => ({ ...each, record: rounded(each.record) }));
    this.say(shown);
    this.showMaps(shown);
    this.chart.show(shown.flatMap((each) => this.slices(each)), {
      xLabel: `along each axis, ${shown[0].record.data.unit ?? ""}`, xName: "at", yLabel: "loss", logY: this.context.state.log, yRange: null, marks: [],
    });
  }

  /** Return the place on the grid that is nearest to the chosen point; at first to the origin. */
  chosen({ alphas1, alphas2 }) {
    const [x, y] = this.context.state.chosen[this.key] ?? [0, 0];
    return [nearest(alphas1, x), nearest(alphas2, y)];
  }

  slices({ run, colour, record: { data } }) {
    const [i, j] = this.chosen(data);
    return [
      { label: `${run}, along the first axis at ${show(data.alphas2[j])} on the second`, x: data.alphas1, y: data.mean.map((row) => row[j]), colour, style: "strong" },
      { label: `${run}, along the second axis at ${show(data.alphas1[i])} on the first`, x: data.alphas2, y: data.mean[i], colour, style: "dashed" },
    ];
  }

  showMaps(shown) {
    for (const [run, map] of this.maps) {
      if (shown.some((each) => each.run === run)) continue;
      map.element.remove();
      this.maps.delete(run);
      this.parts = this.parts.filter((part) => part !== map);
    }
    for (const { run, record: { data } } of shown) {
      if (!this.maps.has(run)) {
        const { state } = this.context;
        const onchoose = (x, y) => state.set({ chosen: { ...state.chosen, [this.key]: [x, y] } });
        const map = new PlaneMap({ title: this.context.runs.length > 1 ? `Loss on the plane: ${run}` : "Loss on the plane", of: this.title, onchoose });
        this.maps.set(run, map);
        this.parts.push(map);
        this.place.insertBefore(map.element, this.chart.element);
      }
      const batches = data.n_batches ? `, mean of ${data.n_batches} batches` : "";
      this.maps.get(run).show({ x: data.alphas1, y: data.alphas2, values: data.mean, points: data.points ?? {}, chosen: this.chosen(data), unit: data.unit ?? "alpha", ofBatches: batches });
    }
  }
}

const nearest = (grid, x) => grid.reduce((best, value, k) => (Math.abs(value - x) < Math.abs(grid[best] - x) ? k : best), 0);

/** Return the record with 0 on its axes where rounding has left next to nothing. */
function rounded(record) {
  const clean = (grid) => grid.map((x) => (Math.abs(x) < 1e-9 * (grid[grid.length - 1] - grid[0]) ? 0 : x));
  return { ...record, data: { ...record.data, alphas1: clean(record.data.alphas1), alphas2: clean(record.data.alphas2) } };
}
