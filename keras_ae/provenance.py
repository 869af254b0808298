"""What run.json says that a run was made of: data, start, parts of the maker's own, packages; and whether that still fits."""

import importlib.metadata
import inspect
import json
import zlib

import keras
import numpy as np

from keras_ae import checkpoints
from keras_ae.errors import RunError
from keras_ae.feed import WINDOW
from keras_ae.model_file import is_plain
from keras_ae.models import AE, MODELS

# Entries of a model's config that are no arguments of its own.
OF_EVERY_MODEL = (
    "name", "trainable", "dtype", "format", "preparation", "quantization", "frozen"
)  # fmt: skip


def data_facts(train, test):
    """Facts about the data of a run, with a checksum of labels and images (for large data, of every nth image)."""
    return {
        "name": train.name,
        "version": train.version,
        "train_images": len(train.images),
        "test_images": len(test.images),
        "crc32": checksum_of_data(train, test),
    }


def same_data(before, facts, *splits):
    """Whether `data_facts` tell the same images of two times; `splits` are those of `facts`.

    The version counts only where the checksum leaves images out: to import a folder again raises it.
    """
    whole = all(split.images.nbytes < WINDOW for split in splits)
    apart = [key for key in {*before, *facts} if before.get(key) != facts.get(key)]
    return not apart or whole and apart == ["version"]


def checksum_of_data(*splits):
    """The CRC-32 of the images and labels of some `ImageData`, of large ones of every nth image."""
    checksum = 0
    for split in splits:
        step = 1 + split.images.nbytes // WINDOW
        for start in range(0, len(split.images), 8192 * step):
            images = split.images[start : start + 8192 * step : step]
            checksum = zlib.crc32(np.ascontiguousarray(images), checksum)
        if split.labels is not None:
            checksum = zlib.crc32(np.ascontiguousarray(split.labels), checksum)
    return f"{checksum:08x}"


def described(facts):
    """A short text for the result of `data_facts`, or for what a run.json says of them."""
    version, train, test, checksum = (
        f"{facts.get(name)!s:.60}" for name in ("version", "train_images", "test_images", "crc32")
    )
    return f"version {version}, {train} and {test} images, checksum {checksum}"


def origin_of(found):
    """The entry of run.json for the `checkpoints.Checkpoint` that a run starts from."""
    final, path = found.run.get("final", {}), found.path.absolute()
    return {
        # The name only, not the path.
        "name": path.parent.name if path.name == "model.keras" else path.name,
        "crc32": checksum_of(path),
        "dataset": found.settings.get("dataset"),
        "epochs": final.get("epochs"),
    }


def checksum_of(path):
    """The CRC-32 of a file, as stored in run.json."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def check_origin(folder, origin, start):
    """Check that a run is not resumed from another checkpoint than it started from.

    Raises:
        RunError: the checkpoints differ.
    """
    if start is None:
        return
    path = checkpoints.find_checkpoint(start).path
    if origin is None or origin.get("crc32") != checksum_of(path):
        began = (
            "did not start from a checkpoint"
            if origin is None
            else f"started from {origin.get('name')!s:.60} as it was then"
        )
        raise RunError(f"The run in {folder} {began}: --resume goes on with it; leave --from out.")


def own_parts(model, settings):
    """What of a model the settings, which hold names of registries, cannot say: {part: name} of the user's parts.

    `arguments` are a subclass's own, of its `get_config`, as text.
    """
    own = {}
    base = MODELS[settings.model]
    if type(model) is not base:
        own["model"] = type(model).__name__
        known = set(OF_EVERY_MODEL).union(
            *(inspect.signature(c).parameters for c in base.__mro__ if issubclass(c, AE))
        )
        given = {n: v for n, v in model.get_config().items() if n not in known and is_plain(v)}
        if given:
            text = ", ".join(
                f"{name}={json.dumps(value, sort_keys=True)}" for name, value in given.items()
            )
            checksum = f"{zlib.crc32(text.encode()):08x}"
            own["arguments"] = text if len(text) <= 200 else f"{text[:150]}… (checksum {checksum})"
    named = model.get_config()["reconstruction"]
    if not isinstance(named, str):  # a function that is in no registry
        own["reconstruction"] = model.reconstruction.__name__
    return own | {name: type(getattr(model, name)).__name__ for name in model.custom_networks}


def check_own(before, own, folder):
    """Check that a run is resumed with a model whose own parts are those, by name, that it began with.

    Raises:
        RunError: they are others.
    """
    if own == before:
        return
    parts, given = (
        ", ".join(f"the {part} {name}" for part, name in of.items())[:200] for of in (before, own)
    )
    raise RunError(
        f"The run in {folder} began with {parts} of its maker's own, and this one has {given or 'none'}: in Python, give "
        "keras_ae.fit the model that it began with (model=)."
        if parts
        else f"The run in {folder} began with no model of its maker's own: leave model= out."
    )


def environment_of(model):
    """The backend, the device and the package versions of a run."""
    backend = keras.backend.backend()
    packages = {"keras-ae", "keras", "numpy", "tensorflow-datasets", backend}
    return {
        "backend": backend,
        "device": str(getattr(model.encoder.weights[0].value, "device", "cpu")),
        "versions": {name: version(name) for name in sorted(packages)},
    }


def version(package):
    """The version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
