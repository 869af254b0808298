"""What others made, or what lies about: files, names, streams and settings that nothing may trip over."""

import errno
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
import types
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from kae.main import cli, import_modules
from PIL import Image

from keras_ae import (
    AE,
    CVAE,
    VAE,
    ClassMixture,
    checkpoints,
    data,
    export,
    files,
    inference,
    latents,
    models,
    pictures,
    priors,
)
from keras_ae import classifier as classifiers
from keras_ae.data import disk
from keras_ae.data.images import opened
from keras_ae.errors import UserError, printable
from keras_ae.settings import EXPORT_SUFFIXES, Settings

pytestmark = pytest.mark.long

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[1]
HOSTILE = [
    "\x1b[31mred\x1b]0;title\x07",
    "$\\frac{$",
    " ",
    "_hidden",
    "x" * 300,
    "a\nb\u202e",
    "\udcff",
]

# Every address that a process or its children ask for, a line each, in the file RECORD.
RECORDER = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        asked = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
        if not isinstance(asked, (str, bytes)) or event.startswith("socket.get"):
            with open(os.environ["RECORD"], "a") as file:
                print(event, asked, sys.argv, file=file)
sys.addaudithook(hook)
"""


def run(*arguments, cwd=None, **options):
    """`kae` in a process of its own: no traceback, one line for an error, nothing that steers a terminal."""
    environment = {**os.environ, "KERAS_BACKEND": BACKEND, **options.pop("env", {})}
    command = [sys.executable, "-m", "kae", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, timeout=300, **options
    )
    done.out, done.err = (part.decode(errors="replace") for part in (done.stdout, done.stderr))
    assert "Traceback" not in done.err, done.err
    assert "\x1b" not in done.out + done.err
    if done.returncode:
        assert len(re.findall("^Error: ", done.err, re.M)) == 1, done.err
        assert done.err.splitlines()[-1].startswith("Error: "), done.err
    return done


@pytest.fixture
def kae(tmp_path, monkeypatch):
    """`kae` in this process and in a folder of its own, where a second a command would be much."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = CliRunner().invoke(cli, arguments, prog_name="kae")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        assert not {c for c in done.output if not c.isprintable()} - set("\n\t\u200d")
        if done.exit_code:
            assert len(re.findall("^Error: ", done.stderr, re.M)) == 1, done.stderr
            assert done.stderr.splitlines()[-1].startswith("Error: "), done.stderr
        return done

    return run


@pytest.fixture
def saved(tmp_path):
    """A function that saves a small untrained model as a run."""

    def save(folder="run", model=None, **settings):
        model = model or VAE((28, 28, 1), 2, "mlp", (4,))
        (tmp_path / folder).mkdir()
        checkpoints.save_model(model, tmp_path / folder / "model.keras")
        checkpoints.write_run(tmp_path / folder, {"settings": {"model": "vae", **settings}})
        return tmp_path / folder

    return save


# Names


def test_printable():
    assert printable("kä 👨‍👩‍👧 ü") == "kä 👨‍👩‍👧 ü"
    assert printable("3.04\u202fPM\u00a0\u3000") == "3.04\u202fPM\u00a0\u3000"
    assert printable("\x1b[31m\x9b\n\t\u202e\udcff\x00") == r"\x1b[31m\x9b\n\t\u202e\udcff\x00"
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"
    assert str(UserError("a\x1b\nb")) == r"a\x1b\nb"


def test_names_of_anybody_on_the_screen(saved, kae):
    names = ["\x1b[31mred\x1b]0;title\x07", "a\nb\u202e"]
    model = CVAE((28, 28, 1), 2, "mlp", (4,), num_classes=2, class_names=names)
    folder = saved(model=model, dataset="\x1b[2Jx")
    run_json = json.loads((folder / "run.json").read_text())
    run_json["data"] = {"name": "\x1b[2J", "\x1b[1m": 3}
    (folder / "run.json").write_text(json.dumps(run_json))
    shutil.copytree(folder, "other")
    text = (folder / "run.json").read_text().replace("[2Jx", "[3Jx")
    Path("other", "run.json").write_text(text)
    assert r"\x1b[2J" in kae("info", "run").stdout and r"\x1b[31mred" in kae("info", "run").stdout
    assert r"\x1b[3J" in kae("compare", "run", "other").stdout
    assert r"\x1b[31mred" in kae("sample", "run", "nobody").stderr
    assert r"\x1b[2J" in kae("reconstruct", "run").stderr
    assert kae("sample", "run").exit_code == 0


def test_names_of_anybody_in_pictures(tmp_path):
    """As text: no formula, no line break, no picture as wide as a book."""
    images = np.zeros((len(HOSTILE), 28, 28, 1), np.uint8)
    sheet = pictures.class_rows(images, np.arange(len(HOSTILE)), HOSTILE)
    assert sheet.width < 900
    pictures.pairs(images, images, names=HOSTILE)
    pictures.with_title(sheet, "y" * 3_500_000)
    pytest.importorskip("matplotlib")
    points = np.random.default_rng(0).normal(size=(70, 2))
    figure = pictures.scatter(points, np.arange(70) % len(HOSTILE), HOSTILE)
    pictures.save_plot(figure, tmp_path / "a.svg", "svg")
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == [pictures.short(name) for name in HOSTILE]
    rows = [{"epoch": 1, "loss": 1.0, "val_loss": 2.0}]
    figure = pictures.curves({"$\\frac{$": rows, "_run": rows})
    pictures.save_plot(figure, tmp_path / "b.svg", "svg")
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["$\\frac{$", "_run", "training"]


def test_a_path_that_is_no_text(saved, tmp_path):
    folder = os.fsencode(saved())
    os.rename(folder, folder + b"-\xff")
    done = run("info", folder + b"-\xff")
    assert done.returncode == 0 and r"run-\udcff" in done.out
    done = run("sample", folder + b"-\xff", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "samples").is_dir()
    assert run("info", folder + b"-\xfe").returncode == 1


# Datasets that a run names


@pytest.mark.parametrize("name", ["./evil/ds", "evil/ds", "kmnist", "no_such_set", "../evil/ds"])
def test_a_dataset_that_a_run_names_is_not_followed_unasked(saved, tmp_path, name, mnist_env, kae):
    saved(dataset=name)
    (tmp_path / "evil" / "ds").mkdir(parents=True)
    (tmp_path / "evil" / "ds" / "dataset_info.json").write_text("{}")
    for command in ("reconstruct", "encode", "evaluate"):
        done = kae(command, "run")
        assert done.exit_code == 2 and f"--dataset {name}" in done.stderr
        assert "damaged" not in done.stderr and "download" not in done.stderr
    done = kae("reconstruct", "run", "--dataset", "./evil/ds")
    assert done.exit_code == 1 and "damaged" in done.stderr
    assert kae("reconstruct", "run", "--dataset", "mnist").exit_code == 0


