"""kae traverse: what each latent does."""

import functools
from pathlib import Path

import click

from kae import console, options
from kae.interpolate import kind_of, places_of

TEST_IMAGES = 2000  # test images that give the KL and the range of each latent


@click.command("traverse")
@options.model_argument
@click.argument("start", default="test:0", metavar="[FROM]")
@click.option(
    "-n", "number", type=options.Count(1), default=10, show_default=True, help="Latents at most."
)
@click.option(
    "--steps", type=options.Count(2), default=11, show_default=True, help="Images per latent."
)
@options.dataset_option
@options.data_dir_option
@options.file_options
@options.seed_option
@options.out_option([".png", ".npy"], "samples/MODEL-traversals.png")
@options.force_option
def command(model, start, number, steps, out, force, seed, dataset, data_dir, **chosen):
    """Draw an image while one latent of its code moves through its range and the others stay the same.

    Each row is a latent, with its number and its KL in nats beside it (for an ae, its variance). The
    highest comes first. FROM is an end as for `kae interpolate`, by default the first test image.
    """
    default = f"samples/{console.stem_of(model)}-traversals.png"
    target = console.target_of(out, default, (".png", ".npy"), force)
    network, checkpoint = console.load(model)
    kind = kind_of(network, start)
    if kind == "file":
        console.check_no_input([Path(start)], target)
    if options.given("seed") and kind != "class":
        raise click.UsageError("--seed draws the code of a class, and FROM is none: leave it out.")

    import numpy as np

    from keras_ae import latents, pictures

    console.check_number(network, min(number, network.latent_dim) * steps, target)

    @functools.cache
    def load_test():
        limit = None if kind == "test" else TEST_IMAGES
        return console.load_test(network, checkpoint, dataset, data_dir, limit)

    codes, label, _ = places_of(network, [start], 1, seed, load_test, **chosen)[0]
    inputs = network.inputs_of(load_test().select(slice(TEST_IMAGES)))
    order, carried = latents.latent_order(network, inputs)
    order, carried = order[:number], carried[:number]
    images = latents.traversals(network, codes[0], order, network.encode(inputs), steps, label)
    rows = np.arange(len(order)).repeat(steps)
    names = [f"z{latent}  {value:.2f}" for latent, value in zip(order, carried)]

    def picture():
        sheet = pictures.class_rows(images, rows, names)
        return sheet if label is None else pictures.with_title(sheet, network.names[label])

    target = console.save_images(target, images, picture, force)
    console.echo(target)
