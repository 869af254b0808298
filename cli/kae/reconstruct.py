"""kae reconstruct: images over their reconstructions."""

import click

from kae import common


@click.command("reconstruct")
@common.model_argument
@common.files_argument
@common.dataset_option
@common.data_dir_option
@click.option("-n", "number", type=click.IntRange(1), default=20, show_default=True, help="Images.")
@common.label_option
@common.crop_option
@common.invert_option
@common.out_option([".png"], "samples/MODEL-reconstructions.png")
@common.force_option
def command(model, files, dataset, data_dir, number, labels, crop, invert, out, force):
    """Draw image files, or the first test images, each row over the row of its reconstructions."""
    default = f"samples/{common.stem_of(model)}-reconstructions.png"
    target = common.target_of(out, default, (".png",), force)
    network, checkpoint = common.load(model)

    from keras_ae import pictures

    if files:
        images = common.load_files(network, files, labels, crop, invert)
    else:
        images = common.load_test(network, checkpoint, dataset, data_dir, number)
    rebuilt = network.reconstruct(network.inputs_of(images))
    picture = pictures.pairs(images.images, rebuilt, names=common.names_of(images))
    common.write(target, picture.save)
    common.echo(target)
