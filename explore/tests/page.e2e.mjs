/**
 * The page in a real browser: every control by mouse and by keyboard.
 *
 * tests/test_exploring_page.py writes the pages, runs this with PAGES (a folder), CHROMIUM and PHOTO (an
 * image file) set, and compares what is noted here, in the file observations.json, with Keras' decoding.
 */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { chromium } from "playwright-core";

const { PAGES, CHROMIUM, PHOTO } = process.env;
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const observations = [];
let browser, context, page, requests, errors;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
});
after(async () => {
  writeFileSync(join(PAGES, "observations.json"), JSON.stringify(observations));
  await browser.close();
});
beforeEach(async () => {
  if (page) await context.close();
  page = null;
});

/** Open a page and wait until it has checked itself. */
async function open(name, { hash = "", size = [1280, 1000], ...options } = {}) {
  const viewport = { width: size[0], height: size[1] };
  context = await browser.newContext({ viewport, ...options });
  page = await context.newPage();
  page.setDefaultTimeout(10_000);
  [requests, errors] = [[], []];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("dialog", (dialog) => errors.push(`dialog: ${dialog.message()}`));
  await page.goto(pathToFileURL(join(PAGES, `${name}.html`)) + hash);
  await page.waitForFunction(() => document.documentElement.dataset.check);
  await settled();
  return page;
}

/** Wait until the image and the address have followed the last change. */
async function settled() {
  await page.evaluate(() => (window.seen = null));
  await page.waitForFunction(() => {
    const seen = `${location.hash} ${document.getElementById("picture").dataset.drawn}`;
    if (window.seen !== seen) [window.seen, window.since] = [seen, performance.now()];
    return performance.now() - window.since > 220;
  });
}

/** The pixels of a canvas as rows of red, green and blue. */
const pixelsOf = (id) =>
  page.evaluate((id) => {
    const canvas = document.getElementById(id);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from(data).filter((_, i) => i % 4 < 3);
  }, id);

/** Note what is drawn, for Python to compare; returns the pixels and the state in the address. */
async function observe(name) {
  await settled();
  const pixels = await pixelsOf("picture");
  const hash = new URL(page.url()).hash.slice(1);
  observations.push({ name, hash, pixels });
  assert.deepEqual(errors, []);
  assert.deepEqual(
    requests.filter((url) => !/^(file|blob|data):/.test(url)),
    [],
  );
  return { pixels, state: Object.fromEntries(new URLSearchParams(hash)) };
}

const changedFrom = (a, b) => assert.notDeepEqual(a.pixels, b.pixels);

/** Press the mouse at shares of an element's width and height, and move on to others. */
async function press(selector, ...places) {
  const element = page.locator(selector);
  await element.scrollIntoViewIfNeeded();
  const box = await element.boundingBox();
  for (const [i, [x, y]] of places.entries()) {
    await page.mouse.move(box.x + x * box.width, box.y + y * box.height, { steps: 5 });
    if (i === 0) await page.mouse.down();
  }
  await page.mouse.up();
}

const tab = (name) => page.click(`#tab-${name}`);

test("it opens, checks itself and asks for nothing", async () => {
  for (const name of ["cvae", "vae", "ae", "hostile"]) {
    await open(name);
    const { check, maxError, firstPicture } = await page.evaluate(() => ({
      ...document.documentElement.dataset,
    }));
    assert.equal(check, "ok", name);
    assert.ok(Number(maxError) <= 4e-3, maxError);
    assert.ok(Number(firstPicture) < 5000, firstPicture);
    assert.deepEqual(errors, []);
    await observe(name);
    await context.close();
  }
  page = null;
});

test("a page whose weights were changed says that it fails", async () => {
  const whole = readFileSync(join(PAGES, "vae.html"), "utf8");
  // The first kernel of the decoder, doubled.
  const [head, tail] = whole.split('"decoder":');
  assert.match(tail, /"step":[\d.e-]+/);
  const changed = tail.replace(/"step":([\d.e-]+)/, (_, step) => `"step":${2 * Number(step)}`);
  writeFileSync(join(PAGES, "changed.html"), `${head}"decoder":${changed}`);
  await open("changed");
  const dataset = await page.evaluate(() => ({ ...document.documentElement.dataset }));
  assert.equal(dataset.check, "failed");
  assert.ok(Number(dataset.maxError) > 4e-3);
  assert.match(await page.innerText("#check"), /differ from Keras/);
});

