"""kae reconstruct: images above their reconstructions."""

import click

from kae import console, options

IMAGES = 20  # number of images without -n


@click.command("reconstruct")
@options.model_argument
@options.files_argument
@options.dataset_option
@options.data_dir_option
@click.option(
    "-n",
    "number",
    type=options.Count(1),
    help="Images at most.  [default: 20 test images, or of a folder; all files]",
)
@options.file_options
@options.out_option([".png"], "samples/MODEL-reconstructions.png")
@options.force_option
def command(model, files, dataset, data_dir, number, labels, crop, invert, out, force):
    """Draw image files, or the first test images, with a row of reconstructions below each row.

    Files are prepared like the images that the model was trained on (see `kae data import`). A FOLDER
    stands for all images in it; for a cvae, the names of their folders are the classes.
    """
    default = f"samples/{console.stem_of(model)}-reconstructions.png"
    target = console.target_of(out, default, (".png",), force)
    network, checkpoint = console.load(model)

    from keras_ae import pictures

    if files:
        console.check_test_options(("--dataset", dataset), ("--data-dir", data_dir))
        if number is None and any(path.is_dir() for path in files):
            number = IMAGES
        files = console.find_files(files)
        console.check_no_input(files, target)
        files = files[:number]
        images = console.load_files(network, files, labels, crop, invert)
    else:
        console.check_file_options(labels, crop, invert)
        images = console.load_test(network, checkpoint, dataset, data_dir, number or IMAGES)
    rebuilt = network.reconstruct(network.inputs_of(images))
    picture = pictures.pairs(images.images, rebuilt, names=console.names_of(images))
    target = console.write(target, picture.save, force)
    console.echo(target)
