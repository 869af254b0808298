/** The inner loops: products of matrices and functions of numbers. Images are (H, W, C), row by row. */

/**
 * A matrix (K, N) in panels of four columns, padded with zeros, as `multiply` reads it.
 *
 * @param {(row: number, column: number) => number} at - an entry of the matrix.
 */
export function panels(rows, columns, at) {
  const packed = new Float32Array(Math.ceil(columns / 4) * 4 * rows);
  for (let j = 0; j < columns; j++) {
    const start = (j >> 2) * rows * 4 + (j & 3);
    for (let k = 0; k < rows; k++) packed[start + k * 4] = at(k, j);
  }
  return packed;
}

/**
 * C = A B + bias, for A of `m` rows and `k` columns, B in `panels` of `n` columns.
 *
 * Row i of the result is written from `start + i * pitch` on. Sums are kept in double precision. Two rows
 * by four columns at a time are what fits into the registers: three times as fast as one by one.
 */
export function multiply(a, m, k, b, n, bias, c, start = 0, pitch = n) {
  for (let j = 0, panel = 0; j < n; j += 4, panel += 4 * k) {
    const bias0 = bias[j];
    const bias1 = j + 1 < n ? bias[j + 1] : 0;
    const bias2 = j + 2 < n ? bias[j + 2] : 0;
    const bias3 = j + 3 < n ? bias[j + 3] : 0;
    const wide = n - j;
    let i = 0;
    for (; i + 1 < m; i += 2) {
      let s00 = bias0, s01 = bias1, s02 = bias2, s03 = bias3; // prettier-ignore
      let s10 = bias0, s11 = bias1, s12 = bias2, s13 = bias3; // prettier-ignore
      const upper = i * k;
      const lower = upper + k;
      for (let q = 0, p = panel; q < k; q++, p += 4) {
        const x0 = a[upper + q];
        const x1 = a[lower + q];
        const b0 = b[p], b1 = b[p + 1], b2 = b[p + 2], b3 = b[p + 3]; // prettier-ignore
        s00 += x0 * b0;
        s01 += x0 * b1;
        s02 += x0 * b2;
        s03 += x0 * b3;
        s10 += x1 * b0;
        s11 += x1 * b1;
        s12 += x1 * b2;
        s13 += x1 * b3;
      }
      put(c, start + i * pitch + j, wide, s00, s01, s02, s03);
      put(c, start + (i + 1) * pitch + j, wide, s10, s11, s12, s13);
    }
    if (i < m) {
      let s0 = bias0, s1 = bias1, s2 = bias2, s3 = bias3; // prettier-ignore
      const row = i * k;
      for (let q = 0, p = panel; q < k; q++, p += 4) {
        const x = a[row + q];
        s0 += x * b[p];
        s1 += x * b[p + 1];
        s2 += x * b[p + 2];
        s3 += x * b[p + 3];
      }
      put(c, start + i * pitch + j, wide, s0, s1, s2, s3);
    }
  }
}

function put(c, at, wide, v0, v1, v2, v3) {
  c[at] = v0;
  if (wide > 1) c[at + 1] = v1;
  if (wide > 2) c[at + 2] = v2;
  if (wide > 3) c[at + 3] = v3;
}

/** The error function, to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26). */
export function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))); // prettier-ignore
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

/** By name, what a function of numbers does to an array in place; `row` is the length of the last axis. */
const ACTIVATIONS = {
  linear() {},
  relu(x, _row, slope, top) {
    const most = top === null ? Infinity : top;
    for (let i = 0; i < x.length; i++) x[i] = x[i] < 0 ? slope * x[i] : Math.min(x[i], most);
  },
  elu(x, _row, alpha) {
    for (let i = 0; i < x.length; i++) if (x[i] < 0) x[i] = alpha * Math.expm1(x[i]);
  },
  silu(x) {
    for (let i = 0; i < x.length; i++) x[i] /= 1 + Math.exp(-x[i]);
  },
  sigmoid(x) {
    for (let i = 0; i < x.length; i++) x[i] = 1 / (1 + Math.exp(-x[i]));
  },
  tanh(x) {
    for (let i = 0; i < x.length; i++) x[i] = Math.tanh(x[i]);
  },
  gelu(x) {
    for (let i = 0; i < x.length; i++) x[i] *= 0.5 * (1 + erf(x[i] * Math.SQRT1_2));
  },
  softplus(x) {
    for (let i = 0; i < x.length; i++) {
      x[i] = Math.max(x[i], 0) + Math.log1p(Math.exp(-Math.abs(x[i])));
    }
  },
  softmax(x, row) {
    for (let start = 0; start < x.length; start += row) {
      const part = x.subarray(start, start + row);
      const most = part.reduce((a, b) => Math.max(a, b));
      let sum = 0;
      for (let i = 0; i < row; i++) sum += part[i] = Math.exp(part[i] - most);
      for (let i = 0; i < row; i++) part[i] /= sum;
    }
  },
};

/** Apply an activation, `[name, ...numbers]`, to an array in place. */
export function activate([name, ...numbers], x, row) {
  ACTIVATIONS[name](x, row, ...numbers);
}
