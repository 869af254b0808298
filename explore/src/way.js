/** From one pinned code to another, played and scrubbed. */

import { byId, button, checkbox, make } from "./dom.js";
import { paint, strip } from "./paint.js";

const STEPS = 9; // images in the strip
const SECONDS = 3; // from one end to the other

/** Set the interpolation up. */
export function wayView(page) {
  const { data, store } = page;
  const panel = byId("panel-between");
  const pin = (name, codeKey, sharesKey) => {
    const canvas = make("canvas", { class: "pin", role: "img", "aria-label": `Image at ${name}` });
    const set = button(`Pin the code shown as ${name}`, () =>
      store.set({
        [codeKey]: store.state.code.slice(),
        [sharesKey]: store.state.shares?.slice() ?? null,
      }),
    );
    const go = button(`Go to ${name}`, () =>
      store.set({ share: name === "A" ? 0 : 1, travelled: true }),
    );
    const element = make("div", { class: "pinned" }, make("b", { text: name }), canvas, set, go);
    return { canvas, element, codeKey, sharesKey };
  };
  const pins = [pin("A", "startCode", "startShares"), pin("B", "endCode", "endShares")];
  const slider = make("input", { type: "range", id: "way", min: 0, max: 1, step: "0.005" });
  const output = make("output", { for: "way" });
  const play = button("Play", () => (timer === null ? start() : stop()), { id: "play" });
  const { box, label } = checkbox("on an arc", store.state.arc, (arc) => store.set({ arc }), {
    id: "arc",
  });
  const canvas = make("canvas", { class: "sheet", role: "img", id: "way-strip" });
  canvas.setAttribute("aria-label", `${STEPS} images on the way from A to B`);
  panel.append(
    make("p", {
      class: "quiet",
      text:
        "Pin two codes, then play or scrub the way between them. Every code on it is decoded like any other. " +
        "An arc keeps the distance from the middle of the latent space, a line crosses nearer to it.",
    }),
    make("div", { class: "pins" }, ...pins.map(({ element }) => element)),
    make(
      "p",
      { class: "buttons" },
      play,
      make("label", { for: "way", text: "From A to B" }),
      slider,
      output,
      label,
    ),
    canvas,
  );

  let timer = null;
  let direction = 1;

  function start() {
    let before = performance.now();
    play.textContent = "Pause";
    if (store.state.share >= 1) direction = -1;
    if (store.state.share <= 0) direction = 1;
    const step = (now) => {
      let share = store.state.share + (direction * (now - before)) / 1000 / SECONDS;
      before = now;
      if (share >= 1 || share <= 0) {
        direction = -direction;
        share = Math.min(1, Math.max(0, share));
      }
      store.set({ share, travelled: true });
      timer = requestAnimationFrame(step);
    };
    timer = requestAnimationFrame(step);
  }

  function stop() {
    cancelAnimationFrame(timer);
    timer = null;
    play.textContent = "Play";
  }

  slider.addEventListener("input", () => {
    stop();
    store.set({ share: Number(slider.value), travelled: true });
  });
  canvas.addEventListener("click", (event) => {
    const rect = canvas.getBoundingClientRect();
    const place = Math.floor(((event.clientX - rect.left) / rect.width) * STEPS);
    store.set({ share: Math.min(1, Math.max(0, place / (STEPS - 1))), travelled: true });
  });

  function update({ share, arc }) {
    slider.value = share;
    output.textContent = `${Math.round(100 * share)}\u202f%`;
    slider.setAttribute("aria-valuetext", output.textContent);
    box.checked = arc;
  }

  let version = 0;
  async function refresh() {
    if (store.state.tab !== "between") return stop();
    const current = ++version;
    for (const { canvas, codeKey, sharesKey } of pins) {
      const pixels = await page.decode(
        `pin-${codeKey}`,
        2,
        store.state[codeKey],
        store.state[sharesKey],
      );
      if (!pixels || version !== current) return;
      paint(canvas, pixels, data.image);
    }
    const put = strip(canvas, STEPS, data.image);
    for (let i = 0; i < STEPS; i++) {
      const share = i / (STEPS - 1);
      const pixels = await page.decode(
        "way",
        2,
        page.codeBetween(share),
        page.sharesBetween(share),
      );
      if (!pixels || version !== current) return;
      put(i, pixels);
    }
    panel.dataset.drawn = current;
  }

  const PINNED = ["startCode", "endCode", "startShares", "endShares", "arc", "tab"];
  store.subscribe((state, changed) => {
    if (changed.has("share") || changed.has("arc")) update(state);
    // (A link that is opened brings a share and a code of its own.)
    if (changed.has("travelled"))
      page.show(page.codeBetween(state.share), page.sharesBetween(state.share));
    if (PINNED.some((name) => changed.has(name))) refresh();
  });
  update(store.state);
  refresh();
}
