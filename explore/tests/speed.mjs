/** How fast pages are: `node tests/speed.mjs PAGE.html …` prints a row of a table for each. */

import { statSync } from "node:fs";
import { basename } from "node:path";
import { pathToFileURL } from "node:url";

import { chromium } from "playwright-core";

const SECONDS = 4;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
for (const file of process.argv.slice(2)) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
  await page.goto(pathToFileURL(file).href);
  await page.waitForFunction(() => document.documentElement.dataset.check);
  const { maxError, firstPicture } = await page.evaluate(() => ({
    ...document.documentElement.dataset,
  }));
  const count = async () => Number(await page.getAttribute("#picture", "data-drawn"));
  const box = await page.locator("#points").boundingBox();
  const at = (angle) => [
    box.x + box.width * (0.5 + 0.1 * Math.cos(angle)),
    box.y + box.height * (0.5 + 0.2 * Math.sin(angle)),
  ];
  await page.mouse.move(...at(0));
  await page.mouse.down();
  const before = await count();
  const start = performance.now();
  while (performance.now() - start < SECONDS * 1000) {
    await page.mouse.move(...at((performance.now() - start) / 500));
  }
  const rate = ((await count()) - before) / SECONDS;
  await page.mouse.up();
  const megabytes = (statSync(file).size / 1e6).toFixed(2);
  console.log(
    `| ${basename(file)} | ${megabytes} MB | ${maxError} | ${firstPicture} ms | ${rate.toFixed(0)} |`,
  );
  await page.close();
}
await browser.close();
