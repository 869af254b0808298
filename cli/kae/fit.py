"""kae fit: train a model and write a run folder."""

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import sys
import time
import tomllib
from pathlib import Path

import click

from kae import console, main, options
from keras_ae import settings as choices
from keras_ae.files import read_text
from keras_ae.settings import Settings

LONGEST = 10_000  # letters in a TOML file of settings
LARGEST = 1e300  # that a number in a file of settings may be
# In a context: whether --config is the run.json of a run, and what of that run the settings do not say.
OF_A_RUN, BEYOND = "kae.of_a_run", "kae.beyond"
FOLLOWS = "[default: follows from the images]"
KINDS = {
    "hidden": "a list of numbers",
    "augment": "a list of words",
    "binarize": "true or false",
}  # of settings that are no words or numbers
WHOLE = [field.name for field in dataclasses.fields(Settings) if field.type in (int, int | None)]
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


class Name(click.Choice):
    """One of the names in a registry, including those that an imported module registers.

    Args:
        names: a function that returns the names.
    """

    def __init__(self, names):
        self._names = names
        super().__init__(names())

    @property
    def choices(self):
        return tuple(self._names())

    @choices.setter
    def choices(self, names):
        """Does nothing: the names are read from the registry each time."""


class Weight(click.ParamType):
    """A number, or auto."""

    name = "FLOAT|auto"

    def convert(self, value, param, context):
        return value if value == "auto" else click.FLOAT.convert(value, param, context)


