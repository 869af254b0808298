"""kae manifold: a grid across the latent space."""

import click

from kae import console, options

TEST_IMAGES = 2000  # test images whose codes the grid of an ae spans


@click.command("manifold")
@options.model_argument
@click.argument("label", required=False)
@click.option(
    "-n", "side", type=options.Count(1), default=15, show_default=True, help="Images per side."
)
@options.dataset_option
@options.data_dir_option
@options.seed_option
@options.out_option([".png", ".npy"], "samples/MODEL[-LABEL]-manifold.png")
@options.force_option
def command(model, label, side, dataset, data_dir, seed, out, force):
    """Draw a grid of images across the latent space. Each step covers an equal share of MODEL's prior.

    With two latents, the grid has their axes. With more, it has the two directions in which the prior is
    widest. For a cvae, LABEL gives the grid of a class; without LABEL there is a row for each class, along
    the widest direction. An ae has no prior: its grid spans the codes of test images.
    """
    part = f"-{label.replace('/', '-')}" if label else ""
    default = f"samples/{console.stem_of(model)}{part}-manifold.png"
    target = console.target_of(out, default, (".png", ".npy"), force)
    network, checkpoint = console.load(model)
    console.tell_prior(network, checkpoint)

    import numpy as np

    from keras_ae import latents, pictures

    if label is not None and not network.num_classes:
        raise click.UsageError("This model has no classes: leave the label out.")
    for option, value in (("--dataset", dataset), ("--data-dir", data_dir)):
        if value and hasattr(network, "prior"):
            raise click.UsageError(f"{option} is for an ae, which has no prior: leave it out.")
    if options.given("seed") and not hasattr(network, "prior"):
        raise click.UsageError("--seed draws from a prior, and an ae has none: leave it out.")
    if network.num_classes and label is None:
        console.check_number(network, network.num_classes * side, target)
        rows = [
            latents.manifold(network, 1, side, y, seed=seed) for y in range(network.num_classes)
        ]
        images = np.concatenate(rows)
        labels = np.arange(network.num_classes).repeat(side)
        target = console.save_images(
            target, images, lambda: pictures.class_rows(images, labels, network.names), force
        )
        return console.echo(target)
    console.check_number(network, side * side, target)
    codes = None
    if not hasattr(network, "prior"):
        test = console.load_test(network, checkpoint, dataset, data_dir, TEST_IMAGES)
        codes = network.encode(test.images)
    y = None if label is None else console.class_index(network, label)
    images = latents.manifold(network, side, side, y, codes, seed)

    def picture():
        sheet = pictures.grid(images, side)
        return sheet if y is None else pictures.with_title(sheet, network.names[y])

    target = console.save_images(target, images, picture, force)
    return console.echo(target)
