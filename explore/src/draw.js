/** An image of one's own, drawn or from a file: encoded, rebuilt, and compared with the test images. */

import { byId, button, checkbox, cleared, colour, make, shown } from "./dom.js";
import { paint } from "./paint.js";
import { divergences, shareBelow } from "./space.js";
import { oneHot } from "./state.js";

const BOARD = 280; // pixels of the longer side of what is drawn on
const BARS = 24; // of a histogram, and latents in the bars at most
const EMPTY = 12; // grey levels above the ground from which a pixel counts as drawn

/** Set drawing up. */
export function drawView(page) {
  const { data, store } = page;
  const [height, width, channels] = data.image;
  const grey = channels !== 3 && channels !== 4;
  const panel = byId("panel-draw");
  const scale = BOARD / Math.max(height, width);
  const board = make("canvas", {
    id: "board",
    tabindex: "0",
    role: "application",
    "aria-roledescription": "drawing board",
    "aria-label": "Draw here",
    "aria-describedby": "draw-help",
  });
  board.width = Math.round(width * scale);
  board.height = Math.round(height * scale);
  const context = board.getContext("2d", { willReadFrequently: true });
  context.lineCap = context.lineJoin = "round";
  const cursor = make("span", { id: "cursor", "aria-hidden": "true", hidden: true });
  const size = make("input", {
    type: "range",
    id: "pen",
    min: 1,
    max: 60,
    value: Math.round(BOARD / 12),
  });
  const pen = make("input", { type: "color", id: "pen-colour", value: "#ffffff" });
  const file = make("input", { type: "file", id: "file", accept: "image/*" });
  const fit = checkbox("fit and centre, as the test images are", Boolean(data.size), encode, {
    id: "fit",
  });
  const invert = checkbox("dark on light: invert", false, encode, { id: "invert" });
  const guess = checkbox("take the class that rebuilds it best", true, encode, { id: "guess" });
  const input = make("canvas", { role: "img", id: "input", "aria-label": "What the encoder gets" });
  const rebuilt = make("canvas", {
    role: "img",
    id: "rebuilt",
    "aria-label": "What the decoder makes of it",
  });
  const result = make("p", { id: "result", role: "status" });
  const errors = make("canvas", { class: "plot", role: "img", id: "errors" });
  const totals = make("canvas", { class: "plot", role: "img", id: "totals" });
  const bars = make("canvas", { class: "plot", role: "img", id: "bars" });

  const figure = (canvas, caption) =>
    make("figure", {}, canvas, make("figcaption", { text: caption }));
  panel.append(
    make("p", {
      id: "draw-help",
      class: "quiet",
      text:
        "Draw with mouse, finger or pen, or drop an image file here. It is encoded, and its code becomes the " +
        "one that is shown. With the keyboard: arrow keys move, Space puts the pen down and up, Delete clears.",
    }),
    make(
      "div",
      { class: "drawing" },
      make("div", { class: "board" }, board, cursor),
      make(
        "div",
        {},
        make("p", { class: "buttons" }, button("Clear", clear, { id: "clear" }),
          make("label", { for: "pen", text: "Pen" }), size, ...(grey ? [] : [pen])), // prettier-ignore
        make("p", { class: "buttons" }, make("label", { for: "file", text: "Image file" }), file),
        ...(data.size ? [make("p", {}, fit.label)] : []),
        make("p", {}, invert.label),
        ...(data.classes > 1 ? [make("p", {}, guess.label)] : []),
        make(
          "div",
          { class: "pair" },
          figure(input, "What the encoder gets"),
          figure(rebuilt, "What the decoder makes of it"),
        ),
      ),
    ),
    result,
    make(
      "div",
      { class: "plots" },
      figure(errors, "Reconstruction error: mean difference of a pixel. Bars: test images."),
      ...(data.kl ? [figure(totals, "KL divergence of the image, nats. Bars: test images.")] : []),
      figure(
        bars,
        data.kl
          ? "KL of each latent, nats, the highest of the test images first. Bars: your image; lines: mean of the test images."
          : "Code, in standard deviations from the mean of the test images.",
      ),
    ),
  );

  if (grey) pen.value = "#ffffff";
  let last = null; // where the pen is, on the board
  let place = [board.width / 2, board.height / 2]; // of the keyboard's pen
  let down = false;
  let drawn = false;

  function stroke(from, to) {
    context.strokeStyle = pen.value;
    context.lineWidth = Number(size.value);
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
    drawn = true;
    encode();
  }

  function clear() {
    // The ground is black, or light where images are inverted before they are encoded.
    context.fillStyle = "#000";
    context.fillRect(0, 0, board.width, board.height);
    drawn = false;
    down = false;
    board.dataset.pen = "up";
    result.textContent = "";
    panel.classList.remove("has-result");
    for (const canvas of [input, rebuilt])
      paint(canvas, new Float32Array(height * width), [height, width, 1]);
  }

  const at = (event) => {
    const box = board.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * board.width,
      ((event.clientY - box.top) / box.height) * board.height,
    ];
  };
  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    board.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(last, last);
  });
  board.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) {
      const next = at(part);
      stroke(last, next);
      last = next;
    }
  });
  for (const end of ["pointerup", "pointercancel"])
    board.addEventListener(end, () => (last = null));

  function showCursor() {
    const box = board.getBoundingClientRect();
    cursor.style.left = `${(place[0] / board.width) * box.width}px`;
    cursor.style.top = `${(place[1] / board.height) * box.height}px`;
    cursor.classList.toggle("down", down);
    board.dataset.pen = down ? "down" : "up";
  }
  board.addEventListener("focus", () => {
    cursor.hidden = !board.matches(":focus-visible");
    showCursor();
  });
  board.addEventListener("blur", () => (cursor.hidden = true));
  board.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (steps[event.key]) {
      const length = event.shiftKey ? 20 : 8;
      const limits = [board.width, board.height];
      const next = place.map((value, i) =>
        Math.min(limits[i], Math.max(0, value + length * steps[event.key][i])),
      );
      if (down) stroke(place, next);
      place = next;
    } else if (event.key === " ") {
      down = !down;
      if (down) stroke(place, place);
    } else if (event.key === "Delete" || event.key === "Backspace") clear();
    else return;
    event.preventDefault();
    cursor.hidden = false;
    showCursor();
  });

  async function take(chosen) {
    if (!chosen) return;
    try {
      const image = await createImageBitmap(chosen);
      clear();
      if (data.ground) {
        // What the import laid transparent pictures over.
        context.fillStyle = data.ground;
        context.fillRect(0, 0, board.width, board.height);
      }
      // The middle of it, as large as the board.
      const zoom = Math.max(board.width / image.width, board.height / image.height);
      const [w, h] = [image.width * zoom, image.height * zoom];
      context.imageSmoothingQuality = "high";
      context.drawImage(image, (board.width - w) / 2, (board.height - h) / 2, w, h);
      drawn = true;
      encode();
    } catch {
      result.textContent = `${chosen.name} cannot be read as an image.`;
    }
  }
  file.addEventListener("change", () => take(file.files[0]));
  for (const kind of ["dragenter", "dragover"]) {
    panel.addEventListener(kind, (event) => {
      event.preventDefault();
      panel.classList.add("over");
    });
  }
  // A file that is dropped beside the panel does not take the page's place.
  for (const kind of ["dragover", "drop"])
    window.addEventListener(kind, (event) => event.preventDefault());
  for (const kind of ["dragleave", "drop"])
    panel.addEventListener(kind, () => panel.classList.remove("over"));
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });

  /** The board as an image of the model's: (H, W, C) in [0, 1], by the mean over each pixel's square. */
  function seen() {
    const small = make("canvas");
    [small.width, small.height] = [width, height];
    const to = small.getContext("2d", { willReadFrequently: true });
    to.imageSmoothingQuality = "high";
    let source = board;
    if (invert.box.checked) {
      source = make("canvas");
      [source.width, source.height] = [board.width, board.height];
      const inverted = source.getContext("2d");
      const pixels = context.getImageData(0, 0, board.width, board.height);
      for (let i = 0; i < pixels.data.length; i++)
        if (i % 4 < 3) pixels.data[i] = 255 - pixels.data[i];
      inverted.putImageData(pixels, 0, 0);
    }
    to.fillRect(0, 0, width, height);
    const box = data.size && fit.box.checked && boxOf(source);
    if (box) {
      const longer = Math.max(box.width, box.height);
      const zoom = (data.size * Math.max(width, height)) / longer;
      // Its centre of mass in the middle, as far as it stays within the image.
      const keep = (middle, length, whole) =>
        Math.min(Math.max(whole / 2 - middle * zoom, Math.min(0, whole - length * zoom)),
          Math.max(0, whole - length * zoom)); // prettier-ignore
      const left = keep(box.centre[0] - box.left, box.width, width);
      const top = keep(box.centre[1] - box.top, box.height, height);
      shrink(to, source, [box.left, box.top, box.width, box.height],
        [left, top, box.width * zoom, box.height * zoom]); // prettier-ignore
    } else {
      shrink(to, source, [0, 0, board.width, board.height], [0, 0, width, height]);
    }
    const pixels = to.getImageData(0, 0, width, height).data;
    return Float32Array.from({ length: height * width * channels }, (_, i) => {
      const [pixel, channel] = [4 * Math.floor(i / channels), i % channels];
      if (!grey) return pixels[pixel + channel] / 255;
      return (0.299 * pixels[pixel] + 0.587 * pixels[pixel + 1] + 0.114 * pixels[pixel + 2]) / 255;
    });
  }

  let running = false;
  let again = false;

  /** Encode what is on the board; what is drawn meanwhile is encoded after it. */
  async function encode() {
    if (!drawn) return;
    if (running) {
      again = true;
      return;
    }
    running = true;
    do {
      again = false;
      await encodeOnce();
    } while (again);
    running = false;
  }

  async function encodeOnce() {
    const pixels = seen();
    paint(input, pixels, data.image);
    let candidates = [store.state.shares];
    if (data.classes > 1 && guess.box.checked) {
      candidates = data.names.map((_, label) => oneHot(label, data.classes));
    }
    let best = null;
    for (const shares of candidates) {
      const heads = await page.encode("drawn", 1, pixels, shares);
      const image = heads && (await page.decode("drawn", 1, heads.mean, shares));
      if (!image || !drawn) return;
      const error =
        pixels.reduce((sum, value, i) => sum + Math.abs(value - image[i]), 0) / pixels.length;
      if (!best || error < best.error) best = { ...heads, shares, image, error };
    }
    if (again) return; // what is drawn, or how it is to be encoded, has changed meanwhile
    paint(rebuilt, best.image, data.image);
    tell(best);
    // A class that was chosen meanwhile stays.
    page.show(best.mean, guess.box.checked ? best.shares : store.state.shares);
  }

  let told = null;

  function tell(best) {
    told = best;
    panel.classList.add("has-result");
    const { error, mean, logVariance, shares } = best;
    const share = (all, value) =>
      `higher than ${Math.round(100 * shareBelow(all, value))}\u202f% of the test images`;
    const parts = [
      `Reconstruction error ${error.toFixed(4)} a pixel, ${share(data.error, error)}.`,
    ];
    histogram(errors, data.error, error);
    errors.setAttribute("aria-label", parts[0]);
    const order = data.carried.map((_, i) => i).sort((a, b) => data.carried[b] - data.carried[a]);
    const first = order.slice(0, BARS);
    if (data.kl) {
      const kl = divergences(mean, logVariance);
      const total = kl.reduce((a, b) => a + b, 0);
      parts.push(`KL divergence ${shown(total)} nats, ${share(data.kl, total)}.`);
      histogram(totals, data.kl, total);
      totals.setAttribute("aria-label", parts[1]);
      columns(bars, first, first.map((i) => kl[i]), first.map((i) => data.carried[i])); // prettier-ignore
      bars.setAttribute(
        "aria-label",
        first.map((i) => `latent ${i}: ${shown(kl[i])} nats`).join(", "),
      );
    } else {
      const code = first.map((i) => (mean[i] - data.centre[i]) / data.sigma[i]);
      columns(bars, first, code, null);
      bars.setAttribute(
        "aria-label",
        first.map((n, i) => `latent ${n}: ${shown(code[i])}`).join(", "),
      );
    }
    if (data.classes > 1) {
      const label = shares.indexOf(1);
      const as = label < 0 ? "a mixture of classes" : `class ${data.names[label]}`;
      parts.unshift(`Encoded as ${as}.`);
    }
    if (shareBelow(data.error, error) === 1) {
      parts.push(
        "No test image is rebuilt as badly. Perhaps light and dark are exchanged: see “invert”.",
      );
    }
    result.textContent = parts.join(" ");
  }

  const redraw = () => told && drawn && tell(told);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(errors);
  clear();
}