@pytest.mark.parametrize("name", ["/somewhere/evil/ds", "kmnist", "no_such_set"])
def test_a_run_that_goes_on_follows_no_dataset_unasked(saved, tmp_path, name, mnist_env, kae):
    settings = Settings("vae", dataset=name).to_dict()
    checkpoints.write_run(tmp_path / "again", {"settings": settings, "finished": False})
    (tmp_path / "again" / "backup").mkdir()
    (tmp_path / "again" / "backup" / "state.npz").touch()
    for command in (
        ["fit", "vae", "--out", "again", "--resume"],
        ["fit", "vae", "--config", "again/run.json"],
        ["sweep", "vae", "--kl-weight", "1", "--config", "again/run.json"],
    ):
        done = kae(*command)
        assert done.exit_code == 2 and f"--dataset {name}" in done.stderr, done.output
        assert "downloaded" not in done.stderr


def test_a_file_in_the_working_folder_takes_the_place_of_no_library(tmp_path, monkeypatch):
    """A module is looked for there only if it is not installed, and last."""
    elsewhere = [entry for entry in sys.path if entry and Path(entry) != Path.cwd()]
    monkeypatch.setattr(sys, "path", elsewhere[:])
    monkeypatch.chdir(tmp_path)
    Path("colorsys.py").write_text("raise SystemExit('run')")
    Path("module_of_mine.py").write_text("")
    import_modules(["keras"])
    assert "" not in sys.path
    import_modules(["module_of_mine"])
    assert sys.path[-1] == "" and sys.path[:-1] == elsewhere
    sys.modules.pop("colorsys", None)
    assert importlib.import_module("colorsys").rgb_to_hsv


@pytest.mark.parametrize("planted", ["kae/tensorflow", "kae.runfiles"])
def test_libraries_that_tensorflow_would_load_from_the_working_folder(planted, saved, tmp_path):
    """Python's own search is not asked: PYTHONSAFEPATH does not help."""
    saved()
    (tmp_path / planted).mkdir(parents=True)
    env = {"PYTHONSAFEPATH": "1"}
    done = run("info", "run", cwd=tmp_path, env=env)
    assert done.returncode == 1 and f"load libraries from {planted}" in done.err


