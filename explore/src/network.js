/** Runs a network that `keras_ae.graphs` described, one image or code at a time. */

import { activate, multiply, panels } from "./kernels.js";

const size = (shape) => shape.reduce((a, b) => a * b, 1);

/**
 * A function that runs a graph.
 *
 * @param graph - of `unpackedGraph`: shapes, inputs, outputs and operations.
 * @returns {(inputs: Object<string, Float32Array>) => Object<string, Float32Array>} from the inputs by
 *   name to the outputs by name. The outputs are overwritten by the next run.
 */
export function network(graph) {
  const tensors = graph.shapes.map((shape) => new Float32Array(size(shape)));
  const steps = graph.operations.map((operation) => {
    const sources = operation.in.map((i) => ({ shape: graph.shapes[i], values: tensors[i] }));
    const target = { shape: graph.shapes[operation.out], values: tensors[operation.out] };
    return OPERATIONS[operation.op](operation, sources, target);
  });
  return (inputs) => {
    for (const [name, index] of Object.entries(graph.inputs)) tensors[index].set(inputs[name]);
    for (const step of steps) step();
    const outputs = Object.entries(graph.outputs);
    return Object.fromEntries(outputs.map(([name, index]) => [name, tensors[index]]));
  };
}

/** By operation, a function of (operation, sources, target) that returns the step that fills the target. */
const OPERATIONS = {
  dense({ arrays, activation }, [source], target) {
    const [rows, columns] = arrays.kernel.shape;
    const kernel = arrays.kernel.values;
    const packed = panels(rows, columns, (k, j) => kernel[k * columns + j]);
    const { values } = arrays.bias;
    const count = source.values.length / rows;
    return () => {
      multiply(source.values, count, rows, packed, columns, values, target.values);
      activate(activation, target.values, columns);
    };
  },

  /** Each row of the output is a product of matrices: what its pixels see, times the kernel. */
  conv({ arrays, strides, pad, activation }, [source], target) {
    const [high, wide, channels, filters] = arrays.kernel.shape;
    const kernel = arrays.kernel.values;
    const depth = high * wide * channels;
    const packed = panels(depth, filters, (k, j) => kernel[k * filters + j]);
    const [rows, columns] = target.shape;
    const seen = new Float32Array(columns * depth);
    return () => {
      for (let row = 0; row < rows; row++) {
        gather(source, row * strides[0] - pad[0], -pad[1], strides[1], high, wide, columns, seen);
        const start = row * columns * filters;
        multiply(seen, columns, depth, packed, filters, arrays.bias.values, target.values, start);
      }
      activate(activation, target.values, filters);
    };
  },

  /**
   * A transposed convolution of stride s is s x s convolutions of stride 1, one for each place that a pixel
   * of the output has between the pixels of the input, each with every s-th row and column of the kernel.
   */
  deconv({ arrays, strides, crop, activation }, [source], target) {
    const [high, wide, channels, filters] = arrays.kernel.shape;
    const kernel = arrays.kernel.values;
    const [rows, columns] = target.shape;
    const phases = [];
    for (let y = 0; y < strides[0]; y++) {
      for (let x = 0; x < strides[1]; x++) {
        // Taps y, y + s, … of the kernel, the last first: it is with the first pixel that it meets.
        const tall = Math.ceil((high - y) / strides[0]);
        const broad = Math.ceil((wide - x) / strides[1]);
        if (tall < 1 || broad < 1) {
          phases.push({ y, x, depth: 0 });
          continue;
        }
        const depth = tall * broad * channels;
        const packed = panels(depth, filters, (k, j) => {
          const channel = k % channels;
          const across = Math.floor(k / channels) % broad;
          const down = Math.floor(k / channels / broad);
          const tapY = y + (tall - 1 - down) * strides[0];
          const tapX = x + (broad - 1 - across) * strides[1];
          return kernel[((tapY * wide + tapX) * channels + channel) * filters + j];
        });
        phases.push({ y, x, tall, broad, depth, packed });
      }
    }
    const most = Math.max(...phases.map((phase) => phase.depth));
    const seen = new Float32Array(columns * most);
    const bias = arrays.bias.values;
    return () => {
      for (const { y, x, tall, broad, depth, packed } of phases) {
        // The first column of the output in this phase, and the pixel of the input that it is over.
        const first = mod(x - crop[1], strides[1]);
        const over = (first + crop[1] - x) / strides[1];
        const count = Math.ceil((columns - first) / strides[1]);
        if (count < 1) continue;
        const pitch = strides[1] * filters;
        for (let row = mod(y - crop[0], strides[0]); row < rows; row += strides[0]) {
          const start = (row * columns + first) * filters;
          if (depth === 0) {
            for (let i = 0; i < count; i++) target.values.set(bias, start + i * pitch);
            continue;
          }
          const top = (row + crop[0] - y) / strides[0] - (tall - 1);
          gather(source, top, over - (broad - 1), 1, tall, broad, count, seen);
          multiply(seen, count, depth, packed, filters, bias, target.values, start, pitch);
        }
      }
      activate(activation, target.values, filters);
    };
  },

  affine({ arrays }, [source], target) {
    const scale = arrays.scale.values;
    const offset = arrays.offset.values;
    return () => {
      for (
        let i = 0, c = 0;
        i < target.values.length;
        i++, c = c + 1 === scale.length ? 0 : c + 1
      ) {
        target.values[i] = source.values[i] * scale[c] + offset[c];
      }
    };
  },

  activation({ activation }, [source], target) {
    return () => {
      target.values.set(source.values);
      activate(activation, target.values, target.shape.at(-1));
    };
  },

  reshape(_operation, [source], target) {
    return () => target.values.set(source.values);
  },

  permute({ axes }, [source], target) {
    const pitches = source.shape.map((_, axis) => size(source.shape.slice(axis + 1)));
    const order = new Int32Array(target.values.length);
    for (let i = 0; i < order.length; i++) {
      let rest = i;
      for (let axis = axes.length - 1; axis >= 0; axis--) {
        order[i] += (rest % target.shape[axis]) * pitches[axes[axis]];
        rest = Math.floor(rest / target.shape[axis]);
      }
    }
    return () => {
      for (let i = 0; i < order.length; i++) target.values[i] = source.values[order[i]];
    };
  },

  concatenate({ axis }, sources, target) {
    const pitch = size(target.shape.slice(axis));
    let offset = 0;
    const parts = sources.map(({ shape, values }) => {
      const part = { values, wide: size(shape.slice(axis)), offset };
      offset += part.wide;
      return part;
    });
    return () => {
      for (const { values, wide, offset } of parts) {
        for (let i = 0, to = offset; i < values.length; i += wide, to += pitch) {
          target.values.set(values.subarray(i, i + wide), to);
        }
      }
    };
  },

  add: merge((a, b) => a + b),
  average: merge(
    (a, b) => a + b,
    (sum, count) => sum / count,
  ),
  multiply: merge((a, b) => a * b),
  subtract: merge((a, b) => a - b),
  maximum: merge(Math.max),
  minimum: merge(Math.min),

  /** Each pixel many times. */
  repeat({ size: [high, wide] }, [source], target) {
    const [, columns, channels] = source.shape;
    const [rows, broad] = target.shape;
    return () => {
      for (let y = 0, to = 0; y < rows; y++) {
        for (let x = 0; x < broad; x++, to += channels) {
          const from = (Math.floor(y / high) * columns + Math.floor(x / wide)) * channels;
          for (let c = 0; c < channels; c++) target.values[to + c] = source.values[from + c];
        }
      }
    };
  },

  /** Half the sides: a channel is the mean of 2x2 pixels; or, in two parts, of the left and the right two. */
  down({ parts }, [source], target) {
    const [rows, columns, channels] = source.shape;
    const [high, wide] = target.shape;
    const count = parts === 1 ? 4 : 2;
    return () => {
      target.values.fill(0);
      for (let y = 0; y < Math.min(rows, 2 * high); y++) {
        for (let x = 0; x < Math.min(columns, 2 * wide); x++) {
          const from = (y * columns + x) * channels;
          const part = parts === 1 ? 0 : x % 2;
          const to = (((y >> 1) * wide + (x >> 1)) * parts + part) * channels;
          for (let c = 0; c < channels; c++) {
            target.values[to + c] += source.values[from + c] / count;
          }
        }
      }
    };
  },

  /** Twice the sides: a pixel four times; or, of two parts, the first twice on the left and the second on the right. */
  up({ parts }, [source], target) {
    const [, columns, channels] = source.shape;
    const [rows, broad, filters] = target.shape;
    return () => {
      for (let y = 0, to = 0; y < rows; y++) {
        for (let x = 0; x < broad; x++, to += filters) {
          const pixel = (y >> 1) * columns + (x >> 1);
          const from = pixel * channels + (parts === 1 ? 0 : x % 2) * filters;
          for (let c = 0; c < filters; c++) target.values[to + c] = source.values[from + c];
        }
      }
    };
  },

  /** The largest or the mean of the pixels of each window that are within the image. */
  pool({ kind, size: [high, wide], strides, pad }, [source], target) {
    const [rows, columns, channels] = source.shape;
    const pixels = target.values.length / channels;
    const broad = target.shape.length === 3 ? target.shape[1] : 1;
    return () => {
      for (let i = 0; i < pixels; i++) {
        const top = Math.floor(i / broad) * strides[0] - pad[0];
        const left = (i % broad) * strides[1] - pad[1];
        for (let c = 0; c < channels; c++) {
          let [sum, most, count] = [0, -Infinity, 0];
          for (let y = Math.max(top, 0); y < Math.min(top + high, rows); y++) {
            for (let x = Math.max(left, 0); x < Math.min(left + wide, columns); x++, count++) {
              const value = source.values[(y * columns + x) * channels + c];
              sum += value;
              most = Math.max(most, value);
            }
          }
          target.values[i * channels + c] = kind === "max" ? most : sum / count;
        }
      }
    };
  },

  /** Padding with zeros (moved down and right) and cropping (moved up and left). */
  shift({ by }, [source], target) {
    const [rows, columns, channels] = source.shape;
    const [high, wide] = target.shape;
    const from = [Math.max(0, -by[0]), Math.max(0, -by[1])];
    const to = [Math.max(0, by[0]), Math.max(0, by[1])];
    const count = Math.min(columns - from[1], wide - to[1]) * channels;
    const tall = Math.min(rows - from[0], high - to[0]);
    return () => {
      for (let y = 0; y < tall; y++) {
        const start = ((from[0] + y) * columns + from[1]) * channels;
        const at = ((to[0] + y) * wide + to[1]) * channels;
        target.values.set(source.values.subarray(start, start + count), at);
      }
    };
  },
};

