/** The latent space: codes, the plane of the map, neighbours, paths and the fitted prior. */

import { choice, normals } from "./random.js";

const NEIGHBOURS = 12; // codes of which the map takes the mean of what it does not show

/** The n codes of test images in a space of D latents, and the plane that the map shows. */
export class Space {
  /**
   * @param codes - n * D numbers, row by row.
   * @param plane - `{origin, directions}`: where the plane lies, and two orthonormal directions.
   */
  constructor(codes, latents, plane) {
    this.codes = codes;
    this.latents = latents;
    this.count = codes.length / latents;
    this.plane = plane;
    this.points = Float32Array.from({ length: 2 * this.count }, (_, i) => {
      return this.along(this.code(i >> 1), i & 1);
    });
  }

  /** The code of a test image. */
  code(index) {
    return this.codes.slice(index * this.latents, (index + 1) * this.latents);
  }

  /** How far a code is along one direction of the plane. */
  along(code, direction) {
    const { origin, directions } = this.plane;
    return directions[direction].reduce((sum, d, i) => sum + d * (code[i] - origin[i]), 0);
  }

  /** A code's place on the map. */
  project(code) {
    return [this.along(code, 0), this.along(code, 1)];
  }

  /** A code moved to a place on the map, kept as it is in all other directions. */
  moved(code, [x, y]) {
    const [across, up] = this.project(code);
    const [first, second] = this.plane.directions;
    return code.map((value, i) => value + (x - across) * first[i] + (y - up) * second[i]);
  }

  /**
   * The code at a place on the map that is, in the directions which the map does not show, the mean of the
   * codes of test images nearby. It changes smoothly with the place.
   *
   * @param shown - which test images count: `(index) => boolean`.
   */
  typical(place, shown) {
    // The nearest in order of distance, one more than are taken.
    const near = [];
    for (let i = 0; i < this.count; i++) {
      const [dx, dy] = [this.points[2 * i] - place[0], this.points[2 * i + 1] - place[1]];
      const distance = dx * dx + dy * dy;
      if ((near.length > NEIGHBOURS && distance >= near.at(-1)[0]) || !shown(i)) continue;
      let at = near.length;
      while (at > 0 && near[at - 1][0] > distance) at -= 1;
      near.splice(at, 0, [distance, i]);
      if (near.length > NEIGHBOURS + 1) near.pop();
    }
    if (!near.length) return this.moved(Float32Array.from(this.plane.origin), place);
    const reach = (near[NEIGHBOURS] ?? [near.at(-1)[0] * 1.1])[0] + 1e-9;
    const mean = new Float64Array(this.latents);
    let total = 0;
    for (const [distance, index] of near.slice(0, NEIGHBOURS)) {
      const weight = (1 - distance / reach) ** 2;
      total += weight;
      for (let d = 0; d < this.latents; d++) {
        mean[d] += weight * this.codes[index * this.latents + d];
      }
    }
    return this.moved(
      Float32Array.from(mean, (sum) => sum / (total || 1)),
      place,
    );
  }

  /** The test image whose code is nearest, of those that count; -1 where none does. */
  nearest(code, shown = () => true) {
    let [best, least] = [-1, Infinity];
    for (let i = 0; i < this.count; i++) {
      if (!shown(i)) continue;
      let distance = 0;
      for (let d = 0; d < this.latents && distance < least; d++) {
        distance += (this.codes[i * this.latents + d] - code[d]) ** 2;
      }
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }
}

/** The arrays between two, at a share of the way: on a line, or on an arc as codes lie near a sphere. */
export function between(start, end, share, arc = false) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const norms = Math.sqrt(dot(start, start) * dot(end, end));
  const angle = norms ? Math.acos(Math.min(1, Math.max(-1, dot(start, end) / norms))) : 0;
  let [from, to] = [1 - share, share];
  if (arc && Math.sin(angle) > 1e-6) {
    from = Math.sin((1 - share) * angle) / Math.sin(angle);
    to = Math.sin(share * angle) / Math.sin(angle);
  }
  return start.map((value, i) => from * value + to * end[i]);
}

/** KL(q(z|x) || N(0, I)) of each latent, in nats. */
export function divergences(mean, logVariance) {
  return Array.from(mean, (m, i) => 0.5 * (m * m + Math.exp(logVariance[i]) - 1 - logVariance[i]));
}

