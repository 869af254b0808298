"""The group of commands. A command's module is imported when it runs or is asked for help."""

import importlib
import os
import sys
import time
import warnings

import click

from kae import quiet
from keras_ae import __version__
from keras_ae.errors import PACKAGES, UserError, printable

STARTED = time.perf_counter()

COMMANDS = {
    "fit": "Train a model and write a run folder.",
    "sweep": "Train for several KL weights and compare the runs.",
    "sample": "Draw new images.",
    "reconstruct": "Draw images over their reconstructions.",
    "interpolate": "Draw what lies between images or classes.",
    "manifold": "Draw a grid across the latent space.",
    "traverse": "Draw what each latent does.",
    "encode": "Write the codes (embeddings) of images.",
    "scatter": "Plot the codes of test images by class.",
    "animate": "Make a GIF of the epochs of a run.",
    "explore": "Write a page in which to play with a model, in any browser.",
    "report": "Write a page with all that there is to see of a model.",
    "evaluate": "Measure reconstruction, likelihood and samples.",
    "score": "Tell how odd images are to a model.",
    "compare": "Show settings and figures of runs side by side.",
    "export": "Write a model for another runtime.",
    "data": "List, prepare, import and verify datasets.",
    "info": "Show what a checkpoint is, or what this installation has.",
}


class Commands(click.Group):
    """Lists commands without importing them; turns the library's errors into one line."""

    def list_commands(self, context):
        return list(COMMANDS)

    def get_command(self, context, name):
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"kae.{name}").command

    def format_commands(self, context, formatter):
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, context):
        try:
            return self.invoke_or_explain(context)
        except click.ClickException as error:
            error.message = printable(error.message)
            # Of several processes that train one model, one says why they end.
            distributed = sys.modules.get("keras_ae.distributed")
            if distributed is None or distributed.first_to_speak():
                raise
            sys.exit(1)

    def invoke_or_explain(self, context):
        try:
            return super().invoke(context)
        except click.MissingParameter as error:  # click lists choices one a line
            raise click.UsageError(" ".join(error.format_message().split()), error.ctx) from error
        except UserError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module in ("", "kae", "keras_ae"):
                raise
            raise click.ClickException(
                f"This needs {module}: pip install {PACKAGES.get(module, module)}"
            ) from error
        except BrokenPipeError:
            raise
        except OSError as error:  # a path too long, a folder that may not be read, a broken disk
            raise click.ClickException(str(error)) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise click.ClickException(
                "Out of memory. Try a smaller --batch-size, --hidden, --latent-dim or -n."
            ) from error


def is_out_of_memory(error):
    """Whether this is how Python, NumPy, torch, jax or tensorflow say that there is no memory left."""
    of_backends = ("OutOfMemoryError", "ResourceExhaustedError")
    said = ("DefaultCPUAllocator", "RESOURCE_EXHAUSTED", "CUDA out of memory", "Out of memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in of_backends
        or any(words in str(error) for words in said)
    )


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kae")
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="A Python module of your own, whose registered models, backbones and losses are then known; its "
    "checkpoints may hold networks of your own. Give it before the command.",
)
def cli(modules):
    """Autoencoders, VAEs and conditional VAEs: train, look at, sample.

    \b
    kae fit cvae          train on MNIST, some minutes
    kae sample cvae 5     a grid of fives

    KERAS_BACKEND chooses torch (default), jax or tensorflow; numpy and openvino load and sample.
    """
    if modules:
        import_modules(modules)


def import_modules(modules):
    """Import modules of the user's, of the folder that we are in or installed."""
    from kae import console

    console.start_backend()
    sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the user's code raises
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise click.BadParameter(
                f"{module} cannot be imported ({why})", param_hint="--import"
            ) from error


def open_streams():
    """Have streams that were closed (`>&-`) lead nowhere: no file is to get their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process


def main():
    """Run the command line; a reader that closes the pipe early is no error."""
    open_streams()
    quiet.tensorflow()
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # those of other packages are nothing to end by
    try:
        cli(prog_name="kae")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
