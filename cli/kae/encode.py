"""kae encode: the codes of images."""

import csv
import dataclasses
import functools
import math
import tempfile

import click

from kae import console, options
from keras_ae.errors import LEAST

BATCH = 256  # images that are held in memory at a time


@click.command("encode")
@options.model_argument
@options.files_argument
@options.dataset_option
@options.data_dir_option
@click.option("--limit", type=options.Count(1), help="Use the first so many test images only.")
@options.file_options
@options.out_option([".csv", ".npy"], "csv on stdout")
@click.option(
    "--append",
    is_flag=True,
    help="Add rows to the .csv file of --out; create it if needed.",
)
@options.force_option
def command(model, files, out, append, force, **chosen):
    """Write the codes (embeddings) of image files, or of the test images of a dataset.

    A row of the csv has the image's file (or the index of a test image), its class if that is known,
    and its code. A .npy file is float32 (N, latents). The code of a vae or cvae is the mean of q(z|x).

    A FOLDER stands for all images in it and in its subfolders, sorted by path; for a cvae, the names of
    their folders are the classes. Files are prepared like the images that the model was trained on (see
    `kae data import`).

    \b
    kae encode vae pictures/ --out codes.csv
    find … -print0 | xargs -0 kae encode vae --out codes.csv --append
    """
    if force and out is None:
        raise click.UsageError("--force replaces a file: name it with --out.")
    if append and (out is None or out.suffix != ".csv"):
        raise click.UsageError("--append adds rows to a .csv file: name it with --out.")
    if append and force:
        raise click.UsageError("--append adds to a file, --force replaces it: give one of them.")
    if out and out.is_file() and out.suffix == ".csv" and not (append or force):
        raise click.ClickException(f"{out} exists; --append adds to it, --force replaces it.")
    target = console.target_of(out, "", (".csv", ".npy"), force or append) if out else None
    network, checkpoint = console.load(model)
    names, part = source_of(network, checkpoint, files, **chosen)

    from keras_ae.files import append_lines, check_header

    columns = ["file" if files else "image", *(["class"] if has_classes(part) else [])]
    columns += [f"z{i}" for i in range(network.latent_dim)]
    blocks = functools.partial(codes_of, network, names, part)
    if target is None or append:
        header = ",".join(columns) + "\n"
        if append:
            check_header(target, header)  # first, before work is done that would be lost
        # Rows go to a temporary file: output is complete or absent, and memory stays small.
        with tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="surrogatepass", newline=""
        ) as rows:
            write_rows(rows, blocks())
            rows.seek(0)
            if append:
                append_lines(target, header, rows)
                console.say(f"added {len(names):,} rows to {target}")
                return console.echo(target)
            console.echo_rows(header)
            while text := rows.read(1 << 20):
                console.echo_rows(text)
            return None
    if target.suffix == ".npy":
        target = console.write(target, functools.partial(save_array, network, names, blocks), force)
    else:

        def save(path):
            with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.write(",".join(columns) + "\n")
                write_rows(file, blocks())

        target = console.write(target, save, force)
    return console.echo(target)


def source_of(network, checkpoint, files, dataset, data_dir, limit, labels, crop, invert):
    """The images to encode: a name for each, and a function that makes an `ImageData` of a slice of them."""
    if not files:
        console.check_file_options(labels, crop, invert)
        images = console.load_test(network, checkpoint, dataset, data_dir, limit)

        def of_dataset(rows):
            marks = None if images.labels is None else images.labels[rows]
            return dataclasses.replace(images, images=images.images[rows], labels=marks)

        return range(len(images.images)), of_dataset
    console.check_test_options(("--dataset", dataset), ("--limit", limit), ("--data-dir", data_dir))
    files = console.find_files(files)
    classes = console.classes_of(network, files, labels)

    def of_files(rows):
        marks = None if classes is None else classes[rows]
        return console.read_files(network, files[rows], marks, crop, invert)

    return files, of_files


def has_classes(part):
    """Whether images have classes with names."""
    return console.names_of(part(slice(1))) is not None


def codes_of(network, names, part):
    """Yields codes in blocks: (names of the images, names of their classes or None, codes)."""
    with console.progress("encoding", len(names)) as advance:
        # Large images are read fewer at a time.
        size = max(1, min(BATCH, LEAST // math.prod(network.image_shape)))
        for start in range(0, len(names), size):
            rows = slice(start, start + size)
            images = part(rows)
            codes = network.encode(network.inputs_of(images))
            yield names[rows], console.names_of(images), codes
            advance(len(codes))


def write_rows(file, blocks):
    """Writes blocks of codes as csv rows."""
    writer = csv.writer(console.Rows(file))
    for names, classes, codes in blocks:
        for i, (name, code) in enumerate(zip(names, codes)):
            writer.writerow([name, *([classes[i]] if classes else []), *code])


def save_array(network, names, blocks, path):
    """Writes blocks of codes into one .npy file."""
    import numpy as np

    shape = (len(names), network.latent_dim)
    header = {"descr": np.dtype("float32").str, "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:  # no memory map: on a full disk, writing to one ends the process
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, codes in blocks():
            file.write(np.ascontiguousarray(codes, "float32").data)
