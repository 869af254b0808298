"""kae data: list, prepare, import and verify datasets."""

import click

from kae import console, options


@click.group("data")
def command():
    """List, prepare, import and verify datasets."""


@command.command("list")
@options.data_dir_option
@options.json_option
def list_(data_dir, as_json):
    """List the datasets that are prepared on this machine."""
    from keras_ae import data

    rows = data.available(data_dir)
    if as_json:
        return console.print_json(
            {
                "data_dir": str(data.resolve_data_dir(data_dir)),
                "datasets": [
                    {
                        "name": row.name,
                        "version": row.version,
                        "format": row.format,
                        "splits": row.splits,
                        "path": str(row.path),
                    }
                    for row in rows
                ],
            }
        )
    for row in rows:
        splits = ", ".join(f"{name} {count}" for name, count in row.splits.items())
        console.echo(f"{row.name} {row.version}  {splits}  {row.path}")
    if not rows:
        console.say(f"Nothing is prepared in {data.resolve_data_dir(data_dir)}.")
    return None


@command.command(short_help="Prepare a dataset of TFDS.")
@click.argument("name")
@options.data_dir_option
@click.option("--from", "source", type=options.AnyPath(), help="Folder of its IDX files.")
def prepare(name, data_dir, source):
    """Prepare a dataset: from this package (mnist), from its website, or from files that you have."""
    from keras_ae import data

    prepared = data.prepare(name, data_dir, source, progress=console.say)
    console.echo(prepared.path)


class Size(click.ParamType):
    """HEIGHTxWIDTH, or one number for a square."""

    name = "HxW"

    def convert(self, value, param, context):
        sides = value.lower().split("x") if isinstance(value, str) else value
        try:
            height, width = (int(side) for side in (sides * 2 if len(sides) == 1 else sides))
        except ValueError:
            self.fail(f"{value!r} is no size such as 28 or 28x20 (height x width)", param, context)
        if not (0 < height <= 4096 and 0 < width <= 4096):
            self.fail(f"sides are 1 to 4096 pixels; got {value}", param, context)
        return height, width


@command.command("import", short_help="Make a dataset of your own images.")
@click.argument("name")
@click.argument("folder", type=options.AnyPath())
@options.data_dir_option
@click.option(
    "--resize",
    type=Size(),
    metavar="HEIGHTxWIDTH",
    help="Scale every image to this size; 28 means 28x28.",
)
@click.option(
    "--crop",
    is_flag=True,
    help="Cut the longer side first, so that --resize does not stretch the image.",
)
@click.option(
    "--mode",
    type=click.Choice(["grey", "rgb"]),
    help="Make all images grey or RGB.  [default: grey if all are, else rgb]",
)
@click.option(
    "--background",
    type=click.Choice(["white", "black"]),
    default="white",
    show_default=True,
    help="Colour behind transparent pixels.",
)
@click.option(
    "--test-fraction",
    type=float,
    help="Share of each class to test on, if there is no test folder.  [default: 0.1]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the split.  [default: 0]",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out files that cannot be read.")
@options.force_option
def import_(name, folder, data_dir, **chosen):
    """Make a dataset NAME from FOLDER, which holds images, or a folder of images for each class.

    FOLDER may have folders `train` and `test`, with the images or the class folders in them. Otherwise
    the images are split by --test-fraction and --seed. The result is an ordinary TFDS dataset. A model
    that is trained on it later prepares image files in the same way as this command.
    """
    from keras_ae import data
    from keras_ae.data.reading import read_features

    prepared = data.import_folder(name, folder, data_dir, progress=console.say, **chosen)
    splits = ", ".join(f"{split} {count}" for split, count in prepared.splits.items())
    model = "cvae" if len(read_features(prepared).class_names or ()) > 1 else "vae"
    following = console.hint("fit", model, "--dataset", name, *console.elsewhere(data_dir))
    console.say(f"{prepared.name} {prepared.version}: {splits}; next: {following}")
    console.echo(prepared.path)


@command.command(short_help="Read a whole dataset again and check it.")
@click.argument("name")
@options.data_dir_option
@options.json_option
def verify(name, data_dir, as_json):
    """Read a whole prepared dataset again and check counts and contents."""
    from keras_ae import data

    report = data.verify(name, data_dir)
    if as_json:
        return console.print_json(report)
    console.echo(f"{report['name']} {report['version']} ({report['format']}) in {report['path']}")
    for split, facts in report["splits"].items():
        shape = "x".join(map(str, facts["shape"]))
        known = {True: "genuine, ", False: "not the known content, ", None: ""}
        console.echo(
            f"  {split}: {facts['images']} images of {shape}, {known[facts['genuine']]}"
            f"sha256 {facts['sha256']}"
        )
    return None
