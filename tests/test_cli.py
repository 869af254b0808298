"""The command line on real MNIST, mostly as processes: what it makes, what it prints, and how it fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from kae import console
from kae.main import cli
from PIL import Image

from keras_ae import checkpoints, data, models

SMALL = ["--backbone", "mlp", "--hidden", "16,8", "--latent-dim", "3", "--limit", "60", "--batch-size", "16"]  # fmt: skip


@pytest.fixture(scope="module")
def kae(mnist_dir, shared_tmp):
    """A function that runs `kae` in the working folder of these tests, and checks what always holds."""
    folder = shared_tmp / "cli"
    folder.mkdir(exist_ok=True)

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "kae", *map(str, arguments)],
            cwd=folder,
            env=environment_of(mnist_dir, shared_tmp, **environment),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert "\x1b" not in done.stdout + done.stderr, "colours, where nobody looks"
        chatter = [line for line in done.stderr.splitlines() if re.search("absl|oneDNN", line)]
        assert not chatter, "TensorFlow's lines about itself"
        return done

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def kae_here(kae, mnist_dir, shared_tmp):
    """As `kae`, but within this process, for what is the same there and takes a tenth of the time."""

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(kae.folder)
            patch.setenv("KAE_DATA_DIR", str(mnist_dir))
            patch.setenv("KAE_CACHE", str(shared_tmp / "cache"))
            done = CliRunner().invoke(cli, list(map(str, arguments)), prog_name="kae")
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess([], done.exit_code, done.stdout, done.stderr)

    run.folder = kae.folder
    return run


def environment_of(mnist_dir, shared_tmp, **changes):
    kept = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND", "TFDS_DATA_DIR")}
    paths = {"KAE_DATA_DIR": str(mnist_dir), "KAE_CACHE": str(shared_tmp / "cache")}
    return {**kept, **paths, **changes}


@pytest.fixture(scope="module", params=["ae", "vae", "cvae"])
def fitted(request, fit):
    return request.param, fit(request.param)


@pytest.fixture(scope="module")
def fit(kae, once):
    """A function: the process of `kae fit NAME --json`, run once a name by whichever worker asks."""

    def finished(name):
        def make(folder):
            done = kae("fit", name, *SMALL, "--epochs", 2, "--json")
            assert done.returncode == 0, done.stderr
            (folder / "done.json").write_text(json.dumps([done.stdout, done.stderr]))

        out, err = json.loads((once(f"cli-fit-{name}", make) / "done.json").read_text())
        return subprocess.CompletedProcess([], 0, out, err)

    return finished


def one_json(done):
    """The JSON object that is all of stdout."""
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict) and done.stdout.count("\n") == 1
    return value


def refused(done, code, *words):
    """Exit code, nothing on stdout, and one line `Error: …` on stderr with all the words."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], done.stderr
    for word in words:
        assert word in errors[0], errors[0]


