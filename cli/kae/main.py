"""The group of commands. A command's module is imported when it runs or is asked for help."""

import contextlib
import importlib
import importlib.abc
import os
import re
import sys
import tempfile
import time
import warnings

import click

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


# What TensorFlow writes to stderr of its own build when it is imported, whatever its log level is:
# "WARNING: All log messages before absl::InitializeLog() …", "I0000 00:00:17956 7262 port.cc:153] …", and
# "2026-01-01 00:00:00.000: I tensorflow/core/…" of older versions.
CHATTER = re.compile(
    rb"WARNING: All log messages before absl::|[IWE]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d [\d:.]+: [IWE] |"
    rb"To enable the following instructions"
)


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


def quiet_tensorflow():
    """From now on, import TensorFlow without its lines about its own build, and let it log fatal errors alone.

    Keras imports it on every backend, to save a model. To be called before anything does. An error of the
    import is told with all that was written. (The library itself does not touch a process's stderr.)
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds tensorflow as the finders after this one do, as often as somebody asks whether it is there."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "tensorflow":
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        with _filtered_stderr():
            self.loader.exec_module(module)


@contextlib.contextmanager
def _filtered_stderr():
    """A context in which what C++ and Python write to stderr is held, and written at its end but for chatter."""
    try:
        held = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        before = os.dup(2)
    except OSError:  # no room, or stderr is closed
        yield
        return
    with held:
        failed = True
        os.dup2(held.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            for line in held:
                if failed or not CHATTER.match(line):
                    os.write(2, line)


def main():
    """Run the command line; a reader that closes the pipe early is no error."""
    open_streams()
    quiet_tensorflow()
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # those of other packages are nothing to end by
    try:
        cli(prog_name="kae")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
