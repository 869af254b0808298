"""Reads a .keras file that anybody may have made: everything is checked before anything is built.

Keras' own loading imports the classes that a file names, and believes the sizes that it asks for. Here a
file is data: a zip of two small JSON files and one HDF5 file, each stored as it is; a config of known
keys, for one of three classes; no more weights than the file has bytes for; and HDF5 of plain arrays.
The sum of the bytes of every member is checked (CRC-32), so that a flipped bit is found.
"""

import io
import json
import os
import zipfile

from keras_ae.networks import BACKBONES, HIDDEN, count_weights

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = {CONFIG, WEIGHTS, "metadata.json"}
CLASSES = {"keras_ae>AE": "AE", "keras_ae>VAE": "VAE", "keras_ae>CVAE": "CVAE"}
PRIORS = {"keras_ae>StandardNormal": "StandardNormal", "keras_ae>ClassMixture": "ClassMixture"}

JSON_BYTES = 4 << 20
PIXELS = 1 << 26  # numbers in an image: 8192 x 8192 grey ones
DEPTH = 64  # hidden layers
OBJECTS = 20_000  # in the HDF5 file
OVERHEAD = 16 << 20  # bytes of HDF5 that are no weights
STATES = 4  # copies of the weights in a file that a user saved with the optimizer, and to spare


def read(path):
    """Read and check a .keras file.

    Returns:
        (class name, config, weights): "AE", "VAE" or "CVAE"; the checked arguments of the class, with
        the prior as (class name, arguments) or None; the bytes of an HDF5 file.

    Raises:
        ValueError: with the reason why the file is refused, in one line.
        OSError: if it cannot be read.
    """
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, size)
            whole = _parse(archive.read(CONFIG))
            name, config = _check_config(whole)
            _check_size(name, config, archive.getinfo(WEIGHTS).file_size)
            for member in members:  # reading to the end checks the sum of the bytes
                content = archive.read(member)
                if member.filename == WEIGHTS:
                    weights = content
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise ValueError(f"it is no Keras model file, or a damaged one ({error})") from error
    except KeyError as error:
        raise ValueError(f"it is no Keras model file: it lacks {error}") from error
    _check_hdf5(weights)
    return name, config, weights


def _check_members(members, size):
    names = [member.filename for member in members]
    if odd := sorted(set(names) - MEMBERS):
        raise ValueError(f"it holds {odd[0]!r}, which no model file of keras-ae does")
    if len(set(names)) < len(names):
        raise ValueError("it holds two files of one name")
    if missing := {CONFIG, WEIGHTS} - set(names):
        raise ValueError(f"it is no Keras model file: it lacks {min(missing)}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"its {member.filename} is compressed, which Keras never does")
        if member.filename != WEIGHTS and member.file_size > JSON_BYTES:
            raise ValueError(f"its {member.filename} has {member.file_size:,} bytes")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its parts are larger than the whole")


def _parse(content):
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            "it is no Keras model file, or a damaged one: its config is no JSON"
        ) from error
    if not isinstance(whole, dict) or not isinstance(whole.get("config"), dict):
        raise ValueError("it is no Keras model file: its config is no object")
    return whole


def _whole(low, high=2**31):
    return lambda value: type(value) is int and low <= value < high


def _widths(value):
    return value is None or (
        isinstance(value, list) and 1 <= len(value) <= DEPTH and all(map(_whole(1), value))
    )


def _shape(value):
    return isinstance(value, list) and len(value) == 3 and all(map(_whole(1), value))


def _texts(value):
    return value is None or (isinstance(value, list) and all(type(v) is str for v in value))


# What a config may say: key -> whether a value is one.
COMMON = {
    "name": lambda value: type(value) is str and 0 < len(value) < 256 and "/" not in value,
    "trainable": lambda value: type(value) is bool,
    "dtype": lambda value: _dtype(value) is not None,
    "latent_dim": _whole(1),
}
MIXTURE = COMMON | {"num_classes": _whole(1), "components": _whole(1)}
MODEL = COMMON | {
    "format": _whole(0),
    "image_shape": _shape,
    "backbone": lambda value: value in BACKBONES,
    "hidden": _widths,
    "reconstruction": lambda value: type(value) is str,
    "kl_weight": lambda value: type(value) in (int, float),
    "prior": lambda value: value is None or isinstance(value, dict),
    "num_classes": _whole(1),
    "class_names": _texts,
}