const mod = (a, b) => ((a % b) + b) % b;

/** A step that joins arrays of one shape, value by value. */
function merge(join, finish = (value) => value) {
  return (_operation, sources, target) => () => {
    for (let i = 0; i < target.values.length; i++) {
      let value = sources[0].values[i];
      for (let s = 1; s < sources.length; s++) value = join(value, sources[s].values[i]);
      target.values[i] = finish(value, sources.length);
    }
  };
}

/**
 * What `count` pixels of a row of the output see: `tall` x `broad` pixels of the source each, zeros beyond
 * its edges. The first sees those from (top, left) on, the next those `stride` to the right.
 */
function gather({ shape, values }, top, left, stride, tall, broad, count, seen) {
  const [rows, columns, channels] = shape;
  const wide = broad * channels;
  for (let i = 0, at = 0; i < count; i++) {
    const start = left + i * stride;
    const skipped = Math.max(0, -start) * channels;
    const end = Math.min(wide, (columns - start) * channels);
    for (let y = top; y < top + tall; y++, at += wide) {
      if (y < 0 || y >= rows || end <= skipped) {
        seen.fill(0, at, at + wide);
        continue;
      }
      const from = (y * columns + start) * channels;
      for (let k = 0; k < skipped; k++) seen[at + k] = 0;
      for (let k = skipped; k < end; k++) seen[at + k] = values[from + k];
      for (let k = Math.max(end, 0); k < wide; k++) seen[at + k] = 0;
    }
  }
}
