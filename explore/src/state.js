/** What the page shows, in one place, and as the hash of its address. */

/** A state whose listeners are told of each change: `set({code})`. */
export function store(initial) {
  const listeners = [];
  const state = { ...initial };
  return {
    state,
    /** Call `listener(state, changed)` after each change, `changed` being the set of names. */
    subscribe(listener) {
      listeners.push(listener);
    },
    set(changes) {
      Object.assign(state, changes);
      const changed = new Set(Object.keys(changes));
      for (const listener of listeners) listener(state, changed);
    },
  };
}

const LISTS = {
  z: "code",
  y: "shares",
  a: "startCode",
  ya: "startShares",
  b: "endCode",
  yb: "endShares",
};
const text = (numbers) => Array.from(numbers, (value) => String(+value.toFixed(4))).join(",");

/** The state as a hash, without "#". */
export function toHash(state) {
  const parts = Object.entries(LISTS)
    .filter(([, name]) => state[name])
    .map(([key, name]) => {
      const values = state[name];
      const label = key.startsWith("y") ? Array.from(values).indexOf(1) : -1;
      // One class alone by its number, shares of several as a list.
      return `${key}=${label >= 0 && values.length > 1 ? `c${label}` : text(values)}`;
    });
  parts.push(`t=${+state.share.toFixed(3)}`, `s=${state.seed}`, `tab=${state.tab}`);
  if (state.arc !== state.usualArc) parts.push(`arc=${+state.arc}`);
  if (!state.follow) parts.push("keep=1");
  if (!state.everyClass) parts.push("of=one");
  if (state.only.size) parts.push(`only=${[...state.only].join(",")}`);
  return parts.join("&");
}

/**
 * A hash as changes of a state, and what was wrong with it.
 *
 * @param limits - `{latents, classes, labels, tabs}` of the model and the page.
 * @returns {{changes: Object, problems: string[]}} nothing that does not fit the model is among the changes.
 */
export function fromHash(hash, { latents, classes, labels, tabs }) {
  const changes = {};
  const problems = [];
  const entries = hash.replace(/^#/, "").split("&").filter(Boolean);
  for (const [key, value] of entries.map((entry) => entry.split("="))) {
    const numbers = (value ?? "").split(",").map((part) => (part === "" ? NaN : Number(part)));
    const whole = Number.isInteger(numbers[0]) && numbers.length === 1;
    const refuse = (why) => problems.push(`The link's ${key} was left out: ${why}.`);
    if (Object.hasOwn(LISTS, key)) {
      const label = /^c(\d+)$/.exec(value ?? "")?.[1];
      const length = key.startsWith("y") ? classes : latents;
      if (key.startsWith("y") && label !== undefined && Number(label) < classes) {
        changes[LISTS[key]] = oneHot(Number(label), classes);
      } else if (numbers.length !== length) {
        refuse(`it has ${numbers.length} numbers, and this model takes ${length}`);
      } else if (!numbers.every((number) => Math.abs(number) < 1e4)) {
        refuse("it has what is no number");
      } else if (key.startsWith("y")) {
        const sum = numbers.reduce((a, b) => a + b, 0);
        if (numbers.some((n) => n < 0) || !(sum > 0)) refuse("shares are 0 or more");
        else changes[LISTS[key]] = Float32Array.from(numbers, (n) => n / sum);
      } else {
        changes[LISTS[key]] = Float32Array.from(numbers);
      }
    } else if (key === "t" && numbers[0] >= 0 && numbers[0] <= 1) changes.share = numbers[0];
    else if (key === "s" && whole && numbers[0] >= 0 && numbers[0] < 2 ** 32)
      changes.seed = numbers[0];
    else if (key === "tab" && tabs.includes(value)) changes.tab = value;
    else if (key === "arc") changes.arc = value === "1";
    else if (key === "keep") changes.follow = value !== "1";
    else if (key === "of") changes.everyClass = value !== "one";
    else if (key === "only" && numbers.every((n) => Number.isInteger(n) && n >= 0 && n < labels)) {
      changes.only = new Set(numbers);
    } else refuse("it is not known here");
  }
  return { changes, problems };
}

/** The shares that are one class alone. */
export function oneHot(label, classes) {
  const shares = new Float32Array(classes);
  shares[label] = 1;
  return shares;
}
