// What a person has chosen, as text that fits into an address.

const DEFAULTS = {
  step: null, // null: the latest
  hidden: [], // runs that are not shown
  difference: null, // [run, run]: show the second minus the first
  chosen: {}, // of a plane the point that slices go through
  directions: true,
  band: true,
  validation: true,
  absolute: false, // the loss itself, not its rise from the current weights
  log: false,
  fixed: true, // the same vertical scale at every step
};

export class State {
  /** `address` has `read()` and `write(text)`. */
  constructor(address) {
    this.address = address;
    this.listeners = [];
    Object.assign(this, structuredClone(DEFAULTS), parse(address.read()));
  }

  /** Change some of it, write it to the address and tell everybody. */
  set(changes) {
    Object.assign(this, changes);
    this.write();
    for (const listener of this.listeners) listener(changes);
  }

  write() {
    const changed = Object.keys(DEFAULTS).filter((name) => !same(this[name], DEFAULTS[name]));
    const params = new URLSearchParams(changed.map((name) => [name, JSON.stringify(this[name])]));
    this.address.write(params.toString());
  }
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function parse(text) {
  const found = {};
  for (const [name, value] of new URLSearchParams(text)) {
    try {
      const content = JSON.parse(value);
      if (name in DEFAULTS && fits(name, content)) found[name] = content;
    } catch {
      // an address that somebody has cut short: the rest of it counts
    }
  }
  return found;
}

function fits(name, value) {
  if (name === "step") return value === null || Number.isFinite(value);
  const runs = Array.isArray(value) && value.every((run) => typeof run === "string");
  if (name === "hidden") return runs;
  if (name === "difference") return value === null || (runs && value.length === 2);
  if (name === "chosen") return isPlain(value) && Object.values(value).every((at) => Array.isArray(at) && at.length === 2 && at.every(Number.isFinite));
  return typeof value === "boolean";
}

const isPlain = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