@pytest.mark.parametrize("planted", ["ignore/tensorflow", "ignore.runfiles"])
def test_libraries_that_tensorflow_would_load_beside_a_word_of_the_command(planted, tmp_path):
    (tmp_path / planted).mkdir(parents=True)
    command = [sys.executable, "-P", "-W", "ignore", "-m", "kae", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and f"load libraries from {planted}" in done.stderr


# Of matplotlib (plots keep to its defaults); of torch, the source of two modules, for messages; the two above.
LOOKED_FOR = {"matplotlibrc", "_classes.py", "_ops.py", "kae.runfiles", "kae/tensorflow"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "command",
    [
        ("sample", "run", "--out", "out/s.png"),
        ("scatter", "run", "--out", "out/s.png"),
        ("export", "run", "--format", "onnx", "--out", "out/run.onnx"),
        ("fit", "vae", "--backbone", "mlp", "--hidden", "8", "--epochs", "1", "--limit", "64", "--out", "out/two"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_libraries_look_for_nothing_else_in_the_working_folder(command, saved, tmp_path, mnist_env):
    """A name that one of them looked for there is one that a stranger could put there."""
    saved()
    (tmp_path / "here").mkdir()
    (tmp_path / "run").rename(tmp_path / "here" / "run")
    trace, program = tmp_path / "trace", [sys.executable, "-P", "-m", "kae", *command]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=file", "-e", "signal=none", "-o", trace, *program],
        cwd=tmp_path / "here",
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    here, names = f"{tmp_path / 'here'}/", set()
    for line in trace.read_text(errors="replace").splitlines():
        call, _, rest = line.partition("(")
        if call.split()[-1] not in ("getcwd", "readlink"):  # of where Python is
            for at, name in re.findall(r'(?:(\w+), )?"([^"]+)"', rest.partition(", [")[0]):
                if name.startswith(here) or not name.startswith("/") and not at.isdigit():
                    names.add(name.removeprefix(here))
    assert names & LOOKED_FOR
    assert {
        name for name in names if name.partition("/")[0] not in ("run", "out")
    } - LOOKED_FOR == set()


def test_a_setting_of_numba_in_the_working_folder_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))
    Path(".numba_config.yaml").write_text("cache_dir: theirs")
    with pytest.raises(UserError, match="umap would follow the .numba_config.yaml"):
        latents.embed(np.eye(5), "umap")


def test_words_of_a_stranger_in_a_command_that_is_advised_are_quoted(saved, kae):
    saved(dataset="cats; touch mine #")
    done = kae("reconstruct", "run")
    assert done.exit_code == 2 and "say --dataset 'cats; touch mine #'" in done.stderr
    assert "'kae x;y'" in str(disk.damaged(Path("d"), "kae x;y", "why"))


def test_a_dataset_of_a_long_name_is_measured_by_a_classifier(tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20, dtype="int32") % 2
    long = data.ImageData("名" * 100, "1.0.0", "train", images, labels, ("a", "b"))
    network = classifiers.build_classifier((8, 8, 1), 2, seed=0)
    monkeypatch.setattr(classifiers, "train_classifier", lambda *_: network)
    for origin in ("trained now", "trained earlier"):
        assert classifiers.evaluation_classifier(long, long).origin == origin


def test_the_first_line_of_a_file_to_add_to_is_not_read_without_end(tmp_path):
    path = tmp_path / "large.csv"
    with open(path, "wb") as file:
        file.truncate(1 << 34)
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    with pytest.raises(UserError, match="has the columns"):
        files.check_header(path, "file,z0\n")


def test_a_model_file_beside_a_run_is_not_of_that_run(saved, tmp_path):
    saved(dataset="kmnist")
    (tmp_path / "run" / "other.keras").write_bytes((tmp_path / "run" / "model.keras").read_bytes())
    assert checkpoints.find_checkpoint(tmp_path / "run").settings["dataset"] == "kmnist"
    assert checkpoints.find_checkpoint(tmp_path / "run" / "other.keras").settings == {}


# Pixels that are no numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_no_picture(value):
    images = np.zeros((2, 4, 4, 1), "float32")
    images[1, 0, 0, 0] = value
    for make in (pictures.to_uint8, pictures.grid, lambda x: pictures.pairs(x, x)):
        with pytest.raises(UserError, match="no finite number"):
            make(images)


@pytest.mark.parametrize("value", [-1.0, -np.inf, np.inf, np.nan])
def test_a_kl_weight_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="kl_weight must be 0 or more"):
        VAE((28, 28, 1), 2, "mlp", (4,), kl_weight=value)


@pytest.mark.parametrize("name", ["kl_weight", "likelihood_scale"])
def test_a_weight_of_a_file_that_is_negative_is_refused(name, saved, kae):
    model = VAE((28, 28, 1), 2, "mlp", (4,), kl_weight="auto")
    getattr(model, name).assign(-1.0)
    saved(model=model)
    done = kae("info", "run")
    assert done.exit_code == 1 and f"{name} is negative" in done.stderr


@pytest.mark.parametrize("name", ["means", "cholesky", "logits"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prior_of_no_numbers_is_refused(name, value, saved, tmp_path, kae):
    prior = ClassMixture(2, 1, 2)
    array = getattr(prior, name).copy()
    array[..., 0] = value
    setattr(prior, name, array)
    model = VAE((28, 28, 1), 2, "mlp", (4,))
    with pytest.raises(ValueError, match="no finite number"):
        model.set_prior(prior)
    model.prior = prior
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassMixture, "check", lambda self: None)
        saved(model=model)
    for command in (["sample", "run", "--out", "a.png"], ["info", "run"]):
        done = kae(*command)
        assert done.exit_code == 1 and "of the prior has what is no finite number" in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_a_prior_without_some_components_is_none_of_these():
    prior = ClassMixture(2, 2, 2)
    prior.logits = [[0, -np.inf], [-np.inf, 0]]
    CVAE((28, 28, 1), 2, "mlp", (4,), num_classes=2).set_prior(prior)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value, saved, kae):
    model = VAE((28, 28, 1), 2, "mlp", (4,))
    weights = model.get_weights()
    weights[3].flat[-1] = value
    model.set_weights(weights)
    saved(model=model)
    done = kae("sample", "run")
    assert (
        done.exit_code == 1
        and "cannot be loaded: its " in done.stderr
        and "no finite number" in done.stderr
    )


OF_A_MODEL = [
    ["encode", "run", "digit.png"],
    ["reconstruct", "run"],
    ["sample", "run"],
    ["score", "run", "--limit", "50"],
    ["evaluate", "run", "--limit", "50", "--samples", "50", "--no-classifier", "--iw", "2"],
    ["scatter", "run", "--limit", "50"],
    ["scatter", "run", "--limit", "50", "--method", "tsne"],
    ["traverse", "run"],
    ["interpolate", "run", "digit.png", "digit.png"],
    ["manifold", "run"],
    ["explore", "run"],
    ["report", "run"],
    ["fit", "vae", "--from", "run", "--epochs", "1", "--limit", "50"],
]


@pytest.mark.parametrize("factor", [1e12, 1e25, 3e38])
@pytest.mark.parametrize("command", OF_A_MODEL, ids=lambda c: "-".join(c[:1] + c[4:]))
def test_weights_whose_codes_are_beyond_all_bounds(command, factor, saved, kae, mnist_env):
    """The weights are finite numbers, the codes, their squares or the images perhaps not."""
    model = VAE((28, 28, 1), 2, "mlp", (4,))
    for variable in model.encoder.trainable_variables:
        if "mean" in variable.path:
            variable.assign(np.full(variable.shape, factor, "float32"))
    saved(model=model)
    Image.new("L", (28, 28), 200).save("digit.png")
    done = kae(*command)
    if done.exit_code:
        assert done.exit_code == 1 and re.search("finite|became|no numbers", done.stderr), (
            done.stderr
        )
    else:
        assert not re.search(r"\b(inf|nan)\b|Warning", done.stdout + done.stderr)


# Small files that ask for much


@pytest.mark.parametrize("convolutions", [14, 40])
def test_a_network_that_asks_for_more_memory_than_there_may_be(
    convolutions, saved, kae, monkeypatch
):
    """Each doubles the sides, and what is over is cut off at the end."""
    monkeypatch.setenv("KAE_MEMORY", "1")
    saved(model=VAE((28, 28, 1), 1, "conv", (1,) * (convolutions + 1)))
    gib = 2 ** (2 * convolutions) * 16 // 2**30
    for images, command in (
        (1, ["sample", "run", "-n", "1"]),
        (3, ["export", "run", "--format", "torch"]),
    ):
        done = kae(*command)
        assert done.exit_code == 1 and f"KAE_MEMORY={images * gib} allows it" in done.stderr
    assert kae("info", "run").exit_code == 0


def test_images_that_ask_for_more_memory_than_there_may_be(saved, kae, monkeypatch):
    monkeypatch.setenv("KAE_MEMORY", "1")
    model = VAE((8192, 8192, 1), 1, "conv", (1,) * 14)
    saved(model=model)
    done = kae("sample", "run")
    assert done.exit_code == 1 and "64 images would be about 24.0 GiB" in done.stderr
    with pytest.raises(UserError, match="64 images would be about 16.0 GiB"):
        model.sample(64)


def test_batches_are_as_large_as_memory_allows(monkeypatch):
    model = CVAE((28, 28, 1), 2, "conv", (4, 8, 8), num_classes=3)
    labels = np.arange(10) % 3
    whole = model.sample(10, labels)
    one = inference.memory_of_one(model.decoder)
    sizes, forward_pass = [], inference._forward_pass

    def recorded(network):
        forward = forward_pass(network)
        return lambda arrays: (sizes.append(len(arrays[0])), forward(arrays))[1]

    monkeypatch.setattr(inference, "_forward_pass", recorded)
    monkeypatch.setattr(inference, "LEAST", 1)
    monkeypatch.setattr(inference, "_bound", lambda: max(4 * 10 * 28 * 28, 4 * one))
    np.testing.assert_allclose(model.sample(10, labels), whole, atol=1e-6)
    assert sizes == [4, 4, 2]


def test_labels_of_many_classes_are_no_table_of_all():
    classes = models.OneHot(np.arange(1_000_000) % 20_000, 20_000)
    assert classes.shape == (1_000_000, 20_000)
    np.testing.assert_array_equal(classes[19_999:20_002], np.eye(20_000)[[19_999, 0, 1]])
    few = models.OneHot(np.array([2, 0]), 3)
    assert np.array_equal(np.concatenate([few, few[-1:]]), [[0, 0, 1], [1, 0, 0], [1, 0, 0]])


# Priors of many latents


@pytest.mark.parametrize("latents", [1, 3, 16, 64])
def test_codes_drawn_in_parts_are_those_drawn_at_once(latents, monkeypatch):
    random = np.random.default_rng(0)
    prior = ClassMixture(latents, 3, 4)
    prior.means = random.normal(size=prior.means.shape).astype("float32")
    prior.cholesky = np.tril(random.normal(size=prior.cholesky.shape)).astype("float32")
    labels = random.integers(0, 3, 50)
    whole = prior.draw(50, labels, 7)
    for rows in (1, 2, 7, 49):
        monkeypatch.setattr(priors, "FACTORS", rows * latents**2)
        assert prior.draw(50, labels, 7).tobytes() == whole.tobytes()


# The classifier in the cache


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """A toy dataset, the file of its classifier in the cache, and how often one was trained."""
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 1), np.uint8)
    labels = (np.arange(60) % 3).astype("int32")
    toy = data.ImageData("toy", "1.0.0", "train", images, labels, ("a", "b", "c"))
    trained = []

    def train(train, *others):
        trained.append(train)
        return classifiers.build_classifier(train.images.shape[1:], 3, seed=1)

    monkeypatch.setattr(classifiers, "train_classifier", train)
    classifiers.evaluation_classifier(toy, toy)
    (path,) = (tmp_path / "cache" / "classifiers").iterdir()
    return toy, path, trained


