"""Autoencoders, variational autoencoders and conditional VAEs for Keras 3.

    import keras_ae
    train, test = keras_ae.data.load_splits("mnist")
    vae = keras_ae.VAE((28, 28, 1), latent_dim=16)
    vae.compile(keras_ae.Adam(2e-3))
    vae.fit(train.images, epochs=10, callbacks=[keras_ae.KLAnnealing()])
    vae.fit_prior(train.images)
    digits = vae.sample(64, seed=7)

Each name is imported when it is first used. So `import keras_ae` and `keras_ae.data` take almost no
time and load no deep-learning framework.
"""

import importlib
import importlib.util
import os
import sys

__version__ = "0.1.0"

# Torch is the default backend. A slim installation without torch gets the first backend below that is
# installed (the numpy backend needs jax, and starts faster than jax). Keras reads KERAS_BACKEND when it is
# imported, so nothing is changed where the variable is set or Keras is already imported. (At its first
# import, Keras itself writes ~/.keras/keras.json with tensorflow in it. No user chose that: we ignore it.)
if "keras" not in sys.modules and "KERAS_BACKEND" not in os.environ:
    _NEEDS = {"torch": "torch", "tensorflow": "tensorflow", "numpy": "jax", "openvino": "openvino"}
    _installed = (name for name, needs in _NEEDS.items() if importlib.util.find_spec(needs))
    os.environ["KERAS_BACKEND"] = next(_installed, "torch")

if os.environ.get("KERAS_BACKEND") == "openvino" and "openvino" not in sys.modules:
    from keras_ae import telemetry

    telemetry.off()

_HOME = {
    "AE": "models",
    "VAE": "models",
    "CVAE": "models",
    "KLAnnealing": "annealing",
    "Adam": "fast.adam",
    "StandardNormal": "priors",
    "ClassMixture": "priors",
    "Settings": "fitting",
    "fit": "fitting",
    "load_model": "checkpoints",
    "explore": "exploring",
    "evaluate": "evaluation",
    "score": "evaluation",
    "sweep": "sweeping",
}
_MODULES = (
    "annealing",
    "backbones",
    "callbacks",
    "checkpoints",
    "classifier",
    "data",
    "distributed",
    "evaluation",
    "export",
    "fast",
    "fitting",
    "latents",
    "losses",
    "models",
    "objective",
    "pictures",
    "priors",
    "report",
    "settings",
    "sweeping",
)

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"keras_ae.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"keras_ae.{name}")
    raise AttributeError(f"module 'keras_ae' has no attribute {name!r}")


def __dir__():
    return __all__
