// The records of all runs, and which of them is shown at a step.

const keyOf = (record) => `${record.monitor}/${record.kind}/${record.name}`;

export class Store {
  constructor() {
    this.runs = new Map(); // run -> key -> records, by step
    this.problems = new Map(); // run -> what cannot be read
  }

  /** Add records; one of the same key and step replaces the earlier one. */
  add(run, records, problems = []) {
    if (!this.runs.has(run)) this.runs.set(run, new Map());
    const own = this.runs.get(run);
    const changed = new Map();
    for (const record of records) {
      const key = keyOf(record);
      if (!changed.has(key)) changed.set(key, new Map((own.get(key) ?? []).map((old) => [old.step, old])));
      changed.get(key).set(record.step, record);
    }
    for (const [key, steps] of changed) own.set(key, [...steps.values()].sort((a, b) => a.step - b.step));
    this.problems.set(run, [...new Set([...(this.problems.get(run) ?? []), ...problems])]);
  }

  /** Return the records of a run and key, ascending by step. */
  history(run, key) {
    return this.runs.get(run)?.get(key) ?? [];
  }

  /** Return the record at a step, or the latest one before it; null if there is none. */
  at(run, key, step) {
    const records = this.history(run, key);
    let low = 0;
    let high = records.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (records[middle].step <= step) low = middle + 1;
      else high = middle;
    }
    return low ? records[low - 1] : null;
  }

  /** Return the steps at which some of the runs were probed, ascending. */
  steps(runs) {
    const found = new Set();
    for (const run of runs) {
      for (const records of this.runs.get(run)?.values() ?? []) for (const record of records) found.add(record.step);
    }
    return [...found].sort((a, b) => a - b);
  }

  /** Return the keys of a kind that some run has, each with its monitor and name. */
  keys(kind) {
    const found = new Map();
    for (const own of this.runs.values()) {
      for (const [key, [first]] of own) {
        if (first.kind === kind) found.set(key, { key, monitor: first.monitor, name: first.name });
      }
    }
    return [...found.values()];
  }
}
