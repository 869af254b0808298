/** Elements of the page. Every text becomes a text node: nothing here reads markup. */

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 *
 * @param properties - attributes; `on` has listeners by event, `text` the text, `data` data attributes.
 */
export function make(tag, { on = {}, text, data = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  Object.assign(element.dataset, data);
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

export function button(text, pressed, attributes = {}) {
  return make("button", { type: "button", text, ...attributes, on: { click: pressed } });
}

/** A checkbox with its label. */
export function checkbox(text, checked, changed, attributes = {}) {
  const box = make("input", { type: "checkbox", ...attributes });
  box.checked = checked;
  box.addEventListener("change", () => changed(box.checked));
  const label = make("label", {}, box, ` ${text}`);
  return { box, label };
}

/** A number for people: three digits. */
export function shown(value) {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits).replace("-", "−");
}

/** The value of a colour of style.css, by its name without the dashes. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A canvas' context, with one unit a pixel of the page and the canvas cleared; null while it is hidden. */
export function cleared(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}
