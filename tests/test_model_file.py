"""Model files of strangers: each is refused in one line, in seconds, within 1 GB, and runs nothing."""

import base64
import io
import json
import marshal
import os
import random
import resource
import stat
import time
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_ae import AE, CVAE, VAE, checkpoints, model_file
from keras_ae.backbones import count_weights
from keras_ae.checkpoints import CheckpointError
from keras_ae.models import MODELS


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The members of a good file: name -> bytes."""
    path = tmp_path_factory.mktemp("good") / "model.keras"
    model = VAE((8, 8, 1), 2, "mlp", (8,))
    model.fit_prior(np.arange(64 * 40, dtype="uint8").reshape(40, 8, 8, 1))
    checkpoints.save_model(model, path)
    return path, members_of(path)


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members, **kwargs):
    """A zip of (name or ZipInfo, content) pairs."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **kwargs) as archive:
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in members:
            archive.writestr(name, content)


def with_config(edit):
    def make(path, members):
        config = json.loads(members["config.json"])
        config = edit(config) or config
        write(path, {**members, "config.json": json.dumps(config)}.items())

    return make


def layer(module, class_name, config, registered=None):
    """A serialised layer, as a stranger writes one."""
    return {
        "module": module,
        "class_name": class_name,
        "config": config,
        "registered_name": registered,
    }


def as_model(edit):
    """The layer is the model; or it is somewhere in one that claims to be ours."""

    def whole(config):
        return edit()

    def claimed(config):
        return {**edit(), "registered_name": "keras_ae>VAE"}

    def prior(config):
        config["config"]["prior"] = edit()

    def prior_claimed(config):
        config["config"]["prior"] = {**edit(), "registered_name": "keras_ae>ClassMixture"}

    def dtype(config):
        config["config"]["dtype"] = edit()

    def built(config):
        config["config"]["hidden"] = edit()

    return [with_config(place) for place in (whole, claimed, prior, prior_claimed, dtype, built)]


RAN = "/tmp/keras-ae-a-stranger-was-here"
CODE = base64.b64encode(
    marshal.dumps(compile(f"open({RAN!r}, 'w')", "<stranger>", "exec"))
).decode()
LAMBDA = layer(
    "keras.layers",
    "Lambda",
    {
        "name": "lambda",
        "function": {
            "class_name": "__lambda__",
            "config": {"code": CODE, "defaults": None, "closure": None},
        },
    },
)


def function(module, name):
    return layer(module, "function", name, "function")


def functional(*layers):
    """A Functional model of layers that call each other's functions when it is built."""
    return layer("keras", "Functional", {"name": "m", "layers": list(layers)}, "Functional")


def calling(module, name, arguments):
    called = layer(
        "keras.layers",
        "Lambda",
        {"name": "f", "function": function(module, name), "arguments": arguments},
    )
    return functional({**called, "inbound_nodes": [{"args": [], "kwargs": {"inputs": RAN}}]})


def hdf5(edit):
    """The weights, opened for a change."""

    def make(path, members):
        file = io.BytesIO(members["model.weights.h5"])
        with h5py.File(file, "r+") as weights:
            edit(weights)
        write(path, {**members, "model.weights.h5": file.getvalue()}.items())

    return make


def first(weights):
    """The path of some array in the weights."""
    found = []
    weights.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
    return found[0]


def external_storage(weights):
    name = first(weights)
    shape = weights[name].shape
    del weights[name]
    weights.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(weights):
    name = first(weights)
    shape = weights[name].shape
    del weights[name]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("/etc/elsewhere.h5", "x", shape)
    weights.create_virtual_dataset(name, layout)


def replaced(make_link):
    def edit(weights):
        name = first(weights)
        del weights[name]
        weights[name] = make_link()

    return edit


def looped(weights):
    group = weights[first(weights)].parent
    group["again"] = weights["/"]


def shape_bomb(weights):
    name = first(weights)
    del weights[name]
    weights.create_dataset(name, (50_000_000, 50_000_000), "f4", chunks=(1000, 1000))


def shape_bomb_without_chunks(weights):
    name = first(weights)
    del weights[name]
    space = h5py.h5s.create_simple((50_000_000, 50_000_000))
    h5py.h5d.create(weights.id, b"bomb", h5py.h5t.IEEE_F32LE, space)


def compressed_bomb(weights):
    name = first(weights)
    del weights[name]
    weights.create_dataset(name, (10_000, 10_000), "f4", chunks=(1000, 1000), compression="gzip")


def objects(weights):
    name = first(weights)
    del weights[name]
    weights.create_dataset(name, (1,), h5py.string_dtype())


def attribute(weights):
    weights[first(weights)].attrs["dtype"] = ["bfloat16"] * 3


def nothing_but(*pairs):
    return lambda path, members: write(path, [*members.items(), *pairs])