def test_a_classifier_in_the_cache_runs_nothing(judged, tmp_path):
    """Of the file the weights alone are read: what its config names is not built."""
    toy, path, trained = judged

    def rewritten(edit):
        with zipfile.ZipFile(path) as archive:
            parts = {m.filename: archive.read(m) for m in archive.infolist()}
        edit(parts)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)

    def config(parts):
        code = {
            "module": "os",
            "class_name": "function",
            "registered_name": "function",
            "config": "system",
        }
        parts["config.json"] = json.dumps(
            {"module": "keras", "class_name": "Lambda", "config": code}
        ).encode()

    rewritten(config)
    found = classifiers.evaluation_classifier(toy, toy)
    assert found.origin == "trained earlier" and len(trained) == 1
    rewritten(lambda parts: parts.update(payload=b"import os"))
    assert classifiers.evaluation_classifier(toy, toy).origin == "trained now"


def test_a_classifier_that_does_not_fit_is_made_anew(judged):
    toy, path, trained = judged
    whole = path.read_bytes()
    others = [
        classifiers.build_classifier((12, 12, 1), 5),
        classifiers.build_classifier((40, 12, 1), 3),
        classifiers.build_classifier((12, 12, 3), 3),
    ]
    broken = classifiers.build_classifier((12, 12, 1), 3)
    broken.set_weights([w * np.nan for w in broken.get_weights()])
    for i, other in enumerate([*others, broken]):
        classifiers.save(other, path)
        assert classifiers.evaluation_classifier(toy, toy).origin == "trained now"
        assert len(trained) == i + 2
    path.write_bytes(whole)
    assert classifiers.evaluation_classifier(toy, toy).origin == "trained earlier"


def test_a_cache_of_classifiers_that_others_may_write_to_is_not_believed(judged):
    toy, path, trained = judged
    path.parent.chmod(0o777)
    lines = []
    found = classifiers.evaluation_classifier(toy, toy, lines.append)
    assert found.origin == "trained now" and "others may write to" in lines[-1]


# Exports


def needs(format):
    for package in export.FORMATS[format].packages:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def small():
    return CVAE((8, 8, 1), 2, "mlp", (4,))


@pytest.mark.parametrize("format", EXPORT_SUFFIXES)
def test_exports_carry_no_paths_of_this_machine(small, tmp_path, format):
    needs(format)
    path = tmp_path / f"model{EXPORT_SUFFIXES[format]}"
    export.export(small, path, format, report=lambda line: None)
    known = [
        sys.prefix,
        str(ROOT),
        str(tmp_path),
        str(Path.home()),
        str(Path(keras.__file__).parents[2]),
    ]
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content += b"".join(map(archive.read, archive.namelist()))
        found = [place for place in known if len(place) > 5 and place.encode() in content]
        assert not found and b".py\\" not in content and b'.py"' not in content, (file.name, found)


def test_a_saved_model_is_there_at_every_moment(tmp_path, monkeypatch):
    target = tmp_path / "model"

    def made(content):
        new = tmp_path / f"t{content}" / "new" / "model"
        new.mkdir(parents=True)
        (new / "saved_model.pb").write_text(content)
        return new

    made("old").rename(target)
    moments = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (moments.append(target.exists()), replace(a, b))
    )
    if export.exchange(made("x"), tmp_path / "tx"):
        export.move(made("new"), target, force=True)
        assert not moments and (target / "saved_model.pb").read_text() == "new"
    monkeypatch.setattr(export, "exchange", lambda a, b: False)
    export.move(made("newer"), target, force=True)
    assert (target / "saved_model.pb").read_text() == "newer"


def test_what_a_killed_export_left_is_put_back_and_swept(tmp_path):
    path = tmp_path / "model"
    dead = tmp_path / ".unfinished-model-0123456789abcdef" / "new" / export.OLD
    dead.mkdir(parents=True)
    (dead / "saved_model.pb").write_text("old")
    mine = tmp_path / ".model.original" / "new"
    mine.mkdir(parents=True)
    other = tmp_path / ".unfinished-other-0123456789abcdef" / "new"
    other.mkdir(parents=True)
    (empty := tmp_path / ".unfinished-model-00000000000000ff").mkdir()
    os.utime(empty, (0, 0))
    (young := tmp_path / ".unfinished-model-00000000000000fd").mkdir()
    theirs = tmp_path / ".unfinished-model-00000000000000fe" / "theirs"
    theirs.mkdir(parents=True)
    with export.temporary_folder(path) as live:
        (live / "new").mkdir()
        export.sweep(path)
        assert live.exists()
    export.sweep(path)
    assert (path / "saved_model.pb").read_text() == "old" and not dead.parents[1].exists()
    assert other.exists() and mine.parent.exists() and theirs.exists()
    assert young.exists() and not empty.exists()


def test_what_a_stranger_left_is_no_export(tmp_path):
    (left := tmp_path / ".unfinished-x.pt2-0123456789abcdef" / "new").mkdir(parents=True)
    (left / export.OLD).write_text("theirs")
    export.sweep(tmp_path / "x.pt2")
    assert not (tmp_path / "x.pt2").exists()