def _dtype(value):
    """The name of a dtype policy, given by name or as Keras writes it; None for anything else."""
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy":
        value = (value.get("config") or {}).get("name")
    return value if isinstance(value, str) else None


def _check_config(whole):
    registered = whole.get("registered_name")
    if not isinstance(registered, str) or registered not in CLASSES:
        kind = str(registered or whole.get("class_name"))[:60]
        raise ValueError(f"it holds a {kind!r}, not an AE, VAE or CVAE of keras-ae")
    if {"encoder", "decoder"} & whole["config"].keys():
        raise ValueError(
            "it has networks of its maker's own, which are not checked here: if you trust the maker, "
            "keras.saving.load_model reads it in Python"
        )
    config = _known(whole["config"], MODEL)
    if missing := {"image_shape", "latent_dim", "backbone"} - config.keys():
        raise ValueError(f"its config lacks {min(missing)}")
    hidden = config.get("hidden") or HIDDEN[config["backbone"]]
    if config["backbone"] == "conv" and len(hidden) < 2:
        raise ValueError("its config has a conv backbone of one hidden width")
    height, width, channels = config["image_shape"]
    if height * width * channels > PIXELS:
        raise ValueError(f"its config asks for images of {height} x {width} x {channels}")
    if (prior := config.get("prior")) is not None:
        registered = prior.get("registered_name")
        if not isinstance(registered, str) or registered not in PRIORS:
            kind = str(registered or prior.get("class_name"))[:60]
            raise ValueError(f"its prior is a {kind!r}, not one of keras-ae")
        if not isinstance(prior.get("config"), dict):
            raise ValueError("its prior has no config")
        arguments = _known(prior["config"], MIXTURE)
        if arguments.get("latent_dim") != config["latent_dim"]:
            raise ValueError("its prior has another number of latents than the model")
        config["prior"] = (PRIORS[registered], arguments)
    return CLASSES[whole["registered_name"]], config


def _known(config, kinds):
    for key, value in config.items():
        if key not in kinds:
            raise ValueError(f"its config has {str(key)[:40]!r}, which no model of keras-ae takes")
        if not kinds[key](value):
            raise ValueError(f"its config has the {key} {str(value)[:60]!r}")
    return config | ({"dtype": _dtype(config["dtype"])} if "dtype" in config else {})


def _check_size(name, config, size):
    """Refuse to build what the weights in the file do not fill, or to read far more than they need."""
    count = count_weights(
        config["image_shape"],
        config["latent_dim"],
        1 if name == "AE" else 2,
        config["backbone"],
        config.get("hidden"),
        config.get("num_classes", 10) if name == "CVAE" else 0,
    )
    if (prior := config.get("prior")) is not None and prior[0] == "ClassMixture":
        latents = prior[1]["latent_dim"]
        mixtures = prior[1].get("num_classes", 1) * prior[1].get("components", 1)
        count += mixtures * (1 + latents + latents**2)
    if 4 * count > size:
        raise ValueError(
            f"its config asks for {count:,} weights, and it has room for {size // 4:,}: the file is "
            "damaged, or not what it says"
        )
    if size > STATES * 4 * count + OVERHEAD:
        raise ValueError(f"it has {size:,} bytes of weights for a model of {count:,}")


def _check_hdf5(content):
    """Refuse an HDF5 file that is more than groups of plain arrays in this very file."""
    import h5py

    def refuse(what):
        raise ValueError(f"its weights have {what}")

    try:
        with h5py.File(io.BytesIO(content)) as file:
            groups, objects, total = [file], 0, 0
            while groups:
                group = groups.pop()
                for name in group:
                    objects += 1
                    if objects > OBJECTS:
                        refuse("too many parts, or parts that hold themselves")
                    if type(group.get(name, getlink=True)) is not h5py.HardLink:
                        refuse(f"a link to elsewhere ({name!r})")
                    item = group[name]
                    if isinstance(item, h5py.Group):
                        groups.append(item)
                        continue
                    if not isinstance(item, h5py.Dataset):
                        refuse(f"something that is no array ({name!r})")
                    if item.external or item.is_virtual:
                        refuse(f"an array in another file ({name!r})")
                    if item.dtype.kind not in "biuf" or item.shape is None:
                        refuse(f"an array of {item.dtype} ({name!r})")
                    if item.chunks is not None:
                        refuse(f"an array in chunks ({name!r})")
                    total += item.nbytes
                    if total > len(content):
                        refuse("arrays larger than the file")
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError, OverflowError) as error:
        raise ValueError(f"its weights are damaged ({error})") from error
