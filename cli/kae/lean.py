"""Imports Keras without what only its wrappers, plots and compilers need: these take more than half of its time."""

import contextlib
import importlib
import sys
import types

# Keras imports these if they are there, for its wrappers of scikit-learn, its plots, its notebooks, and data.
UNUSED = ("IPython", "jax", "matplotlib", "pandas", "sklearn")
COMPILER = "torch._dynamo"


class Compiler(types.ModuleType):
    """Stands for torch's compiler, from which Keras takes a decorator of functions that are not to be compiled."""

    @staticmethod
    def disable(function=None, *_, **options):
        return function or (lambda decorated: decorated)

    def __getattr__(self, name):
        # `inspect` looks for some in every module. __path__ is looked for by an import of a module in this one.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        sys.modules.pop(COMPILER, None)  # another Keras needs more of it
        return getattr(importlib.import_module(COMPILER), name)


@contextlib.contextmanager
def imports(needed):
    """A context in which to import Keras, whose backend needs some packages. (torch is imported before it.)

    Afterwards all are there again, but Keras' wrappers and plots have found theirs missing, and nothing of Keras'
    is marked for torch's compiler.
    """
    stand_in = Compiler(COMPILER)
    if "torch" in needed:
        importlib.import_module("torch")
        sys.modules.setdefault(COMPILER, stand_in)
    unused = set(UNUSED).difference(needed, sys.modules)
    sys.modules.update(dict.fromkeys(unused))  # None makes every import an ImportError
    try:
        yield
    finally:
        for name in unused:
            del sys.modules[name]
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
