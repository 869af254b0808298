"""kae sample: draw new images."""

import click

from kae import console, options


@click.command("sample")
@options.model_argument
@click.argument("label", required=False)
@click.option(
    "-n", "number", type=options.Count(1), help="Images.  [default: 64, or 10 of each class]"
)
@options.seed_option
@click.option(
    "--prior",
    type=click.Choice(["fitted", "normal"]),
    default="fitted",
    show_default=True,
    help="Draw codes from the mixture fitted to the training codes, or from N(0, I).",
)
@click.option(
    "--out",
    type=options.AnyPath(),
    help=".png for a picture, .npy for uint8 (N, H, W, C).  [default: samples/MODEL[-LABEL].png]",
)
@options.force_option
@options.json_option
def command(model, label, number, seed, prior, out, force, as_json):
    """Draw new images from MODEL, a vae or a cvae. (An ae has no prior to draw from.)

    MODEL is a name (vae, cvae), a run folder or a .keras file. LABEL, only for a cvae, is the number or
    the name of a class; without LABEL, there is a row for each class, in label order.
    """
    part = f"-{label.replace('/', '-')}" if label else ""
    default = f"samples/{console.stem_of(model)}{part}.png"
    target = console.target_of(out, default, (".png", ".npy"), force)
    network, checkpoint = console.load(model)

    import numpy as np

    from keras_ae.pictures import class_rows, grid, to_uint8, with_title

    if not hasattr(network, "sample"):
        raise click.UsageError("An ae has no prior to sample from: use a vae or a cvae.")
    number = number or (10 * network.num_classes if network.num_classes and label is None else 64)
    console.check_number(network, number, target)
    labels = None
    if network.num_classes:
        if label is not None:
            labels = np.full(number, console.class_index(network, label))
        else:
            labels = np.sort(np.arange(number) % network.num_classes)
    elif label is not None:
        raise click.UsageError("This model has no classes: sample it without a label.")
    if prior == "fitted":
        console.tell_prior(network, checkpoint)
    images = to_uint8(network.sample(number, labels, seed, prior))

    def picture():
        if labels is None:
            return grid(images)
        if label is None:
            return class_rows(images, labels, network.names)
        return with_title(grid(images), network.names[labels[0]])

    target = console.save_images(target, images, picture, force)
    if as_json:
        console.print_json(
            {
                "model": model,
                "out": str(target),
                "n": len(images),
                "labels": labels,
                "seed": seed,
                "prior": prior,
                "shape": images.shape,
            }
            | ({"labels": labels.tolist()} if labels is not None else {})
        )
    else:
        console.echo(target)
