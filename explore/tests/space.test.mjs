/** Paths, the plane and the prior, against what tests/test_exploring.py wrote to the file named by CASES. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { choice, normals, uniforms } from "../src/random.js";
import { Mixture, Space, between, divergences, shareBelow } from "../src/space.js";

const cases = JSON.parse(readFileSync(process.env.CASES, "utf8"));
const close = (found, expected, tolerance = 1e-4) => {
  assert.equal(found.length, expected.length);
  const error = Math.max(...expected.map((value, i) => Math.abs(value - found[i])));
  assert.ok(error < tolerance, `largest error ${error}`);
};
const space = () => new Space(Float32Array.from(cases.codes.flat()), 5, cases.plane);
const mixture = ({ weights, means, cholesky }, latents) =>
  new Mixture(weights, Float32Array.from(means), Float32Array.from(cholesky), latents);

test("paths are those of keras_ae.latents.path", () => {
  for (const { start, end, arc, path } of cases.paths) {
    const found = path.map((_, i) => between(start, end, i / (path.length - 1), arc));
    close(found.flat(), path.flat());
  }
});

test("codes are projected, moved and found", () => {
  const { codes, points } = cases;
  close(Array.from(space().points), points.flat());
  const [from, place] = [space().code(0), [0.5, -0.25]];
  const moved = space().moved(from, place);
  close(space().project(moved), place);
  const typical = space().typical(place, (i) => i % 2 === 0);
  close(space().project(typical), place);
  assert.equal(space().nearest(codes[7]), 7);
  assert.equal(
    space().nearest(codes[7], (i) => i !== 7 && i < 0),
    -1,
  );
  // Near a code that is far from all others, it is that code.
  const far = Array.from({ length: 5 }, () => 100);
  const lonely = new Space(Float32Array.from([...codes.flat(), ...far]), 5, cases.plane);
  close(Array.from(lonely.typical(lonely.project(far), () => true)), far, 20);
});

test("a density of the plane is the prior's", () => {
  // Of two latents the plane is all there is.
  const flat = new Space(new Float32Array(4), 2, { origin: [0, 0], directions: [[1, 0], [0, 1]] }); // prettier-ignore
  const { bounds, columns, rows, densities } = cases.density;
  for (const [label, expected] of densities.entries()) {
    const found = mixture(cases.density, 2).density(flat, label, bounds, columns, rows);
    const most = Math.max(...expected);
    close(Array.from(found, (value) => value / most), expected.map((value) => value / most), 0.03); // prettier-ignore
  }
});

test("a mixture's draws have its mean and covariance", () => {
  const { mean, covariance, ...arrays } = cases.draws;
  const uniform = uniforms(3);
  const drawn = Array.from({ length: 20000 }, () => mixture(arrays, 3).draw(uniform, 1));
  const average = (of) => drawn.reduce((sum, z) => sum + of(z), 0) / drawn.length;
  close([0, 1, 2].map((i) => average((z) => z[i])), mean, 0.05); // prettier-ignore
  for (let i = 0; i < 3; i++) {
    const found = [0, 1, 2].map((j) => average((z) => (z[i] - mean[i]) * (z[j] - mean[j])));
    close(found, covariance[i], 0.1);
  }
});

test("one seed is one sequence, and its numbers are uniform and normal", () => {
  const take = (draw, n) => Array.from({ length: n }, draw);
  assert.deepEqual(take(uniforms(7), 5), take(uniforms(7), 5));
  assert.notDeepEqual(take(uniforms(7), 5), take(uniforms(8), 5));
  const numbers = take(uniforms(1), 50000);
  assert.ok(numbers.every((u) => u >= 0 && u < 1));
  for (let decile = 0.1; decile < 1; decile += 0.1) {
    assert.ok(Math.abs(shareBelow(numbers, decile) - decile) < 0.01);
  }
  const noise = take(normals(uniforms(2)), 50000);
  for (const [value, share] of [
    [-1.6449, 0.05],
    [0, 0.5],
    [1, 0.8413],
  ]) {
    assert.ok(Math.abs(shareBelow(noise, value) - share) < 0.01);
  }
  const uniform = uniforms(5);
  const counts = [0, 0, 0];
  for (let i = 0; i < 10000; i++) counts[choice(uniform, [0.2, 0, 0.8])] += 1;
  assert.equal(counts[1], 0);
  assert.ok(Math.abs(counts[0] / 10000 - 0.2) < 0.02);
});

test("divergences are those of the library", () => {
  const { mean, logVariance, kl } = cases.kl;
  close(divergences(mean, logVariance), kl);
});