/** Draw a part of a picture smaller. In halves, for a browser takes few pixels into account at once. */
function shrink(to, source, [x, y, w, h], [left, top, wide, tall]) {
  let part = make("canvas");
  [part.width, part.height] = [Math.max(1, Math.round(w)), Math.max(1, Math.round(h))];
  part.getContext("2d").drawImage(source, x, y, w, h, 0, 0, part.width, part.height);
  while (part.width > 2 * wide && part.height > 2 * tall && Math.min(part.width, part.height) > 3) {
    const half = make("canvas");
    [half.width, half.height] = [Math.ceil(part.width / 2), Math.ceil(part.height / 2)];
    half.getContext("2d").drawImage(part, 0, 0, half.width, half.height);
    part = half;
  }
  to.drawImage(part, 0, 0, part.width, part.height, left, top, wide, tall);
}

/** The box of what is drawn on a black ground, and its centre of mass; null where nothing is. */
function boxOf(canvas) {
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let [left, right, top, bottom] = [width, -1, height, -1];
  let [mass, x0, y0] = [0, 0, 0];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const value = Math.max(pixels[i], pixels[i + 1], pixels[i + 2]);
      if (value < EMPTY) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
      mass += value;
      x0 += value * x;
      y0 += value * y;
    }
  }
  if (right < 0) return null;
  const centre = [x0 / mass, y0 / mass];
  return { left, top, width: right - left + 1, height: bottom - top + 1, centre };
}