test("its policy refuses every request and every script but its own", async () => {
  await open("cvae");
  const outcome = await page.evaluate(async () => {
    const refused = [];
    addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
    const fetched = await fetch("http://127.0.0.1:9/").then(
      () => "fetched",
      () => "refused",
    );
    const image = new Image();
    image.src = "http://127.0.0.1:9/x.png";
    const script = document.createElement("script");
    script.textContent = "window.strange = true";
    document.body.append(image, script);
    await new Promise((resolve) => setTimeout(resolve, 200));
    return { fetched, refused, strange: window.strange };
  });
  assert.equal(outcome.fetched, "refused");
  assert.deepEqual(outcome.refused.sort(), ["connect-src", "img-src", "script-src-elem"]);
  assert.equal(outcome.strange, undefined);
});

test("names of classes are text", async () => {
  await open("hostile");
  const names = JSON.parse(readFileSync(join(PAGES, "names.json"), "utf8"));
  assert.deepEqual(await page.locator("#classes .chip").allTextContents(), names);
  assert.deepEqual((await page.locator("#legend .chip").allTextContents()).slice(0, -1), names);
  assert.equal(await page.locator("img, iframe, a").count(), 0);
  assert.equal(await page.locator("script").count(), 2);
  assert.match(await page.title(), /<\/script>/);
  await page.click("#classes summary");
  assert.deepEqual(await page.locator(".share label").allTextContents(), names);
  for (const name of names) await page.getByRole("button", { name, exact: true }).first().click();
  await observe("hostile");
});

test("the map: dots, dragging, hovering, keys", async () => {
  await open("cvae");
  const first = await observe("cvae");
  await press("#points", [0.45, 0.45], [0.4, 0.6], [0.6, 0.5]);
  const dragged = await observe("cvae");
  changedFrom(first, dragged);
  await page.focus("#points");
  for (const key of ["ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"]) {
    await page.keyboard.press(key);
  }
  const moved = await observe("cvae");
  assert.notEqual(moved.state.z, dragged.state.z);
  await page.keyboard.press("Enter");
  const nearest = await observe("cvae");
  changedFrom(moved, nearest);
  const box = await page.locator("#points").boundingBox();
  for (let i = 0; i < 30 && !(await page.isVisible("#hover")); i++) {
    await page.mouse.move(box.x + box.width * (0.4 + i / 200), box.y + box.height * 0.5);
  }
  assert.match(await page.innerText("#hover"), /^\s*\d\s*$/);
  // In the map's plane alone.
  await page.click("#follow");
  await press("#points", [0.1, 0.1], [0.3, 0.3]);
  const { state } = await observe("cvae");
  assert.equal(state.keep, "1");
});

test("the legend filters the map", async () => {
  await open("cvae");
  await page.click("#legend .chip >> nth=3");
  await page.focus("#legend .chip >> nth=5");
  await page.keyboard.press("Space");
  let { state } = await observe("cvae");
  assert.equal(state.only, "3,5");
  for (let i = 0; i < 5; i++) {
    await page.click("#random");
    assert.match(await page.innerText("#nearest"), /[35]\s*$/);
  }
  await page.click("#legend .chip:last-child");
  ({ state } = await observe("cvae"));
  assert.equal(state.only, undefined);
});

test("a latent is moved by mouse, by keys and on its strip", async () => {
  await open("vae");
  const first = await observe("vae");
  const slider = page.locator(".latent input").first();
  await slider.focus();
  for (let i = 0; i < 40; i++) await page.keyboard.press("ArrowRight");
  const second = await observe("vae");
  changedFrom(first, second);
  await press(".latent >> nth=0 >> input", [0.5, 0.5], [0.9, 0.5]);
  const third = await observe("vae");
  changedFrom(second, third);
  await press(".latent >> nth=1 >> canvas", [0.05, 0.5], [0.2, 0.5]);
  const fourth = await observe("vae");
  const [before, now] = [third, fourth].map(({ state }) => state.z.split(","));
  assert.equal(before.filter((value, i) => value !== now[i]).length, 1);
  // The strip is drawn, and in its place is the image of that value.
  await page.waitForFunction(() => document.querySelector(".strip").dataset.version);
});

