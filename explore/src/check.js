/** How far the networks of the page are from Keras'. */

import { bytesOf, unpacked } from "./codec.js";
import { oneHot } from "./state.js";

const differences = (a, b) => Array.from(a, (value, i) => Math.abs(value - b[i]));

/**
 * Decode the codes and encode the images that Keras did.
 *
 * @param page - `{data, decode, encode}`: the data of the page, and its functions.
 * @returns {Promise<{pixelError: number, codeError: number}>} the largest difference of a pixel in [0, 1],
 *   and of a latent in its standard deviations.
 */
export async function apart({ data, decode, encode }) {
  const values = {};
  for (const name of ["codes", "shares", "pixels", "encoded"]) {
    values[name] = data.tests[name] && (await unpacked(data.tests[name]));
  }
  const images = bytesOf(data.tests.images);
  const count = values.codes.length / data.latents;
  const row = (array, i) =>
    array?.slice((i * array.length) / count, ((i + 1) * array.length) / count);
  const [pixels, codes] = [[], []];
  for (let i = 0; i < count; i++) {
    const decoded = await decode("check", 1, row(values.codes, i), row(values.shares, i));
    pixels.push(...differences(decoded, row(values.pixels, i)));
    const image = Float32Array.from(row(images, i), (byte) => byte / 255);
    const label = data.classes ? oneHot(data.tests.labels[i], data.classes) : null;
    const { mean } = await encode("check", 1, image, label);
    const errors = differences(mean, row(values.encoded, i));
    codes.push(...errors.map((error, d) => error / data.sigma[d]));
  }
  const largest = (errors) => errors.reduce((a, b) => Math.max(a, b), 0);
  return { pixelError: largest(pixels), codeError: largest(codes) };
}