class TestFit:
    def test_json_has_the_figures_of_the_contract(self, fitted, kae):
        name, done = fitted
        result = one_json(done)
        assert result["run"] == f"checkpoints/{name}" and result["epochs"] == 2
        assert 0 < result["seconds_per_epoch"] < result["seconds"]
        assert result["images_per_second"] > 0
        terms = {"loss", "reconstruction"} | (set() if name == "ae" else {"kl", "kl_weight"})
        assert len(result["history"]) == 2
        assert {"epoch", "seconds", *terms, *(f"val_{t}" for t in terms)} == set(
            result["history"][0]
        )

    def test_progress_goes_to_stderr(self, fitted):
        _, done = fitted
        assert "Epoch 2/2" in done.stderr and "val_reconstruction" in done.stderr

    def test_the_run_folder_is_complete(self, fitted, kae):
        name, _ = fitted
        folder = kae.folder / "checkpoints" / name
        files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert files == {
            "model.keras", "run.json", "history.csv", "epochs/001.png", "epochs/002.png"
        }  # fmt: skip

    def test_a_finished_run_is_kept_unless_forced(self, kae, fit):
        fit("ae")
        refused(kae("fit", "ae", *SMALL), 1, "finished run", "--force")

    @pytest.mark.long
    def test_quiet_says_nothing(self, kae):
        done = kae("fit", "ae", *SMALL, "--epochs", 1, "--out", "quiet", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["jax", "tensorflow"])
    def test_quiet_says_nothing_on_another_backend(self, kae, backend):
        pytest.importorskip(backend)
        done = kae(
            "fit",
            "ae",
            *SMALL,
            "--epochs",
            1,
            "--out",
            f"quiet-{backend}",
            "-q",
            KERAS_BACKEND=backend,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_of_what_tensorflow_says_the_rest_remains(self, tmp_path):
        """A tensorflow of our own, that chatters as the real one does."""
        (tmp_path / "tensorflow").mkdir()
        (tmp_path / "tensorflow" / "__init__.py").write_text(
            "import os\n"
            "os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called\\n')\n"
            "os.write(2, b'I0000 00:00:1.5    1 port.cc:153] oneDNN custom operations are on\\n')\n"
            "os.write(2, b'what matters\\n')\n"
        )
        script = (
            "from kae import main; main.quiet_tensorflow(); import importlib.util, os\n"
            "importlib.util.find_spec('tensorflow')  # as who asks whether it is there\n"
            "import tensorflow; os.write(2, b'after')"
        )
        environment = {
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "what matters\nafter")

    @pytest.mark.long
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_cleanly_and_resume_goes_on(self, number, kae, mnist_dir, shared_tmp):
        """A real process, a real signal; the resumed run ends as an uninterrupted one."""
        out = f"cut-{number}"
        command = [sys.executable, "-m", "kae", "fit", "vae", *SMALL, "--epochs", "20"]
        process = subprocess.Popen(
            [*command, "--out", out],
            cwd=kae.folder,
            env=environment_of(mnist_dir, shared_tmp),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        backup = kae.folder / out / "backup" / "state.npz"
        end = time.monotonic() + 120
        while not backup.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(number)
        stdout, err = process.communicate(timeout=60)
        assert process.returncode == 1 and stdout == "" and "Traceback" not in err, err
        last = err.strip().splitlines()[-1]
        assert last.startswith("Error: Stopped."), err
        assert last.endswith(f"kae fit vae --out {out} --resume"), "the command that goes on"
        assert not list((kae.folder / out).rglob(".*")), "half-written files are left"
        resumed = kae("fit", "vae", "--out", out, "--resume", "--json")
        result = one_json(resumed)
        assert f"resuming {out} after epoch" in resumed.stderr
        assert [row["epoch"] for row in result["history"]] == list(range(1, 21))

    @pytest.mark.long
    def test_a_loss_that_is_no_number_stops_the_run(self, kae):
        done = kae(
            "fit", "ae", *SMALL, "--reconstruction", "mse", "--optimizer", "sgd",
            "--learning-rate", "1e38", "--lr-schedule", "constant", "--epochs", 3, "--out", "nan",
        )  # fmt: skip
        refused(done, 1, "The loss became", "in epoch 1, batch", "--learning-rate")


class TestSample:
    def test_a_picture_and_its_path_on_stdout(self, kae, fit):
        fit("vae")
        done = kae("sample", "vae", "-n", 9)
        assert done.returncode == 0 and done.stdout == "samples/vae.png\n"
        assert (
            "using checkpoints/vae/model.keras (trained here; the released weights are "
            in done.stderr
        )
        assert Image.open(kae.folder / "samples" / "vae.png").size == (2 * 88, 2 * 88)

    def test_json_and_npy_in_label_order(self, kae_here, fit):
        fit("cvae")
        done = kae_here("sample", "cvae", "-n", 25, "--seed", 7, "--out", "all.npy", "--json")
        result = one_json(done)
        assert result["n"] == 25 and result["seed"] == 7 and result["out"] == "all.npy"
        assert result["labels"] == sorted(i % 10 for i in range(25))
        images = np.load(kae_here.folder / "all.npy")
        assert images.shape == (25, 28, 28, 1) and images.dtype == np.uint8

    def test_a_grid_of_fives_by_name_of_the_run_folder(self, kae_here, fit):
        fit("cvae")
        for out in ("a.npy", "b.npy"):
            done = kae_here("sample", "checkpoints/cvae", 5, "-n", 4, "--out", out, "--json")
            assert one_json(done)["labels"] == [5] * 4
        assert (kae_here.folder / "a.npy").read_bytes() == (kae_here.folder / "b.npy").read_bytes()

    def test_a_file_is_not_replaced_unless_forced(self, kae_here, fit):
        fit("vae")
        (kae_here.folder / "mine.png").write_text("mine")
        refused(kae_here("sample", "vae", "--out", "mine.png"), 1, "mine.png exists", "--force")
        assert (kae_here.folder / "mine.png").read_text() == "mine"
        assert kae_here("sample", "vae", "--out", "mine.png", "--force").returncode == 0
        assert Image.open(kae_here.folder / "mine.png").format == "PNG"

    def test_a_link_to_nothing_is_taken(self, kae_here, fit):
        fit("vae")
        (kae_here.folder / "linked.png").symlink_to("gone.png")
        refused(kae_here("sample", "vae", "--out", "linked.png"), 1, "linked.png exists", "--force")
        (kae_here.folder / "samples").mkdir(exist_ok=True)
        assert console.free_name(kae_here.folder / "linked.png") == kae_here.folder / "linked-2.png"

    @pytest.mark.long
    def test_label_10(self, kae_here, fit):
        fit("cvae")
        refused(kae_here("sample", "cvae", 10), 2, "0 to 9", "'10'")

    @pytest.mark.long
    def test_a_label_for_a_vae(self, kae_here, fit):
        fit("vae")
        refused(kae_here("sample", "vae", 3), 2, "no classes")

    @pytest.mark.long
    def test_an_ae_has_nothing_to_sample_from(self, kae_here, fit):
        fit("ae")
        refused(kae_here("sample", "ae"), 2, "no prior")

    def test_a_folder_that_cannot_be_written(self, kae_here, fit):
        fit("vae")
        (kae_here.folder / "a-file").write_text("mine")
        refused(kae_here("sample", "vae", "--out", "a-file/x.png"), 1, "Cannot write a-file/x.png")


class TestReconstructAndInfo:
    def test_reconstruct(self, kae, fit, mnist_dir):
        fit("cvae")
        done = kae("reconstruct", "cvae", "-n", 5, "--out", "rebuilt.png")
        assert done.returncode == 0 and done.stdout == "rebuilt.png\n"
        picture = np.array(Image.open(kae.folder / "rebuilt.png"))
        names = 18  # pixels of the strip above the row
        assert picture.shape == (names + 2 * 59, 2 * (5 * 29 + 1))
        test = data.load("mnist", "test", mnist_dir, limit=5)
        shown = picture[names + 2 : names + 58 : 2, 2:58:2]
        np.testing.assert_array_equal(shown, test.images[0, ..., 0])

    def test_info_of_a_model(self, kae, fit):
        fit("cvae")
        facts = one_json(kae("info", "cvae", "--json"))
        assert facts["model"] == "CVAE" and facts["classes"] == 10 and facts["latent_dim"] == 3
        assert facts["finished"] is True and facts["data"]["name"] == "mnist"
        assert facts["parameters"] == 784 * 16 + 10 * 16 + 16 + 16 * 8 + 8 + 2 * (8 * 3 + 3) + (
            (3 + 10) * 8 + 8 + 8 * 16 + 16 + 16 * 784 + 784
        )

    def test_info_of_the_installation(self, kae):
        facts = one_json(kae("info", "--json"))
        assert facts["backend"] == "torch" and "torch" in facts["backends"]
        assert facts["versions"]["keras"] == keras.__version__


@pytest.mark.long
class TestBadInput:
    def test_unknown_model(self, kae_here):
        refused(kae_here("fit", "gan"), 2, "'gan'")

    def test_unknown_command(self, kae_here):
        refused(kae_here("paint"), 2, "paint")

    @pytest.mark.parametrize("command", ["sample", "reconstruct"])
    def test_no_images(self, kae_here, command):
        refused(kae_here(command, "vae", "-n", 0), 2, "0 is not in the range")

    def test_no_images_to_train_on(self, kae_here):
        refused(kae_here("fit", "vae", "--limit", 0), 2, "0 is not in the range")

    def test_missing_checkpoint(self, kae_here):
        refused(kae_here("sample", "no/such/run"), 1, "There is no checkpoint no/such/run")

    @pytest.mark.parametrize("command", ["sample", "compare", "animate"])
    def test_misspelt_name(self, kae_here, command):
        refused(
            kae_here(command, "vea"), 2, "must be ae, vae, cvae", "got 'vea'", "Did you mean vae?"
        )

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["fit", "vae", "--out", ""], "Invalid value for '--out': the path is empty"),
            (["fit", "vae", "--from", ""], "There is no checkpoint"),
            (
                ["data", "list", "--data-dir", ""],
                "Invalid value for '--data-dir': the path is empty",
            ),
            (["encode", "vae", ""], "the path is empty"),
            (["sample", ""], "MODEL must be ae, vae, cvae"),
            (["info", ""], "MODEL must be ae, vae, cvae"),
            (["evaluate", "vae", "--dataset", ""], "it is empty"),
            (["fit", "vae", "--dataset", ""], "it is empty"),
        ],
    )
    def test_a_path_of_an_empty_variable(self, kae_here, arguments, words):
        """As of a variable of the shell that is not set: it is not the working folder."""
        checkpoints.save_model(
            models.VAE((28, 28, 1), 2, "mlp", (4,)), kae_here.folder / "model.keras"
        )
        done = kae_here(*arguments)
        refused(done, done.returncode, words)
        assert done.returncode

    def test_a_dataset_that_is_a_number(self, kae_here):
        (kae_here.folder / "a.toml").write_text("dataset = 5")
        refused(kae_here("fit", "vae", "--config", "a.toml"), 1, "5")

    def test_a_folder_above_is_a_path(self, kae_here):
        checkpoints.save_model(
            models.VAE((28, 28, 1), 2, "mlp", (4,)), kae_here.folder / "model.keras"
        )
        (kae_here.folder / "checkpoints").mkdir(exist_ok=True)
        refused(kae_here("sample", ".."), 1, "There is no checkpoint ../model.keras")

    def test_missing_file(self, kae_here):
        refused(
            kae_here("encode", "vae", "none.png"), 1, "none.png cannot be read", "check its name"
        )

    def test_a_path_that_no_system_takes(self, kae_here):
        refused(kae_here("sample", "a" * 300), 1, "File name too long")

    def test_damaged_checkpoint(self, kae):
        (kae.folder / "damaged.keras").write_text("not a model")
        refused(
            kae("info", "damaged.keras"),
            1,
            "damaged.keras cannot be loaded: it is no Keras model file",
        )

    def test_misspelt_backend(self, kae):
        done = kae("fit", "ae", KERAS_BACKEND="pytorch")
        refused(done, 2, "KERAS_BACKEND=pytorch", "Did you mean torch?")

    def test_backend_that_cannot_train(self, kae):
        refused(kae("fit", "ae", KERAS_BACKEND="numpy"), 2, "cannot train on numpy")

    def test_backend_that_is_not_installed(self, kae, tmp_path):
        """An empty path hides what is installed: an interpreter without its site-packages."""
        hide = "import sys, importlib.util as u; find = u.find_spec\n"
        hide += "u.find_spec = lambda name, *a: None if name == 'jax' else find(name, *a)\n"
        (tmp_path / "sitecustomize.py").write_text(hide)
        done = kae(
            "fit",
            "ae",
            KERAS_BACKEND="jax",
            PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        )
        refused(done, 1, "KERAS_BACKEND=jax needs jax", "pip install jax")

    def test_dataset_that_does_not_exist(self, kae_here):
        done = kae_here("fit", "ae", *SMALL, "--dataset", "fasion_mnist", "--out", "typo")
        refused(done, 1, "fasion_mnist", "did you mean fashion_mnist")
        assert not (kae_here.folder / "typo").exists()

    def test_no_network_is_answered_in_10_seconds(self, kae, tmp_path):
        start = time.monotonic()
        idle = kae("info", "--json")  # what starting Python and Keras takes here and now
        before = time.monotonic() - start
        start = time.monotonic()
        done = kae(
            "fit", "ae", "--dataset", "fashion_mnist", "--data-dir", tmp_path, "--out", "offline",
            https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", no_proxy="",
        )  # fmt: skip
        assert idle.returncode == 0 and time.monotonic() - start < 10 + before
        refused(done, 1, "fashion_mnist", "cannot be downloaded", "Offline:", "--from DIR")

    def test_corrupt_data_directory(self, kae_here, tmp_path):
        folder = tmp_path / "mnist" / "3.0.1"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{")
        done = kae_here("fit", "ae", *SMALL, "--data-dir", tmp_path, "--out", "corrupt")
        refused(done, 1, "damaged", "kae data prepare mnist")

    def test_data_directory_that_cannot_be_written(self, kae_here):
        (kae_here.folder / "no-folder").write_text("mine")
        done = kae_here("fit", "ae", *SMALL, "--data-dir", "no-folder/data", "--out", "unwritten")
        refused(done, 1, "no-folder/data")

    def test_an_empty_data_directory_is_filled(self, kae_here, tmp_path):
        """mnist comes with the package: nothing is missing that could not be made."""
        done = kae_here("data", "prepare", "mnist", "--data-dir", tmp_path / "new")
        assert done.returncode == 0
        assert (tmp_path / "new/mnist/3.0.1/dataset_info.json").is_file()

    def test_run_folder_that_cannot_be_written(self, kae_here):
        (kae_here.folder / "also-a-file").write_text("mine")
        done = kae_here("fit", "ae", *SMALL, "--out", "also-a-file/run")
        refused(done, 1, "Cannot write to also-a-file/run")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["--kl-warmup", "2"], "kl_warmup"),
            (["--learning-rate", "-1"], "learning_rate"),
            (["--hidden", "a,b"], "512,256"),
            (["--hidden", "8"], "hidden must be 2 widths or more"),
            (["--resume", "--force"], "give one of them"),
            (["--epochs", "x"], "'x' is not a valid integer"),
        ],
    )
    def test_wrong_options_of_fit(self, kae_here, arguments, word):
        refused(kae_here("fit", "vae", *arguments), 2, word)

    def test_resume_of_nothing(self, kae_here):
        refused(kae_here("fit", "vae", "--resume", "--out", "nothing"), 1, "no run in nothing")

    def test_wrong_suffix(self, kae_here):
        refused(kae_here("sample", "vae", "--out", "x.jpg"), 2, ".png or .npy")


