/** A state as an address and back. */

import assert from "node:assert/strict";
import test from "node:test";

import { fromHash, oneHot, store, toHash } from "../src/state.js";

const limits = { latents: 2, classes: 3, labels: 3, tabs: ["latents", "draw"] };
const state = {
  code: Float32Array.of(0.5, -1.25),
  shares: oneHot(2, 3),
  startCode: Float32Array.of(0, 1),
  startShares: Float32Array.of(0.25, 0.25, 0.5),
  endCode: Float32Array.of(3, 2),
  endShares: oneHot(0, 3),
  share: 0.25,
  arc: false,
  usualArc: true,
  follow: false,
  everyClass: false,
  only: new Set([0, 2]),
  seed: 9,
  tab: "draw",
};

test("there and back", () => {
  const { changes, problems } = fromHash(`#${toHash(state)}`, limits);
  assert.deepEqual(problems, []);
  const { usualArc, ...expected } = state;
  assert.ok(usualArc);
  assert.deepEqual(changes, expected);
});

test("a model without classes and a page as it opens", () => {
  const plain = {
    ...state,
    shares: null,
    startShares: null,
    endShares: null,
    arc: true,
    follow: true,
  };
  const hash = toHash({ ...plain, everyClass: true, only: new Set() });
  assert.equal(hash, "z=0.5,-1.25&a=0,1&b=3,2&t=0.25&s=9&tab=draw");
  assert.deepEqual(fromHash("", limits), { changes: {}, problems: [] });
});

test("one class of one", () => {
  const hash = toHash({ ...state, shares: oneHot(0, 1) });
  assert.deepEqual(fromHash(hash, { ...limits, classes: 1 }).changes.shares, oneHot(0, 1));
});

for (const bad of [
  "z=1",
  "z=1,2,3",
  "z=1,x",
  "z=1,Infinity",
  "z=1,",
  "z",
  "y=c3",
  "y=cx",
  "y=0,0,0",
  "y=-1,1,1",
  "t=2",
  "t=x",
  "s=-1",
  "s=1.5",
  "s=4294967296",
  "tab=other",
  "only=3",
  "only=a",
  "__proto__=1",
  "constructor=1",
  "<b>=1",
]) {
  test(`${bad} is refused`, () => {
    const { changes, problems } = fromHash(`#${bad}`, limits);
    assert.deepEqual(changes, {});
    assert.equal(problems.length, 1);
  });
}

test("listeners are told what changed", () => {
  const told = [];
  const { set, subscribe } = store({ a: 1 });
  subscribe(({ a }, changed) => told.push([a, [...changed]]));
  set({ a: 2 });
  assert.deepEqual(told, [[2, ["a"]]]);
});