/** What share of some numbers is below one. */
export function shareBelow(numbers, value) {
  return numbers.reduce((count, number) => count + (number < value), 0) / numbers.length;
}

/** A mixture of Gaussians for each class (one class where the model has none). */
export class Mixture {
  /**
   * @param weights - of the components, an array for each class.
   * @param means - classes * components * D numbers.
   * @param cholesky - the lower triangles of the covariances' Cholesky factors, row by row.
   */
  constructor(weights, means, cholesky, latents) {
    Object.assign(this, { weights, means, cholesky, latents });
    this.components = weights[0].length;
    this.triangle = (latents * (latents + 1)) / 2;
  }

  /** N(0, I). */
  static normal(latents) {
    const cholesky = [];
    for (let row = 0; row < latents; row++) {
      for (let column = 0; column <= row; column++) cholesky.push(row === column ? 1 : 0);
    }
    return new Mixture([[1]], new Float32Array(latents), Float32Array.from(cholesky), latents);
  }

  /** A code drawn from the mixture of a class. */
  draw(uniform, label = 0) {
    const normal = normals(uniform);
    const classes = this.weights.length;
    const own = classes > 1 ? label : 0;
    const at = own * this.components + choice(uniform, this.weights[own]);
    const noise = Float64Array.from({ length: this.latents }, normal);
    let entry = at * this.triangle;
    return Float32Array.from({ length: this.latents }, (_, row) => {
      let value = this.means[at * this.latents + row];
      for (let column = 0; column <= row; column++) value += this.cholesky[entry++] * noise[column];
      return value;
    });
  }

  /** The components of a class on the map: weight, place, and covariance there. */
  projected(space, label) {
    const own = this.weights.length > 1 ? label : 0;
    const { directions } = space.plane;
    return this.weights[own].flatMap((weight, m) => {
      if (weight < 1e-6) return [];
      const at = own * this.components + m;
      const mean = this.means.slice(at * this.latents, (at + 1) * this.latents);
      // The rows of the factor, each times both directions: the covariance is the sum of their squares.
      const sums = [new Float64Array(this.latents), new Float64Array(this.latents)];
      let entry = at * this.triangle;
      for (let row = 0; row < this.latents; row++) {
        for (let column = 0; column <= row; column++, entry++) {
          sums[0][column] += directions[0][row] * this.cholesky[entry];
          sums[1][column] += directions[1][row] * this.cholesky[entry];
        }
      }
      const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
      const covariance = [dot(sums[0], sums[0]), dot(sums[0], sums[1]), dot(sums[1], sums[1])];
      return [{ weight, place: space.project(mean), covariance }];
    });
  }

  /**
   * The density of a class on the map, at the middles of the cells of a grid.
   *
   * @param bounds - `{left, right, bottom, top}` of the grid, whose first row is at the top.
   * @returns {Float32Array} rows * columns densities.
   */
  density(space, label, bounds, columns, rows) {
    const grid = new Float32Array(columns * rows);
    const [dx, dy] = [(bounds.right - bounds.left) / columns, (bounds.top - bounds.bottom) / rows];
    for (const { weight, place, covariance } of this.projected(space, label)) {
      // Not narrower than a cell, or it would fall between the middles.
      const xx = covariance[0] + (dx * dx) / 4;
      const yy = covariance[2] + (dy * dy) / 4;
      const xy = covariance[1];
      const determinant = xx * yy - xy * xy;
      const height = weight / (2 * Math.PI * Math.sqrt(determinant));
      const reach = 4;
      const from = Math.max(0, Math.floor((bounds.top - place[1] - reach * Math.sqrt(yy)) / dy));
      const to = Math.min(rows, Math.ceil((bounds.top - place[1] + reach * Math.sqrt(yy)) / dy));
      const first = Math.floor((place[0] - bounds.left - reach * Math.sqrt(xx)) / dx);
      const last = Math.ceil((place[0] - bounds.left + reach * Math.sqrt(xx)) / dx);
      for (let row = from; row < to; row++) {
        const y = bounds.top - (row + 0.5) * dy - place[1];
        for (let column = Math.max(0, first); column < Math.min(columns, last); column++) {
          const x = bounds.left + (column + 0.5) * dx - place[0];
          const square = (yy * x * x - 2 * xy * x * y + xx * y * y) / determinant;
          grid[row * columns + column] += height * Math.exp(-0.5 * square);
        }
      }
    }
    return grid;
  }
}
