"""kae animate: a GIF of the epochs of a run."""

import click

from kae import console, options


@click.command("animate")
@click.argument("model", metavar="RUN", shell_complete=options.complete_model)
@click.option(
    "--seconds",
    type=options.Number(0.02, 60),
    default=0.5,
    show_default=True,
    help="How long each epoch is shown; the last one is shown four times as long.",
)
@options.out_option([".gif"], "samples/RUN.gif")
@options.force_option
def command(model, seconds, out, force):
    """Make an animated GIF of the pictures of a run's epochs.

    RUN is a name (ae, vae, cvae) or a run folder; its pictures are in RUN/epochs.
    """
    target = console.target_of(out, f"samples/{console.stem_of(model)}.gif", (".gif",), force)
    console.check_name(model, "RUN")
    console.start_backend()
    from keras_ae import checkpoints, pictures

    found = checkpoints.find_checkpoint(model)
    frames = found.epochs()
    if not frames:
        raise click.ClickException(f"{model} has no pictures of epochs: give a run of `kae fit`.")
    console.say_used(found, model)
    target = console.write(target, lambda path: pictures.animation(frames, path, seconds), force)
    console.echo(target)
