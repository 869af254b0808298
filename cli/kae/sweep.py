"""kae sweep: one run for each of several KL weights, and their comparison."""

from pathlib import Path

import click

from kae import compare, console, fit, options
from keras_ae.errors import UserError
from keras_ae.settings import Settings

ROWS = ("rate", "distortion", "elbo", "bits_per_dimension", "psnr", "epochs", "seconds")
PLOT = "rate and distortion of a sweep by keras-ae"  # the title in the file of the plot
# The options of `kae fit` that a sweep also has, besides the settings.
SHARED = ("model", "config", "data_dir", "tensorboard", "force", "quiet", "as_json")


class Weights(click.ParamType):
    """Numbers, separated by commas: 0.02,0.1,0.5."""

    name = "X,X"

    def convert(self, value, param, context):
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.02,0.1,0.5", param, context)


@click.command("sweep")
@click.option(
    "--kl-weight",
    "kl_weights",
    type=Weights(),
    required=True,
    help="Final weights of the KL divergence, one run for each, such as 0.02,0.1,0.5.",
)
@click.option(
    "--out",
    type=options.AnyPath(),
    help="Folder of the runs.  [default: checkpoints/sweep-MODEL, or sweep-MODEL-DATASET where that is not mnist]",
)
@click.pass_context
def command(context, kl_weights, out, data_dir, tensorboard, force, quiet, as_json, **values):
    """Train MODEL (vae or cvae) for several KL weights, and compare the rate and distortion of the runs.

    \b
    kae sweep vae --kl-weight 0.02,0.1,0.5 --epochs 3

    It takes the options of `kae fit`. Each run has its own folder. A finished run is not repeated, and a
    stopped run continues. The plot rate-distortion.png beside the runs shows the nats of the code against
    the error of the reconstruction.
    """
    values["dataset"] = fit.dataset_asked_for(context, values["dataset"], data_dir)
    with console.usage_errors():
        settings = Settings(**values, kl_weight=kl_weights[0])
    fit.check_warmup(settings)
    if beyond := context.meta.get(fit.BEYOND):
        raise click.UsageError(
            f"The run of --config {beyond}, which a sweep does not make: leave --config out."
        )
    console.check_clock()
    console.start_backend(training=True)
    from keras_ae import checkpoints, distributed, pictures, sweeping
    from keras_ae.callbacks import TensorBoard

    if distributed.launched_by_torchrun():
        raise click.UsageError("A sweep runs in one process; start each `kae fit` by torchrun.")
    console.keep_memory()  # allowed because the process is the command's own
    report = (lambda message: None) if quiet else console.say
    plots = True
    try:
        pictures.need_matplotlib()
    except UserError as error:
        plots = False
        report(f"no rate-distortion plot: {error}")
    folder = out
    if folder is None:
        place = checkpoints.default_folder(settings)
        folder = place.with_name(f"sweep-{place.name}")
    places = [sweeping.place_of(folder, weight) for weight in kl_weights]

    before = {place: fit.runs_in(place) if force else [] for place in places}

    def again():
        old = [place.name for place, runs in before.items() if fit.still(place, runs)]
        moved = f", once you moved {', '.join(sorted(old))} away, not replaced yet" if old else ""
        return "the same command" + (f" without --force{moved}" if force else "")

    def begun():
        return any(fit.runs_in(p) and not fit.still(p, runs) for p, runs in before.items())

    with fit.explained(folder, again, begun), console.usage_errors():
        results = console.stdout_to_stderr(sweeping.sweep)(
            settings,
            kl_weights,
            folder,
            data_dir,
            force,
            fit.verbosity(quiet),
            report,
            (lambda run: [TensorBoard(run)]) if tensorboard else (lambda run: ()),
        )
    plot = None
    if plots:
        plot = folder / "rate-distortion.png"
        figure = pictures.rate_distortion(results, settings.reconstruction)
        # The plot of an earlier call is replaced; another file there is kept.
        own = pictures.title_of(plot) == PLOT
        plot = console.write(
            plot,
            lambda path: pictures.save_plot(figure, path, title=PLOT),
            force or own,
            echoed=False,
            quiet=quiet,
        )
    if as_json:
        return console.print_json(
            {"sweep": str(folder), "runs": results, "plot": None if plot is None else str(plot)}
        )
    for line in table(results, settings):
        console.echo(line)
    return None


def table(results, settings):
    """Yields the lines of the table of `kae compare`, with rate and distortion instead of the losses."""
    runs = {Path(result["run"]).name: result for result in results}
    planned = {name: {"kl_weight": result["kl_weight"]} for name, result in runs.items()}
    yield from compare.table(planned, runs, rows=ROWS)
    yield (
        f"rate: KL in nats an image; distortion: {settings.reconstruction}, a sum over an image; psnr: dB; "
        "all of test images."
    )


_own = {parameter.name for parameter in command.params} | {"kl_weight"}
command.params[:0] = [
    parameter
    for parameter in fit.command.params
    if parameter.name in {*SHARED, *fit.DEFAULTS} - _own
]
