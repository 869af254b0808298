/** Each layer against the outputs of Keras that tests/test_exploring.py wrote to the file named by CASES. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { unpackedGraph } from "../src/codec.js";
import { network } from "../src/network.js";

for (const { name, graph, inputs, outputs } of JSON.parse(
  readFileSync(process.env.CASES, "utf8"),
)) {
  test(name, async () => {
    const run = network(await unpackedGraph(graph));
    // Twice: what a run leaves in its buffers is nothing to the next.
    run(Object.fromEntries(Object.entries(inputs).map(([k, v]) => [k, v.map((x) => 3 - 2 * x)])));
    const found = run(inputs);
    assert.deepEqual(Object.keys(found).sort(), Object.keys(outputs).sort());
    for (const [key, expected] of Object.entries(outputs)) {
      assert.equal(found[key].length, expected.length);
      const error = Math.max(...expected.map((value, i) => Math.abs(value - found[key][i])));
      assert.ok(error < 1e-4, `largest error ${error}`);
    }
  });
}
