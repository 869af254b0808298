"""Grids, animations and plots: makes pictures of arrays. This module imports no framework."""

import contextlib
import math
import os
import struct
import warnings

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_ae.errors import NotFinite, UserError, need, printable
from keras_ae.files import open_file
from keras_ae.tensors import to_numpy

INK = 230  # grey level of the names beside the images
BACKGROUND = 40  # dark grey between the images, so that black and white borders are both visible
LONG = 40  # curves of more epochs have no dots
WIDEST = 65_535  # pixels of a side of a GIF
DRAWN = 1e150  # no axis can show numbers this large
LETTERS = 60  # longer names are cut


def to_uint8(images):
    """Convert images (..., H, W, C), float in [0, 1] or integers in 0..255, to uint8 in 0..255.

    Floats a little outside, as of noise or of a decoder of one's own, are clipped.

    Raises:
        NotFinite: some pixels are NaN or infinite; NaN would become black.
        ValueError: they are floats, and the whole numbers of 0..255; nearly all would become white.
    """
    images = to_numpy(images)
    if images.dtype.kind in "iu":
        return images if images.dtype == np.uint8 else images.clip(0, 255).astype(np.uint8)
    if not np.isfinite(images).all():
        raise NotFinite("The images have pixels that are no finite numbers")
    low, high = images.min(initial=0), images.max(initial=0)
    # What a network computes has fractions.
    if low >= 0 and 1 < high <= 255 and not (images % 1).any():
        raise ValueError(
            f"Float images must be in [0, 1]; these are whole numbers up to {high:g}: divide them by 255, or give uint8."
        )
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def short(name):
    """A name as it is drawn: one line of at most LETTERS characters."""
    name = str(name)
    return printable(name if len(name) <= LETTERS else name[: LETTERS - 1] + "…")


def to_float(images):
    """Convert images (..., H, W, C), whole numbers in 0..255 or float in [0, 1], to float32 in [0, 1]."""
    images = to_numpy(images)
    if images.dtype.kind in "iu":
        return np.divide(images, np.float32(255), dtype="float32")
    return images.astype("float32")


def grid(images, columns=None, gap=1, zoom=None):
    """One picture of images (N, H, W, C), row by row.

    Args:
        images: float in [0, 1] or uint8, with 1 (grey), 3 (RGB) or 4 (RGBA) channels, N >= 1.
        columns: images in a row; by default those of the smallest square that holds all images.
        gap: pixels between images, before zooming.
        zoom: integer factor to enlarge by; by default the smallest that makes an image 56 pixels high or more.

    Returns:
        A Pillow image.

    Raises:
        ValueError: there are no images.
    """
    images = to_uint8(images)
    _check_some(images)
    n, height, width, channels = images.shape
    if channels not in (1, 3, 4):
        raise UserError(f"A picture has 1, 3 or 4 channels, these images {channels}: write .npy.")
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = zoom or _zoom(height, width)
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


def _check_some(images):
    if not len(images):
        raise ValueError("A picture needs 1 image or more; got none.")


