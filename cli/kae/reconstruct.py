"""kae reconstruct: test images over their reconstructions."""

from pathlib import Path

import click

from kae import common


@click.command("reconstruct")
@click.argument("model")
@click.option("--dataset", help="A TFDS dataset.  [default: what the model was trained on]")
@common.data_dir_option
@click.option("-n", "number", type=click.IntRange(1), default=20, show_default=True, help="Images.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A .png file.  [default: samples/MODEL-reconstructions.png]",
)
@common.force_option
def command(model, dataset, data_dir, number, out, force):
    """Draw the first test images, each row over the row of its reconstructions."""
    if out and out.suffix != ".png":
        raise click.UsageError(f"--out must end in .png; got {out}.")
    if out:
        common.check_free(out, force)
    target = out or Path("samples") / f"{Path(model).stem}-reconstructions.png"
    network, checkpoint = common.load(model)

    from keras_ae import data, pictures

    dataset = dataset or checkpoint.settings.get("dataset", "mnist")
    _, test = data.load_splits(dataset, data_dir=data_dir, limit=number, progress=common.say)
    common.check_images(network, test)
    inputs = (test.images, test.labels) if network.num_classes else test.images
    names = None if test.labels is None else [test.class_names[label] for label in test.labels]
    picture = pictures.pairs(test.images, network.reconstruct(inputs), names=names)
    common.write(target, picture.save)
    click.echo(target)
