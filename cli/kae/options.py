"""Options and arguments that several commands have."""

import shlex
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from keras_ae import settings


class Number(click.FloatRange):
    """A number in a range, which NaN is not."""

    def convert(self, value, param, context):
        if (number := super().convert(value, param, context)) != number:
            self.fail(f"{value} is no number", param, context)
        return number


class Count(click.IntRange):
    """A whole number from some number on, of what is counted: images, epochs or latents."""

    def convert(self, value, param, context):
        if isinstance(value, str) and len(value) > 20:
            self.fail(f"a number of {len(value)} digits is too large", param, context)
        if (number := super().convert(value, param, context)) > settings.MOST:
            self.fail(f"{settings.MOST:,} is the most", param, context)
        return number


class Word(click.ParamType):
    """A text that is not empty, as that of a variable of the shell that is not set."""

    name = "TEXT"

    def convert(self, value, param, context):
        if value == "":
            self.fail("it is empty", param, context)
        return click.STRING.convert(value, param, context)


class AnyPath(click.Path):
    """A path that is not empty."""

    def __init__(self):
        super().__init__(path_type=Path)

    def convert(self, value, param, context):
        if value == "":
            self.fail("the path is empty", param, context)
        return super().convert(value, param, context)


def given(name):
    """Whether the user gave an option of the running command, by its parameter's name."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def typed(name):
    """Whether the user gave it on the command line, and not in a file of settings."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


data_dir_option = click.option(
    "--data-dir",
    type=AnyPath(),
    help="Where TFDS datasets lie.  [default: KAE_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets]",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress and no messages.")
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of everything that is drawn at random.",
)


def complete_model(context, parameter, incomplete):
    """Complete MODEL in the shell: names, or any path if no name fits."""
    names = settings.checkpoint_names("checkpoints")
    # The shell inserts a name unquoted, and would run what a folder's name says.
    plain = [name for name in names if shlex.quote(name) == name]
    found = [name for name in plain if name.startswith(incomplete)]
    items = [CompletionItem(name) for name in found]
    return items or [CompletionItem(incomplete, type="file")]


model_argument = click.argument("model", shell_complete=complete_model)
files_argument = click.argument("files", nargs=-1, type=AnyPath(), metavar="[FILE|FOLDER]…")
dataset_option = click.option(
    "--dataset", type=Word(), help="A TFDS dataset.  [default: what the model was trained on]"
)
_label_option = click.option(
    "--label",
    "labels",
    multiple=True,
    help="Class of the image files, for a cvae: one for all, or given once for each.",
)
_crop_option = click.option(
    "--crop", is_flag=True, help="Cut image files to the proportions of the model's images."
)
_invert_option = click.option(
    "--invert", is_flag=True, help="Invert image files, for example dark ink on white paper."
)


def file_options(command):
    """Add --label, --crop and --invert: the class of image files, and how to prepare them."""
    return _label_option(_crop_option(_invert_option(command)))


def out_option(suffixes, default):
    """Make an --out option for a file with one of the suffixes; `default` is shown in its help."""
    return click.option(
        "--out",
        type=AnyPath(),
        help=f"A {' or '.join(suffixes)} file.  [default: {default}]",
    )
