/** The page: reads its data, shows a code's image and keeps everything else in step with it. */

import { apart } from "./check.js";
import { bytesOf, unpacked } from "./codec.js";
import { classesView } from "./classes.js";
import { button, byId, make } from "./dom.js";
import { drawView } from "./draw.js";
import { engine, serve } from "./engine.js";
import { latentsView } from "./latents.js";
import { mapView } from "./map.js";
import { paint, palette, thumbnails } from "./paint.js";
import { samplesView } from "./samples.js";
import { Mixture, Space, between } from "./space.js";
import { fromHash, oneHot, store, toHash } from "./state.js";
import { wayView } from "./way.js";

const TABS = { latents: "Latents", samples: "Samples", between: "Between two", draw: "Draw" };
const LARGEST_ERROR = 4e-3; // of a pixel in [0, 1], against Keras
const LARGEST_CODE_ERROR = 0.03; // of a latent, in its standard deviations
const SAVED = 560; // pixels of the shorter side of a saved image at least
const NEW_LINK = 150; // milliseconds without a change before the address follows

/** Fill the page. */
async function start() {
  const root = document.documentElement;
  const failed = (why) => {
    root.dataset.check = "failed";
    const line = byId("check");
    line.className = "bad";
    line.textContent = `This page cannot run the model in this browser: ${why}`;
  };
  try {
    const data = JSON.parse(byId("data").textContent);
    document.title = byId("title").textContent = data.title;
    const run = engine(
      { encoder: data.encoder, decoder: data.decoder },
      byId("program").textContent,
      failed,
    );
    const page = await build(data, run);
    await check(page, failed);
  } catch (error) {
    failed(String(error));
    throw error;
  }
}

/** Everything on the page. Views are given `page`: the data, the state, and what they ask of each other. */
async function build(data, run) {
  const root = document.documentElement;
  const { latents, classes } = data;
  data.codes = await unpacked(data.codes);
  data.error = await unpacked(data.error);
  data.kl = data.kl && (await unpacked(data.kl));
  const space = new Space(data.codes, latents, data.plane);
  const fitted = await priorOf(data);
  const limits = { latents, classes, labels: data.names?.length ?? 0, tabs: Object.keys(TABS) };

  const first = firstTest(data);
  const second = firstTest(
    data,
    data.labels && (data.labels[first] + 1) % limits.labels,
    first + 1,
  );
  const sharesOf = (index) => (classes ? oneHot(data.labels[index], classes) : null);
  const initial = {
    code: space.code(first),
    shares: sharesOf(first),
    startCode: space.code(first),
    startShares: sharesOf(first),
    endCode: space.code(second),
    endShares: sharesOf(second),
    share: 0,
    arc: Boolean(data.kl),
    usualArc: Boolean(data.kl),
    follow: true,
    everyClass: classes > 1,
    only: new Set(),
    seed: 0,
    tab: "latents",
  };
  const linked = fromHash(location.hash, limits);
  const state = store({ ...initial, ...linked.changes });

  const inputs = (values, shares, name) =>
    classes ? { [name]: values, label: shares } : { [name]: values };
  const page = {
    data,
    space,
    store: state,
    fitted,
    /** What the map shades: the fitted prior, N(0, I) where that is the prior, nothing for an AE. */
    prior: fitted ?? (data.kl && !data.prior ? Mixture.normal(latents) : null),
    colours: palette(limits.labels),
    thumbnails: thumbnails(data.thumbnails, bytesOf),
    /** Pixels of a code; null where a newer request of the channel came before. */
    async decode(channel, priority, code, shares) {
      const outputs = await run.run(channel, priority, "decoder", inputs(code, shares, "latent"));
      return outputs && Object.values(outputs)[0];
    },
    /** Mean and log-variance of an image's code; of an AE the code alone. */
    async encode(channel, priority, pixels, shares) {
      const heads = await run.run(channel, priority, "encoder", inputs(pixels, shares, "image"));
      return heads && { mean: heads.mean ?? heads.code, logVariance: heads.log_var };
    },
    /** Show a code, of other shares of the classes where they are given. */
    show(code, shares = null) {
      state.set(classes && shares ? { code, shares } : { code });
    },
    /** Show the code of a test image. */
    showTest(index) {
      page.show(space.code(index), sharesOf(index));
    },
    nameOf(index) {
      return data.names && data.labels ? data.names[data.labels[index]] : `image ${index}`;
    },
    codeBetween(share) {
      const { startCode, endCode, arc } = state.state;
      return between(startCode, endCode, share, arc);
    },
    sharesBetween(share) {
      const { startShares, endShares } = state.state;
      return classes ? between(startShares, endShares, share) : null;
    },
  };

  byId("points").closest("main").hidden = false;
  const drawn = showNow(page);
  introduce(page);
  tabs(page);
  classesView(page);
  mapView(page);
  latentsView(page);
  samplesView(page);
  wayView(page);
  drawView(page);
  actions(page);
  links(page, limits, linked.problems);
  await drawn;
  state.set({ code: state.state.code });
  root.dataset.ready = "true";
  return page;
}

