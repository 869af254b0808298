"""The group of commands. A command's module is only imported when it runs or shows its help."""

import contextlib
import importlib
import importlib.abc
import importlib.util
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


# Lines about its own build that TensorFlow writes to stderr on import, at any log level:
# "WARNING: All log messages before absl::InitializeLog() …", "I0000 00:00:17956 7262 port.cc:153] …", and
# "2026-01-01 00:00:00.000: I tensorflow/core/…" in older versions.
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
            # If several processes train one model, only one of them prints why they end.
            distributed = sys.modules.get("keras_ae.distributed")
            if distributed is None or distributed.first_to_speak():
                raise
            sys.exit(1)

    def invoke_or_explain(self, context):
        try:
            return super().invoke(context)
        except click.MissingParameter as error:  # click lists each choice on a line of its own
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
        except OSError as error:  # such as too long a path, an unreadable folder or a broken disk
            raise click.ClickException(str(error)) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise click.ClickException(
                "Out of memory. Try a smaller --batch-size, --hidden, --latent-dim or -n."
            ) from error


def is_out_of_memory(error):
    """Whether Python, NumPy, torch, jax or tensorflow reports with this error that memory ran out."""
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
    help="A Python module of your own that registers models, backbones or losses; its "
    "checkpoints may hold networks of your own. Give it before the command.",
)
def cli(modules):
    """Train, inspect and sample autoencoders, VAEs and conditional VAEs.

    \b
    kae fit cvae          train on MNIST, some minutes
    kae sample cvae 5     a grid of fives

    KERAS_BACKEND chooses torch (default), jax or tensorflow; numpy and openvino load and sample.
    """
    if modules:
        import_modules(modules)


def import_modules(modules):
    """Import the user's modules, from installed packages or else from the working directory.

    The working directory comes last on the path, and only if a module needs it: a file there takes the place of
    no library that is imported later.
    """
    from kae import console

    console.start_backend(whole=True)
    for module in modules:
        try:
            if "" not in sys.path and importlib.util.find_spec(module.partition(".")[0]) is None:
                sys.path.append("")
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise click.BadParameter(
                f"{module} cannot be imported ({why})", param_hint="--import"
            ) from error


def open_streams():
    """Open closed standard streams (`>&-`) on the null device, so that no file gets their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - stays open until the end
    if sys.stdout.errors == "strict":  # not every encoding has every letter of names and messages
        sys.stdout.reconfigure(errors="backslashreplace")


def quiet_tensorflow():
    """Import TensorFlow, from now on, without lines about its own build, and let it log only fatal errors.

    Call this before anything imports TensorFlow; Keras does so on every backend, to save a model. If the
    import fails, everything that it wrote is shown. (The library itself does not change a process's stderr.)
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds tensorflow with the finders that come after this one, however often it is looked for."""

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
    """Holds back what C++ and Python write to stderr. At the end it is written, without lines of CHATTER."""
    try:
        held = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        before = os.dup(2)
    except OSError:  # the disk is full, or stderr is closed
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
    """Run the command line. If a reader closes the pipe early, no error is shown."""
    open_streams()
    quiet_tensorflow()
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # warnings of other packages must not end the program
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries would end the process with odd words
        sys.exit("Error: The working folder is gone: cd to another")
    # TensorFlow looks beside the first word of the command that is no option: that of `python -W ignore -m kae` as well.
    first = next((word for word in sys.orig_argv[1:] if not word.startswith("-")), "kae")
    for planted in (f"{first}.runfiles", os.path.join(first, "tensorflow")):
        if os.path.lexists(planted):
            sys.exit(
                f"Error: TensorFlow would load libraries from {planted} in this folder: rename it, or work in another one"
            )
    try:
        cli(prog_name="kae")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a help text on a full disk
        sys.exit(f"Error: {error}")
