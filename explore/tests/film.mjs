/** The pictures of docs/explore.gif: `node tests/film.mjs PAGE.html FOLDER` writes 000.png, 001.png, … */

import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { chromium } from "playwright-core";

const [file, folder] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
const page = await browser.newPage({ viewport: { width: 1080, height: 690 } });
await page.goto(pathToFileURL(file).href);
await page.waitForFunction(() => document.documentElement.dataset.check);
// A pointer, which screenshots do not have.
await page.evaluate(() => {
  const dot = document.createElement("div");
  dot.style.cssText =
    "position:fixed;z-index:9;width:16px;height:16px;margin:-8px;border-radius:50%;background:#c2410ccc;pointer-events:none";
  document.body.append(dot);
  addEventListener("pointermove", (event) => {
    dot.style.left = `${event.clientX}px`;
    dot.style.top = `${event.clientY}px`;
  });
});
let count = 0;
const shoot = async (wait = 150) => {
  await page.waitForTimeout(wait);
  await page.screenshot({ path: join(folder, `${String(count++).padStart(3, "0")}.png`) });
};
const see = (selector) =>
  page.evaluate((selector) => {
    const top = document.querySelector(selector).getBoundingClientRect().top;
    scrollBy(0, top - 12);
  }, selector);
const at = async (selector, x, y) => {
  const box = await page.locator(selector).boundingBox();
  return [box.x + x * box.width, box.y + y * box.height];
};

await see("#now");
await page.mouse.move(...(await at("#points", 0.4, 0.45)));
await shoot();
await page.mouse.down();
for (let i = 1; i <= 14; i++) {
  const angle = (i / 14) * 2 * Math.PI;
  await page.mouse.move(
    ...(await at("#points", 0.5 - 0.13 * Math.cos(angle), 0.48 + 0.3 * Math.sin(angle))),
  );
  await shoot();
}
await page.mouse.up();
for (const label of [2, 3, 5, 8]) {
  await page.click(`#classes .chip >> nth=${label}`);
  await page.mouse.move(...(await at(`#classes .chip >> nth=${label}`, 0.5, 0.5)));
  await shoot(300);
}
await see("#tabs");
for (const row of [0, 3]) {
  const slider = `.latent >> nth=${row} >> input`;
  await page.mouse.move(...(await at(slider, 0.5, 0.5)));
  await page.mouse.down();
  for (const x of [0.6, 0.75, 0.9, 0.7, 0.5, 0.3, 0.15, 0.4]) {
    await page.mouse.move(...(await at(slider, x, 0.5)));
    await shoot();
  }
  await page.mouse.up();
}
await page.click("#tab-between");
await see("#tabs");
await shoot(700);
for (let share = 0; share <= 1; share += 0.125) {
  await page.fill("#way", String(share));
  await shoot();
}
await page.click("#tab-draw");
await see("#tabs");
await page.mouse.move(...(await at("#board", 0.32, 0.22)));
await page.mouse.down();
for (const [x, y] of [
  [0.3, 0.48],
  [0.5, 0.47],
  [0.68, 0.47],
  [0.68, 0.3],
  [0.66, 0.55],
  [0.62, 0.82],
]) {
  await page.mouse.move(...(await at("#board", x, y)), { steps: 4 });
  await shoot(250);
}
await page.mouse.up();
await shoot(900);
await browser.close();
