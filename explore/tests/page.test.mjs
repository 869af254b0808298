/** The pages that tests/test_exploring.py wrote into the folder PAGES: each against Keras' results in it. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";

import { apart } from "../src/check.js";
import { server } from "../src/engine.js";

for (const name of readdirSync(process.env.PAGES).filter((file) => file.endsWith(".html"))) {
  test(name, async () => {
    const text = readFileSync(join(process.env.PAGES, name), "utf8");
    const data = JSON.parse(
      /<script type="application\/json" id="data">(.*?)<\/script>/s.exec(text)[1],
    );
    const answer = server();
    await answer({ graphs: { encoder: data.encoder, decoder: data.decoder } });
    const run = async (role, input, values, shares) => {
      const inputs = data.classes ? { [input]: values, label: shares } : { [input]: values };
      return (await answer({ role, inputs })).outputs;
    };
    const { pixelError, codeError } = await apart({
      data,
      decode: async (_channel, _priority, code, shares) =>
        Object.values(await run("decoder", "latent", code, shares))[0],
      encode: async (_channel, _priority, image, shares) => {
        const { mean, code } = await run("encoder", "image", image, shares);
        return { mean: mean ?? code };
      },
    });
    assert.ok(pixelError <= 4e-3, `pixels: ${pixelError}`);
    assert.ok(codeError <= 0.03, `codes: ${codeError}`);
    assert.ok(pixelError > 0);
  });
}