/** A test image to begin with, of a class where one is given: an ordinary one, by its error. */
function firstTest({ error, labels }, label = null, from = 0) {
  const median = Float32Array.from(error).sort()[error.length >> 1];
  const indices = Array.from(error, (_, i) => i);
  const wanted = (i) => label === null || labels[i] === label;
  const found = indices.find((i) => i >= from && wanted(i) && error[i] <= median);
  return found ?? indices.find(wanted) ?? Math.min(from, error.length - 1);
}

async function priorOf({ prior, latents }) {
  if (!prior || prior.unknown) return null;
  const [means, cholesky] = [await unpacked(prior.means), await unpacked(prior.cholesky)];
  return new Mixture(prior.weights, means, cholesky, latents);
}

/** The image of the code, drawn anew whenever code or class change. Resolves when the first is there. */
function showNow(page) {
  const { data, store, space } = page;
  const root = document.documentElement;
  const canvas = byId("picture");
  const nearest = byId("nearest");
  const thumbnail = make("canvas", { "aria-hidden": "true" });
  const name = make("span");
  nearest.append(make("span", { class: "quiet", text: "Nearest test image " }), thumbnail, name);
  let count = 0;
  async function draw() {
    const { code, shares } = store.state;
    const pixels = await page.decode("now", 0, code, shares);
    if (!pixels) return;
    paint(canvas, pixels, data.image);
    canvas.dataset.drawn = ++count;
    root.dataset.firstPicture ??= Math.round(performance.now());
    // The code of a CVAE has no class in it: of the class that is shown.
    const label = shares ? shares.indexOf(1) : -1;
    const alike = space.nearest(code, (i) => label < 0 || data.labels[i] === label);
    const index = alike < 0 ? space.nearest(code) : alike;
    page.thumbnails.draw(thumbnail, index);
    name.textContent = data.labels ? ` ${page.nameOf(index)}` : "";
    describe(index);
  }
  let timer = null;
  /** For those who do not see it, once it has rested. */
  function describe(index) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const { shares } = store.state;
      const label = shares ? shares.indexOf(1) : -1;
      const of = shares
        ? label < 0
          ? " of a mixture of classes"
          : ` of class ${data.names[label]}`
        : "";
      const near = data.labels ? `; the nearest test image is ${page.nameOf(index)}` : "";
      canvas.setAttribute("aria-label", `The decoded image${of}${near}`);
      byId("where").textContent = `Distance from the middle of the latent space: ${Math.hypot(
        ...Array.from(store.state.code, (z, i) => (z - data.centre[i]) / data.sigma[i]),
      ).toFixed(1)} standard deviations (${Math.sqrt(data.latents).toFixed(1)} is usual)`;
    }, 200);
  }
  store.subscribe((_state, changed) => {
    if (changed.has("code") || changed.has("shares")) draw();
  });
  return draw();
}

function introduce({ data }) {
  const images = data.labels ? data.labels.length : data.error.length;
  const numbers = `${data.latents} ${data.latents === 1 ? "number" : "numbers"}`;
  const kinds = {
    AE: "autoencoder",
    VAE: "variational autoencoder",
    CVAE: "conditional variational autoencoder",
  };
  const given = data.classes ? " and the class" : "";
  byId("about").textContent =
    `An ${kinds[data.kind] ?? data.kind}`.replace(/^An (?=[vc])/, "A ") +
    ` has learnt to write each image as a code of ${numbers}, its latents, and to draw the image from the code${given}. ` +
    `Both networks run here, in your browser; the map has ${images.toLocaleString("en")} images of ${data.dataset} that they were not trained on.`;
  const steps = [
    "Drag on the map: codes that are near each other are decoded to similar images.",
    "Move the first of the latents below it: one number changes, and one thing about the image.",
    data.classes
      ? "Choose another class: the same code, hence the same style, as another class."
      : "Under “Between two”, play the way from one image to another.",
    "Under “Draw”, draw something and see which code it gets.",
  ];
  byId("steps").append(...steps.map((text) => make("li", { text })));
}

