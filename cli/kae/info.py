"""kae info: facts about a checkpoint, or about this installation."""

import math

import click

from kae import console, options
from keras_ae.errors import printable


@click.command("info")
@click.argument("model", required=False, shell_complete=options.complete_model)
@options.json_option
def command(model, as_json):
    """Show facts about MODEL; without MODEL, show versions, backends and the device."""
    facts = checkpoint(model) if model is not None else installation()
    if as_json:
        return console.print_json(facts)
    width = max(map(len, facts))
    for name, value in facts.items():
        console.echo(f"{name:{width}}  {printable(words(value))}")
    return None


def words(value):
    """Format a value in one line: items of dicts and lists separated by commas, floats with six digits."""
    if isinstance(value, dict):
        pairs = {k: v for k, v in value.items() if v is not None}.items()
        return ", ".join(words(v) if isinstance(v, dict) else f"{k} {words(v)}" for k, v in pairs)
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def installation():
    """Facts about this installation: versions, installed backends, and the device of arrays."""
    import importlib.util
    import platform

    console.start_backend()
    import keras

    from keras_ae import __version__, provenance

    packages = ("keras", "torch", "jax", "tensorflow", "openvino", "tensorflow-datasets", "numpy")
    return {
        "keras-ae": __version__,
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
        "device": str(getattr(keras.ops.zeros(1), "device", "cpu")),
        "backends": [
            name
            for name, needs in console.BACKENDS.items()
            if all(importlib.util.find_spec(package) for package in needs)
        ],
        "versions": {name: provenance.version(name) for name in packages},
    }


def checkpoint(model):
    """Facts from a model file and its run.json."""
    network, found = console.load(model)
    facts = {
        "file": str(found.path),
        "model": type(network).__name__,
        "image_shape": list(network.image_shape),
        "latent_dim": network.latent_dim,
        "backbone": f"{network.backbone}, own {' and '.join(network.custom_networks)}" if network.custom_networks else network.backbone,
        "reconstruction": getattr(network.reconstruction, "__name__", network.reconstruction),
        "parameters": sum(math.prod(w.shape) for w in network.trainable_weights),
    }  # fmt: skip
    if network.num_classes:
        facts["classes"] = network.num_classes
        facts["class_names"] = list(network.names)
    if network.preparation is not None:
        facts["pictures"] = network.preparation.to_dict()
    if hasattr(network, "prior"):
        facts["prior"] = network.prior.describe()
        facts["kl_weight"] = float(network.kl_weight)
        if network.likelihood_scale is not None:  # with "auto", a factor on it
            facts["likelihood_scale"] = network.scale_of_likelihood()
            facts["kl_weight"] *= facts["likelihood_scale"]
    for name in ("finished", "settings", "data", "environment", "prior", "final"):
        if name in found.run:
            facts["run_" + name if name in facts else name] = found.run[name]
    return facts
