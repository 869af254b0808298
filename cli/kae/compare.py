"""kae compare: settings and figures of runs side by side."""

import click

from kae import console, options
from keras_ae.errors import printable

FIGURES = ("epochs", "seconds", "loss", "val_loss", "val_reconstruction", "val_kl", "kl_weight")


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
    """Show settings and final figures of runs in a table; --out draws their curves over each other.

    RUN is a name (ae, vae, cvae), a run folder or the .keras file in one.
    """
    if out:
        console.target_of(out, "", (".png", ".svg"), force)
    console.start_backend()
    from keras_ae import checkpoints, pictures

    found = {run: checkpoints.find_checkpoint(run) for run in runs}
    histories = {run: checkpoints.read_history(place.path.parent) for run, place in found.items()}
    if out:
        figure = pictures.curves(histories)
        console.write(
            out, lambda path: pictures.save_plot(figure, path, out.suffix[1:]), echoed=False
        )
    settings = {run: place.settings for run, place in found.items()}
    figures = {
        run: {
            "epochs": len(histories[run]),
            "seconds": round(sum(row["seconds"] for row in histories[run]), 1),
        }
        | {k: histories[run][-1].get(k) for k in FIGURES[2:] if histories[run]}
        for run, place in found.items()
    }
    if as_json:
        return console.print_json(
            {
                "runs": [
                    {"run": run, "finished": place.run.get("finished"), "settings": settings[run],
                     "final": figures[run]}
                    for run, place in found.items()
                ]
            }
        )  # fmt: skip
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    rows = [["", *map(printable, runs)]]
    for name in names:
        values = [settings[run].get(name) for run in runs]
        if everything or any(value != values[0] for value in values):
            cells = ("-" if value is None else printable(value) for value in values)
            rows.append([printable(name), *cells])
    for name in FIGURES:
        values = [figures[run].get(name) for run in runs]
        if any(value is not None for value in values):
            places = 1 if name == "seconds" else 4
            rows.append([name, *(number(value, places) for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for head, *cells in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:]))
        console.echo("  ".join([f"{head:{widths[0]}}", *cells]).rstrip())
    return None


def number(value, places):
    """A figure in a cell."""
    if value is None:
        return "-"
    return f"{value:.{places}f}" if isinstance(value, float) else str(value)