class Widths(click.ParamType):
    """Whole numbers, separated by commas: 512,256."""

    name = "N,N"

    def convert(self, value, param, context):
        parts = value if isinstance(value, tuple | list) else str(value).split(",")
        try:
            return tuple(int(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 512,256", param, context)


class Words(click.ParamType):
    """Words, separated by commas: flip,shift; or none."""

    name = "NAME,…"

    def convert(self, value, param, context):
        words = value if isinstance(value, tuple | list) else str(value).split(",")
        if words == ["none"]:
            return ()
        return tuple(str(word).strip() for word in words)


def read_config(context, parameter, path):
    """Read the defaults of the options from a file of settings: TOML, or the run.json of a run."""
    if path is None:
        return
    try:
        text = read_text(path)
        if path.suffix != ".json" and len(text) > LONGEST:  # a long dotted key takes tomllib hours
            raise ValueError(f"it has more than {LONGEST:,} letters")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        record, values = values, values.get("settings", values)
        beyond = beyond_settings(record) if values is not record else None
        values = choices.of_a_run(values) if values is not record else values
        values = {name.replace("-", "_"): value for name, value in values.items()}
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, AttributeError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        why = "it has no names" if isinstance(error, AttributeError) else error
        raise click.UsageError(f"{path} is no {kind} file of settings: {why}") from error
    for name, value in values.items():
        if name not in DEFAULTS:
            close = difflib.get_close_matches(name, DEFAULTS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"{path}: there is no setting {name!r}{hint}")
        kind = KINDS.get(name, "a whole number" if name in WHOLE else "a word or a number")
        allowed = str | int | None if name in WHOLE else str | int | float | None
        item = {"hidden": int, "augment": str}.get(name)
        listed = isinstance(value, list) and item and all(type(x) is item for x in value)
        endless = any(
            isinstance(x, (int, float)) and not abs(x) < LARGEST
            for x in (value if listed else [value])
        )
        if name == "binarize":
            fits = isinstance(value, bool | None)
        else:  # to Python, true is a number
            fits = listed or isinstance(value, allowed) and not isinstance(value, bool)
        if not fits or endless:
            raise click.UsageError(f"{path}: {name} must be {kind}.")
    context.default_map = {name: value for name, value in values.items() if value is not None}
    context.meta[OF_A_RUN] = path.suffix == ".json"
    context.meta[BEYOND] = beyond


def beyond_settings(record):
    """What of the run with this run.json its settings do not say; None where they say all."""
    if record.get("from"):
        return "started from the weights of another one"
    if isinstance(own := record.get("own"), dict) and own:
        return f"has parts of its maker's own ({', '.join(own)})"
    return None


def dataset_asked_for(context, name, data_dir):
    """The lasting name of the dataset to train on. One that a run.json names has to be here already."""
    from keras_ae import data

    of_config = context.get_parameter_source("dataset") is click.core.ParameterSource.DEFAULT_MAP
    if of_config and context.meta.get(OF_A_RUN):
        console.dataset_named(name, data_dir)
    return data.lasting_name(name, data_dir)


def setting(name, kind, help, **kwargs):
    """Make an option for a field of Settings, with the field's default."""
    default = DEFAULTS[name]
    return click.option(
        "--" + name.replace("_", "-"), type=kind, default=default, help=help,
        show_default=default is not None, **kwargs,
    )  # fmt: skip


@click.command("fit")
@click.argument("model", type=Name(choices.models))
@click.option(
    "--config",
    type=options.AnyPath(),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="Settings from a .toml file or from the run.json of a run; options on the command line win.",
)
@setting("dataset", options.Word(), "A TFDS dataset, by its name or its folder.")
@options.data_dir_option
@setting("backbone", Name(choices.backbones), "Convolutions, or dense layers only.")
@setting("size", click.Choice(choices.SIZES), "How wide the networks are.")
@setting("latent_dim", options.Count(1), f"Number of latents.  {FOLLOWS}")
@setting("epochs", options.Count(1), f"Passes over the training images.  {FOLLOWS}")
@setting(
    "hidden", Widths(), "conv: filters of each convolution, then a dense width; mlp: dense widths."
)
@setting("batch_size", options.Count(1), f"Images a step.  {FOLLOWS}")
@setting("optimizer", click.Choice(choices.OPTIMIZERS), "Optimizer.")
@setting("learning_rate", float, "Peak of the learning rate.  [default: the backbone's own]")
@setting("lr_schedule", click.Choice(choices.LR_SCHEDULES), "Schedule of the learning rate.")
@setting("reconstruction", Name(choices.reconstructions), "Loss of an image, a sum over pixels.")
@setting(
    "kl_weight",
    Weight(),
    "Final weight of the KL divergence: 1 is the evidence lower bound, auto the likelihood's own scale.  "
    + FOLLOWS,
)
@setting("kl_schedule", click.Choice(choices.KL_SCHEDULES), "Schedule of the KL weight.")
@setting("kl_warmup", float, "Fraction of the run that the schedule of the KL weight takes.")
@click.option(
    "--binarize/--no-binarize",
    help="Set each pixel to 0 or 1 at random in every epoch, with the grey value as the probability of 1.",
)
@setting(
    "augment",
    Words(),
    "Change training images at random, such as flip,shift,colour, or none.  [default: none]",
)
@setting("dtype", click.Choice(choices.DTYPES), "Precision of the layers; a checkpoint is float32.")
@setting(
    "early_stopping",
    options.Count(1),
    "Stop after so many epochs without a lower validation loss, from the end of the KL warm-up on.",
)
@setting("ema", float, "Use a running average of the weights, of this momentum, such as 0.999.")
@setting("seed", click.IntRange(0, 2**32 - 1), "Of weights, order and noise.")
@setting("limit", options.Count(1), "Take only the first so many images.")
@click.option(
    "--out",
    type=options.AnyPath(),
    help="Run folder.  [default: checkpoints/MODEL, or checkpoints/MODEL-DATASET where that is not mnist; "
    "with --from of that very run, …-more]",
)
@click.option(
    "--from",
    "start",
    metavar="RUN|FILE",
    help="Start from the weights of a run or .keras file, and with the settings of that run, but for a KL weight "
    "that stays as it is.",
)
@click.option(
    "--tensorboard", is_flag=True, help="Also write curves and pictures to RUN/tensorboard."
)
@click.option("--resume", is_flag=True, help="Continue the unfinished run in the folder.")
@options.force_option
@options.quiet_option
@options.json_option
@click.pass_context
def command(context, data_dir, out, start, tensorboard, resume, force, quiet, as_json, **values):
    """Train MODEL (ae, vae or cvae) and write a run folder.

    \b
    kae fit cvae --epochs 3
    kae fit --config checkpoints/cvae/run.json --out again    repeats a run
    kae fit cvae --from cvae --epochs 5                       goes on with a finished one

    Progress and messages go to stderr. Ctrl-C stops after the steps under way, and --resume continues
    from there.
    """

    source = settings_to_start_with(context, start, data_dir, values) if start is not None else None
    values["dataset"] = dataset_asked_for(context, values["dataset"], data_dir)
    with console.usage_errors():
        settings = Settings(**values)
    check_warmup(settings, start)
    if (beyond := context.meta.get(BEYOND)) and not (start or resume):
        raise click.UsageError(
            f"The run of --config {beyond}: name the model to start from by --from."
        )
    if resume and force:
        raise click.UsageError(
            "--resume goes on with a run, --force replaces it: give one of them."
        )
    console.check_clock()
    console.start_backend(training=True)
    from keras_ae import checkpoints, distributed, fitting, resuming
    from keras_ae.callbacks import TensorBoard

    console.keep_memory()  # allowed because the process is the command's own
    if distributed.launched_by_torchrun():
        distributed.start()
    # With torchrun, only the first process prints messages.
    quiet = quiet or distributed.rank() > 0
    folder = out or checkpoints.default_folder(settings)
    if source and not out and os.path.realpath(source) == os.path.realpath(folder):
        folder = folder.with_name(f"{folder.name}-more")
    if resume:
        stored = resuming.stored_settings(folder)
        # The dataset's folder may have moved, so `fit` compares the contents instead.
        dataset = (
            settings.dataset
            if options.typed("dataset")
            else console.dataset_named(stored.dataset, data_dir)
        )
        settings, stored = (dataclasses.replace(s, dataset=dataset) for s in (settings, stored))
        for name in resuming.differences(settings, stored):
            if options.given(name):
                raise click.UsageError(
                    f"--resume goes on with the settings of the run, where {name} is "
                    f"{getattr(stored, name)}, not {getattr(settings, name)}."
                )
        settings = stored

    callbacks = [TensorBoard(folder)] if tensorboard else []
    report = (lambda message: None) if quiet else console.say
    again = functools.partial(command_to_resume, settings, folder, data_dir, tensorboard)
    before = [] if resume else runs_in(folder)

    def begun():
        return not still(folder, before) and checkpoints.can_resume(folder)

    def ended():
        return not still(folder, before) and checkpoints.read_run(folder).get("finished")

    with explained(folder, again, begun, ended), console.usage_errors():
        result = console.stdout_to_stderr(fitting.fit)(
            settings, folder, data_dir, resume, force, verbosity(quiet), report, callbacks,
            start=start, trusted=bool(context.find_root().params.get("modules")),
        )  # fmt: skip
    distributed.stop()
    if result is None:
        return None
    result["seconds"] = round(time.perf_counter() - main.STARTED, 3)  # the whole command
    if as_json:
        return console.print_json(result)
    epochs = "1 epoch" if result["epochs"] == 1 else f"{result['epochs']} epochs"
    report(
        f"{epochs} in {result['seconds']:.0f} s in all, {result['seconds_per_epoch']:.1f} s an "
        f"epoch\nwrote {folder}: model.keras, run.json, history.csv, epochs/*.png"
    )
    name = out or folder.name
    if out and (str(out) in choices.models() or str(out).startswith("-")):
        name = os.path.join(".", out)  # by itself it would name another model, or an option
    if not choices.has_kl(settings.model):  # and so no prior
        # A dataset that is given by its folder is only read if --dataset names the folder.
        where = ["--dataset", settings.dataset] if os.path.isabs(settings.dataset) else []
        where += console.elsewhere(data_dir)
        report("next: " + console.hint("reconstruct", name, *where))
    else:
        report("next: " + console.hint("sample", name))
    return None


def check_warmup(settings, start=None):
    """Refuse --kl-warmup where no KL weight rises."""
    if options.typed("kl_warmup") and settings.kl_schedule == "constant":
        raise click.UsageError(
            "--kl-warmup is for a KL weight that rises, and this one is constant"
            + (" after --from" if start else "")
            + ": leave it out, or say --kl-schedule linear."
        )


def command_to_resume(settings, folder, data_dir, tensorboard=False):
    """The command line that continues a run."""
    words = [] if folder == Path("checkpoints", settings.model) else ["--out", folder]
    words += ["--dataset", settings.dataset] if os.path.isabs(settings.dataset) else []
    more = ["--tensorboard"] if tensorboard else []
    # On another backend the run would go on, but not bit for bit.
    backend = os.environ.get("KERAS_BACKEND", "torch")
    prefix = "" if backend == "torch" else f"KERAS_BACKEND={backend} "
    return prefix + console.hint(
        "fit", settings.model, *words, *console.elsewhere(data_dir), *more, "--resume"
    )


def verbosity(quiet):
    """The value of Keras' `verbose`: a bar in a terminal, otherwise a line per epoch; 0 if `quiet`."""
    return 0 if quiet else 1 if sys.stderr.isatty() else 2


@contextlib.contextmanager
def explained(folder, again, begun, ended=lambda: False):
    """Explain in one line that a run was stopped or cannot be written, and how to continue it: `again` returns the
    command, if `begun` returns that there is something to continue; `ended`, whether the run is finished."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.ClickException(
            f"Stopped. The run is kept in {folder}{waiting(folder)}; go on with it by: {again()}"
            if begun()
            else f"Stopped as the run ended: {folder} is whole."
            if ended()
            else "Stopped before the run began."
        ) from None
    except OSError as error:
        way = f"go on with it by: {again()}" if begun() else "give the same command again."
        raise click.ClickException(
            f"Cannot write to {folder}: {error.strerror or error}. What it holds is whole{waiting(folder)}; once there is "
            f"room, {way}"
        ) from error


def waiting(folder):
    """What is to be said of the run that another one is about to replace, if it is still there."""
    from keras_ae import checkpoints

    place = checkpoints.place_of(folder)
    if place == Path(folder) or checkpoints.unsettled(folder) or not checkpoints.files_of(folder):
        return ""
    return f" (to keep the run before, which this one replaces after its first epoch, move {place} away instead)"


def runs_in(folder):
    """What tells the runs in a folder from others: of each, the one that --resume continues first."""
    from keras_ae import checkpoints

    found = []
    for place in dict.fromkeys((checkpoints.place_of(folder), folder)):
        with contextlib.suppress(OSError):
            written = (place / "run.json").stat()
            found.append((written.st_ino, written.st_mtime_ns))
    return found


def still(folder, before):
    """Whether the run in a folder that --resume would continue was there when `runs_in` gave `before`."""
    return any(run in before for run in runs_in(folder)[:1])


def settings_to_start_with(context, start, data_dir, values):
    """Replace defaults by the settings of a checkpoint's run. Returns the folder of the checkpoint.

    Raises:
        click.UsageError: an option asks for another network than that of the checkpoint.
    """
    console.start_backend(training=True)
    from keras_ae import building, checkpoints

    found = checkpoints.find_checkpoint(start)
    trusted = bool(context.find_root().params.get("modules"))
    config = checkpoints.load_model(found.path, trusted).get_config()
    for name in building.OF_THE_MODEL:
        decided = config.get(name)
        if name != "dtype" and options.given(name) and values[name] != decided:
            raise click.UsageError(
                f"{found.path} has the {name} {decided}, not {values[name]}: leave --{name.replace('_', '-')} out."
            )
    stored = dict(choices.of_a_run(found.settings))
    if "dataset" in stored:
        stored["dataset"] = (
            values["dataset"] if options.given("dataset") else console.dataset_of(found, data_dir)
        )
    for name, value in stored.items():
        # The run's limit is for its own dataset, so it is not used for another one.
        if (
            name in values
            and not options.given(name)
            and (name != "limit" or not options.given("dataset"))
        ):
            values[name] = value
    if choices.has_kl(values["model"]) and not options.given("kl_schedule"):
        values["kl_schedule"] = "constant"
    return found.path.parent
