"""kae scatter: codes of test images by class."""

import click

from kae import console, options


@click.command("scatter")
@options.model_argument
@click.option(
    "--method",
    type=click.Choice(["pca", "tsne", "umap"]),
    default="pca",
    show_default=True,
    help="How codes become points: principal components, or a map that keeps neighbours together.",
)
@click.option(
    "--limit", type=options.Count(3), default=2000, show_default=True, help="Test images."
)
@options.dataset_option
@options.data_dir_option
@options.seed_option
@options.out_option([".png", ".svg"], "samples/MODEL-METHOD.png")
@options.force_option
def command(model, method, limit, dataset, data_dir, seed, out, force):
    """Plot the codes of test images, each class in its colour."""
    if options.given("seed") and method == "pca":
        raise click.UsageError("--seed is for tsne and umap, and pca draws nothing: leave it out.")
    default = f"samples/{console.stem_of(model)}-{method}.png"
    target = console.target_of(out, default, (".png", ".svg"), force)
    console.start_backend()
    from keras_ae import latents, pictures

    pictures.need_matplotlib()
    latents.need_method(method)
    network, checkpoint = console.load(model)

    test = console.load_test(network, checkpoint, dataset, data_dir, limit)
    codes = network.encode(network.inputs_of(test))
    points, axes = latents.embed(codes, method, seed)
    figure = pictures.scatter(points, test.labels, test.class_names, axes=axes)
    suffix = target.suffix[1:]
    target = console.write(target, lambda path: pictures.save_plot(figure, path, suffix), force)
    console.echo(target)