HEAVY = {
    "matplotlib",
    "keras",
    "torch",
    "jax",
    "tensorflow",
    "tensorflow_datasets",
    "numpy",
    "PIL",
    "sklearn",
}


def python(code):
    """Runs code in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["fit"],
        ["sample"],
        ["reconstruct"],
        ["interpolate"],
        ["manifold"],
        ["report"],
        ["compare"],
        ["info"],
        ["data"],
        ["data", "prepare"],
    ],
)
def test_help_imports_nothing_heavy(command, kae):
    code = (
        "import sys\n"
        "from kae.main import cli\n"
        f"cli({command!r} + ['--help'], standalone_mode=False)\n"
        "print(*sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    )
    done = python(code)
    assert done.stdout.startswith("Usage: ")
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("way", [[], ["--import", "json"]])
def test_what_no_command_uses_of_keras_is_not_imported(way, kae):
    """Keras' wrappers and plots look for it. A module of the user's may use these. Afterwards all of it is there."""
    code = (
        "import sys\n"
        "from kae.main import cli\n"
        f"cli({way!r} + ['info', 'vae'], standalone_mode=False)\n"
        "found = {'sklearn', 'matplotlib', 'torch._dynamo'} & set(sys.modules)\n"
        "import keras, sklearn.mixture, torch._dynamo\n"
        "assert torch._dynamo.is_compiling.__module__.startswith('torch.')\n"
        "assert keras.src.wrappers.sklearn_wrapper.sklearn is (sklearn if found else None)\n"
        "print(*found, file=sys.stderr)"
    )
    done = python(code)
    assert bool(done.stderr.splitlines()[-1]) == bool(way)


def test_a_keras_that_needs_more_of_the_compiler_gets_it():
    pytest.importorskip("torch")
    code = (
        "from kae import lean\n"
        "with lean.imports(['torch']):\n"
        "    import torch._dynamo.config\n"
        "import torch\n"
        "assert torch._dynamo.optimize and not isinstance(torch._dynamo, lean.Compiler)"
    )
    python(code)


def test_version(kae):
    done = kae("--version")
    assert done.returncode == 0 and done.stdout.startswith("kae, version ")


def test_every_command_is_listed_with_the_help_it_gives(kae):
    from kae.main import COMMANDS, cli

    listing = kae("--help").stdout
    for name in COMMANDS:
        assert f"  {name} " in listing
        assert cli.get_command(None, name).help


@pytest.fixture(scope="module")
def own(kae, once, digits):
    """A data directory with 120 digits, imported from a folder with a class folder for each name."""

    def make(folder):
        images, labels = digits
        for label, name in enumerate(["Zero", "one", "ONE"]):
            (folder / "in" / name).mkdir(parents=True)
            for i, image in enumerate(images[labels == label][:40, ..., 0]):
                Image.fromarray(image).save(folder / "in" / name / f"{i}.png")
        arguments = ["--resize", "20x24", "--crop", "--test-fraction", 0.25]
        done = kae("data", "import", "mine", folder / "in", *arguments, "--data-dir", folder)
        assert done.stdout == f"{folder / 'mine' / '1.0.0'}\n", done.stderr
        assert "train 90, test 30; next: kae fit cvae --dataset mine" in done.stderr

    return once("cli-own-images", make)


@pytest.mark.long
class TestOwnImages:
    def test_list_verify_fit_sample_reconstruct(self, kae, kae_here, own):
        where = ["--data-dir", own]
        assert kae_here("data", "list", *where).stdout.startswith("mine 1.0.0  train 90, test 30")
        verified = one_json(kae_here("data", "verify", "mine", "--json", *where))
        assert verified["splits"]["train"]["shape"] == [20, 24, 1]
        name = os.path.relpath(own / "mine", kae.folder)  # a path, good from any folder afterwards
        done = kae("fit", "cvae", "--dataset", name, *SMALL, "--epochs", 1, "--out", own / "run")
        assert done.returncode == 0, done.stderr
        assert one_json(kae_here("info", own / "run", "--json"))["class_names"] == [
            "ONE",
            "Zero",
            "one",
        ]
        for label, number in (("ONE", 0), ("one", 2), ("zero", 1), ("1", 1)):
            out = own / "sample.npy"
            done = kae_here(
                "sample", own / "run", label, "-n", 2, "--out", out, "--json", "--force"
            )
            assert one_json(done)["labels"] == [number] * 2
        refused(kae_here("sample", own / "run", "two"), 2, "0 to 2 (ONE, Zero, one)", "'two'")
        rows = kae_here("sample", own / "run", "-n", 4, "--out", own / "rows.png", "--force")
        assert rows.returncode == 0, rows.stderr
        pairs = ["reconstruct", own / "run", "--out", own / "pairs.png", "--force"]
        refused(kae_here(*pairs), 2, "not prepared here: say --dataset mine, or its folder")
        done = kae_here(*pairs, "--dataset", name)
        assert done.returncode == 0, done.stderr

    def test_options_that_make_no_sense(self, kae_here, own):
        for options, words in (
            (["--resize", "0"], "sides are 1 to 4096"),
            (["--resize", "axb"], "no size such as 28 or 28x20"),
        ):
            refused(kae_here("data", "import", "more", own / "in", *options), 2, words)
        refused(kae_here("data", "import", "more", own / "gone"), 1, "there is no folder")
        refused(
            kae_here("data", "import", "mine", own / "in", "--data-dir", own), 1, "--force replaces"
        )
        done = kae_here("fit", "vae", "--dataset", own / "in", "--out", own / "none")
        refused(done, 1, "kae data import NAME")
