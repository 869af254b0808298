"""Reads a .keras file from an unknown source: everything is checked before anything is built.

Keras' own loader imports the classes that a file names, and trusts the sizes in it. Here a file is only data.
It must be a zip of two small JSON files and one HDF5 file, all uncompressed. Its config may have known keys
only, and must be for one of our classes or a user's registered class. The model may not have more weights than
the file has bytes for. The HDF5 file may hold plain arrays only. A checksum (CRC-32) of each file in the zip is
verified, so a flipped bit is detected.
"""

import inspect
import io
import json
import os
import re
import zipfile

import keras

from keras_ae.backbones import BACKBONES, backbone_of_format_1, count_weights
from keras_ae.data import Preparation
from keras_ae.files import open_zip
from keras_ae.losses import RECONSTRUCTIONS
from keras_ae.models import AE, CVAE, MODELS
from keras_ae.priors import PRIORS, Prior
from keras_ae.settings import DEPTH, SIZES

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = {CONFIG, WEIGHTS, "metadata.json"}
JSON_BYTES = 4 << 20
MOST_NUMBERS = 1 << 26  # most numbers in an image: 8192 x 8192 grey pixels
OBJECTS = 20_000  # most groups and arrays in the HDF5 file
OVERHEAD = 16 << 20  # bytes allowed in the HDF5 file beside the weights
STATES = 4  # copies of the weights allowed in a file; saved with Adam it has three


def read(path, trusted=False):
    """Read and check a .keras file.

    Args:
        path: of the file.
        trusted: also accept the maker's own networks, which are not checked.

    Returns:
        (class, config, weights): a subclass of `AE`; its checked config; the bytes of an HDF5 file.

    Raises:
        ValueError: the file is refused; the message gives the reason in one line.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    try:
        with open_zip(path) as archive:
            members = archive.infolist()
            _check_members(members, size)
            whole = _parse(archive.read(CONFIG))
            cls, config = _check_config(whole, trusted)
            _check_size(cls, config, archive.getinfo(WEIGHTS).file_size)
            if config.get("prior") is not None:
                prior, arguments = config["prior"]
                config["prior"] = prior(**arguments)
            for member in members:  # reading a member to its end verifies its checksum
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
    return cls, config, weights


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


# The keys that a config may have, each with a function that says whether a value is valid.
ANY_CONFIG = {
    "name": lambda value: type(value) is str and 0 < len(value) < 256 and "/" not in value,
    "trainable": lambda value: type(value) is bool,
    "dtype": lambda value: _dtype(value) is not None,
    "latent_dim": _whole(1),
}
NETWORKS = {"encoder", "decoder"}
MODEL_CONFIG = ANY_CONFIG | {
    "format": _whole(0),
    "image_shape": _shape,
    "backbone": lambda value: type(value) is str and value in BACKBONES,
    "size": lambda value: value in SIZES,
    "hidden": _widths,
    "reconstruction": lambda value: (
        value in RECONSTRUCTIONS if type(value) is str else _is_function(value)
    ),
    # No float holds every whole number.
    "kl_weight": lambda value: type(value) is float or value == "auto" or _whole(0)(value),
    "prior": lambda value: value is None or isinstance(value, dict),
    "num_classes": _whole(1),
    "class_names": _texts,
    "preparation": lambda value: _is_preparation(value),
    "frozen": lambda value: _texts(value) and NETWORKS.issuperset(value),
}


NAMED = {"backbone", "reconstruction"}  # entries of registries, which users may add to


def _is_preparation(value):
    try:
        Preparation.from_dict(value)
    except ValueError:
        return False
    return True


def _is_function(value):
    """Whether a value is a serialized function that is registered in this process under the name Keras looks up."""
    name = isinstance(value, dict) and value.get("class_name") == "function" and value.get("config")
    found = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    return callable(found) and not isinstance(found, type)


def _name(value):
    """What a value is called in an error: a function that Keras wrote, by its name."""
    named = value.get("config") if isinstance(value, dict) else None
    return str(named or value)[:60]


def _dtype(value):
    """The name of a dtype policy, from its name or its serialized form; None for anything else."""
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy":
        value = (value.get("config") or {}).get("name")
    known = isinstance(value, str) and re.fullmatch(r"[a-z0-9_]*float(16|32|64)", value)
    return value if known else None


def _class_of(described, known, base):
    """The class that an entry of a file names, if it is one of ours or registered; else None."""
    name = described.get("registered_name")
    if not isinstance(name, str):
        return None
    ours = {keras.saving.get_registered_name(cls): cls for cls in known.values()}
    found = ours.get(name) or keras.saving.get_registered_object(name)
    return found if isinstance(found, type) and issubclass(found, base) else None


def _check_config(whole, trusted):
    if (cls := _class_of(whole, MODELS, AE)) is None:
        kind = str(whole.get("registered_name") or whole.get("class_name"))[:60]
        raise ValueError(
            f"it holds a {kind!r}, not an AE, VAE or CVAE of keras-ae: import the module that registers it "
            "(`kae --import MODULE …`)"
        )
    config = whole["config"]
    if "quantization" in config:
        raise ValueError(
            "it is quantized, and is not checked here: keras.saving.load_model reads it in Python"
        )
    if NETWORKS & config.keys() and not trusted:
        raise ValueError(
            "it has networks of its maker's own, which are not checked here: if you trust the maker, "
            "keras.saving.load_model reads it in Python, and `kae --import MODULE` here"
        )
    kinds = {key: is_plain for key in _more_arguments(cls, AE, config)} | MODEL_CONFIG
    networks = {key: config[key] for key in NETWORKS & config.keys()}
    config = _known({k: v for k, v in config.items() if k not in networks}, kinds) | networks
    if missing := {"image_shape", "latent_dim", "backbone"} - config.keys():
        raise ValueError(f"its config lacks {min(missing)}")
    height, width, channels = config["image_shape"]
    if height * width * channels > MOST_NUMBERS:
        raise ValueError(f"its config asks for images of {height} x {width} x {channels}")
    if (prior := config.get("prior")) is not None:
        if (prior_cls := _class_of(prior, PRIORS, Prior)) is None:
            kind = str(prior.get("registered_name") or prior.get("class_name"))[:60]
            raise ValueError(f"its prior is a {kind!r}, not one of keras-ae")
        if not isinstance(prior.get("config"), dict):
            raise ValueError("its prior has no config")
        arguments = prior["config"]
        kinds = {key: is_plain for key in _more_arguments(prior_cls, Prior, arguments)}
        kinds |= dict.fromkeys(prior_cls.sizes, _whole(1))
        arguments = _known(arguments, kinds | ANY_CONFIG)
        if arguments.get("latent_dim") != config["latent_dim"]:
            raise ValueError("its prior has another number of latents than the model")
        if "num_classes" in arguments and arguments["num_classes"] < config.get("num_classes", 1):
            raise ValueError("its prior has fewer classes than the model")
        config["prior"] = (prior_cls, arguments)
    return cls, config


def _is_ours(cls):
    return cls.__module__.startswith("keras_ae.")


def _more_arguments(cls, base, config):
    """What a config may have beside the arguments that are checked one by one, as plain values.

    Of a class of ours, the arguments that its constructor names; of one of the user's, whatever is there.
    """
    if not _is_ours(cls):
        return set(config)
    inits = [c.__init__ for c in cls.__mro__ if issubclass(c, base)]
    arguments = [a for init in inits for a in inspect.signature(init).parameters.values()]
    return {a.name for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)} - {"self"}


def is_plain(value):
    """Whether a value consists of numbers, text, lists and dicts, and no dict names a class."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return "class_name" not in value and all(
            type(k) is str and is_plain(v) for k, v in value.items()
        )
    return value is None or type(value) in (bool, int, float, str)