def test_an_old_saved_model_is_put_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    """Where two folders cannot be exchanged in one step."""
    for name in ("new/model", "model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").write_text(name)
    replace = os.replace

    def interrupted(old, new):
        if Path(old) == tmp_path / "new" / "model":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(export, "exchange", lambda a, b: False)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.move(tmp_path / "new" / "model", tmp_path / "model", force=True)
    assert (tmp_path / "model" / "saved_model.pb").read_text() == "model"


@pytest.mark.skipif(BACKEND != "torch", reason="torch writes it")
@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
def test_a_full_disk_at_export(saved, small_disk, format):
    """torch's own writer ends the process, and openvino speaks of an iostream."""
    needs(format)
    folder = small_disk("8k")
    out = folder / f"a{EXPORT_SUFFIXES[format]}"
    done = run("export", str(saved()), "--format", format, "--out", str(out))
    assert done.returncode == 1 and "No space left" in done.err and not list(folder.iterdir())


# Connections


@pytest.mark.parametrize(
    ("backend", "arguments"),
    [
        ("torch", "fit vae --backbone mlp --hidden 4 --latent-dim 2 --limit 60 --epochs 1 --out fitted"),
        ("torch", "sample run"),
        ("torch", "reconstruct run"),
        ("torch", "encode run --limit 5"),
        ("torch", "explore run"),
        ("torch", "info"),
        ("torch", "data list"),
        ("torch", "export run --format openvino"),
        ("torch", "export run --format onnx"),
        ("torch", "export run --format litert"),
        ("openvino", "sample run"),
        ("openvino", "info run"),
        ("jax", "sample run"),
        ("tensorflow", "sample run"),
    ],
)  # fmt: skip
def test_no_command_opens_a_connection(backend, arguments, saved, tmp_path, mnist_env):
    packages = {"openvino": ["openvino"], "jax": ["jax"], "tensorflow": ["tensorflow"]}.get(
        backend, ["torch"]
    )
    if "--format" in arguments:
        form = export.FORMATS[arguments.split()[-1]]
        packages = [*packages, *form.packages]
    for package in packages:
        pytest.importorskip(package)
    saved(dataset="mnist")
    home, site, record = tmp_path / "home", tmp_path / "site", tmp_path / "record"
    home.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(RECORDER)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        "HOME": str(home), "RECORD": str(record), "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip
    done = run(*arguments.split(), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.err
    assert not record.exists(), record.read_text()
    assert not (home / "intel").exists()


def test_the_recorder_records(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    script = (
        "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    )
    env = {**os.environ, "RECORD": str(tmp_path / "record"), "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    assert "socket.connect ('127.0.0.1', 9)" in (tmp_path / "record").read_text()


@pytest.mark.parametrize(("consent", "sends"), [(None, False), ("0", False), ("1", True)])
def test_openvino_sends_where_a_person_turned_it_on(consent, sends, tmp_path):
    if not [d for d in importlib.metadata.distributions(name="openvino_telemetry")]:
        pytest.skip("openvino_telemetry is not installed")
    if consent is not None:
        (tmp_path / "intel").mkdir()
        (tmp_path / "intel" / "openvino_telemetry").write_text(consent)
    script = (
        "from keras_ae import telemetry; telemetry.off()\n"
        "try: import openvino_telemetry\nexcept ImportError: print('off')\nelse: print('on')"
    )
    env = {**os.environ, "HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout == ("on\n" if sends else "off\n"), done.stderr


# Streams, homes, clocks and settings

FIT = [
    "fit",
    "vae",
    "--backbone",
    "mlp",
    "--hidden",
    "4",
    "--latent-dim",
    "2",
    "--limit",
    "60",
    "--epochs",
    "1",
    "--out",
    "fitted",
]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(closed, tmp_path, mnist_env):
    env = {**os.environ, "KERAS_BACKEND": BACKEND}
    command = ["sh", "-c", f'"$0" -m kae "$@" {closed}', sys.executable, *FIT]
    assert subprocess.run(command, cwd=tmp_path, env=env, timeout=300).returncode == 0
    assert json.loads((tmp_path / "fitted" / "run.json").read_text())["finished"]
    assert len(checkpoints.read_history(tmp_path / "fitted")) == 1
    if closed.startswith("<"):
        command[4:] = ["sample", "fitted"]
        assert subprocess.run(command, cwd=tmp_path, env=env, timeout=300).returncode == 0
        with opened(tmp_path / "samples" / "fitted.png") as image:
            image.load()


def test_a_screen_that_has_not_every_letter(saved, tmp_path):
    """Such as that of a Latin-1 locale."""
    saved(model=CVAE((28, 28, 1), 2, "mlp", (4,), num_classes=2, class_names=["é", "字"]))
    done = run("info", "run", cwd=tmp_path, env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0 and b"\xe9, \\u5b57" in done.stdout


def test_warnings_as_errors(tmp_path, mnist_env):
    done = run(*FIT, cwd=tmp_path, env={"PYTHONWARNINGS": "error"})
    assert done.returncode == 0, done.err
    (tmp_path / "data").mkdir()
    done = run(
        "data",
        "prepare",
        "mnist",
        "--data-dir",
        "data",
        cwd=tmp_path,
        env={"PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.err


def test_ctrl_c_while_the_program_is_imported(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "kae", "info"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Aborted!\n")


def test_a_user_without_a_home(tmp_path):
    """As in a container that is run with a number for a user: no passwd entry, no HOME."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid"
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    gone = ("HOME", "KAE_DATA_DIR", "TFDS_DATA_DIR", "KAE_CACHE", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in gone}
    env |= {"KERAS_BACKEND": BACKEND, "PYTHONPATH": os.pathsep.join(paths)}
    for arguments, code in ((["data", "list"], 1), (FIT, 1), (["info"], 0)):
        command = [sys.executable, "-m", "kae", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        if code:
            assert "no home directory; set KAE_DATA_DIR" in done.stderr.splitlines()[-1]


SLIM = """
import sys
class Slim:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tensorflow_datasets", "array_record", "sklearn", "requests"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Slim())
"""


@pytest.mark.parametrize(
    "arguments", ["data verify mnist", "data prepare mnist --data-dir new", "evaluate run"]
)
def test_a_slim_installation_says_what_is_missing(arguments, saved, tmp_path, mnist_env):
    pytest.importorskip("jax")
    saved(dataset="mnist")
    (tmp_path / "sitecustomize.py").write_text(SLIM)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        "PYTHONPATH": os.pathsep.join(paths),
        "KERAS_BACKEND": "numpy",
        "KAE_CACHE": str(tmp_path / "cache"),
    }
    done = run(*arguments.split(), cwd=tmp_path, env=env)
    assert done.returncode == 1 and "install" in done.err


def test_memory_that_torch_does_not_get(saved, kae, mnist_env, monkeypatch):
    torch = pytest.importorskip("torch")
    saved()

    def greedy(self, *args, **kwargs):
        return torch.empty(1 << 60)

    monkeypatch.setattr(VAE, "sample", greedy)
    for arguments in (["sample", "run"], FIT):  # a fit draws the samples of its picture
        done = kae(*arguments)
        assert done.exit_code == 1 and "Error: Out of memory. Try a smaller" in done.stderr


@pytest.mark.parametrize("year", [1971, 2150])
def test_a_clock_that_is_wrong(year, saved, kae, monkeypatch):
    """A zip knows the years 1980 to 2107: said before the work, not after it."""
    saved()
    now = time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0))
    monkeypatch.setattr(time, "localtime", lambda seconds=None: now)
    for arguments in (FIT, ["export", "run", "--format", "torch"]):
        done = kae(*arguments)
        assert done.exit_code == 1 and f"clock of this machine says {year}" in done.stderr
    with pytest.raises(UserError, match="clock of this machine"):
        checkpoints.save_model(VAE((28, 28, 1), 2, "mlp", (4,)), "a.keras")
    assert not Path("a.keras").exists()
    assert kae("info", "run").exit_code == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "epochs = " + "[" * 100_000), ("a.json", "[" * 100_000), ("a.json", '{"a":' * 100_000),
        ("a.json", '{"epochs": 1e400}'), ("a.toml", "epochs = inf"), ("a.toml", "latent_dim = nan"),
        ("a.json", '{"epochs": NaN}'), ("a.json", '{"dataset": "\\ud800"}'), ("a.json", "[]"), ("a.json", "5"),
        ("a.json", '{"dataset": [1]}'), ("a.json", '{"kl_weight": [1]}'), ("a.json", '{"hidden": {"a": 1}}'),
        ("a.toml", 'x\x1b[31m = 1'), ("a.json", '{"\\u001b[31m": 1}'),
    ],
    ids=range(15),
)  # fmt: skip
def test_settings_that_are_something_else(name, text, kae):
    Path(name).write_text(text)
    assert kae("fit", "vae", "--config", name).exit_code in (1, 2)


DEEP = "[" * 400 + "]" * 400


@pytest.mark.parametrize(
    "text",
    [
        f'{{"settings": {{"model": "vae"}}, "data": {{"x": {DEEP}}}}}',
        f'{{"settings": {{"model": "vae"}}, "x": {"[" * 100_000}',
        '{"settings": {"model": "vae", "dataset": "\\ud800"}}',
        '{"settings": {"model": "vae"}, "data": {"name": "\\udcff"}, "environment": {"\\ud800": "\\ud800"}}',
        '{"settings": {"model": "vae", "epochs": 1e400}}',
        '{"settings": {"model": "vae", "epochs": %s}}' % ("9" * 5000),
        '{"settings": {"model": "vae"}, "final": {"val_loss": NaN, "epochs": {"a": 1}}}',
        '{"settings": {"model": "vae", "kl_weight": 1%s}}' % ("0" * 400),
        '{"settings": {"model": "vae", "learning_rate": 1%s}}' % ("0" * 400),
        '{"settings": {"seed": 3}}',
        '{"finished": false}',
    ],
    ids=range(11),
)  # fmt: skip
def test_a_run_that_says_odd_things(text, saved, kae, mnist_env):
    saved()
    shutil.copytree("run", "other")
    Path("run", "run.json").write_text(text)
    for command in (
        ["info", "run"], ["info", "run", "--json"], ["compare", "run", "other"], ["reconstruct", "run"], FIT[:-1] + ["run"],
        FIT[:-1] + ["run", "--resume"], ["fit", "vae", "--config", "run/run.json", "--limit", "0"],
    ):  # fmt: skip
        assert kae(*command).exit_code in (0, 1, 2)


@pytest.mark.parametrize("depth", [900, 3000])
def test_a_run_that_is_nested_deeply(depth, saved, kae):
    saved()
    text = '{"settings": {"model": "vae"}, "final": {"psnr": %s}}'
    Path("run", "run.json").write_text(text % ("[" * depth + "]" * depth))
    for arguments in (["info", "run"], ["info", "run", "--json"], ["compare", "run", "--json"]):
        done = kae(*arguments)
        assert done.exit_code == 1 and "run.json is damaged" in done.stderr


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["run.json", "history.csv", "backup/state.npz"])
def test_a_pipe_or_a_device_in_a_run(name, kind, saved, kae, mnist_env):
    """To read it would take for ever."""
    saved()
    settings = Settings(
        "vae", backbone="mlp", hidden=(4,), latent_dim=2, limit=50, epochs=1, batch_size=50,
        learning_rate=0.001, kl_weight=1.0,
    )  # fmt: skip
    checkpoints.write_run("run", {"settings": settings.to_dict()})
    path = Path("run", name)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    resume = ["fit", "vae", "--out", "run", "--resume"]
    done = run(*(["compare", "run"] if "/" not in name else resume))
    assert done.returncode == 1 and re.search("cannot be read|damaged", done.err)


@pytest.mark.parametrize("name", ["run.json", "history.csv"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(name, saved, kae, monkeypatch):
    saved()
    (Path("run") / name).touch()

    def denied(path):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opening(path)

    opening = files.open_file
    monkeypatch.setattr(files, "open_file", denied)
    done = kae("compare", "run")
    assert done.exit_code == 1 and f"{name} cannot be read: Permission denied" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["--version"]])
def test_a_full_device_in_place_of_the_screen(arguments):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "kae", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert re.match("Error: .*No space left", done.stderr)


def test_a_working_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    command = 'rmdir ../gone; "$0" -m kae sample cvae'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=tmp_path / "gone", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "Error: The working folder is gone: cd to another\n"


@pytest.mark.parametrize(
    "variables, says",
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is the number"),
        ({"WORLD_SIZE": "1" * 5000}, "WORLD_SIZE is the number"),
        ({"WORLD_SIZE": "2"}, "unset WORLD_SIZE"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"},
            "unset WORLD_SIZE",
        ),
    ],
)
@pytest.mark.skipif(BACKEND != "torch", reason="torchrun is for torch")
def test_variables_of_torchrun_without_torchrun(variables, says, tmp_path, mnist_env):
    done = run(*FIT, cwd=tmp_path, env=variables)
    assert done.returncode == 1 and says in done.err and len(done.err.splitlines()) < 3


@pytest.mark.parametrize(
    "settings",
    [
        '{"image_data_format": "channels_first"}',
        '{"floatx": "float64"}',
        '{"floatx": "int8"}',
        "[]",
    ],
)
def test_what_keras_json_says_is_not_asked(settings, tmp_path, mnist_env):
    (tmp_path / "keras.json").write_text(settings)
    words = ["--backbone", "conv", "--hidden", "2,4"]
    fit = ["fit", "cvae", *words, *FIT[6:]]
    done = run(*fit, cwd=tmp_path, env={"KERAS_HOME": str(tmp_path)})
    if "int8" in settings or settings == "[]":
        assert done.returncode == 1 and "keras.json" in done.err
        return
    assert done.returncode == 0, done.err
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert checkpoints.load_model("fitted").dtype_policy.name == "float32"


def test_a_device_without_numbers(tmp_path, saved):
    saved()
    done = run("sample", "run", cwd=tmp_path, env={"KERAS_TORCH_DEVICE": "meta"})
    assert done.returncode == 1 and "Keras cannot start on torch" in done.err
    assert len(done.err.splitlines()) == 1


def test_huge_numbers_on_the_command_line(kae, saved, mnist_env):
    saved()
    huge = "9" * 400
    for command in (
        ["fit", "vae", "--latent-dim", huge], ["fit", "vae", "--hidden", f"4,{huge}"], ["fit", "vae", "--epochs", huge],
        ["fit", "vae", "--kl-weight", "1e308"], ["evaluate", "run", "--samples", huge], ["manifold", "run", "-n", huge],
        ["traverse", "run", "--steps", huge], ["sample", "run", "-n", "9" * 4400],
    ):  # fmt: skip
        done = kae(*command)
        assert done.exit_code == 2 and len(done.stderr) < 1500, command


def test_a_file_of_the_users_that_is_called_as_our_halves_are(kae, saved):
    saved()
    Path("samples").mkdir()
    kept = [Path("samples/.unfinished-diary.txt"), Path("samples/.unfinished-a-0123.png")]
    for path in kept:
        path.write_text("mine")
    (left := Path("samples/.unfinished-run-0123456789abcdef.png")).touch()
    assert kae("sample", "run").exit_code == 0
    assert all(path.read_text() == "mine" for path in kept) and not left.exists()


def test_pipes_for_settings_and_rows(tmp_path, saved):
    saved()
    Image.new("L", (28, 28), 200).save(tmp_path / "digit.png")
    for name in ("pipe.toml", "pipe.csv"):
        os.mkfifo(tmp_path / name)
    done = run("fit", "vae", "--config", "pipe.toml", cwd=tmp_path)
    assert done.returncode == 2 and "cannot be read" in done.err
    done = run("encode", "run", "digit.png", "--append", "--out", "pipe.csv", cwd=tmp_path)
    assert done.returncode == 1 and "no regular file" in done.err


@pytest.mark.parametrize("figure", ['"x"', "{}", "1" + "0" * 400, "[1]"])
def test_figures_of_a_run_that_are_none(figure, saved, kae):
    saved()
    text = '{"settings": {"model": "vae", "psnr": 1.5}, "final": {"psnr": %s}}'
    Path("run", "run.json").write_text(text % figure)
    assert kae("compare", "run", "--all").exit_code in (0, 1)


def test_epochs_beyond_any_number(saved, kae):
    saved()
    text = '{"settings": {"model": "vae", "early_stopping": 3, "epochs": %s}}'
    Path("run", "run.json").write_text(text % ("9" * 400))
    for command in (["info", "run"], ["compare", "run"]):
        done = kae(*command)
        assert done.exit_code == 1 and "run.json is damaged" in done.stderr


@pytest.mark.parametrize("dtype", ["complex64", "int8", "string"])
def test_a_precision_that_is_none(dtype, saved, kae):
    path = saved() / "model.keras"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["dtype"] = dtype
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    done = kae("sample", "run")
    assert done.exit_code == 1 and "dtype" in done.stderr


def test_a_class_name_that_is_no_text_is_written_as_an_escape(saved, kae):
    saved(model=CVAE((28, 28, 1), 2, "mlp", (4,), num_classes=2, class_names=["a", "\ud800"]))
    Image.new("L", (28, 28), 200).save("digit.png")
    done = kae("encode", "run", "digit.png", "--label", "1")
    assert done.exit_code == 0 and "\\ud800" in done.stdout


def test_the_next_command_names_the_run_and_nothing_else(kae, mnist_env):
    for out in ("vae", "-run"):
        done = kae(*FIT[:-2], f"--out={out}")
        assert done.exit_code == 0 and f"next: kae sample ./{out}\n" in done.stderr
        assert kae("sample", f"./{out}").exit_code == 0


def test_a_report_links_to_the_page_beside_it(saved, kae, mnist_env):
    saved("javascript:alert(1);a#b")
    Path("samples").mkdir()
    Path("samples/javascript:alert(1);a#b-explore.html").touch()
    done = kae("report", "javascript:alert(1);a#b")
    assert done.exit_code == 0, done.stderr
    page = Path(done.stdout.strip()).read_text()
    assert 'href="./javascript%3Aalert%281%29%3Ba%23b-explore.html"' in page


@pytest.mark.skipif(BACKEND != "torch", reason="torch writes it in this process")
def test_an_export_that_another_command_wrote_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"

    def write(net, about, made):
        made.write_bytes(b"mine")
        path.write_bytes(b"theirs")

    monkeypatch.setitem(export.WRITERS, "torch", write)
    with pytest.raises(export.ExportError, match="exists"):
        export.export(VAE((28, 28, 1), 2, "mlp", (4,)), path, "torch")
    assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]


def test_more_importance_samples_than_memory_holds(saved, kae, mnist_env):
    saved()
    done = kae("evaluate", "run", "--iw", str(2**31 - 1), "--limit", "20", "--samples", "0")
    assert done.exit_code == 1 and "importance samples would be about" in done.stderr


def test_a_data_directory_of_many(tmp_path, kae):
    """One that cannot be read does not hide the others."""
    for name, version in (("good", "1.0.0"), ("bad", "\x1b[31m"), ("worse", 5)):
        (tmp_path / name / "1.0.0").mkdir(parents=True)
        info = {"name": name, "version": version, "splits": []}
        (tmp_path / name / "1.0.0" / "dataset_info.json").write_text(json.dumps(info))
    done = kae("data", "list", "--data-dir", str(tmp_path))
    assert done.exit_code == 0 and re.fullmatch("good 1.0.0 .*\n", done.stdout)


# Models whose numbers are odd


def test_models_whose_numbers_are_odd(saved, kae, mnist_env):
    """Finite numbers of which a command makes what is no number, or no picture."""
    vae, dims = VAE((28, 28, 1), 3, "mlp", (4,)), (1, 1, 3)

    def prior(mean, factor):
        factors = np.eye(3) * factor if np.ndim(factor) == 0 else factor
        arrays = (np.zeros((1, 1), "float32"), np.full(dims, mean), factors[None, None])
        mixture = ClassMixture(3, name="prior")
        for name, value in zip(mixture.arrays, arrays):
            setattr(mixture, name, value.astype("float32"))
        return mixture

    vae.set_prior(prior(3e38, 3e38))
    saved("huge", vae)
    for command in (["sample", "huge"], ["manifold", "huge"]):
        done = kae(*command)
        assert done.exit_code == 1 and "finite numbers" in done.stderr, done.output
    steep = np.array([[1e-38, 0, 0], [-1e38, 1e-38, 0], [0, -1e38, 1e-38]])
    vae.set_prior(prior(0.0, steep))
    saved("steep", vae)
    done = kae("score", "steep", "--limit", "20", "--odd", "3")
    assert done.exit_code == 1 and "finite numbers" in done.stderr, done.output
    with pytest.raises(ValueError, match="diagonal"):
        prior(0.0, 0.0).check()
    of_classes = CVAE((28, 28, 1), 2, "mlp", (4,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CVAE, "_fitting_prior", lambda self, prior: prior)
        of_classes.set_prior(ClassMixture(2))
        saved("one-class", of_classes)
    done = kae("sample", "one-class", "5")
    assert done.exit_code == 1 and "fewer classes than the model" in done.stderr
    for channels in (2, 5):
        saved(f"of-{channels}", VAE((28, 28, channels), 2, "mlp", (4,)))
        done = kae("sample", f"of-{channels}")
        assert done.exit_code == 1 and "1, 3 or 4 channels" in done.stderr
        assert kae("sample", f"of-{channels}", "--out", f"{channels}.npy").exit_code == 0


def test_an_ae_whose_codes_are_huge_has_no_page(saved, kae, mnist_env):
    model = AE((28, 28, 1), 2, "mlp", (4,))
    for variable in model.encoder.trainable_variables:
        if "code" in variable.path:
            variable.assign(np.full(variable.shape, 1e25, "float32"))
    saved(model=model)
    done = kae("explore", "run")
    assert done.exit_code == 1 and "finite" in done.stderr


def test_many_latents_are_no_plane(saved, kae, monkeypatch):
    monkeypatch.setenv("KAE_MEMORY", "1")
    saved(model=VAE((28, 28, 1), 20_000, "mlp", (1,)))
    done = kae("manifold", "run")
    assert done.exit_code == 1 and "the covariance of 20,000 latents" in done.stderr


def test_more_files_than_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_MEMORY", "1")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="20 images of 8192 x 8192 take 1.2 GiB"):
        data.read_files([tmp_path / "a.png"] * 20, (8192, 8192, 1))


def test_of_another_file_beside_a_run_nothing_of_the_run_is_shown(saved, tmp_path, kae):
    saved()
    checkpoints.write_history(tmp_path / "run", [{"epoch": 1, "loss": 12345.0, "val_loss": 1.0, "seconds": 1.0}])  # fmt: skip
    shutil.copy(tmp_path / "run" / "model.keras", tmp_path / "run" / "other.keras")
    assert "12345" in kae("compare", "run").stdout
    assert "12345" not in kae("compare", "run/other.keras").stdout
    assert kae("animate", "run/other.keras").exit_code == 1


@pytest.mark.parametrize("name", ["learning_rate", "kl_weight", "kl_warmup", "ema"])
def test_a_number_of_a_file_of_settings_that_no_float_holds(name, kae, mnist_env):
    for suffix, text in (
        (".toml", f"{name} = 1{'0' * 400}"),
        (".json", f'{{"{name}": 1{"0" * 400}}}'),
    ):
        Path("a").with_suffix(suffix).write_text(text)
        assert kae("fit", "vae", "--config", f"a{suffix}").exit_code == 2
    with pytest.raises(ValueError, match=f"{name} must be"):
        Settings("vae", **{name: 10**400})


def test_a_history_of_millions_of_lines_is_not_held_first(saved, tmp_path):
    saved()
    text = "epoch,seconds\n" + "1,2\n" * 300_000
    (tmp_path / "run" / "history.csv").write_text(text)
    tracemalloc.start()
    with pytest.raises(checkpoints.CheckpointError, match="not 1, 2 and so on"):
        checkpoints.read_history(tmp_path / "run")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(text)


def test_a_link_among_the_pictures_of_a_run_is_not_followed(saved, tmp_path):
    saved()
    Image.new("L", (8, 8)).save(tmp_path / "private.png")
    epochs = tmp_path / "run" / "epochs"
    epochs.mkdir(exist_ok=True)
    before = len(checkpoints.read_epochs(tmp_path / "run"))
    (epochs / "007.png").symlink_to(tmp_path / "private.png")
    assert len(checkpoints.read_epochs(tmp_path / "run")) == before


def test_a_dataset_that_was_replaced_since_the_training_is_told(saved, kae, mnist_env, monkeypatch):
    saved(model=CVAE((28, 28, 1), 2, "mlp", (4,), class_names=[f"kind {i}" for i in range(10)]))
    record = checkpoints.read_run("run")
    record |= {"settings": {"model": "cvae"}, "data": {"name": "mnist", "version": "1.2.3"}}
    checkpoints.write_run("run", record)
    done = kae("reconstruct", "run")
    assert done.exit_code == 0
    assert "mnist is of version 3.0.1 now; the model was trained on 1.2.3" in done.stderr
    assert "those of the model kind 0, kind 1" in done.stderr


@pytest.mark.parametrize(
    "shapes", [[(1, 5000)], [(3, 1), (3, 1, 2), (3, 1, 2, 2)], [(1, 1), (1, 1, 2), (1, 1, 3, 3)]]
)
def test_a_prior_in_the_weights_that_is_not_that_of_the_model(shapes, saved, kae, tmp_path):
    """Its memory follows from one array; its classes are not those of the model."""
    saved(model=CVAE((28, 28, 1), 2, "mlp", (4,)))
    path = tmp_path / "run" / "model.keras"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        arrays = file.require_group("layers/class_mixture/vars")
        for i, shape in enumerate(shapes):
            arrays[str(i)] = np.zeros(shape, "float32")
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, content.getvalue() if name.endswith(".h5") else part)
    for command in (["info", "run"], ["sample", "run", "7"]):
        done = kae(*command)
        assert done.exit_code == 1 and "cannot be loaded" in done.stderr, done.output
