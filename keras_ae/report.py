"""A report on a model: one HTML page that needs no other file and no internet."""

import base64
import html
import io
import json

import numpy as np

from keras_ae import checkpoints, evaluation, latents, pictures
from keras_ae.errors import UserError, printable
from keras_ae.inference import in_memory
from keras_ae.priors import StandardNormal

SHOWN = 20  # test images shown with their reconstructions
PLOTTED = 2_000  # most codes in a plot of codes
MEASURED = 10_000  # most test images used to compute the figures

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc }
img, svg { max-width: 100%; height: auto } figure { margin: 1rem 0 }
figcaption, nav { color: #555 } table { border-collapse: collapse }
td { padding: .15rem 1.5rem .15rem 0; vertical-align: top } td.n { text-align: right }
"""


def report(checkpoint, model, test, seed=0, figures=None, progress=lambda line: None, explore=None):
    """Make the report on a model.

    Args:
        checkpoint: its `checkpoints.Checkpoint`; settings, history and pictures of epochs are in its folder.
        model: the loaded model.
        test: test images, `keras_ae.data.ImageData`.
        seed: of all random draws.
        figures: the result of `evaluation.evaluate`, shown in full. By default only the figures that need
            nothing but test images are measured.
        progress: called with one line whenever there is something to report.
        explore: the address of a page of `keras_ae.explore` to link to, or None.

    Returns:
        The HTML, a string.

    Raises:
        UserError: matplotlib is not installed, or the test images are too few to plot.
    """
    if len(test.images) < (fewest := latents.FEWEST):
        raise UserError(
            f"A report needs {fewest} test images or more; {test.name} has {len(test.images)}."
        )
    folder = checkpoint.path.parent
    kind = type(model).__name__
    conditional = bool(model.num_classes)
    inputs = model.inputs_of(test)
    most = in_memory(test.images.shape[1:], MEASURED)
    first = _first(inputs, min(PLOTTED, most))
    labels = None if test.labels is None else test.labels[: min(PLOTTED, most)]
    names = None if labels is None else [test.class_names[y] for y in labels[:SHOWN]]
    sections = []

    def section(title, *parts):
        sections.append((title, "\n".join(parts)))

    progress("measuring …")
    settings = checkpoint.described or {"latent_dim": model.latent_dim, "backbone": model.backbone}
    environment = checkpoint.run.get("environment", {})
    if "dataset" in settings:  # its name, not its path, because users send the page to others
        settings = {**settings, "dataset": checkpoints.dataset_name(settings["dataset"])}
    about = {**settings, **{f"made by {k}": v for k, v in environment.get("versions", {}).items()}}
    measured = figures or _measured(model, _first(inputs, most), seed)
    section("Figures", f"<p>Of test images of {_text(test.name)}.</p>", _table(measured))
    section("Settings", _table({k: _setting(v) for k, v in about.items()}))

    history = checkpoint.history()
    if any("loss" in row for row in history):
        drawn = pictures.curves({str(folder): history})
        section("Training", _plot(drawn, "Dashed: training images; full lines: test images."))
    frames = checkpoint.epochs()
    if frames:
        section("Epochs", _animation(frames))

    progress("reconstructing …")
    rebuilt = model.reconstruct(_first(inputs, SHOWN))
    sheet = pictures.pairs(test.images[:SHOWN], rebuilt, names=names)
    section("Reconstructions", _picture(sheet, "Test images over their reconstructions."))

    codes = model.encode(first)
    if hasattr(model, "prior"):
        progress("drawing …")
        if conditional:
            classes = np.arange(model.num_classes).repeat(10)
            sample = model.sample(len(classes), classes, seed)
            sheet = pictures.class_rows(sample, classes, model.names)
        else:
            sheet = pictures.grid(model.sample(100, seed=seed), 10)
        fitted = type(model.prior) is not StandardNormal
        drawn = "the fitted prior" if fitted else "N(0, I), as no prior was fitted"
        section("Samples", _picture(sheet, f"Drawn from {drawn}: none is a training image."))

    if conditional:
        rows = [latents.manifold(model, 1, 15, y, seed=seed) for y in range(model.num_classes)]
        rows_of = np.arange(model.num_classes).repeat(15)
        sheet = pictures.class_rows(np.concatenate(rows), rows_of, model.names)
        caption = "Each class along the direction in which its prior is widest."
    else:
        across = None if hasattr(model, "prior") else codes
        sheet = pictures.grid(latents.manifold(model, codes=across, seed=seed), 15)
        caption = "Across the latent space, in steps of equal share of "
        caption += "the codes of test images." if across is not None else "the prior."
    section("Manifold", _picture(sheet, caption))

    legs = [
        latents.interpolate(
            model, codes[i], codes[i + 1], 12, labels[[i, i + 1]] if conditional else None
        )
        for i in range(min(6, len(codes) - 1))
    ]
    sheet = pictures.grid(np.concatenate(legs), 12)
    section("Interpolation", _picture(sheet, "From each test image to the next."))

    order, carried = latents.latent_order(model, first)
    top = order[:10]
    label = int(labels[0]) if conditional else None
    moved = latents.traversals(model, codes[0], top, codes, 11, label)
    carries = "KL in nats" if hasattr(model, "posterior") else "variance"
    sheet = pictures.class_rows(
        moved, np.arange(len(top)).repeat(11), [f"z{i}  {v:.2f}" for i, v in zip(top, carried)]
    )
    bars = pictures.bars(carried, order, ("latent", carries))
    section(
        "Latents",
        _picture(sheet, f"The first test image as one latent is moved. Beside it: its {carries}."),
        _plot(bars, f"What each latent carries: {carries}."),
    )

    plots = []
    for method in ("pca", "tsne"):
        progress(f"plotting codes by {method} …")
        points, axes = latents.embed(codes, method, seed)
        plots.append(_plot(pictures.scatter(points, labels, test.class_names, axes=axes)))
    section("Codes", f"<p>Of {len(codes):,} test images.</p>", *plots)

    title = f"{kind} of {_text(test.name)}"
    links = " · ".join(f'<a href="#{t.lower()}">{t}</a>' for t, _ in sections)
    body = "\n".join(f'<h2 id="{t.lower()}">{t}</h2>\n{content}' for t, content in sections)
    play = (
        f'<a href="{_text(explore)}">Play with this model.</a>'
        if explore
        else "<code>kae explore</code> writes a page in which to play with this model."
    )
    whence = "" if checkpoint.origin == "path" else f" ({_text(checkpoint.origin)})"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{_text(checkpoint.name)}{whence}, seed {seed}. {play}</p>\n"
        f"<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _first(inputs, n):
    return tuple(part[:n] for part in inputs) if isinstance(inputs, tuple) else inputs[:n]


def _measured(model, inputs, seed):
    """The figures that need only test images."""
    images = inputs[0] if model.num_classes else inputs
    error = evaluation.reconstruction_error(images, model.reconstruct(inputs))
    figures = {
        "test images": len(images),
        "L1 of reconstructions, mean per pixel of [0, 1]": error["reconstruction_l1"],
        "MSE of reconstructions, mean per pixel of [0, 1]": error["reconstruction_mse"],
    }
    if hasattr(model, "posterior"):
        mean, log_var = model.posterior(inputs)
        figures["KL from N(0, I), nats per image"] = float(
            evaluation.kl_per_latent(mean, log_var).sum()
        )
        figures["active latents"] = f"{evaluation.active_units(mean)} of {model.latent_dim}"
    return figures


def _text(value):
    return html.escape(printable(value))


def _setting(value):
    """A setting as text: numbers as the user gave them, and a dash for None."""
    return "–" if value is None else str(value)


def _table(values):
    rows = []
    for name, value in values.items():
        if value is None or name == "by_classifier":
            continue
        if isinstance(value, list) and all(isinstance(x, float) for x in value):
            value = [round(x, 4) for x in value]
        if isinstance(value, float):
            value = f"{value:.4f}"
        elif isinstance(value, (dict, list)):
            value = json.dumps(value)
        rows.append(f"<tr><td>{_text(name).replace('_', ' ')}</td><td>{_text(value)}</td></tr>")
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _figure(content, caption):
    caption = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{caption}</figure>"


def _embedded(data, kind, alt):
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{encoded}">'


def _picture(picture, caption):
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return _figure(_embedded(file.getvalue(), "png", caption), caption)


def _animation(frames):
    file = io.BytesIO()
    pictures.animation(frames, file, min(0.5, 600 / len(frames)))
    caption = "Test images over their reconstructions, and samples of N(0, I), epoch by epoch."
    return _figure(_embedded(file.getvalue(), "gif", caption), caption)


def _plot(figure, caption=""):
    file = io.BytesIO()
    pictures.save_plot(figure, file, "svg")
    return _figure(_embedded(file.getvalue(), "svg+xml", caption or "plot"), caption)
