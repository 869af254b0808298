"""kae encode: the codes of images."""

import csv
import io

import click

from kae import console, options


@click.command("encode")
@options.model_argument
@options.files_argument
@options.dataset_option
@options.data_dir_option
@click.option("--limit", type=click.IntRange(1), help="Use the first so many test images only.")
@options.label_option
@options.crop_option
@options.invert_option
@options.out_option([".csv", ".npy"], "csv on stdout")
@options.force_option
def command(model, files, dataset, data_dir, limit, labels, crop, invert, out, force):
    """Write the codes (embeddings) of image files, or of the test images of a dataset.

    A row of the csv is what the image is (file, or index of a test image), its class where it is known,
    and its code; .npy is float32 (N, latents). The code of a vae and cvae is the mean of q(z|x).
    """
    target = console.target_of(out, "", (".csv", ".npy"), force) if out else None
    network, checkpoint = console.load(model)

    import numpy as np

    if files:
        images = console.load_files(network, files, labels, crop, invert)
    else:
        images = console.load_test(network, checkpoint, dataset, data_dir, limit)
    codes = network.encode(network.inputs_of(images))
    if target and target.suffix == ".npy":
        console.write(target, lambda path: np.save(path, codes))
        return console.echo(target)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    names = console.names_of(images)
    rows.writerow(
        ["image", *(["class"] if names else []), *(f"z{i}" for i in range(codes.shape[1]))]
    )
    for i, code in enumerate(codes):
        rows.writerow([files[i] if files else i, *([names[i]] if names else []), *code])
    if target is None:
        return console.echo(text.getvalue(), nl=False)

    def save(path):
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text.getvalue())

    console.write(target, save)
    return console.echo(target)
