/** The map: codes of test images, the prior's density behind, and the code that is shown. */

import { byId, button, checkbox, cleared, colour, make } from "./dom.js";

const CLOSE = 9; // pixels from a point within which a press means it
const GRID = [96, 72]; // cells of the density
const MARGIN = 0.06;

/** Set the map up. */
export function mapView(page) {
  const { data, space, store } = page;
  const canvas = byId("points");
  const hover = byId("hover");
  const flat = data.latents === 1;
  // One latent is a line: the points are spread over the other direction, to tell them apart.
  const height = (index) => (flat ? ((index * 0.618034) % 1) * 2 - 1 : space.points[2 * index + 1]);
  const bounds = boundsOf(space, height);
  const densities = new Map();
  let view = null;
  let ground = null; // what does not change while one drags
  let drag = null;

  const shown = (index) => {
    const { only } = store.state;
    return !only.size || (data.labels !== null && only.has(data.labels[index]));
  };
  page.shown = shown;

  const toPage = ([x, y]) => [
    view.left + (x - bounds.left) * view.scale,
    view.top + (bounds.top - y) * view.scale,
  ];
  const fromPage = ([x, y]) => [
    bounds.left + (x - view.left) / view.scale,
    bounds.top - (y - view.top) / view.scale,
  ];

  function density(label) {
    if (!densities.has(label)) {
      densities.set(label, page.prior.density(space, label, view.cells, ...GRID));
    }
    return densities.get(label);
  }

  /** The prior's density as a small picture, stretched over the map. */
  function drawDensity(context, width, tall) {
    if (!page.prior || flat) return;
    const shares = page.prior.weights.length > 1 ? Array.from(store.state.shares) : [1];
    const total = new Float32Array(GRID[0] * GRID[1]);
    shares.forEach((share, label) => {
      if (share > 0.001) density(label).forEach((value, i) => (total[i] += share * value));
    });
    const most = total.reduce((a, b) => Math.max(a, b), 1e-12);
    const image = new ImageData(...GRID);
    const [red, green, blue] = colour("density").split(" ").map(Number);
    total.forEach((value, i) => {
      image.data.set([red, green, blue, Math.round(150 * Math.sqrt(value / most))], 4 * i);
    });
    const small = make("canvas");
    [small.width, small.height] = GRID;
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, width, tall);
  }

  function drawGround() {
    const made = cleared(canvas);
    if (!made) return false;
    const { context, width, height: tall } = made;
    const scale = Math.min(
      width / (bounds.right - bounds.left),
      tall / (bounds.top - bounds.bottom),
    );
    const left = (width - (bounds.right - bounds.left) * scale) / 2;
    const top = (tall - (bounds.top - bounds.bottom) * scale) / 2;
    if (view?.width !== width || view?.tall !== tall) densities.clear();
    view = { scale, left, top, width, tall };
    const [first, last] = [fromPage([0, 0]), fromPage([width, tall])];
    view.cells = { left: first[0], right: last[0], top: first[1], bottom: last[1] };
    drawDensity(context, width, tall);
    drawAxes(context, width, tall);
    for (const visible of [false, true]) {
      for (let i = 0; i < space.count; i++) {
        if (shown(i) !== visible) continue;
        const [x, y] = toPage([space.points[2 * i], height(i)]);
        context.globalAlpha = visible ? 0.75 : 0.1;
        context.fillStyle = data.labels ? page.colours[data.labels[i]] : colour("accent");
        context.beginPath();
        context.arc(x, y, 2.4, 0, 7);
        context.fill();
      }
    }
    ground = make("canvas");
    [ground.width, ground.height] = [canvas.width, canvas.height];
    ground.getContext("2d").drawImage(canvas, 0, 0);
    return true;
  }

  function drawAxes(context, width, tall) {
    context.globalAlpha = 1;
    context.fillStyle = context.strokeStyle = colour("quiet");
    context.font = "12px system-ui, sans-serif";
    const names = flat
      ? ["latent 0", ""]
      : data.latents === 2
        ? ["latent 0", "latent 1"]
        : ["principal direction 1", "principal direction 2"];
    context.textAlign = "right";
    context.fillText(names[0] && `${names[0]} →`, width - 6, tall - 6);
    context.save();
    context.translate(14, 6);
    context.rotate(-Math.PI / 2);
    context.fillText(names[1] && `${names[1]} →`, 0, 0);
    context.restore();
  }

  /** The ground again, and on it the pins, the way between them, and the code. */
  function draw() {
    if (!ground && !drawGround()) return;
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.clearRect(0, 0, view.width, view.tall);
    context.drawImage(ground, 0, 0, view.width, view.tall);
    const { startCode, endCode, code, tab } = store.state;
    const place = (z) => toPage(flat ? [space.project(z)[0], 0] : space.project(z));
    const ink = colour("ink");
    if (tab === "between") {
      context.strokeStyle = ink;
      context.setLineDash([4, 4]);
      context.beginPath();
      for (let i = 0; i <= 24; i++) context.lineTo(...place(page.codeBetween(i / 24)));
      context.stroke();
      context.setLineDash([]);
      for (const [name, pin] of [
        ["A", startCode],
        ["B", endCode],
      ]) {
        const [x, y] = place(pin);
        context.fillStyle = colour("paper");
        context.beginPath();
        context.arc(x, y, 9, 0, 7);
        context.fill();
        context.stroke();
        context.fillStyle = ink;
        context.textAlign = "center";
        context.font = "bold 12px system-ui, sans-serif";
        context.fillText(name, x, y + 4);
      }
    }
    const [x, y] = place(code);
    for (const [radius, width, style] of [
      [8, 5, colour("paper")],
      [8, 2.5, ink],
    ]) {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.moveTo(x - 4, y);
      context.lineTo(x + 4, y);
      context.moveTo(x, y - 4);
      context.lineTo(x, y + 4);
      context.stroke();
    }
  }

  function closest([x, y]) {
    let [best, least] = [-1, CLOSE * CLOSE];
    for (let i = 0; i < space.count; i++) {
      if (!shown(i)) continue;
      const [px, py] = toPage([space.points[2 * i], height(i)]);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  function goTo(place) {
    const free = data.latents > 2 && store.state.follow;
    page.show(free ? space.typical(place, shown) : space.moved(store.state.code, place));
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !view) return;
    const start = at(event);
    drag = { start, moved: false, index: closest(start) };
    canvas.setPointerCapture(event.pointerId);
    hover.hidden = true;
    // A dot is taken, with its class, when it is let go: a drag that starts on one keeps the class.
    if (drag.index < 0) goTo(fromPage(start));
  });
  canvas.addEventListener("pointermove", (event) => {
    const place = at(event);
    if (drag) {
      drag.moved ||= Math.hypot(place[0] - drag.start[0], place[1] - drag.start[1]) > 3;
      if (drag.moved) goTo(fromPage(place));
    } else if (view && event.pointerType !== "touch") pointAt(closest(place), place);
  });
  canvas.addEventListener("pointerup", () => {
    if (drag && !drag.moved && drag.index >= 0) page.showTest(drag.index);
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => (hover.hidden = true));

  function pointAt(index, [x, y]) {
    hover.hidden = index < 0;
    if (index < 0) return;
    page.thumbnails.draw(hover.querySelector("canvas"), index);
    hover.querySelector("span").textContent = page.nameOf(index);
    hover.style.left = `${Math.min(x + 12, view.width - 90)}px`;
    hover.style.top = `${Math.max(y - 84, 4)}px`;
  }

  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const step = steps[event.key];
    if (step) {
      const length = ((bounds.right - bounds.left) / 100) * (event.shiftKey ? 5 : 1);
      const [x, y] = space.project(store.state.code);
      const keep = (value, low, high) => Math.min(high, Math.max(low, value));
      goTo([
        keep(x + step[0] * length, bounds.left, bounds.right),
        keep(y + step[1] * length, bounds.bottom, bounds.top),
      ]);
    } else if (event.key === "Enter") {
      const index = space.nearest(store.state.code, shown);
      if (index >= 0) page.showTest(index);
    } else return;
    event.preventDefault();
  });

  store.subscribe((_state, changed) => {
    const whole = changed.has("only") || (changed.has("shares") && page.prior?.weights.length > 1);
    if (whole) ground = null;
    draw();
  });
  const again = () => {
    ground = null;
    draw();
  };
  new ResizeObserver(again).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  const rest = data.latents - 2;
  const what = flat
    ? "There is one latent: it runs from left to right. "
    : data.latents === 2
      ? "The two latents are the two directions of the map. "
      : `Of ${data.latents} latents it shows the two directions in which the codes vary most` +
        ` (${Math.round(data.plane.share * 100)}\u202f% of their variance). `;
  const of = page.prior?.weights.length > 1 ? "prior of the class" : "prior";
  const behind =
    page.prior && !flat ? `The darker the ground, the more images lie there (the ${of}). ` : "";
  const mixed =
    data.classes > 1
      ? "Colours mix because the class is given beside the code, which holds the style. "
      : "";
  byId("map-help").textContent =
    `Each dot is a test image. Press one to see it decoded; drag anywhere to move. ${what}${behind}${mixed}` +
    "With the keyboard: arrow keys move (with Shift further), Enter takes the nearest test image.";
  if (data.latents > 2) {
    const { box, label } = checkbox(
      "Stay near test images while dragging: " +
        `the other ${rest} ${rest === 1 ? "direction follows" : "directions follow"} those nearby`,
      store.state.follow,
      (follow) => store.set({ follow }),
      { id: "follow" },
    );
    store.subscribe(({ follow }) => (box.checked = follow));
    byId("follow-line").append(label);
  }
  legend(page);
}