/** How some numbers are distributed, and where one is among them. */
function histogram(canvas, numbers, value) {
  const made = cleared(canvas);
  if (!made) return;
  const { context, width, height } = made;
  const sorted = Float32Array.from(numbers).sort();
  const most = Math.max(
    sorted[Math.floor(0.998 * (sorted.length - 1))],
    Math.min(value, 3 * sorted.at(-1)),
    1e-9,
  );
  const counts = new Array(BARS).fill(0);
  for (const number of numbers) counts[Math.min(BARS - 1, Math.floor((number / most) * BARS))] += 1;
  const top = Math.max(...counts);
  const floor = height - 16;
  context.fillStyle = colour("accent");
  counts.forEach((count, i) => {
    const tall = (count / top) * (floor - 4);
    context.fillRect((i * width) / BARS + 1, floor - tall, width / BARS - 2, tall);
  });
  context.fillStyle = colour("mark");
  const x = Math.min(width - 2, (Math.min(value, most) / most) * width);
  context.fillRect(x - 1.5, 0, 3, floor);
  context.fillStyle = colour("quiet");
  context.font = "12px system-ui, sans-serif";
  context.fillText("0", 1, height - 3);
  context.textAlign = "right";
  context.fillText(shown(most), width - 1, height - 3);
  context.textAlign = x > width / 2 ? "right" : "left";
  context.fillStyle = colour("mark");
  context.fillText(value > most ? "yours →" : "yours", x + (x > width / 2 ? -5 : 5), 12);
}

/** A bar for each latent, with a line where the test images are. */
function columns(canvas, latents, values, usual) {
  const made = cleared(canvas);
  if (!made) return;
  const { context, width, height } = made;
  const low = Math.min(0, ...values);
  const high = Math.max(...values, ...(usual ?? []), 1e-9, usual ? 0 : -low);
  const bottom = usual ? 0 : -high;
  const floor = height - 16;
  const y = (value) => floor - ((value - bottom) / (high - bottom)) * (floor - 4);
  const wide = width / latents.length;
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  values.forEach((value, i) => {
    context.fillStyle = colour("mark");
    context.fillRect(
      i * wide + 2,
      Math.min(y(0), y(value)),
      wide - 4,
      Math.max(1, Math.abs(y(value) - y(0))),
    );
    context.fillStyle = colour("ink");
    if (usual) context.fillRect(i * wide, y(usual[i]) - 1, wide, 2);
    context.fillStyle = colour("quiet");
    if (wide > 15 || i % 2 === 0) context.fillText(latents[i], (i + 0.5) * wide, height - 3);
  });
}