def _zoom(height, width):
    """The smallest factor that makes an image 56 pixels high or more, as long as it is not wider than 512."""
    return max(1, min(math.ceil(56 / height), 512 // width))


def memory_of_grid(n, shape):
    """An estimate of the bytes that `grid` takes for n images (H, W, C): pixels and the picture of them."""
    height, width, channels = shape
    return 2 * n * (height + 1) * (width + 1) * channels * _zoom(height, width) ** 2


def pairs(originals, reconstructions, columns=10, names=None):
    """Originals with their reconstructions below them, row by row. Both are (N, H, W, C).

    If `names` (N strings) are given, each pair has its name above it.

    Raises:
        ValueError: there are no images, or the two are of different shapes.
    """
    originals, reconstructions = to_uint8(originals), to_uint8(reconstructions)
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"Originals and reconstructions must be of one shape; got {originals.shape} and {reconstructions.shape}."
        )
    _check_some(originals)
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
    """One row of images for each class in the labels, with the name of the class beside it.

    Args:
        images: (N, H, W, C), as for `grid`.
        labels: (N,) classes, in [0, K).
        names: K strings.
        size: font size in pixels.

    Raises:
        ValueError: there are no images.
    """
    images, labels = to_uint8(images), to_numpy(labels)
    _check_some(images)
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
    """A strip of names, each in the middle of its column; a name that is too long gets a smaller font."""
    strip = Image.new(mode, (width, size + 8), _grey(mode))
    draw, column = ImageDraw.Draw(strip), width / columns
    for i, name in enumerate(map(short, names)):
        fits = min(1.0, (column - 2) / max(1.0, ImageFont.load_default(size).getlength(name)))
        place = ((i + 0.5) * column, strip.height / 2)
        font = ImageFont.load_default(max(1, size * fits))  # FreeType refuses less
        draw.text(place, name, _grey(mode, INK), font, anchor="mm")
    return strip


def _grey(mode, value=BACKGROUND):
    """A grey level as a colour of the mode "L", "RGB" or "RGBA"."""
    return {"L": value, "RGB": (value,) * 3, "RGBA": (value, value, value, 255)}[mode]


def stack(*pictures, gap=8):
    """Stack pictures vertically, the first on top."""
    width = max(p.width for p in pictures)
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new(pictures[0].mode, (width, height), _grey(pictures[0].mode))
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def animation(pictures, path, seconds=0.5):
    """Write pictures of one size as a GIF that repeats forever; it shows the last one four times as long.

    Args:
        pictures: Pillow images, at least one.
        path: of the file, or a file object.
        seconds: how long each picture is shown.
    """
    first, *rest = pictures
    if max(first.size) > WIDEST:
        raise UserError(
            f"A GIF has at most {WIDEST:,} pixels a side; these have {max(first.size):,}."
        )
    if odd := next((p.size for p in rest if p.size != first.size), None):
        raise UserError(
            f"A GIF has pictures of one size; these have {first.size} and {odd} pixels."
        )
    durations = [1000 * seconds] * len(rest) + [4000 * seconds]
    rest = (picture.convert("RGB") for picture in rest)  # one at a time
    first = first.convert("RGB")
    try:
        first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    except (OverflowError, struct.error) as error:  # Pillow adds up the time of equal pictures
        raise UserError(
            "A GIF shows no picture for more than 655 seconds, and equal ones that follow each other count as one: "
            "take a smaller --seconds."
        ) from error


# Plots: matplotlib figures, written by `save_plot`


def check_matplotlibrc():
    """Refuse a matplotlibrc in the working folder that is no file. matplotlib would read a pipe without end."""
    if os.path.exists("matplotlibrc") and not os.path.isfile("matplotlibrc"):
        raise UserError(
            "matplotlibrc in this folder is no file, and matplotlib would read it without end: rename it, or work in "
            "another folder."
        )


def need_matplotlib():
    """Import matplotlib; a UserError says why that is not possible."""
    need("A plot", "matplotlib")
    check_matplotlibrc()
    try:
        import matplotlib
    except ValueError as error:
        raise UserError(
            f"matplotlib cannot read MPLBACKEND or the matplotlibrc that it found: {error}"
        ) from error
    return matplotlib


@contextlib.contextmanager
def _default_style():
    """Draws as matplotlib does by default: a `matplotlibrc` in the working folder may ask for LaTeX, which
    is a program, and would make other bytes of the same numbers."""
    matplotlib = need_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@_default_style()
def scatter(points, labels=None, names=None, title="", axes=("", "")):
    """A scatter plot of points (N, 2), with one colour per class.

    Args:
        labels: (N,) classes in [0, K), or None for a single colour.
        names: K strings for the legend, or None to show the numbers.
        title: above the plot.
        axes: names of the two axes.
    """
    figure, plot = _plot(6.4, 5.2, title)
    dots = {"s": dot_area(len(points)), "alpha": 0.6, "linewidths": 0, "rasterized": True}
    if labels is None:
        plot.scatter(*points.T, **dots)
    else:
        classes, shown = np.unique(labels), []
        colours = need_matplotlib().colormaps["tab10" if len(classes) <= 10 else "turbo"]
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
    """Area of a dot in square points, chosen so that any number of dots covers about the same area in total."""
    return min(40.0, max(1.0, 10_000 / max(1, points)))


@_default_style()
def curves(histories, figures=("loss", "reconstruction", "kl", "kl_weight")):
    """Plot figures of one or more runs over the epochs, with one panel for each figure.

    Args:
        histories: {name of the run: [{"epoch": 1, "loss": …, "val_loss": …}, …]}.
        figures: the names to draw. Training is a dashed line, validation a solid line. For long runs, the
            vertical range ignores the first epochs, where the values fall steeply.
    """
    long = max(map(len, histories.values()), default=0) > LONG
    rows = [row for history in histories.values() for row in history]
    shown = [name for name in figures if any(name in row for row in rows)]
    if not shown:
        raise UserError("There is no history of epochs to plot.")
    figure, plots = _plot(3.4 * len(shown), 2.9, columns=len(shown))
    lines = {}  # of the first panel, {label: line}
    dashed = None  # a line of the first panel that shows the training beside a validation
    for name, plot in zip(shown, plots):
        later = []
        for i, (run, history) in enumerate(histories.items()):
            # In validation, kl_weight is just the value of the last step: plot the schedule of training.
            validation = f"val_{name}" if name != "kl_weight" else name
            validated = any(validation in row for row in history)
            for key, style, what in ((name, "--", "training"), (validation, "-", "validation")):
                # A history may come from anybody: infinity and what no axis can show are left out.
                points = [
                    (row["epoch"], row[key])
                    for row in history
                    if abs(row.get(key, math.inf)) < DRAWN
                ]
                label = run if style == "-" or not validated else None
                label = what if len(histories) == 1 else label
                if points:
                    marker = None if long else "."
                    (line,) = plot.plot(*zip(*points), style, color=f"C{i}", marker=marker)
                    if plot is plots[0] and label is not None:
                        lines[label] = line
                    elif plot is plots[0]:
                        dashed = line
                if long and name != "kl_weight":
                    later += [value for epoch, value in points if epoch > len(history) / 20]
        if later:
            margin = (max(later) - min(later)) / 20
            plot.set_ylim(min(later) - margin, max(later) + margin)
        plot.set_title(name)
        plot.set_xlabel("epoch")
        plot.xaxis.get_major_locator().set_params(integer=True)
    handles, names = list(lines.values()), list(lines)
    if dashed is not None:
        grey = type(dashed)([], [], linestyle="--", color="grey")
        handles, names = [*handles, grey], [*names, "training"]
    _legend(plots[0], handles, names)
    return figure


@_default_style()
def bars(values, names, axes=("", "")):
    """A bar chart of values in the given order, with a name below each bar."""
    figure, plot = _plot(6.4, 2.6)
    plot.bar(list(map(str, names)), values)
    plot.set(xlabel=axes[0], ylabel=axes[1])
    return figure


@_default_style()
def rate_distortion(results, distortion=""):
    """Plot distortion over rate, with one point for each KL weight.

    Args:
        results: dicts with "rate", "distortion" and "kl_weight", such as the result of `keras_ae.sweep`.
        distortion: name of the distortion, such as "l1".
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


def _legend(plot, handles, names, **kwargs):
    """Add a legend in which a name may be any text. By itself, matplotlib reads text between dollar signs
    as a formula, and omits names that begin with _."""
    handles = list(handles)
    legend = plot.legend(handles, list(map(str, range(len(handles)))), frameon=False, **kwargs)
    for text, name in zip(legend.get_texts(), names):
        text.set_parse_math(False)
        text.set_text(short(name))


@_default_style()
def save_plot(figure, path, file_format="png", title=None):
    """Write a plot as "png" or "svg"; the same numbers give the same bytes.

    `title` is stored in the file, where `title_of` finds it.
    """
    plain = {"Date": None} if file_format == "svg" else {"Software": None}
    if title is not None:
        plain["Title"] = title
    need_matplotlib().rcParams["svg.hashsalt"] = "keras_ae"
    with warnings.catch_warnings():
        # Names may have letters that no font has, such as emoji: a box is drawn for each.
        missing = "Glyph .* missing from|Matplotlib currently does not support"
        warnings.filterwarnings("ignore", missing, UserWarning)
        figure.savefig(path, format=file_format, dpi=110, metadata=plain)


def title_of(path):
    """The title that `save_plot` stored in a PNG file; None if there is none, or no such file."""
    # Pillow may raise anything, and would wait for a pipe.
    with contextlib.suppress(Exception), open_file(path) as file, Image.open(file) as image:
        return image.info.get("Title")
    return None


def _plot(width, height, title="", columns=None):
    """(figure, plot), or (figure, list of `columns` plots side by side)."""
    need_matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which has windows and global state

    figure = Figure(figsize=(width, height), layout="constrained")
    plots = figure.subplots(1, columns or 1, squeeze=False)[0]
    for plot in plots:
        plot.spines[["top", "right"]].set_visible(False)
        plot.set_title(title)
    return figure, plots if columns else plots[0]
