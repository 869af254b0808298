"""Settings from a file, and the completion of the shell."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from kae import fit
from kae.main import cli

from keras_ae import checkpoints, fitting
from keras_ae.settings import Settings

SMALL = ["--backbone", "mlp", "--hidden", "16,8", "--latent-dim", "3", "--limit", "60", "--epochs", "2"]  # fmt: skip


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A function: the settings that `kae fit` with some arguments asks for, or what it says."""
    monkeypatch.chdir(tmp_path)

    def get(*arguments):
        taken = []

        def fit(settings, *others, **more):
            taken.append(settings)

        with monkeypatch.context() as patch:
            patch.setattr(fitting, "fit", fit)
            done = CliRunner().invoke(cli, ["fit", *map(str, arguments)])
        if taken:
            return taken[0]
        assert done.exit_code == 2 and done.stdout == "", done.output
        return done.stderr

    return get


def test_a_toml_file(asked, tmp_path):
    (tmp_path / "a.toml").write_text(
        'model = "vae"\nhidden = [32, 16]\nlatent-dim = 3\nkl_weight = 1\nbinarize = true\n'
    )
    expected = Settings("vae", hidden=(32, 16), latent_dim=3, kl_weight=1.0, binarize=True)
    assert asked("--config", "a.toml") == expected


def test_options_win_wherever_they_stand(asked, tmp_path):
    (tmp_path / "a.toml").write_text('[settings]\nmodel = "vae"\nepochs = 3\nseed = 5\n')
    assert asked("ae", "--epochs", 7, "--config", "a.toml") == Settings("ae", epochs=7, seed=5)
    assert asked("--config", "a.toml", "--seed", 0) == Settings("vae", epochs=3)


def test_options_switch_off_what_a_file_switches_on(asked, tmp_path):
    (tmp_path / "a.toml").write_text('model = "vae"\nbinarize = true\naugment = ["flip"]\n')
    assert asked("--config", "a.toml") == Settings("vae", binarize=True, augment="flip")
    assert asked("--config", "a.toml", "--no-binarize", "--augment", "none") == Settings("vae")


@pytest.mark.parametrize(
    "settings",
    [
        Settings("cvae", hidden=(8, 8, 4), early_stopping=2, kl_warmup=0.5, ema=0.99, seed=3),
        Settings("ae", dataset="fashion_mnist", dtype="mixed_bfloat16", limit=9, optimizer="sgd"),
        Settings("vae", augment=("flip", "shift"), binarize=True),
    ],
)
def test_run_json_asks_for_the_same_run(asked, tmp_path, settings):
    checkpoints.write_run(tmp_path, {"settings": settings.to_dict(), "finished": True})
    if settings.dataset != "mnist":  # a download is not followed unasked
        assert f"say --dataset {settings.dataset}" in asked("--config", "run.json")
    asked_for = [] if settings.dataset == "mnist" else ["--dataset", settings.dataset]
    assert asked("--config", "run.json", *asked_for) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", "there is no setting 'epoch'; did you mean epochs?"),
        ('model = "ae"\nepochs = 0', "0 is not in the range"),
        ('model = "ae"\nepochs = 2.5', "epochs must be a whole number"),
        ('model = "ae"\nlimit = true', "limit must be a whole number"),
        ('model = "vae"\nkl_weight = true', "kl_weight must be a word or a number"),
        ('model = "ae"\nepochs = "x"', "'x' is not a valid integer"),
        ("epochs = ", "is no TOML file of settings"),
        ("settings = 3", "is no TOML file of settings"),
        ("epochs = {a = 1}", "epochs must be a whole number"),
        ("binarize = 3", "binarize must be true or false"),
        ('model = "ae"\naugment = 3', "augment must be some of flip, shift, colour; got '3'"),
        ('model = "ae"\nhidden = 0', "hidden must be widths of 1 or more"),
        ('model = "ae"\nhidden = [1.5]', "hidden must be a list of numbers"),
        (f'model = "ae"\nhidden = [0x{"f" * 5000}]', "hidden must be a list of numbers"),
        (f'model = "ae"\naugment = ["flip", 0x{"f" * 5000}]', "augment must be a list of words"),
        ('model = "ae"\nepochs = []', "epochs must be a whole number"),
        (f'model = "ae"\nhidden = {[1] * 65}', "hidden must be 64 widths or fewer; got 65"),
        ("a." * 20_000 + "a = 1", "it has more than 10,000 letters"),
        ('model = "ae"\ndataset = "a\\u0000b"', "dataset has a NUL character"),
        ("epochs = 3", "Missing argument"),
    ],
)
def test_what_a_file_may_not_say(asked, tmp_path, text, words):
    (tmp_path / "a.toml").write_text(text)
    assert words in asked("--config", "a.toml")


def test_a_file_that_is_not_there(asked):
    assert "none.toml cannot be read: No such file" in asked("--config", "none.toml")


def test_a_run_is_repeated(tmp_path, monkeypatch, mnist_env):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["fit", "vae", *SMALL, "--seed", "3"],
        ["fit", "--config", "checkpoints/vae/run.json", "--out", "again"],
    ):
        done = CliRunner().invoke(cli, [*arguments, "--quiet"])
        assert done.exit_code == 0, done.output
    runs = [checkpoints.read_run(folder) for folder in ("checkpoints/vae", "again")]
    assert runs[0]["settings"] == runs[1]["settings"]
    assert runs[0]["final"]["val_loss"] == runs[1]["final"]["val_loss"]


COMPLETED = {
    "kae ": ["fit", "sample", "interpolate", "report", "data"],
    "kae rep": ["report"],
    "kae fit ": ["ae", "vae", "cvae"],
    "kae sample c": ["cvae"],
    "kae report m": ["mine"],
    "kae fit ae --lr-schedule ": ["onecycle", "cosine", "constant"],
}


@pytest.mark.parametrize("words", COMPLETED)
def test_completion_knows_names_and_imports_no_framework(words, tmp_path):
    for name in ("mine", "mine$(touch${IFS}x)", "my run"):
        run = tmp_path / "checkpoints" / name
        run.mkdir(parents=True)
        (run / "model.keras").touch()
    code = (
        "import atexit, sys\n"
        "heavy = {'keras', 'torch', 'jax', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'PIL'}\n"
        "atexit.register(lambda: print('imported', *(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from kae.main import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "_KAE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
    )
    found = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert found >= set(COMPLETED[words]), done.stderr
    assert words not in ("kae rep", "kae report m") or len(found) == 1
    assert done.stderr.strip() == "imported"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_of_the_docs_prints_a_script(shell):
    done = subprocess.run(
        [sys.executable, "-m", "kae"],
        env={**os.environ, "_KAE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    # click asks bash for its version, and says so where there is none that fits.
    assert "_KAE_COMPLETE" in done.stdout


def test_a_run_that_a_stopped_one_did_not_replace_is_not_taken_for_it(tmp_path):
    next_one = tmp_path / checkpoints.NEXT
    for place in (tmp_path, next_one):
        checkpoints.write_run(place, {})
    before = fit.runs_in(tmp_path)
    assert fit.still(tmp_path, before)
    checkpoints.remove_next(tmp_path)  # as a new run begins, which is then stopped
    assert fit.still(tmp_path, before)
    checkpoints.write_run(next_one, {})
    assert not fit.still(tmp_path, before)
    checkpoints.take_place(tmp_path)
    assert not fit.still(tmp_path, before)
