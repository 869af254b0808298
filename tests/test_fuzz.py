"""Random command lines and random files: exit codes 0, 1 and 2, one line for an error, no traceback.

KAE_FUZZ is the number of cases of each test; docs/faults.md has what 10,000 found.
"""

import io
import json
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from kae.main import cli

from keras_ae import CVAE, VAE, checkpoints
from keras_ae.errors import UserError
from keras_ae.settings import Settings

pytestmark = pytest.mark.long
fuzz = settings(
    max_examples=int(os.environ.get("KAE_FUZZ", 25)),
    deadline=None,
    derandomize="KAE_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def place(mnist_dir, shared_tmp, tmp_path_factory):
    """A folder with good and bad files, in which this process works, with 4 GB to take and no more."""
    folder = tmp_path_factory.mktemp("fuzz")
    images = np.arange(784 * 30, dtype="uint32").reshape(30, 28, 28, 1).astype("uint8")
    vae, cvae = VAE(hidden=(4,), latent_dim=2, backbone="mlp"), CVAE((8, 8, 1), 2, "mlp", (4,))
    vae.fit_prior(images)
    for model in (vae, cvae):
        name = type(model).__name__.lower()
        checkpoints.save_model(model, folder / "checkpoints" / name / "model.keras")
    checkpoints.save_model(vae, folder / "good.keras")
    checkpoints.write_run(folder / "checkpoints" / "vae", {"finished": True, "settings": {}})
    (folder / "junk.keras").write_bytes(b"PK\x03\x04junk")
    (folder / "empty").mkdir()
    (folder / "file").write_text("a file")
    (folder / "junk").mkdir()
    (folder / "junk" / "run.json").write_text("[1")
    (folder / "junk" / "model.keras").write_bytes((folder / "good.keras").read_bytes())
    rows = Path("/proc/self/status").read_text().splitlines()
    data = next(int(row.split()[1]) for row in rows if "VmData" in row)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAE_DATA_DIR", str(mnist_dir))
        patch.setenv("KAE_CACHE", str(shared_tmp / "cache"))
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        patch.chdir(folder)
        resource.setrlimit(resource.RLIMIT_DATA, (data * 1024 + (4 << 30), hard))
        yield folder
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def run(arguments):
    """`kae` in this process; what always holds is checked."""
    note(f"kae {arguments!r}")
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code in (0, 1, 2)
    assert "Traceback" not in done.output
    if done.exit_code:
        assert done.stdout == "" or "Usage" in done.stdout
        lines = done.stderr.rstrip().split("\n")
        errors = [line for line in lines if line.startswith("Error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0], done.stderr
    return done


PATHS = ["good.keras", "junk.keras", "empty", "junk", "file", "file/x", "no/such", ".", "..", "/", "", "/dev/null", "checkpoints/vae", "new/x", "ae", "vae", "cvae", "gan", "a" * 300]  # fmt: skip
texts = st.one_of(
    st.sampled_from(PATHS),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(
        ["x.png", "x.npy", "file/x.png", "empty/x.png", "x.jpg", "-", "--", "-h", "\udcff"]
    ),
)
models = st.one_of(st.sampled_from(PATHS), st.sampled_from(["vae", "cvae", "good.keras"]), texts)
numbers = st.one_of(
    st.integers(-3, 40).map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e308", "1e-320", "0.5", "1,2", ",", "0x10", "1_0", "٣", str(2**31), str(2**32), str(10**15), str(10**30)]),
)  # fmt: skip
unwritable = st.sampled_from(["file/x", "file", "/dev/null", "/dev/null/x"])
few = st.one_of(st.integers(-1, 3).map(str), texts)
anything = st.one_of(numbers, texts)


def options(**kinds):
    """Some of the options, each with a value of its kind; None is a flag."""
    one = [
        st.just(["--" + name.replace("_", "-")])
        if kind is None
        else kind.map(lambda value, name=name: ["--" + name.replace("_", "-"), value])
        for name, kind in kinds.items()
    ]
    return st.lists(st.one_of(one), max_size=4).map(lambda parts: sum(parts, []))


choices = st.sampled_from(["conv", "mlp", "sgd", "nadam", "constant", "cosine", "onecycle", "cyclical", "sigmoid", "mse", "bce", "l1", "fitted", "normal", "mixed_bfloat16", "onnx", "x"])  # fmt: skip
TINY = ["--backbone", "mlp", "--hidden", "4", "--latent-dim", "2", "--limit", "9", "--batch-size", "4", "--epochs", "1"]  # fmt: skip
fits = st.tuples(
    st.sampled_from(["ae", "vae", "cvae", "gan"]),
    options(
        dataset=texts, data_dir=unwritable, backbone=choices, latent_dim=numbers, epochs=few, hidden=anything,
        batch_size=numbers, optimizer=choices, learning_rate=numbers, lr_schedule=choices, reconstruction=choices,
        kl_weight=numbers, kl_schedule=choices, kl_warmup=numbers, binarize=None, dtype=choices, seed=numbers,
        limit=few, out=texts, resume=None, force=None, quiet=None, json=None, nonsense=None,
    ),
).map(lambda parts: ["fit", parts[0], *TINY, *parts[1]])  # fmt: skip
samples = st.tuples(
    models,
    st.one_of(st.just([]), anything.map(lambda label: [label])),
    options(number=few, seed=numbers, prior=choices, out=texts, force=None, json=None),
).map(lambda parts: ["sample", parts[0], *parts[1], *parts[2]])
others = st.one_of(
    st.tuples(st.just("reconstruct"), models, options(dataset=texts, data_dir=unwritable, out=texts)),
    st.tuples(st.just("info"), models, options(json=None)),
    st.tuples(st.just("export"), st.sampled_from(["junk", "no/such", "empty", "junk.keras"]),
              options(format=choices, part=choices, out=texts)),
    st.tuples(st.just("evaluate"), st.sampled_from(["junk", "no/such", "", "file"]),
              options(samples=numbers, iw=numbers, limit=numbers, seed=numbers)),
    st.tuples(st.just("data"), st.sampled_from(["list", "prepare", "verify", "x"]), st.lists(texts, max_size=2)),
    st.tuples(texts, texts, st.lists(anything, max_size=3)),
).map(lambda parts: [*parts[:2], *parts[2]])  # fmt: skip


@fuzz
@given(st.one_of(fits, samples, others))
def test_command_lines(arguments):
    if arguments[:2] == ["data", "verify"] and "mnist" in arguments[2:]:
        return  # half a minute
    run(arguments)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.sampled_from([2**31, 2**63, 10**40, -1, 1e308, float("nan")]),
        st.floats(allow_nan=True),
        st.text(max_size=6),
        st.sampled_from(["mlp", "conv", "l1", "float16", "int8", "keras_ae>CVAE", "keras_ae>ClassMixture"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


@st.composite
def changed(draw, value):
    """A JSON value with some of its parts replaced, removed or doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        what = draw(st.integers(0, 9))
        rest = {k: v for k, v in value.items() if k != key}
        if what == 0:
            return rest
        if what == 1:
            return {**value, draw(st.text(max_size=6)): draw(json_values)}
        return {**value, key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 2)):
        i = draw(st.integers(0, len(value) - 1))
        return value[:i] + draw(st.sampled_from([[], [draw(changed(value[i]))]])) + value[i + 1 :]
    return draw(json_values)


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@st.composite
def damaged(draw, content):
    """Bytes with a few of them changed, or a stretch cut out, doubled or zeroed."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content) - 1))
        length = draw(st.sampled_from([1, 1, 1, 2, 8, 100]))
        how = draw(st.integers(0, 4))
        if how == 0:
            del content[place : place + length]
        elif how == 1:
            content[place:place] = content[place : place + length]
        elif how == 2:
            content[place : place + length] = bytes(len(content[place : place + length]))
        else:
            content[place] = draw(st.integers(0, 255))
        if not content:
            content = bytearray(b"\0")
    return bytes(content)


def load(path):
    """Load a model file: it is refused in one line, or it is one that works."""
    try:
        model = checkpoints.load_model(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    codes = np.zeros((2, model.latent_dim), "float32")
    labels = [0, 0] if model.num_classes else None
    assert model.decode(codes, labels).shape == (2, *model.image_shape)


@fuzz
@given(st.data())
def test_configs_of_model_files(place, data):
    name = data.draw(st.sampled_from(["good.keras", "checkpoints/cvae/model.keras"]))
    members = members_of(place / name)
    config = json.loads(members["config.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        config = data.draw(changed(config))
    members["config.json"] = json.dumps(config)
    rewrite(place / "changed.keras", members)
    load(place / "changed.keras")


@fuzz
@given(st.data())
def test_weights_of_model_files(place, data):
    """With the checksum that fits: what is left is between HDF5 and us."""
    members = members_of(place / "good.keras")
    weights = members["model.weights.h5"]
    head = data.draw(st.booleans())  # most of the bytes are numbers, where every change is fine
    cut = min(len(weights), 3000) if head else len(weights)
    members["model.weights.h5"] = data.draw(damaged(weights[:cut])) + weights[cut:]
    rewrite(place / "changed.keras", members)
    load(place / "changed.keras")


@fuzz
@given(st.data())
def test_bytes_of_model_files(place, data):
    whole = (place / "good.keras").read_bytes()
    (place / "changed.keras").write_bytes(data.draw(damaged(whole)))
    load(place / "changed.keras")


RUN = {
    "format": 1,
    "finished": False,
    "settings": Settings("vae", backbone="mlp", hidden=(4,), latent_dim=2, limit=9, epochs=1).to_dict(),
    "data": {"name": "mnist", "version": "3.0.1", "train_images": 9, "test_images": 9, "crc32": "0"},
    "environment": {"backend": "torch", "device": "cpu", "versions": {"keras": "3"}},
    "prior": {"components": 1},
    "final": {"epochs": 1},
}  # fmt: skip


@fuzz
@given(st.data())
def test_run_json(place, data):
    value = RUN
    for _ in range(data.draw(st.integers(1, 3))):
        value = data.draw(changed(value))
    folder = place / "changed-run"
    folder.mkdir(exist_ok=True)
    (folder / "model.keras").write_bytes((place / "good.keras").read_bytes())
    (folder / "run.json").write_text(json.dumps(value))
    run(["info", str(folder), *data.draw(st.sampled_from([[], ["--json"]]))])
    which = data.draw(st.integers(0, 3))
    if which == 0:
        run(["reconstruct", str(folder), "-n", "2", "--data-dir", "file/x"])
    elif which == 1:
        run(["fit", "vae", "--resume", "--out", str(folder), "--data-dir", "file/x", "--quiet"])
    elif which == 2:
        run(["fit", "vae", *TINY, "--out", str(folder), "--data-dir", "file/x", "--quiet"])


@fuzz
@given(st.data())
def test_histories(place, data):
    """`compare` draws what is read."""
    rows = [{"epoch": i, "loss": 2.5 / i, "val_loss": -1e-3, "seconds": 0.25} for i in (1, 2, 3)]
    folder = place / "changed-history"
    folder.mkdir(exist_ok=True)
    (folder / "model.keras").write_bytes((place / "good.keras").read_bytes())
    checkpoints.write_history(folder, rows)
    path = folder / "history.csv"
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    run(["compare", str(folder), "checkpoints/vae", *data.draw(st.sampled_from([[], ["--json"]]))])


@fuzz
@given(st.data())
def test_backups(place, data):
    model = VAE((8, 8, 1), 2, "mlp", (4,))
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    folder = place / "backed-up"
    metrics = [np.float32(1)] * len(model.metrics_variables)
    row = {"epoch": 1, "val_loss": 2.0, "seconds": 0.5}
    progress = checkpoints.Progress([row], 1, 2, 0.5, metrics)
    checkpoints.write_backup(folder, model, progress)
    path = Path(folder, "backup", "state.npz")
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:
        members = members_of(path)
        name = data.draw(st.sampled_from(sorted(members)))
        how = data.draw(st.integers(0, 4))
        if how == 0:
            del members[name]
        elif how == 1:
            members[name] = data.draw(damaged(members[name]))
        else:
            with np.load(path) as archive:
                about = json.loads(str(archive["about"]))
            text = json.dumps(data.draw(changed(about)))
            file = io.BytesIO()
            np.save(file, np.array(text))
            members["about.npy"] = file.getvalue()
        rewrite(path, members)
    try:
        read = checkpoints.read_backup(folder, model)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert read.epochs >= 0 and read.batches >= 0
