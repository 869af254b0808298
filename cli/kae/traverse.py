"""kae traverse: what each latent does."""

import click

from kae import common
from kae.interpolate import places_of

TEST_IMAGES = 2000  # that say how much a latent carries, and how far it goes


@click.command("traverse")
@common.model_argument
@click.argument("start", default="test:0", metavar="[FROM]")
@click.option(
    "-n", "number", type=click.IntRange(1), default=10, show_default=True, help="Latents at most."
)
@click.option(
    "--steps", type=click.IntRange(2), default=11, show_default=True, help="Images a latent."
)
@common.dataset_option
@common.data_dir_option
@common.label_option
@common.crop_option
@common.invert_option
@common.seed_option
@common.out_option([".png", ".npy"], "samples/MODEL-traversals.png")
@common.force_option
def command(model, start, number, steps, out, force, seed, dataset, data_dir, **options):
    """Draw one image as each latent of its code is moved through its range, the others kept.

    A row is a latent; beside it stand its number and its KL in nats (the variance of an ae's), and the
    rows are in that order. FROM is an end as for `kae interpolate`, the first test image by default.
    """
    default = f"samples/{common.stem_of(model)}-traversals.png"
    target = common.target_of(out, default, (".png", ".npy"), force)
    network, checkpoint = common.load(model)

    import numpy as np

    from keras_ae import latents, pictures

    place = places_of(
        network, checkpoint, [start], 1, seed, dataset=dataset, data_dir=data_dir, **options
    )
    codes, label, _ = place[0]
    test = common.load_test(network, checkpoint, dataset, data_dir, TEST_IMAGES)
    inputs = network.inputs_of(test)
    order, carried = latents.latent_order(network, inputs)
    order, carried = order[:number], carried[:number]
    images = latents.traversals(network, codes[0], order, network.encode(inputs), steps, label)
    rows = np.arange(len(order)).repeat(steps)
    names = [f"z{latent}  {value:.2f}" for latent, value in zip(order, carried)]

    def picture():
        sheet = pictures.class_rows(images, rows, names)
        return sheet if label is None else pictures.with_title(sheet, network.names[label])

    common.save_images(target, images, picture)
    common.echo(target)
