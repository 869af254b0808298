/** Arrays as the page carries them: base64 text to typed arrays. */

/** Bytes of a base64 text. */
export function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Undo raw deflate: bytes to bytes. */
export async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * One array: `{shape, data}`, deflated, with a `step` whole numbers of 16 bits that count steps, their low
 * bytes before their high bytes; without one float32.
 *
 * @returns {Promise<Float32Array>} its values, row by row.
 */
export async function unpacked({ step, data }) {
  const bytes = await inflated(bytesOf(data));
  if (step === undefined) return new Float32Array(bytes.buffer);
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0, n = values.length; i < n; i++) {
    values[i] = (((bytes[i] | (bytes[n + i] << 8)) << 16) >> 16) * step;
  }
  return values;
}

/** A graph with its packed arrays as Float32Arrays. */
export async function unpackedGraph(graph) {
  const operations = graph.operations.map(async (operation) => {
    const arrays = {};
    for (const [name, array] of Object.entries(operation.arrays)) {
      arrays[name] = { shape: array.shape, values: await unpacked(array) };
    }
    return { ...operation, arrays };
  });
  return { ...graph, operations: await Promise.all(operations) };
}
