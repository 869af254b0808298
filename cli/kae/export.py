"""kae export: write a model for another runtime."""

from pathlib import Path

import click

from kae import console, options
from keras_ae.settings import EXPORT_PARTS, EXPORT_SUFFIXES


@click.command("export")
@options.model_argument
@click.option(
    "--format",
    "file_format",
    type=click.Choice(list(EXPORT_SUFFIXES)),
    required=True,
    help="What to write.",
)
@click.option(
    "--part", type=click.Choice(EXPORT_PARTS), default="decoder", show_default=True,
    help="encoder: image to code; decoder: latent to image; autoencoder: image to reconstruction; "
    "sampler: noise to image, with the fitted prior. A cvae's take a label too.",
)  # fmt: skip
@click.option(
    "--out",
    type=options.AnyPath(),
    help=f"File ({', '.join(filter(None, EXPORT_SUFFIXES.values()))}), or folder of a saved_model."
    "  [default: exports/MODEL-PART]",
)
@options.force_option
@options.json_option
def command(model, file_format, part, out, force, as_json):
    """Write a part of MODEL for ONNX Runtime, torch, OpenVINO, TensorFlow or LiteRT.

    Images are float32 in [0, 1] and labels are int64, in batches of any size. If the current backend
    cannot write the format, a process with a backend that can does it.
    """
    path = out or Path("exports") / f"{console.stem_of(model)}-{part}{EXPORT_SUFFIXES[file_format]}"
    console.check_clock()
    console.start_backend()
    from keras_ae import export

    with console.usage_errors():
        export.check(path, file_format, part, force)
    network, checkpoint = console.load(model)
    if part == "sampler" and not hasattr(network, "sample"):
        raise click.UsageError("An ae has no prior to sample from: use a vae or a cvae.")
    if part == "sampler":
        console.tell_prior(network, checkpoint)
    try:
        modules = click.get_current_context().find_root().params.get("modules") or ()
        written = export.export(network, path, file_format, part, force, console.say, modules)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror or error}.") from error
    for target in written:
        console.say(f"wrote {target}")
    if as_json:
        console.print_json(
            {
                **export.describe(network, part),
                "model": model,
                "format": file_format,
                "out": [str(target) for target in written],
            }
        )
    else:
        console.echo(path)
