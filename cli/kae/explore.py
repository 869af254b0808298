"""kae explore: one page to try out a model."""

import click

from kae import console, options


@click.command("explore")
@options.model_argument
@options.dataset_option
@options.data_dir_option
@options.seed_option
@options.out_option([".html"], "samples/MODEL-explore.html")
@options.force_option
@options.json_option
def command(model, dataset, data_dir, seed, out, force, as_json):
    """Write a page to try out MODEL in a browser: its latents, samples and codes, and images of your own.

    It is one HTML file that runs the networks in the browser, without any network connection. The seed
    selects the 2,000 test images.
    """
    default = f"samples/{console.stem_of(model)}-explore.html"
    target = console.target_of(out, default, (".html",), force)
    network, checkpoint = console.load(model)

    from keras_ae import exploring

    # Before the data is loaded, because this fails for unknown layers.
    networks = exploring.describe(network)
    test = console.load_test(network, checkpoint, dataset, data_dir)
    page = exploring.explore(network, test, seed=seed, progress=console.say, networks=networks)

    def save(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)

    target = console.write(target, save, force)
    if as_json:
        size = target.stat().st_size
        console.print_json(
            {"model": model, "dataset": test.name, "out": str(target), "bytes": size, "seed": seed}
        )
    else:
        console.echo(target)
