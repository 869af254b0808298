"""kae interpolate: images between other images or classes."""

import functools
from pathlib import Path

import click

from kae import console, options


@click.command("interpolate")
@options.model_argument
@click.argument("ends", nargs=-1, required=True, metavar="FROM TO…")
@click.option(
    "--steps", type=options.Count(2), default=10, show_default=True, help="Images from end to end."
)
@click.option(
    "-n", "number", type=options.Count(1), default=5, show_default=True,
    help="Rows between two classes, one random code per row.",
)  # fmt: skip
@click.option(
    "--path",
    "path",
    type=click.Choice(["line", "arc"]),
    help="A straight line, or an arc around 0.  [default: arc, line for an ae]",
)
@options.dataset_option
@options.data_dir_option
@options.file_options
@options.seed_option
@options.out_option([".png", ".npy"], "samples/MODEL-interpolation.png")
@options.force_option
def command(model, ends, steps, number, path, seed, out, force, **chosen):
    """Draw rows of images that lead from one end to the next, decoded from the codes in between.

    An end is an image file, the number of a test image (7, or test:7), or, for a cvae, a class by name
    or number; then 7 is the class and test:7 the image. For a class, codes are drawn from the prior.
    An end that is an image is also shown at its end of the row.

    \b
    kae interpolate vae 0 1 2
    kae interpolate cvae 3 8
    kae interpolate cvae mine.png test:4 --label 9
    """
    if len(ends) < 2:
        raise click.UsageError(f"Give two ends or more, FROM and TO; got {ends[0]!r} alone.")
    default = f"samples/{console.stem_of(model)}-interpolation.png"
    target = console.target_of(out, default, (".png", ".npy"), force)
    network, checkpoint = console.load(model)
    kinds = [kind_of(network, end) for end in ends]
    for option, value in (("--dataset", chosen["dataset"]), ("--data-dir", chosen["data_dir"])):
        if value and "test" not in kinds:
            raise click.UsageError(f"{option} is for test images, and no end is one: leave it out.")
    if options.given("number") and "class" not in kinds:
        raise click.UsageError("-n is for rows between classes, and no end is one: leave it out.")
    if options.given("seed") and "class" not in kinds:
        raise click.UsageError("--seed draws codes of classes, and no end is one: leave it out.")
    console.check_no_input([Path(e) for e, kind in zip(ends, kinds) if kind == "file"], target)
    rows = number if "class" in kinds else 1
    console.check_number(network, (len(ends) - 1) * rows * steps, target)
    if "class" in kinds:
        console.tell_prior(network, checkpoint)

    import numpy as np

    from keras_ae import latents, pictures

    # One item per end: codes (rows, D), the class or None, and the image or None.
    where = chosen.pop("dataset"), chosen.pop("data_dir")
    load_test = functools.partial(console.load_test, network, checkpoint, *where)
    places = places_of(network, ends, number, seed, load_test, **chosen)
    spherical = None if path is None else path == "arc"
    images, sheets = [], []
    blank = np.full((1, *network.image_shape), pictures.BACKGROUND, np.uint8)
    beside = any(image is not None for _, _, image in places)
    for (start, a, left), (end, b, right) in zip(places, places[1:]):
        cells = []
        for row in range(max(len(start), len(end))):
            labels = None if a is None else (a, b)
            codes = start[row % len(start)], end[row % len(end)]
            between = latents.interpolate(network, *codes, steps, labels, spherical)
            between = pictures.to_uint8(between)
            images.append(between)
            if beside:
                between = [
                    blank if left is None else left,
                    between,
                    blank if right is None else right,
                ]
                between = np.concatenate(between)
            cells.append(between)
        title = None if a is None else f"{network.names[a]} to {network.names[b]}"
        sheets.append((np.concatenate(cells), len(cells[0]), title))

    def picture():
        if network.num_classes:
            return pictures.stack(
                *(pictures.with_title(pictures.grid(c, n), title) for c, n, title in sheets), gap=0
            )
        return pictures.grid(np.concatenate([c for c, _, _ in sheets]), sheets[0][1])

    target = console.save_images(target, np.concatenate(images), picture, force)
    console.echo(target)


def places_of(network, ends, number, seed, load_test, labels, crop, invert):
    """Returns, for each end, its codes (n, D), its class or None, and its image (1, H, W, C) or None.

    `load_test` loads the test images; it is called if an end is one.
    """
    import numpy as np

    from keras_ae.priors import draw_codes

    kinds = [kind_of(network, end) for end in ends]
    files = [end for end, kind in zip(ends, kinds) if kind == "file"]
    for end in files if network.num_classes else ():
        if not Path(end).exists():  # a misspelt class
            raise click.UsageError(
                f"{end!r} is no class ({', '.join(network.names)}), no test image and no file."
                f"{console.meant(end, network.names)}"
            )
    given = iter(())
    if files:
        images = console.load_files(network, files, labels, crop, invert)
        given = iter(range(len(files)))
    else:
        console.check_file_options(labels, crop, invert)
    test = load_test() if "test" in kinds else None
    places = []
    for end, kind in zip(ends, kinds):
        if kind == "class":
            label = console.class_index(network, end)
            codes = draw_codes(network.prior, number, np.full(number, label), seed)
            places.append((codes, label, None))
            continue
        source, i = (images, next(given)) if kind == "file" else (test, index_of(end, test))
        label = int(source.labels[i]) if network.num_classes else None
        image = source.images[i : i + 1]
        code = network.encode((image, [label]) if network.num_classes else image)
        places.append((code, label, image))
    return places


def kind_of(network, end):
    """Whether an end is a "test" image, a "class" or a "file"."""
    if end.startswith("test:") and end[5:].isdecimal():
        return "test"
    if network.num_classes and (end.isdecimal() or end.lower() in map(str.lower, network.names)):
        return "class"
    return "test" if end.isdecimal() else "file"


def index_of(end, test):
    """The index of the test image that an end names; UsageError if there is no such image."""
    index = console.whole_number(end.removeprefix("test:"))
    if index >= len(test.images):
        raise click.UsageError(
            f"{test.name} has test images 0 to {len(test.images) - 1}; got {end!r}."
        )
    return index
