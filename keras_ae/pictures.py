"""Grids, animations and plots: arrays in, pictures out. No framework is imported here."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_ae.errors import UserError, installed, need, printable

INK = 230  # of names beside the images
BACKGROUND = 40  # dark grey between the images, so that black and white borders both show
LONG = 40  # epochs, beyond which curves have no dots
LETTERS = 60  # of a name that are drawn


def to_uint8(images):
    """Images (..., H, W, C), float in [0, 1] or uint8 -> uint8 in 0..255.

    Raises:
        UserError: there are pixels that are no number, which would become black.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if not np.isfinite(images).all():
        raise UserError(
            "The images have pixels that are no number: the weights or the prior of the model are broken"
        )
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def short(name):
    """A name as it is drawn: a line of text, of so many letters at most."""
    name = str(name)
    return printable(name if len(name) <= LETTERS else name[: LETTERS - 1] + "…")


def to_float(images):
    """Images (..., H, W, C), uint8 or float in [0, 1] -> float32 in [0, 1]."""
    images = np.asarray(images)
    return images / np.float32(255) if images.dtype == np.uint8 else images.astype("float32")


def grid(images, columns=None, gap=1, zoom=None):
    """Images (N, H, W, C), row by row, as one picture.

    Args:
        images: float in [0, 1] or uint8, of 1 (grey), 3 (RGB) or 4 (RGBA) channels, N >= 1.
        columns: images in a row; the smallest square that holds all by default.
        gap: pixels between images, before zooming.
        zoom: whole factor to enlarge by; by default what makes an image at least 56 pixels high.

    Returns:
        A Pillow image.
    """
    images = to_uint8(images)
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = zoom or max(1, math.ceil(56 / height))
    canvas = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels),
        BACKGROUND,
        np.uint8,
    )
    for i, image in enumerate(images):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        canvas[top : top + height, left : left + width] = image
    canvas = canvas.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def pairs(originals, reconstructions, columns=10, names=None):
    """Rows of originals, each row over the row of its reconstructions. Both (N, H, W, C).

    With `names`, N strings or None, each pair has its name above it.
    """
    originals, reconstructions = to_uint8(originals), to_uint8(reconstructions)
    columns = min(columns, len(originals))
    rows = []
    for start in range(0, len(originals), columns):
        for images in (originals, reconstructions):
            row = images[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), BACKGROUND, np.uint8)
            rows += [row, blank]
    if names is None:
        return grid(np.concatenate(rows), columns)
    sheets = []
    for i in range(0, len(rows), 4):
        sheet = grid(np.concatenate(rows[i : i + 4]), columns)
        chunk = names[i // 4 * columns : (i // 4 + 1) * columns]
        sheets += [_names_across(chunk, sheet.width, columns, sheet.mode), sheet]
    return stack(*sheets, gap=0)


def class_rows(images, labels, names, size=14):
    """A row of images for each class that is among the labels, with the name of the class beside it.

    Args:
        images: (N, H, W, C), as for `grid`.
        labels: (N,) classes, in [0, K).
        names: K strings.
        size: of the letters, in pixels.
    """
    images, labels = to_uint8(images), np.asarray(labels)
    classes = np.unique(labels)
    columns = np.bincount(labels).max()
    cells = np.full((len(classes), columns, *images.shape[1:]), BACKGROUND, np.uint8)
    for row, y in zip(cells, classes):
        row[: (labels == y).sum()] = images[labels == y]
    picture = grid(cells.reshape(-1, *images.shape[1:]), columns)
    font, names = ImageFont.load_default(size), [short(names[y]) for y in classes]
    margin = math.ceil(max(map(font.getlength, names))) + 12
    mode, height = picture.mode, picture.height / len(names)
    sheet = Image.new(mode, (margin + picture.width, picture.height), _grey(mode))
    sheet.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        draw.text((margin - 6, (i + 0.5) * height), name, _grey(mode, INK), font, anchor="rm")
    return sheet


def with_title(picture, title):
    """A picture with a line of text above it."""
    return stack(_names_across([title], picture.width, 1, picture.mode, 14), picture, gap=0)


def _names_across(names, width, columns, mode, size=10):
    """A strip of names, each in the middle of its column; smaller letters where one is too long."""
    strip = Image.new(mode, (width, size + 8), _grey(mode))
    draw, column = ImageDraw.Draw(strip), width / columns
    for i, name in enumerate(map(short, names)):
        fits = min(1.0, (column - 2) / max(1.0, ImageFont.load_default(size).getlength(name)))
        place = ((i + 0.5) * column, strip.height / 2)
        font = ImageFont.load_default(size * fits)
        draw.text(place, name, _grey(mode, INK), font, anchor="mm")
    return strip


def _grey(mode, value=BACKGROUND):
    """A shade of grey as a colour of "L", "RGB" or "RGBA"."""
    return {"L": value, "RGB": (value,) * 3, "RGBA": (value, value, value, 255)}[mode]


def stack(*pictures, gap=8):
    """Pictures one below the other."""
    width = max(p.width for p in pictures)
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new(pictures[0].mode, (width, height), _grey(pictures[0].mode))
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def animation(pictures, path, seconds=0.5):
    """Write pictures of one size as a GIF that repeats for ever; the last one stays four times as long.

    Args:
        pictures: Pillow images, at least one.
        path: of the file, or something to write to.
        seconds: that each is shown.
    """
    first, *rest = [p.convert("RGB") for p in pictures]
    durations = [1000 * seconds] * len(rest) + [4000 * seconds]
    first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


# Plots, by matplotlib: figures that `save_plot` writes


def scatter(points, labels=None, names=None, title="", axes=("", "")):
    """A scatter plot of points (N, 2), in a colour for each class.

    Args:
        labels: (N,) classes in [0, K), or None for one colour.
        names: K strings for the legend, or None for the numbers.
        title: above the plot.
        axes: what the two axes are called.
    """
    figure, plot = _plot(6.4, 5.2, title)
    dots = {"s": dot_area(len(points)), "alpha": 0.6, "linewidths": 0, "rasterized": True}
    if labels is None:
        plot.scatter(*points.T, **dots)
    else:
        classes, shown = np.unique(labels), []
        colours = _matplotlib().colormaps["tab10" if len(classes) <= 10 else "turbo"]
        for i, y in enumerate(classes):
            colour = colours(i) if len(classes) <= 10 else colours(i / (len(classes) - 1))
            mine = points[labels == y].T
            shown.append(str(names[y] if names else y))
            plot.scatter(*mine, color=colour, label=shown[-1], **dots)
        _legend(
            plot, plot.collections, shown,
            loc="center left", bbox_to_anchor=(1, 0.5), markerscale=(45 / dots["s"]) ** 0.5, ncols=1 + (len(classes) - 1) // 26,
        )  # fmt: skip
    plot.set(xlabel=axes[0], ylabel=axes[1])
    return figure


def dot_area(points):
    """Area of a dot among so many, in square points: all of them together cover about as much of a plot."""
    return min(40.0, max(1.0, 10_000 / max(1, points)))


def curves(histories, figures=("loss", "reconstruction", "kl", "kl_weight")):
    """Figures over the epochs of one or more runs, a panel for each figure that a run has.

    Args:
        histories: {name of the run: [{"epoch": 1, "loss": …, "val_loss": …}, …]}.
        figures: the names to draw. Training is dashed where there is a validation, which is a full line.
            Of a long run, the fall of the first epochs leaves the panel.
    """
    long = max(map(len, histories.values()), default=0) > LONG
    rows = [row for history in histories.values() for row in history]
    shown = [name for name in figures if any(name in row for row in rows)]
    figure, plots = _plot(3.4 * len(shown), 2.9, columns=len(shown))
    lines = {}  # of the first panel, by what they are called
    for name, plot in zip(shown, plots):
        later = []
        for i, (run, history) in enumerate(histories.items()):
            # The weight of a validation is that of the last step: the schedule itself is more telling.
            validation = f"val_{name}" if name != "kl_weight" else name
            for key, style, what in ((name, "--", "training"), (validation, "-", "validation")):
                points = [(row["epoch"], row[key]) for row in history if key in row]
                label = what if len(histories) == 1 else run if style == "-" else None
                if points:
                    marker = None if long else "."
                    (line,) = plot.plot(*zip(*points), style, color=f"C{i}", marker=marker)
                    if label is not None and plot is plots[0]:
                        lines[label] = line
                if long and name != "kl_weight":
                    later += [value for epoch, value in points if epoch > len(history) / 20]
        if later:
            margin = (max(later) - min(later)) / 20
            plot.set_ylim(min(later) - margin, max(later) + margin)
        plot.set_title(name)
        plot.set_xlabel("epoch")
        plot.xaxis.get_major_locator().set_params(integer=True)
    _legend(plots[0], lines.values(), lines)
    return figure


def bars(values, names, axes=("", "")):
    """A bar for each of some numbers, with its name below it, in their order."""
    figure, plot = _plot(6.4, 2.6)
    plot.bar(list(map(str, names)), values)
    plot.set(xlabel=axes[0], ylabel=axes[1])
    return figure


def rate_distortion(results, distortion=""):
    """Distortion over rate, a point for each KL weight.

    Args:
        results: dicts with "rate", "distortion" and "kl_weight", as of `keras_ae.sweep`.
        distortion: what the distortion is, such as "l1".
    """
    figure, plot = _plot(5.2, 3.6)
    along = sorted(results, key=lambda result: result["rate"])
    plot.plot([x["rate"] for x in along], [x["distortion"] for x in along], "o-")
    for x in along:
        plot.annotate(
            f"{x['kl_weight']:g}", (x["rate"], x["distortion"]),
            xytext=(6, 6), textcoords="offset points",
        )  # fmt: skip
    error = f"{distortion}, a sum over an image" if distortion else "a sum over an image"
    plot.set(xlabel="rate: KL in nats an image", ylabel=f"distortion: {error}")
    plot.set_title("test images, by kl_weight")
    return figure


def missing_for_plots():
    """Why there are no plots: one line, None where there are."""
    return None if installed("matplotlib") else "it needs matplotlib: pip install matplotlib"


def _legend(plot, handles, names, **kwargs):
    """A legend of names that may be anything: matplotlib reads formulas between dollars, and leaves out
    what begins with _."""
    handles = list(handles)
    legend = plot.legend(handles, list(map(str, range(len(handles)))), frameon=False, **kwargs)
    for text, name in zip(legend.get_texts(), names):
        text.set_parse_math(False)
        text.set_text(short(name))


def save_plot(figure, path, file_format="png"):
    """Write a plot as "png" or "svg", the same bytes for the same numbers."""
    plain = {"Date": None} if file_format == "svg" else {"Software": None}
    with _matplotlib().rc_context({"svg.hashsalt": "keras_ae"}):
        figure.savefig(path, format=file_format, dpi=110, metadata=plain)


def _matplotlib():
    need("A plot", "matplotlib")
    import matplotlib

    return matplotlib


def _plot(width, height, title="", columns=None):
    """A figure with its plot, or with a list of so many plots side by side."""
    _matplotlib()
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    figure = Figure(figsize=(width, height), layout="constrained")
    plots = figure.subplots(1, columns or 1, squeeze=False)[0]
    for plot in plots:
        plot.spines[["top", "right"]].set_visible(False)
        plot.set_title(title)
    return figure, plots if columns else plots[0]