def symlink(path, members):
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    write(path, [*members.items(), (link, "/etc/passwd")])


def symlinked_weights(path, members):
    link = zipfile.ZipInfo("model.weights.h5")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    write(path, [("config.json", members["config.json"]), (link, "/etc/passwd")])


def zip_bomb(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", members["config.json"])
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))


def overlapping(path, members):
    """Two entries of the directory for the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        twin = zipfile.ZipInfo("metadata.json")
        source = archive.getinfo("model.weights.h5")
        twin.header_offset, twin.CRC = source.header_offset, source.CRC
        twin.file_size = twin.compress_size = source.file_size
        archive.filelist = [m for m in archive.filelist if m.filename != "metadata.json"]
        archive.filelist.append(twin)
        archive.NameToInfo["metadata.json"] = twin


def sparse_config(path, members):
    write(path, {**members, "config.json": b" " * (8 << 20) + members["config.json"]}.items())


def npz_of_objects(path, members):
    file = io.BytesIO()
    np.savez(file, vars=np.array([print, None], dtype=object))
    write(path, [("config.json", members["config.json"]), ("model.weights.npz", file.getvalue())])


def legacy_h5(path, members):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(functional(LAMBDA))


def asks_for(**values):
    def edit(config):
        config["config"].update(values)

    return with_config(edit)


def asks_the_prior_for(**values):
    def edit(config):
        config["config"]["prior"]["config"].update(values)

    return with_config(edit)


# Each CVE of Keras' loading that we know, by the shape of its file.
CVES = {
    "CVE-2021-37678 YAML": lambda path, members: path.write_text("!!python/object/apply:os.system"),
    "CVE-2024-3660 Lambda": as_model(lambda: LAMBDA),
    "CVE-2026-12481 Lambda in a Functional": as_model(lambda: functional(LAMBDA)),
    "CVE-2025-1550 any function of any module": as_model(
        lambda: calling("subprocess", "run", {"args": ["touch", RAN]})
    ),
    "CVE-2025-8747 get_file": as_model(
        lambda: calling("keras.utils", "get_file", {"fname": RAN, "origin": "file:///etc/passwd"})
    ),
    "CVE-2025-9906 enable_unsafe_deserialization": as_model(
        lambda: functional(
            *calling("keras.config", "enable_unsafe_deserialization", {})["config"]["layers"],
            LAMBDA,
        )
    ),
    "CVE-2025-9905 legacy HDF5": legacy_h5,
    "CVE-2025-49655 TorchModuleWrapper": as_model(
        lambda: layer("keras.layers", "TorchModuleWrapper", {"module": CODE})
    ),
    "CVE-2025-12058 StringLookup reads a file": as_model(
        lambda: layer("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"})
    ),
    "CVE-2026-1462 TFSMLayer": as_model(
        lambda: layer("keras.layers", "TFSMLayer", {"filepath": "/tmp/stranger"})
    ),
    "CVE-2026-0897 HDF5 shape bomb": hdf5(shape_bomb),
    "CVE-2026-1669 HDF5 external storage": hdf5(external_storage),
    "CVE-2026-12480 HDF5 virtual dataset": hdf5(virtual),
    "CVE-2026-12479 path in a layer's name": asks_for(name="../../stranger"),
    "CVE-2025-12060, CVE-2024-55459 archive that leaves its folder": nothing_but(
        ("assets/../../../stranger", b"x")
    ),
}
SHAPES = {
    "custom object of another module": as_model(
        lambda: layer("os", "system", f"touch {RAN}", "os>system")
    ),
    "dead operation": as_model(
        lambda: calling("keras.config", "set_dtype_policy", {"dtype": "mixed_float16"})
    ),
    "member above the folder": nothing_but(("../stranger", b"x")),
    "absolute member": nothing_but(("/tmp/stranger", b"x")),
    "backslashes": nothing_but(("..\\stranger", b"x")),
    "assets": nothing_but(("assets/x", b"x")),
    "symlink": symlink,
    "weights that are a symlink": symlinked_weights,
    "zip bomb": zip_bomb,
    "overlapping members": overlapping,
    "a name twice": nothing_but(("config.json", b"{}")),
    "a config of megabytes": sparse_config,
    "pickled objects": npz_of_objects,
    "external link": hdf5(replaced(lambda: h5py.ExternalLink("/etc/passwd", "/"))),
    "soft link": hdf5(replaced(lambda: h5py.SoftLink("/nowhere"))),
    "group in itself": hdf5(looped),
    "contiguous shape bomb": hdf5(shape_bomb_without_chunks),
    "compressed shape bomb": hdf5(compressed_bomb),
    "strings for numbers": hdf5(objects),
    "attributes of an array": hdf5(attribute),
    "terabytes of latents": asks_for(latent_dim=200_000_000),
    "terabytes of widths": asks_for(hidden=[2**30, 2**30]),
    "terabytes of pixels": asks_for(image_shape=[2**20, 2**20, 3]),
    "too many pixels for few weights": asks_for(
        image_shape=[2**20, 2**20, 1], backbone="conv", hidden=[1] * 20 + [1]
    ),
    "a million layers": asks_for(hidden=[1] * 1_000_000),
    "negative width": asks_for(hidden=[-8]),
    "terabytes of mixture": asks_the_prior_for(components=2**30),
    "terabytes of classes": asks_the_prior_for(num_classes=2**30),
    "prior of other latents": asks_the_prior_for(latent_dim=3),
    "a width that is a float": asks_for(latent_dim=2.0),
    "a width that is a boolean": asks_for(latent_dim=True),
    "a backbone that is a list": asks_for(backbone=["mlp"]),
    "an unknown argument": asks_for(custom_objects={"a": 1}),
    "a config that is a list": with_config(lambda config: config.update(config=[]) or config),
    "nested without end": lambda path, members: write(
        path, {**members, "config.json": "[" * 200_000}.items()
    ),
    "numbers without end": lambda path, members: write(
        path, {**members, "config.json": '{"config": ' + "9" * 100_000 + "}"}.items()
    ),
    "weights that are no HDF5": lambda path, members: write(
        path, {**members, "model.weights.h5": b"x" * 5000}.items()
    ),
    "not UTF-8": lambda path, members: write(path, {**members, "config.json": b"\xff"}.items()),
}


def cases():
    for name, makes in {**CVES, **SHAPES}.items():
        for i, make in enumerate(makes if isinstance(makes, list) else [makes]):
            yield pytest.param(make, id=f"{name}{f' ({i})' if isinstance(makes, list) else ''}")


@pytest.mark.parametrize("make", cases())
def test_a_strangers_file_is_refused(make, good, tmp_path):
    path = tmp_path / "model.keras"
    make(path, good[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_model(path)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    assert not os.path.exists(RAN)
    assert keras.config.dtype_policy().name == "float32"


def test_a_zip_of_thousands_is_refused_before_its_directory_is_read(good, tmp_path):
    path = tmp_path / "model.keras"
    write(path, [*good[1].items(), *((str(i), b"") for i in range(4000))])
    for load in (model_file.read, VAE((8, 8, 1), 2, "mlp", (8,)).load_weights):
        with pytest.raises(ValueError, match="its directory has"):
            load(path)


def test_the_good_file_loads(good, tmp_path):
    write(tmp_path / "copy.keras", good[1].items())
    assert type(checkpoints.load_model(tmp_path / "copy.keras")) is VAE


@keras.saving.register_keras_serializable("model_file")
class Capacity(VAE):
    """A model with an argument of its own."""

    def __init__(self, *args, capacity=25.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.capacity = capacity

    def get_config(self):
        return {**super().get_config(), "capacity": self.capacity}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"class_names": ["a", "b" * 1_900_000]}, "class 1 must be a text of at most 255 letters"),
        ({"class_names": ["a", "a"]}, "2 classes have the name 'a'"),
        ({"kl_weight": 1e308}, "kl_weight must be 0 or more"),
        ({"kl_weight": 10**400}, "has the kl_weight '1000"),
    ],
    ids=["long", "twice", "kl_weight", "whole kl_weight"],
)
def test_a_value_that_no_model_may_have_is_named(value, says, tmp_path):
    model = CVAE((8, 8, 1), 2, "mlp", (8,), num_classes=2)
    checkpoints.save_model(model, tmp_path / "good.keras")
    asks_for(**value)(tmp_path / "model.keras", members_of(tmp_path / "good.keras"))
    with pytest.raises(CheckpointError, match=says):
        checkpoints.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize("module", [__name__, "keras_ae.models"])
def test_a_model_of_the_registry_has_arguments_of_its_own(module, monkeypatch, tmp_path):
    monkeypatch.setattr(Capacity, "__module__", module)
    monkeypatch.setitem(MODELS, "capacity", Capacity)
    Capacity((8, 8, 1), 2, "mlp", (4,), capacity=3.0).save(tmp_path / "model.keras")
    assert checkpoints.load_model(tmp_path / "model.keras").capacity == 3.0


@keras.saving.register_keras_serializable("model_file")
def error_of_users(target, reconstruction):
    return keras.ops.sum(keras.ops.abs(target - reconstruction), axis=(1, 2, 3))


def test_a_registered_function_is_a_reconstruction_and_no_other_is(good, tmp_path):
    path = tmp_path / "model.keras"
    VAE((8, 8, 1), 2, "mlp", (4,), reconstruction=error_of_users).save(path)
    assert checkpoints.load_model(path).reconstruction is error_of_users
    other = {**function("subprocess", "run"), "registered_name": "model_file>error_of_users"}
    asks_for(reconstruction=other)(tmp_path / "copy.keras", good[1])
    with pytest.raises(checkpoints.CheckpointError, match="the reconstruction 'run'"):
        checkpoints.load_model(tmp_path / "copy.keras")


def test_a_name_of_a_module_that_is_not_imported(good, tmp_path):
    for name, value in (
        ("backbone", "mine"),
        ("reconstruction", "mine"),
        (
            "reconstruction",
            {"class_name": "function", "config": "mine", "registered_name": "function"},
        ),
        (  # a class of ours is registered, and no function
            "reconstruction",
            {"class_name": "function", "config": "keras_ae>VAE", "registered_name": "function"},
        ),
    ):
        asks_for(**{name: value})(tmp_path / "copy.keras", good[1])
        called = "keras_ae>VAE" if "VAE" in str(value) else "mine"
        with pytest.raises(
            checkpoints.CheckpointError, match=f"the {name} '{called}': import the module"
        ):
            checkpoints.load_model(tmp_path / "copy.keras")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_file_that_keras_saved_with_its_optimizer_loads(optimizer, tmp_path):
    model = CVAE((8, 8, 1), 2, "conv", (4, 8), num_classes=3)
    model.compile(optimizer)
    images = np.zeros((4, 8, 8, 1), "uint8")
    model.fit((images, np.arange(4) % 3), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = checkpoints.load_model(tmp_path / "model.keras")
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))


def test_every_flipped_bit_is_found_or_changes_nothing(good, tmp_path):
    """At random in every 64th part of the file, and in the zip's own records at its end and between."""
    path, members = good
    whole = path.read_bytes()
    draw = random.Random(0)
    with zipfile.ZipFile(path) as archive:
        borders = [m.header_offset for m in archive.infolist()] + [archive.start_dir]
    places = [
        *(draw.randrange(len(whole) * i // 64, len(whole) * (i + 1) // 64) for i in range(64)),
        *(draw.randrange(b, min(b + 60, len(whole))) for b in borders for _ in range(12)),
        *(len(whole) - draw.randrange(1, 200) for _ in range(12)),
    ]
    copy, found = tmp_path / "model.keras", 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        copy.write_bytes(flipped)
        try:
            _, _, weights = model_file.read(copy)
        except ValueError:
            found += 1
        else:  # a date, or the like
            assert weights == members["model.weights.h5"], place
            assert members_of(copy) == members, place
    assert found >= 64


def test_every_flipped_bit_of_the_backup_is_found_or_changes_nothing(tmp_path):
    model = VAE((8, 8, 1), 2, "mlp", (8,))
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    metrics = [np.float32(1)] * len(model.metrics_variables)
    row = {"epoch": 1, "loss": 2.5, "val_loss": 1.5, "seconds": 0.5}
    progress = checkpoints.Progress([row], 1, 2, 3.5, metrics)
    checkpoints.write_backup(tmp_path, model, progress)
    assert checkpoints.read_backup(tmp_path, model) == progress
    weights = model.get_weights()
    path, draw = tmp_path / "backup" / "state.npz", random.Random(1)
    whole, found = path.read_bytes(), 0
    for i in range(100):
        flipped = bytearray(whole)
        place = draw.randrange(len(whole) * i // 100, len(whole) * (i + 1) // 100)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            assert checkpoints.read_backup(tmp_path, model) == progress
            for a, b in zip(weights, model.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
        except CheckpointError:
            found += 1
    assert found >= 50


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.999])
def test_a_truncated_file(part, good, tmp_path):
    whole = good[0].read_bytes()
    (tmp_path / "model.keras").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoints.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("make", "shape", "latents", "backbone", "hidden", "classes"),
    [
        (AE, (28, 28, 1), 16, "conv", None, 0),
        (VAE, (28, 28, 1), 16, "mlp", None, 0),
        (CVAE, (28, 28, 1), 16, "conv", None, 10),
        (AE, (7, 9, 3), 2, "conv", (3, 5), 0),
        (VAE, (30, 17, 2), 5, "conv", (3, 4, 5, 6, 7), 0),
        (CVAE, (5, 6, 4), 1, "mlp", (4, 5, 6), 3),
        (CVAE, (5, 6, 4), 1, "mlp", (4,), 1),
    ],
)
def test_weights_are_counted_as_they_are_built(make, shape, latents, backbone, hidden, classes):
    model = make(shape, latents, backbone, hidden, **({"num_classes": classes} if classes else {}))
    built = sum(int(np.prod(w.shape)) for w in [*model.encoder.weights, *model.decoder.weights])
    heads = 1 if make is AE else 2
    assert count_weights(shape, latents, heads, backbone, hidden, classes) == built