/** Tabs as the ARIA practices have them: arrow keys move among them. */
function tabs({ store }) {
  const names = Object.keys(TABS);
  const buttons = names.map((name) =>
    make("button", {
      type: "button",
      role: "tab",
      id: `tab-${name}`,
      "aria-controls": `panel-${name}`,
      text: TABS[name],
      on: { click: () => store.set({ tab: name }) },
    }),
  );
  byId("tabs").append(...buttons);
  byId("tabs").addEventListener("keydown", (event) => {
    const at = names.indexOf(store.state.tab);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    const next = (to + names.length) % names.length;
    store.set({ tab: names[next] });
    buttons[next].focus();
    event.preventDefault();
  });
  const update = ({ tab }) => {
    names.forEach((name, i) => {
      buttons[i].setAttribute("aria-selected", name === tab);
      buttons[i].tabIndex = name === tab ? 0 : -1;
      byId(`panel-${name}`).hidden = name !== tab;
    });
  };
  store.subscribe((state, changed) => changed.has("tab") && update(state));
  update(store.state);
}

/** The buttons under the image. */
function actions(page) {
  const { data, space, store } = page;
  const done = byId("done");
  const random = () => {
    const all = Array.from({ length: space.count }, (_, i) => i).filter(page.shown);
    if (all.length) page.showTest(all[Math.floor(Math.random() * all.length)]);
  };
  const middle = () => page.show(Float32Array.from(data.centre));
  const save = async () => {
    const picture = byId("picture");
    const factor = Math.max(1, Math.ceil(SAVED / Math.min(picture.width, picture.height)));
    const large = make("canvas");
    [large.width, large.height] = [picture.width * factor, picture.height * factor];
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, large.width, large.height);
    const blob = await new Promise((resolve) => large.toBlob(resolve, "image/png"));
    const name = `${data.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}.png`;
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    done.textContent = `Saved as ${name}.`;
  };
  const copy = async () => {
    const address = `${location.href.split("#")[0]}#${toHash(store.state)}`;
    try {
      await navigator.clipboard.writeText(address);
      done.textContent = "The link to what is shown has been copied.";
    } catch {
      const field = make("input", { readonly: true, value: address, "aria-label": "Link" });
      done.replaceChildren("Copy this link: ", field);
      field.select();
    }
  };
  byId("actions").append(
    button("Random test image", random, { id: "random" }),
    button("Middle", middle, { id: "middle", title: "The code in the middle of the latent space" }),
    button("Download PNG", save, { id: "save" }),
    button("Copy link", copy, { id: "copy" }),
  );
}

/** The address follows the state, and the state an address that is typed or gone back to. */
function links({ store }, limits, problems) {
  const notice = byId("notice");
  const tell = (lines) => {
    notice.hidden = !lines.length;
    notice.textContent = lines.join(" ");
  };
  tell(problems);
  let timer = null;
  store.subscribe(() => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      history.replaceState(null, "", `#${toHash(store.state)}`);
    }, NEW_LINK);
  });
  window.addEventListener("hashchange", () => {
    const { changes, problems } = fromHash(location.hash, limits);
    tell(problems);
    store.set(changes);
  });
}

/** Compare with Keras, and say on the page how far apart they are. */
async function check(page, failed) {
  const { pixelError, codeError } = await apart(page);
  const root = document.documentElement;
  root.dataset.maxError = pixelError.toPrecision(3);
  root.dataset.maxCodeError = codeError.toPrecision(3);
  // (Written so that NaN fails.)
  if (!(pixelError <= LARGEST_ERROR && codeError <= LARGEST_CODE_ERROR)) {
    failed(
      `its results differ from Keras' by ${pixelError.toPrecision(2)} a pixel and ` +
        `${codeError.toPrecision(2)} standard deviations a latent.`,
    );
    return;
  }
  if (root.dataset.check === "failed") return;
  root.dataset.check = "ok";
  byId("check").textContent =
    `Checked against Keras: the largest difference of a pixel is ${pixelError.toPrecision(2)} of 1.`;
}

// The same program is the page's and, without a document, its worker's.
if (typeof document === "undefined") serve(self);
else start();
