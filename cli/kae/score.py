"""kae score: how unusual images are for a model."""

import csv
import dataclasses
import io
from pathlib import Path

import click

from kae import console, options

SHOWN = 20  # images with the highest scores that the picture shows
FEWER = 1_000  # test images of a cvae, each of which is scored under every class


@click.command("score")
@options.model_argument
@options.files_argument
@click.option(
    "--dataset",
    type=options.Word(),
    help="Score the test images of this TFDS dataset; with files, its images are those that the model should know.  "
    "[default: what the model was trained on]",
)
@options.data_dir_option
@click.option(
    "--odd",
    "classes",
    multiple=True,
    help="A class of the dataset that is odd, by name or number; may be given more than once.",
)
@click.option("--limit", type=options.Count(1), help="Use the first so many test images only.")
@options.file_options
@options.seed_option
@options.out_option([".csv"], "csv on stdout")
@options.force_option
@options.json_option
def command(
    model, files, dataset, data_dir, classes, limit, labels, crop, invert, seed, out, force, as_json
):
    """Score how unusual image files, or the test images of a dataset, are for MODEL (high: unusual).

    \b
    kae score vae photo.png                    among the test images that the model should know
    kae score vae --dataset fashion_mnist      and how well they are told apart (AUROC)
    kae score vae --odd 3                      of a model that was trained without threes

    A row of the csv has the reconstruction error, and the negative ELBO and the negative log density of the
    code under the fitted prior, both in nats; each with its percentile among the test images of the
    model's own dataset. The images with the highest negative ELBO (if there is one, else reconstruction
    error) are drawn above their reconstructions. Without a class, a cvae's score is the lowest of all classes.
    """
    target = console.target_of(out, "", (".csv",), force) if out else None
    picture = console.target_of(None, f"samples/{console.stem_of(model)}-odd.png", (), force)
    if target:
        picture = target.with_name(f"{target.stem}-odd.png")
        console.check_free(picture, force)
    if files and classes:
        raise click.UsageError("Give files, or --odd.")
    if not files:
        console.check_file_options(labels, crop, invert)
    network, checkpoint = console.load(model)
    if options.given("seed") and not hasattr(network, "posterior"):
        raise click.UsageError("--seed draws from a posterior, and an ae has none: leave it out.")

    import numpy as np

    from keras_ae import data, evaluation, pictures
    from keras_ae.models import AE
    from keras_ae.provenance import checksum_of_data

    # For files, and if the model's own images are not here, --dataset names the images that it should know.
    named = dataset and (files or not console.has_dataset(checkpoint, data_dir))
    own = dataset if named else console.dataset_of(checkpoint, data_dir)
    # Whether the classes of the scored images are known: from --label, or from the model's dataset.
    told = bool(network.num_classes) and (
        bool(labels) if files else not classes and dataset in (None, own)
    )
    fewer = network.num_classes and not told and limit is None
    known = console.load_test(network, checkpoint, own, data_dir, FEWER if fewer else limit)
    if fewer and len(known.images) == FEWER:
        console.say(
            f"of test images the first {FEWER:,}, as each is tried under {network.num_classes} classes; "
            "--limit takes others"
        )
    usual, odd = known, None
    if files:
        files = console.find_files(files)
        console.check_no_input(files, picture, *([target] if target else []))
        # Without --label, a cvae scores each file under every class; this label is only a placeholder.
        anything = tuple(network.names[:1]) if network.num_classes else ()
        scored = console.load_files(network, files, labels or anything, crop, invert)
        if not labels:
            scored = dataclasses.replace(scored, labels=None)
    elif dataset and dataset != own:
        if classes:
            raise click.UsageError("--odd is for classes of the model's own dataset.")
        _, scored = data.load_splits(dataset, data_dir, FEWER if fewer else limit, console.say)
        AE.check_data(network, scored)  # the shape; its classes may be others
        # By the images as well: imports of one name may be of one version.
        same = (scored.name, scored.version) == (known.name, known.version)
        if same and checksum_of_data(scored) == checksum_of_data(known):
            raise click.UsageError(
                f"{dataset} is what the model was trained on: leave --dataset out, or name what is odd to it."
            )
        odd = np.ones(len(scored.images), bool)
    else:
        scored = known
        if classes:
            odd = np.isin(known.labels, _classes(known, classes))
            usual = known.select(~odd)
            if not 0 < odd.sum() < len(odd):
                raise click.UsageError("--odd must leave test images of both kinds.")
    if named and not files:
        console.say(
            f"the images that this model was trained on are not here: those of {own} are taken for usual"
        )
    if checkpoint.settings.get("binarize"):
        console.say(
            "note: the model was trained on binarized images; these are scored as they are, in grey"
        )
    console.say(
        f"scoring {len(scored.images):,} images among {len(usual.images):,} test images of {usual.name} …"
    )

    def inputs(images):
        return network.inputs_of(images) if told else images.images

    reference = evaluation.score(network, inputs(usual), seed=seed)
    scores = reference
    if scored is not usual:
        scores = evaluation.score(network, inputs(scored), seed=seed)
    area = None
    if odd is not None:
        area = {
            name: evaluation.auroc(values[odd], reference[name]) for name, values in scores.items()
        }
    by = "negative_elbo" if "negative_elbo" in scores else "reconstruction_error"
    highest = np.argsort(-scores[by], kind="stable")[:SHOWN]
    columns = {}
    for name, values in scores.items():
        columns[name] = values
        columns[f"{name}_percentile"] = evaluation.percentiles(values, reference[name])
    names = console.names_of(scored)
    rows = [
        {
            "image": str(files[i]) if files else i,
            **({"class": names[i]} if names else {}),
            **({"odd": bool(odd[i])} if odd is not None and classes else {}),
            **{name: float(column[i]) for name, column in columns.items()},
        }
        for i in range(len(scored.images))
    ]

    shown = scored.select(highest)
    rebuilt = _rebuilt(network, shown, told)
    sheet = pictures.pairs(shown.images, rebuilt, names=[f"{scores[by][i]:.4g}" for i in highest])
    picture = console.write(picture, sheet.save, force, echoed=False)
    for name, value in (area or {}).items():
        console.say(f"AUROC by {name.replace('_', ' ')}: {value:.4f}")
    if target:
        target = console.write(
            target,
            lambda path: Path(path).write_text(_csv(rows), "utf-8", "backslashreplace"),
            force,
        )
    if as_json:
        return console.print_json(
            {
                "path": str(checkpoint.path), "n": len(rows), "reference": usual.name,
                "reference_n": len(usual.images), "auroc": area, "picture": str(picture),
                "out": str(target) if target else None, "highest": [rows[i] for i in highest],
                **({} if target else {"images": rows}),
            }
        )  # fmt: skip
    return console.echo(target) if target else console.echo_rows(_csv(rows))


def _classes(images, names):
    """The indices of classes of a dataset that are given by name or number."""
    if images.labels is None:
        raise click.UsageError(f"{images.name} has no classes for --odd.")
    listed = list(images.class_names)
    found = [console.find_class(listed, name) for name in names]
    if None in found:
        raise click.UsageError(
            f"--odd must be a class of {images.name} ({', '.join(listed)}); "
            f"got {names[found.index(None)]!r}."
        )
    return found


def _rebuilt(network, images, told):
    """Reconstructions of images. If a cvae's classes are unknown, each image gets the class with the
    lowest error."""
    import numpy as np

    if told or not network.num_classes:
        return network.reconstruct(network.inputs_of(images) if told else images.images)
    from keras_ae.pictures import to_float

    each = np.stack(
        [
            network.reconstruct((images.images, np.full(len(images.images), y)))
            for y in range(network.num_classes)
        ]
    )
    errors = np.abs(each - to_float(images.images)).sum((2, 3, 4))
    return each[errors.argmin(0), np.arange(len(images.images))]


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(console.Rows(text), rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
