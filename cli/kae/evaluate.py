"""kae evaluate: the figures of a model."""

import click

from kae import console, options
from keras_ae.errors import need

# Figure: (what it is called, its unit).
TABLE = {
    "reconstruction_l1": ("L1 of reconstructions", "mean per pixel of [0, 1]"),
    "reconstruction_mse": ("MSE of reconstructions", "mean per pixel of [0, 1]"),
    "kl": ("KL from N(0, I)", "nats per image"),
    "elbo": ("ELBO", "nats per image"),
    "log_likelihood": ("log-likelihood, importance-weighted", "nats per image"),
    "mutual_information": ("mutual information of image and code", "nats"),
    "mutual_information_limit": ("… at most, from so many images", "nats"),
    "active_units": ("active latents", "of {latent_dim}"),
    "kl_per_latent": ("KL of each latent", "nats"),
    "fid": ("FID of samples", "from training images"),
    "fid_reconstructions": ("FID of reconstructions", "from training images"),
    "fid_test_images": ("FID of test images", "from training images"),
    "conditional_accuracy": ("samples recognised as asked", "share"),
    "conditional_accuracy_per_class": ("… of each class", "share"),
    "confident": ("samples recognised as any class", "share, at confidence 0.9 or more"),
    "precision": ("precision of samples", "share near a test image"),
    "recall": ("recall of samples", "share of test images near one"),
    "density": ("density of samples", "about 1 for real images"),
    "coverage": ("coverage of samples", "share of test images that have one near"),
    "classifier_accuracy": ("the classifier itself, on test images", "share"),
}


@click.command("evaluate")
@options.model_argument
@click.option("--dataset", help="A TFDS dataset.  [default: what the model was trained on]")
@options.data_dir_option
@click.option("--limit", type=click.IntRange(1), help="Use the first so many test images only.")
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    help="Images to draw and judge.",
)
@click.option(
    "--iw",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Importance samples an image for the log-likelihood; 0 leaves it out.",
)
@options.seed_option
@options.json_option
def command(model, dataset, data_dir, limit, samples, iw, seed, as_json):
    """Measure MODEL on the test images of a dataset, and its samples.

    MODEL is a name (ae, vae, cvae), a run folder or a .keras file. Samples are judged by a classifier
    of the dataset; one that is not there yet is trained first and kept, which takes minutes.
    """
    need("kae evaluate", "sklearn")
    network, checkpoint = console.load(model)

    from keras_ae import data
    from keras_ae.evaluation import evaluate

    dataset = dataset or console.dataset_of(checkpoint, data_dir)
    train, test = data.load_splits(dataset, data_dir=data_dir, progress=console.say)
    network.check_data(test)
    figures = console.stdout_to_stderr(evaluate)(
        network,
        train,
        test,
        samples=samples,
        importance_samples=iw,
        seed=seed,
        limit=limit,
        binarize=checkpoint.settings.get("binarize", False),
        progress=console.say,
    )
    if as_json:
        console.print_json({"path": str(checkpoint.path)} | figures)
    else:
        console.echo("\n".join(table(figures)))


def table(figures):
    """The lines of the table: one a figure, with its unit, and why one is missing."""
    yield (
        f"{figures['model']} on {figures['n']:,} images of {figures['dataset']} {figures['split']}"
        f"{', binarized' if figures['binarized'] else ''}; {figures['samples']:,} samples"
        f"{' from ' + figures['prior'] if figures['prior'] else ''}"
    )
    for name, (title, unit) in TABLE.items():
        value = figures[name]
        if value is None:
            continue
        if name == "elbo":
            unit += f", likelihood {figures['likelihood']}"
        if name == "log_likelihood":
            unit += f", k = {figures['importance_samples']}"
        yield f"{title:40} {number(value):>10}  {unit.format_map(figures)}"
    nearest = figures["nearest_training_image"] or {}
    for name, distances in nearest.items():
        title = f"from {name.replace('_', ' ')} to a training image"
        unit = f"Euclidean, median of {distances['n']:,}; closest {number(distances['closest'])}"
        yield f"{title:40} {number(distances['median']):>10}  {unit}"
    for name, reason in figures["reasons"].items():
        yield f"no {name.replace('_', ' ')}: {reason}"


def number(value):
    """Four digits after the point, or as many as a small figure needs."""
    if isinstance(value, list):
        return " ".join("-" if v is None else f"{v:.3f}" for v in value)
    return str(value) if isinstance(value, int) else f"{value:.4f}"
