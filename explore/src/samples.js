/** Samples of the fitted prior, and of N(0, I) beside them. */

import { byId, button, checkbox, make } from "./dom.js";
import { strip } from "./paint.js";
import { uniforms } from "./random.js";
import { Mixture } from "./space.js";
import { oneHot } from "./state.js";

const NUMBER = 40;
const COLUMNS = 10;

/** Set the samples up. */
export function samplesView(page) {
  const { data, store } = page;
  const panel = byId("panel-samples");
  if (!data.kl) {
    const text = "An autoencoder has no prior, so there is nothing to draw samples from.";
    panel.append(make("p", { text }));
    return;
  }
  const normal = Mixture.normal(data.latents);
  const sheets = [
    [
      "The fitted prior",
      "a mixture of Gaussians fitted to the codes of the training images",
      page.fitted,
    ],
    ["N(0, I)", "each latent drawn from a plain bell curve", normal],
  ]
    .filter(([, , mixture]) => mixture)
    .map(([title, what, mixture], index) => {
      const canvas = make("canvas", { class: "sheet", role: "img", id: `samples-${index}` });
      const choose = make("div", { class: "buttons" });
      return { title, what, mixture, canvas, choose, codes: [] };
    });

  const seed = make("input", { type: "number", id: "seed", min: 0, max: 4294967295, step: 1 });
  seed.value = store.state.seed;
  seed.required = true;
  seed.addEventListener("change", () => {
    if (!seed.reportValidity()) return;
    const value = Number(seed.value);
    const fits = seed.value !== "" && Number.isInteger(value) && value >= 0 && value < 2 ** 32;
    if (fits) store.set({ seed: value });
    else seed.value = store.state.seed;
  });
  const another = button("Next seed", () => store.set({ seed: (store.state.seed + 1) % 2 ** 32 }));
  const line = make(
    "p",
    { class: "buttons" },
    make("label", { for: "seed", text: "Seed" }),
    seed,
    another,
  );
  if (data.classes > 1) {
    const { box, label } = checkbox(
      "every class in turn",
      store.state.everyClass,
      (everyClass) => store.set({ everyClass }),
      { id: "every-class" },
    );
    store.subscribe(({ everyClass }) => (box.checked = everyClass));
    line.append(label);
  }
  const note = data.prior?.unknown
    ? `This model's own prior, a ${data.prior.unknown}, cannot be drawn from on this page. `
    : page.fitted
      ? "The fitted prior draws codes from where those of images lie. N(0, I) also draws some where none lies: they decode to broken images. "
      : "This model has no fitted prior. ";
  panel.append(
    make("p", {
      class: "quiet",
      text: `${note}Press a sample to make its code the one that is shown. (The seeds are the page's own: kae sample draws others.)`,
    }),
    line,
    make(
      "div",
      { class: "sheets" },
      ...sheets.map(({ title, what, canvas, choose }) =>
        make(
          "figure",
          {},
          make("figcaption", {}, make("b", { text: title }), `: ${what}`),
          canvas,
          choose,
        ),
      ),
    ),
  );

  sheets.forEach((sheet) => {
    sheet.canvas.setAttribute("aria-label", `${NUMBER} samples of ${sheet.title}`);
    sheet.canvas.addEventListener("click", (event) => {
      const box = sheet.canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * COLUMNS);
      const row = Math.floor(((event.clientY - box.top) / box.height) * (NUMBER / COLUMNS));
      take(sheet, row * COLUMNS + column);
    });
    const which = make("input", { type: "number", min: 1, max: NUMBER, value: 1, step: 1 });
    const id = `${sheet.canvas.id}-which`;
    which.id = id;
    which.required = true;
    const show = () => which.reportValidity() && take(sheet, Number(which.value) - 1);
    which.addEventListener("keydown", (event) => event.key === "Enter" && show());
    sheet.choose.append(make("label", { for: id, text: "Sample" }), which, button("Show", show));
  });

  function take(sheet, index) {
    if (sheet.codes[index]) page.show(...sheet.codes[index]);
  }

  let version = 0;
  async function refresh() {
    if (store.state.tab !== "samples") return;
    const current = ++version;
    await Promise.all(sheets.map((sheet) => fill(sheet, current)));
    if (version === current) panel.dataset.drawn = current;
  }

  async function fill(sheet, current) {
    const uniform = uniforms(store.state.seed);
    const { shares, everyClass } = store.state;
    sheet.codes = Array.from({ length: NUMBER }, (_, i) => {
      if (!data.classes) return [sheet.mixture.draw(uniform), null];
      if (everyClass) {
        return [
          sheet.mixture.draw(uniform, i % data.classes),
          oneHot(i % data.classes, data.classes),
        ];
      }
      // Of a mixture of classes: a class by its share draws the code, the mixture decodes it.
      let label = shares.findLastIndex((share) => share > 0);
      let threshold = uniform();
      for (let y = 0; y < shares.length; y++) {
        threshold -= shares[y];
        if (threshold < 0) {
          label = y;
          break;
        }
      }
      return [sheet.mixture.draw(uniform, label), shares];
    });
    const put = strip(sheet.canvas, NUMBER, data.image, COLUMNS);
    for (const [i, [code, own]] of sheet.codes.entries()) {
      const pixels = await page.decode(sheet.canvas.id, 2, code, own);
      if (!pixels || version !== current) return;
      put(i, pixels);
    }
  }

  store.subscribe((state, changed) => {
    if (changed.has("seed")) seed.value = state.seed;
    const ofClass = changed.has("shares") && data.classes && !state.everyClass;
    if (["seed", "tab", "everyClass"].some((name) => changed.has(name)) || ofClass) refresh();
  });
  refresh();
}