test("classes are chosen and mixed", async () => {
  await open("cvae");
  const seven = await observe("cvae");
  await page.click("#classes .chip >> nth=2");
  const two = await observe("cvae");
  changedFrom(seven, two);
  assert.equal(two.state.y, "c2");
  await page.focus("#classes .chip >> nth=4");
  await page.keyboard.press("Enter");
  assert.equal((await observe("cvae")).state.y, "c4");
  await page.focus("#classes summary");
  await page.keyboard.press("Enter");
  await page.focus("#share-9");
  for (let i = 0; i < 10; i++) await page.keyboard.press("PageUp");
  const mixed = await observe("cvae");
  assert.deepEqual(mixed.state.y.split(",").map(Number), [0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5]);
  await press("#share-4", [0.98, 0.5], [0.01, 0.5]);
  assert.equal((await observe("cvae")).state.y, "c9");
});

test("samples of both priors, by seed", async () => {
  await open("cvae");
  await tab("samples");
  const drawn = (version) =>
    page.waitForFunction(
      (version) => Number(document.getElementById("panel-samples").dataset.drawn) >= version,
      version,
    );
  await drawn(1);
  const sheets = async () => [await pixelsOf("samples-0"), await pixelsOf("samples-1")];
  const zero = await sheets();
  assert.notDeepEqual(zero[0], zero[1]);
  await page.click("text=Next seed");
  await drawn(2);
  assert.notDeepEqual((await sheets())[0], zero[0]);
  await page.fill("#seed", "0");
  await page.keyboard.press("Enter");
  await drawn(3);
  assert.deepEqual(await sheets(), zero);
  await page.locator("#every-class").focus();
  await page.keyboard.press("Space");
  await drawn(4);
  assert.notDeepEqual(await sheets(), zero);
  await page.keyboard.press("Space");
  await drawn(5);
  await press("#samples-0", [0.55, 0.1]);
  const shown = await observe("cvae");
  assert.equal(shown.state.y, "c5");
  await page.fill("#samples-1-which", "12");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal((await observe("cvae")).state.y, "c1");
});

test("the way between two codes is pinned, scrubbed and played", async () => {
  await open("vae", { hash: "#tab=between" });
  await page.click("#random");
  await page.click("text=Pin the code shown as A");
  const start = await observe("vae");
  await page.click("#middle");
  await page.focus("text=Pin the code shown as B");
  await page.keyboard.press("Enter");
  const end = await observe("vae");
  await page.click("text=Go to A");
  assert.equal((await observe("vae")).state.z, start.state.z);
  await page.focus("#way");
  await page.keyboard.press("End");
  assert.equal((await observe("vae")).state.z, end.state.z);
  await press("#way", [0.5, 0.5], [0.3, 0.5]);
  const third = await observe("vae");
  assert.ok(Math.abs(Number(third.state.t) - 0.3) < 0.05);
  await press("#way-strip", [0.5, 0.5]);
  assert.equal((await observe("vae")).state.t, "0.5");
  await page.click("#arc");
  await page.click("#play");
  const count = () => page.getAttribute("#picture", "data-drawn").then(Number);
  const before = await count();
  await page.waitForTimeout(1000);
  assert.ok((await count()) - before > 10);
  await page.click("#play");
  assert.equal(await page.innerText("#play"), "Play");
  assert.equal((await observe("vae")).state.arc, "0");
});

test("a drawing is encoded, by mouse and by keyboard", async () => {
  await open("cvae", { hash: "#tab=draw" });
  const first = await observe("cvae");
  await press("#board", [0.3, 0.25], [0.7, 0.25], [0.45, 0.8]);
  await page.waitForSelector(".has-result");
  const drawn = await observe("cvae");
  changedFrom(first, drawn);
  assert.equal(drawn.state.y, "c7");
  const text = await page.innerText("#result");
  assert.match(text, /class 7.*error 0\.\d+.*% of the test images.*KL divergence [\d.]+ nats/s);
  for (const id of ["errors", "totals", "bars"]) {
    assert.ok((await page.getAttribute(`#${id}`, "aria-label")).length > 20);
  }
  await page.click("#invert");
  changedFrom(drawn, await observe("cvae"));
  await page.click("#invert");
  await page.click("#guess");
  await page.click("#classes .chip >> nth=1");
  await page.click("#clear");
  assert.equal(await page.innerText("#result"), "");
  await page.focus("#board");
  await page.keyboard.press("Shift+ArrowUp");
  await page.keyboard.press("Space");
  for (let i = 0; i < 8; i++) await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Space");
  await page.waitForSelector(".has-result");
  assert.equal((await observe("cvae")).state.y, "c1");
  await page.focus("#board");
  await page.keyboard.press("Delete");
  assert.equal(await page.innerText("#result"), "");
});

