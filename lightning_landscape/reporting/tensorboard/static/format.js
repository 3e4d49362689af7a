// Numbers, names and colours as people read them.

const PALETTE = [
  "#3b7fc4", "#d9702b", "#2f9468", "#c2569a", "#8467cf",
  "#a08020", "#d04848", "#1f98a5", "#75863a", "#98674c",
];

/** Return a number from a record: infinities and NaN are written as words there. */
export const number = (value) => (value === null || value === undefined ? NaN : Number(value));

/** Return what a chart can draw: null leaves a gap. */
export const drawable = (value) => (Number.isFinite(number(value)) ? number(value) : null);

/** What stands in the place of a chart without a finite value. */
export const NOT_FINITE = "Nothing to plot: the values are not finite.";

/** Write a number with three digits. */
export function show(value, digits = 3) {
  const x = number(value);
  if (Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? x.toExponential(digits - 1) : String(Number(x.toPrecision(digits)));
  return text.replaceAll("-", "−").replace("e+", "e");
}

/** Write a number with its sign. */
export const signed = (value) => (number(value) > 0 ? `+${show(value)}` : show(value));

/** Write a place along a direction as a relative step; one that was not reached is beyond the last that was measured. */
export function relativeStep({ etas, relative_step: unit }, eta) {
  const reached = number(eta) !== Infinity;
  return `${reached ? "" : "beyond "}${show((reached ? number(eta) : etas[etas.length - 1]) * number(unit))}`;
}

/** Write a name after what it is the name of; nothing where it says no more, as in "Plane: plane". */
export const titled = (what, kind, name, before = ": ", after = "") => (name === kind ? what : `${what}${before}${name}${after}`);

/** Write a score between −1 and 1 with two decimals and its sign. */
export function score(value) {
  const x = number(value);
  if (!Number.isFinite(x)) return show(x);
  const text = Math.abs(x).toFixed(2);
  return Number(text) === 0 ? text : `${x > 0 ? "+" : "−"}${text}`;
}

/** Write `[median, low, high]`. */
export function interval([middle, low, high], write = score) {
  const known = Number.isFinite(number(low)) && Number.isFinite(number(high));
  return known ? `${write(middle)} [${write(low)}, ${write(high)}]` : write(middle);
}

/** Write a share in whole percent; a half goes to the even number, as in the sentences: 12.5 is 12. */
export function percent(share) {
  const x = 100 * number(share);
  if (!Number.isFinite(x)) return "–";
  const nearest = Math.round(x);
  return `${nearest - x === 0.5 && nearest % 2 ? nearest - 1 : nearest} %`;
}

/** Write the share of asymmetric directions with its interval. */
export function rate(found) {
  const ends = `[${percent(found.low).replace(" %", "")}, ${percent(found.high)}]`;
  return `${percent(found.rate)} of ${show(found.n)} ${ends}`;
}

const DRAWN = {
  gaussian: "Gaussian random directions",
  uniform: "random directions in which every weight grows by U(0, 1)",
  rademacher: "random directions of ±1",
  sign: "random directions that make every weight larger (+) or smaller (−)",
};
const MOVED = { norm: "normalisation layers only", other: "all but the normalisation layers" };

/** Say how the directions of a family are drawn, and what they move. */
export function describeFamily(family) {
  const [distribution, group] = family.split("@");
  const drawn = DRAWN[distribution] ?? "random directions";
  return group ? `${drawn}; ${MOVED[group] ?? `parameters ${group}`}` : drawn;
}

function hash(text) {
  let value = 2166136261;
  for (const letter of text) value = Math.imul(value ^ letter.codePointAt(0), 16777619) >>> 0;
  return value;
}

/** Give every run the colour that its name asks for, or the next one that is free. */
export class Colours {
  constructor() {
    this.known = new Map();
  }

  of(run) {
    if (!this.known.has(run)) {
      const taken = new Set(this.known.values());
      const first = hash(run) % PALETTE.length;
      const wanted = PALETTE.map((_, k) => PALETTE[(first + k) % PALETTE.length]);
      this.known.set(run, wanted.find((colour) => !taken.has(colour)) ?? wanted[0]);
    }
    return this.known.get(run);
  }
}

/** Return `#rrggbb` with an opacity. */
export const faded = (colour, opacity) => colour + Math.round(255 * opacity).toString(16).padStart(2, "0");
