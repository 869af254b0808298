"""kae compare: settings and figures of runs side by side."""

import click

from kae import console, options
from keras_ae.errors import printable

FIGURES = ("epochs", "seconds", "loss", "val_loss", "val_reconstruction", "val_kl", "kl_weight")
COMMON = ("elbo", "bits_per_dimension", "psnr")  # of the test images; the last two suit any loss


@click.command("compare")
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN…", shell_complete=options.complete_model
)
@click.option(
    "--all", "everything", is_flag=True, help="Every setting, not only those that differ."
)
@options.out_option([".png", ".svg"], "no picture")
@options.force_option
@options.json_option
def command(runs, everything, out, force, as_json):
    """Show settings and final figures of runs in a table; --out also plots their curves together.

    RUN is a name (ae, vae, cvae), a run folder or the .keras file in one.
    """
    if force and out is None:
        raise click.UsageError("--force replaces a picture: name it with --out.")
    if out:
        console.target_of(out, "", (".png", ".svg"), force)
    for run in runs:
        console.check_name(run, "RUN")
    console.start_backend()
    from keras_ae import checkpoints, pictures

    if out:
        pictures.need_matplotlib()
    found = {run: checkpoints.find_checkpoint(run) for run in runs}
    for run, place in found.items():
        if place.path.suffix != ".keras":
            raise click.UsageError(f"{run} is no run folder and no .keras file.")
        if place.origin != "path":
            console.say_used(place, run)
    histories = {run: place.history() for run, place in found.items()}
    if out:
        figure = pictures.curves(histories)
        console.write(
            out, lambda path: pictures.save_plot(figure, path, out.suffix[1:]), force, echoed=False
        )
    figures = {run: figures_of(place, histories[run]) for run, place in found.items()}
    if as_json:
        return console.print_json(
            {
                "runs": [
                    {"run": run, "finished": place.run.get("finished"), "settings": place.described,
                     "final": figures[run]}
                    for run, place in found.items()
                ]
            }
        )  # fmt: skip
    for line in table({run: place.described for run, place in found.items()}, figures, everything):
        console.echo(line)
    return None


def figures_of(place, history):
    """The figures of a run: those of its history, and those measured at its end.

    Args:
        place: the run's `checkpoints.Checkpoint`.
        history: the result of `checkpoints.read_history`.
    """
    seconds = round(sum(row["seconds"] for row in history), 1)
    final = place.run.get("final", {})
    # The weights at the end may be others than after the last epoch.
    last = {name: final.get(name, history[-1].get(name)) for name in FIGURES[2:]} if history else {}
    return {"epochs": len(history), "seconds": seconds, **last} | {k: final.get(k) for k in COMMON}


def table(settings, figures, everything=False, rows=(*FIGURES, *COMMON)):
    """Yields the lines of a table of runs: their settings and figures.

    Args:
        settings, figures: {run: {name: value}}, both for the same runs.
        everything: show all settings, not only those that differ.
        rows: the names of the figures.
    """
    runs = list(settings)
    names = dict.fromkeys(name for values in settings.values() for name in values)
    lines = [["", *map(printable, runs)]]
    for name in names:
        values = [settings[run].get(name) for run in runs]
        if name not in rows and (everything or any(value != values[0] for value in values)):
            cells = ("-" if value is None else printable(value) for value in values)
            lines.append([printable(name), *cells])
    for name in rows:
        values = [figures[run].get(name) for run in runs]
        if any(value is not None for value in values):
            places = {"seconds": 1, "psnr": 2}.get(name, 4)
            # A figure that is also a setting has one row: the value reached, of the value planned.
            planned = [settings[run].get(name) for run in runs]
            lines.append([name, *(reached(*pair, places) for pair in zip(values, planned))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for head, *cells in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:]))
        yield "  ".join([f"{head:{widths[0]}}", *cells]).rstrip()
    terms = [settings[run].get("reconstruction") for run in runs]
    terms = list(dict.fromkeys(str(term) for term in terms if term is not None))
    if len(terms) > 1:
        yield (
            f"loss, reconstruction and elbo are of unlike terms ({', '.join(map(printable, terms))}) and do "
            "not compare; bits_per_dimension and psnr (dB) do."
        )


def reached(value, planned, places):
    """A cell's text: a figure, and the planned value if that is different."""
    if planned is None or value is None or value == planned:
        return number(value, places)
    floats = isinstance(planned, float) and isinstance(value, float)
    near = floats and abs(value - planned) < 1e-6 * abs(planned)
    return number(value, places) if near else f"{number(value, places)} of {printable(planned)}"


def number(value, places):
    """A cell's text: a figure, or - if it is missing."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{places}f}" if abs(value) < 1e9 else f"{value:.4g}"
