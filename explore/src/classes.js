/** The class of a CVAE: one of them, or shares of several. */

import { byId, button, make } from "./dom.js";
import { oneHot } from "./state.js";

/** Set the classes up; nothing for a model without. */
export function classesView({ data, store }) {
  if (!data.classes) return;
  const place = byId("classes");
  const buttons = data.names.map((name, label) =>
    button(name, () => store.set({ shares: oneHot(label, data.classes) }), { class: "chip" }),
  );
  const parts = store.state.shares.slice(); // as the sliders have them; their shares sum to 1
  const sliders = data.names.map((name, label) => {
    const id = `share-${label}`;
    const slider = make("input", { type: "range", id, min: 0, max: 100, step: 1 });
    const output = make("output", { for: id });
    slider.addEventListener("input", () => {
      parts[label] = Number(slider.value) / 100;
      const sum = parts.reduce((a, b) => a + b, 0);
      // With every slider at 0 there is no mixture: the last one stays.
      if (sum === 0) slider.value = (parts[label] = 0.01) * 100;
      store.set({ shares: parts.map((part) => part / (sum || 0.01)), mixing: true });
    });
    const row = make(
      "div",
      { class: "share" },
      make("label", { for: id, text: name }),
      slider,
      output,
    );
    return { slider, output, row };
  });
  const mixture = make(
    "details",
    {},
    make("summary", { text: "Mix classes" }),
    ...sliders.map(({ row }) => row),
  );
  place.append(
    make("div", { role: "group", "aria-label": "Class", class: "chips" },
      make("span", { class: "quiet", text: "Class " }), ...buttons), // prettier-ignore
    mixture,
  );

  const update = ({ shares }, changed) => {
    if (!changed.has("shares")) return;
    const mixing = changed.has("mixing");
    shares.forEach((share, label) => {
      buttons[label].setAttribute("aria-pressed", share === 1);
      if (!mixing) {
        parts[label] = share;
        sliders[label].slider.value = 100 * share;
      }
      const percent = `${Math.round(100 * share)}\u202f%`;
      sliders[label].output.textContent = percent;
      sliders[label].slider.setAttribute("aria-valuetext", percent);
    });
  };
  store.subscribe(update);
  update(store.state, new Set(["shares"]));
}