test("an image file is taken, by choice and by dropping", async () => {
  await open("vae", { hash: "#tab=draw" });
  await page.setInputFiles("#file", PHOTO);
  await page.waitForSelector(".has-result");
  const chosen = await observe("vae");
  await page.click("#clear");
  await page.click("#middle");
  const content = readFileSync(PHOTO).toString("base64");
  await page.evaluate((content) => {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "photo.png", { type: "image/png" }));
    const drop = new DragEvent("drop", { dataTransfer: transfer, cancelable: true, bubbles: true });
    document.getElementById("board").dispatchEvent(drop);
  }, content);
  await page.waitForSelector(".has-result");
  assert.equal((await observe("vae")).state.z, chosen.state.z);
  await page.setInputFiles("#file", {
    name: "a.png",
    mimeType: "image/png",
    buffer: Buffer.from("no"),
  });
  await page.waitForFunction(() =>
    document.getElementById("result").textContent.includes("cannot be read"),
  );
});

test("an address is a state", async () => {
  await open("cvae", { hash: "#tab=samples&y=c3&s=7" });
  const first = await observe("cvae");
  assert.deepEqual([first.state.y, first.state.s, first.state.tab], ["c3", "7", "samples"]);
  await page.click("#random");
  const second = await observe("cvae");
  const url = page.url();
  await page.evaluate(() => (location.hash = "z=1,2&what=3&y=c99&t=x"));
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(
    await page.innerText("#notice"),
    /z was left out: it has 2 numbers.*16.*what.*y.*t/s,
  );
  assert.deepEqual((await observe("cvae")).pixels, second.pixels);
  await page.evaluate(() => (location.hash = "s=9"));
  await settled();
  assert.equal(await page.isVisible("#notice"), false);
  await context.close();
  await open("cvae", { hash: new URL(url).hash });
  const again = await observe("cvae");
  // (The address has four decimals of each latent.)
  assert.ok(again.pixels.every((value, i) => Math.abs(value - second.pixels[i]) <= 1));
});

test("image and link are taken along", async () => {
  await open("cvae", { permissions: ["clipboard-read", "clipboard-write"] });
  const { pixels } = await observe("cvae");
  const waiting = page.waitForEvent("download");
  await page.click("#save");
  const download = await waiting;
  assert.match(download.suggestedFilename(), /^CVAE-of-mnist\.png$/);
  const saved = readFileSync(await download.path()).toString("base64");
  const found = await page.evaluate(async (saved) => {
    const bytes = Uint8Array.from(atob(saved), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes]));
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const factor = bitmap.width / 28;
    const reds = Array.from({ length: 784 }, (_, i) => {
      const [x, y] = [(i % 28) * factor + 3, Math.floor(i / 28) * factor + 3];
      return context.getImageData(x, y, 1, 1).data[0];
    });
    return { width: bitmap.width, reds };
  }, saved);
  assert.equal(found.width, 560);
  assert.deepEqual(
    found.reds,
    pixels.filter((_, i) => i % 3 === 0),
  );
  await page.focus("#copy");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("done").textContent.includes("copied"));
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), page.url());
});

test("everything has a name, and tabs go by arrow keys", async () => {
  await open("cvae");
  await page.focus("#tab-latents");
  for (const expected of ["samples", "between", "draw", "latents"]) {
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll("button, input, summary, canvas, [tabindex]")]
        .filter((e) => e.checkVisibility() && !e.closest("[aria-hidden]"))
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
        .map((e) => `${e.tagName} ${e.id} ${e.className}`),
    );
    assert.deepEqual(nameless, []);
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.evaluate(() => document.activeElement.id), `tab-${expected}`);
    assert.ok(await page.isVisible(`#panel-${expected}`));
  }
});

test("on a phone nothing is wider than the screen, and the image stays in sight", async () => {
  for (const colorScheme of ["light", "dark"]) {
    await open("hostile", { size: [360, 740], hasTouch: true, colorScheme });
    for (const name of ["latents", "samples", "between", "draw"]) {
      await tab(name);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= 360, `${name}: ${wide}`);
    }
    await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
    assert.ok((await page.locator("#picture").boundingBox()).y > -50);
    await observe("hostile");
    await context.close();
  }
  page = null;
});
