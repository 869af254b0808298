"""kae report: one page that shows everything about a model."""

import os
from urllib.parse import quote

import click

from kae import console, options
from keras_ae.errors import need


@click.command("report")
@options.model_argument
@options.dataset_option
@options.data_dir_option
@click.option(
    "--evaluate", is_flag=True, help="Add every figure of `kae evaluate`; takes some minutes."
)
@options.seed_option
@options.out_option([".html"], "samples/MODEL.html")
@options.force_option
def command(model, dataset, data_dir, evaluate, seed, out, force):
    """Write a page about MODEL: figures, curves, reconstructions, samples, and its latent space.

    It is one HTML file that includes its pictures, so you can open it in any browser or send it to others.
    If the page of `kae explore` is in the same folder, as REPORT-explore.html, the report links to it.
    """
    target = console.target_of(out, f"samples/{console.stem_of(model)}.html", (".html",), force)
    from keras_ae import pictures

    need("A report", "matplotlib", "sklearn")
    pictures.need_matplotlib()
    network, checkpoint = console.load(model)
    console.tell_prior(network, checkpoint)

    from keras_ae import evaluation, report

    train, test = console.load_splits(network, checkpoint, dataset, data_dir)
    figures = None
    if evaluate:
        figures = console.stdout_to_stderr(evaluation.evaluate)(
            network,
            train,
            test,
            seed=seed,
            binarize=checkpoint.settings.get("binarize", False),
            progress=console.say,
        )
    beside = target.with_name(f"{target.stem}-explore.html")
    page = report.report(
        checkpoint,
        network,
        test,
        seed,
        figures,
        console.say,
        explore=f"./{quote(os.fsencode(beside.name))}" if beside.is_file() else None,
    )

    def save(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)

    target = console.write(target, save, force)
    console.echo(target)
