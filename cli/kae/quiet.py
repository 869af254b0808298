"""TensorFlow tells what it was built with when it is imported, on stderr, whatever its log level is.

Keras imports it on every backend, to save a model. A command line has its own messages there: `tensorflow()`
keeps these lines out, and nothing else. The library itself does not touch a process's stderr.
"""

import contextlib
import importlib.abc
import os
import re
import sys
import tempfile

# "WARNING: All log messages before absl::InitializeLog() …", "I0000 00:00:17956 7262 port.cc:153] …", and
# "2026-01-01 00:00:00.000: I tensorflow/core/…" of older versions.
CHATTER = re.compile(
    rb"WARNING: All log messages before absl::|[IWE]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d [\d:.]+: [IWE] |"
    rb"To enable the following instructions"
)


def tensorflow():
    """From now on, import TensorFlow without its lines about its own build, and let it log fatal errors alone.

    To be called before anything imports it. An error of the import is told with all that was written.
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