def _known(config, kinds):
    for key, value in config.items():
        if key not in kinds:
            raise ValueError(f"its config has {str(key)[:40]!r}, which no model of keras-ae takes")
        if not kinds[key](value):
            of_users = ": import the module that registers it" if key in NAMED else ""
            raise ValueError(f"its config has the {key} {_name(value)!r}{of_users}")
    return config | ({"dtype": _dtype(config["dtype"])} if "dtype" in config else {})


def _check_size(cls, config, size):
    """Refuse a file with fewer weights than the model needs, or with far more bytes than it needs."""
    count, known = 0, _is_ours(cls) and not NETWORKS & config.keys()
    if not NETWORKS & config.keys():
        backbone = config["backbone"]
        count = count_weights(
            config["image_shape"],
            config["latent_dim"],
            len(cls.heads),
            backbone_of_format_1(backbone) if config.get("format") == 1 else backbone,
            config.get("hidden"),
            config.get("num_classes", 10) if issubclass(cls, CVAE) else 0,
            config.get("size", "base"),
        )
    if config.get("prior") is not None:
        prior, arguments = config["prior"]
        count += prior.count(arguments)
    if 4 * count > size:
        raise ValueError(
            f"its config asks for {count:,} weights, and it has room for {size // 4:,}: the file is "
            "damaged, or not what it says"
        )
    if known and size > STATES * 4 * count + OVERHEAD:
        raise ValueError(f"it has {size:,} bytes of weights for a model of {count:,}")


def _check_hdf5(content):
    """Refuse an HDF5 file with anything but groups and plain arrays that are stored in the file itself."""
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
                    if item.dtype == "V2":
                        refuse(
                            f"bfloat16 ({name!r}): keras.saving.load_model reads it, and checkpoints.save_model writes float32"
                        )
                    if item.dtype.kind not in "biuf" or item.shape is None:
                        refuse(f"an array of {item.dtype} ({name!r})")
                    if item.chunks is not None:
                        refuse(f"an array in chunks ({name!r})")
                    # Keras reads those of an array, which may name one text a thousand times.
                    if len(item.attrs):
                        refuse(f"an array with attributes ({name!r})")
                    total += item.nbytes
                    if total > len(content):
                        refuse("arrays larger than the file")
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError, OverflowError) as error:
        raise ValueError(f"its weights are damaged ({error})") from error