/** The classes as buttons that filter the map: those pressed are shown; with none pressed, all. */
function legend({ data, store, colours }) {
  if (!data.names || !data.labels) return;
  const present = new Set(data.labels);
  const buttons = data.names.map((name, label) => {
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colours[label];
    const pressed = () => {
      const only = new Set(store.state.only);
      if (!only.delete(label)) only.add(label);
      store.set({ only });
    };
    const made = make(
      "button",
      { type: "button", class: "chip", on: { click: pressed }, disabled: !present.has(label) },
      swatch,
      name,
    );
    return made;
  });
  const all = button("all", () => store.set({ only: new Set() }), { class: "chip" });
  byId("legend").append(make("span", { class: "quiet", text: "Show only " }), ...buttons, all);
  const update = ({ only }) => {
    buttons.forEach((made, label) => made.setAttribute("aria-pressed", only.has(label)));
    all.setAttribute("aria-pressed", only.size === 0);
  };
  store.subscribe(update);
  update(store.state);
}

/** The part of the plane that the map shows: all codes but the outermost. */
function boundsOf(space, height) {
  const range = (values) => {
    const sorted = Float32Array.from(values).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    const [low, high] = [at(0.002), at(0.998)];
    const margin = MARGIN * (high - low) || 1;
    return [low - margin, high + margin];
  };
  const indices = Array.from({ length: space.count }, (_, i) => i);
  const [left, right] = range(indices.map((i) => space.points[2 * i]));
  const [bottom, top] = range(indices.map(height));
  return { left, right, bottom, top };
}
