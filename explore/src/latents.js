/** The latents as sliders, the one that carries most first, each over a strip of what it does. */

import { byId, button, make, shown } from "./dom.js";
import { strip } from "./paint.js";

const STOPS = [-3, -2, -1, 0, 1, 2, 3]; // in standard deviations
const REACH = 3.5; // of a slider, so that each stop is under the middle of its image
const FEW = 16; // latents shown at first
const QUIET = 90; // milliseconds without a change before the strips are drawn again

/** Set the sliders up. */
export function latentsView(page) {
  const { data, store } = page;
  const order = data.carried
    .map((value, latent) => [value, latent])
    .sort((a, b) => b[0] - a[0])
    .map(([, latent]) => latent);
  const most = Math.max(...data.carried, 1e-9);
  const unit = data.kl ? "KL" : "variance";
  const panel = byId("panel-latents");
  const list = make("div", { class: "latents" });
  const visible = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target);
      else visible.delete(target);
    }
    if (entries.some((entry) => entry.isIntersecting)) refresh();
  });
  const rows = [];

  function addRow(latent) {
    const [centre, sigma] = [data.centre[latent], data.sigma[latent]];
    const id = `latent-${latent}`;
    const slider = make("input", {
      type: "range",
      id,
      min: -REACH,
      max: REACH,
      step: "0.01",
      "aria-describedby": "latents-help",
    });
    const output = make("output", { for: id });
    const canvas = make("canvas", { "aria-hidden": "true", class: "strip" });
    const carries = make("span", {
      class: "carries",
      text: `${unit} ${shown(data.carried[latent])}`,
    });
    carries.style.setProperty("--share", data.carried[latent] / most);
    const element = make(
      "div",
      { class: "latent" },
      make("label", { for: id, text: `z${latent}` }),
      carries,
      output,
      canvas,
      slider,
    );
    const set = (sigmas) => {
      const code = store.state.code.slice();
      code[latent] = centre + sigmas * sigma;
      page.show(code);
    };
    slider.addEventListener("input", () => set(Number(slider.value)));
    const press = (event) => {
      const box = canvas.getBoundingClientRect();
      const sigmas = ((event.clientX - box.left) / box.width) * 2 * REACH - REACH;
      set(Math.min(REACH, Math.max(-REACH, sigmas)));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      press(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && press(event));
    list.append(element);
    const put = strip(canvas, STOPS.length, data.image);
    const row = { latent, element, slider, output, canvas, put, centre, sigma, version: -1 };
    rows.push(row);
    observer.observe(element);
    update(row);
  }

  function update({ latent, slider, output, centre, sigma }) {
    const value = store.state.code[latent];
    slider.value = (value - centre) / sigma;
    output.textContent = shown(value);
    slider.setAttribute("aria-valuetext", `${shown(value)}, latent ${latent}`);
  }

  let version = 0;
  let timer = null;

  /** Draw the strips that are in view and out of date, once the code has rested. */
  function refresh() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (store.state.tab !== "latents") return;
      for (const row of rows) {
        if (visible.has(row.element) && row.version !== version) fill(row, version);
      }
    }, QUIET);
  }

  async function fill(row, current) {
    row.version = current;
    const { code, shares } = store.state;
    for (const [place, sigmas] of STOPS.entries()) {
      const moved = code.slice();
      moved[row.latent] = row.centre + sigmas * row.sigma;
      const pixels = await page.decode(`strip-${row.latent}`, 3, moved, shares);
      if (!pixels || row.version !== current) return;
      row.put(place, pixels);
    }
    row.canvas.dataset.version = current;
  }

  store.subscribe((_state, changed) => {
    if (changed.has("code")) rows.forEach(update);
    if (changed.has("code") || changed.has("shares")) version += 1;
    if (["code", "shares", "tab"].some((name) => changed.has(name))) refresh();
  });

  const sigma = data.kl ? "standard deviations of the prior" : "standard deviations of the codes";
  const which = data.kl
    ? "The bar is the KL divergence: how much a latent tells of an image, in nats. The one that tells most is first. " +
      "One near 0 is not in use: moving it changes nothing."
    : "The latent that varies most between images is first.";
  panel.append(
    make("p", {
      id: "latents-help",
      class: "quiet",
      text:
        `A latent is one number of the code. Move one and watch what it changes; the others stay. ` +
        `Each strip shows the image for −3 to 3 ${sigma}. ${which}`,
    }),
    list,
  );
  order.slice(0, FEW).forEach(addRow);
  if (order.length > FEW) {
    const more = button(`Show all ${order.length} latents`, () => {
      more.remove();
      order.slice(FEW).forEach(addRow);
    });
    panel.append(more);
  }
}
