"""Runs from settings to a folder, on real MNIST: contents, resuming, order, and what stops a run."""

import contextlib
import csv
import errno
import itertools
import json
import os
import shutil
import signal
import warnings

import keras
import numpy as np
import pytest
from kae.fit import waiting
from PIL import Image

import keras_ae
from keras_ae import (
    building,
    callbacks,
    checkpoints,
    distributed,
    errors,
    files,
    fitting,
    models,
    overfitting,
    resuming,
)
from keras_ae.data import DataError, ImageData
from keras_ae.data.preparation import Preparation
from keras_ae.errors import RunError, UserError
from keras_ae.feed import Feed
from keras_ae.fitting import steps_per_execution
from keras_ae.models import MODELS
from keras_ae.settings import Settings

pytestmark = pytest.mark.usefixtures("mnist_env")


@pytest.fixture(autouse=True)
def callbacks_at_every_step(monkeypatch):
    """The epochs here are shorter than an execution of the default."""
    monkeypatch.setattr(fitting, "steps_per_execution", lambda *_: 1)


def small(model="vae", **kwargs):
    """Settings of a run of well under a second: 50 images in batches of 16, 16, 16 and 2."""
    values = {"backbone": "mlp", "hidden": (16, 8), "latent_dim": 3, "limit": 50, "batch_size": 16}
    if model != "ae":
        values["kl_weight"] = 0.5
    return Settings(model, **{"epochs": 3, **values, **kwargs})


def fit(settings, folder, **kwargs):
    return fitting.fit(settings, folder, verbose=0, report=lambda line: None, **kwargs)


@keras.saving.register_keras_serializable("test_fitting")
class Mine(keras_ae.VAE):
    """A model of the user's own."""

    def term_weights(self):
        return {**super().term_weights(), "reconstruction": 2.0}


def of_ones_own():
    keras.utils.set_random_seed(1)
    return Mine((28, 28, 1), 3, "mlp", (16, 8))


@keras.saving.register_keras_serializable("test_fitting")
class Noisy(keras_ae.VAE):
    """A model that draws twice a step."""

    def loss_terms(self, target, outputs):
        terms = super().loss_terms(target, outputs)
        noise = keras.random.normal((), seed=self.seed_generator)
        return {**terms, "reconstruction": terms["reconstruction"] * (1.0 + 0.1 * noise)}


@keras.saving.register_keras_serializable("test_fitting")
class Measured(keras_ae.VAE):
    """A model whose metric has no variables before the first step."""

    def compile(self, *args, **kwargs):
        super().compile(*args, metrics=["mae"], **kwargs)


@keras.saving.register_keras_serializable("test_fitting")
class Twice(keras_ae.VAE):
    """A model whose step applies the optimizer twice."""

    def train_step(self, *args):
        once = super().train_step(*args)
        if keras.backend.backend() == "jax":  # (logs, state) of (state, data)
            args = once[1], args[1]
        return super().train_step(*args)


def twice():
    keras.utils.set_random_seed(1)
    return Twice((28, 28, 1), 3, "mlp", (16, 8))


def noisy():
    keras.utils.set_random_seed(1)
    return Noisy((28, 28, 1), 3, "mlp", (16, 8))


def with_dropout():
    """A model with an encoder of the user's own, whose random layer has a state."""
    keras.utils.set_random_seed(1)
    image = keras.Input((28, 28, 1))
    x = keras.layers.Dropout(0.5, seed=3)(keras.layers.Flatten()(image))
    heads = {name: keras.layers.Dense(3)(x) for name in ("mean", "log_var")}
    return keras_ae.VAE((28, 28, 1), 3, "mlp", (8,), encoder=keras.Model(image, heads))


def weights(folder):
    model = checkpoints.load_model(folder / "model.keras")
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


def history(folder):
    return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


def contents(folder):
    """The files in a folder and what is in them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same_run(a, b):
    """Weights bit for bit, and histories but for the seconds."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    pictures = [{p.name: p.read_bytes() for p in (f / "epochs").iterdir()} for f in (a, b)]
    assert pictures[0] == pictures[1]
    rows = [history(folder) for folder in (a, b)]
    for row in rows[0] + rows[1]:
        del row["seconds"]
    assert rows[0] == rows[1]


class TestRunFolder:
    @pytest.fixture(scope="class", params=MODELS)
    def run(self, request, mnist_dir, shared_tmp, tmp_path_factory):
        """(name of the model, run folder, what `fit` returned) of a finished run."""
        folder = tmp_path_factory.mktemp("runs") / request.param
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KAE_CACHE", str(shared_tmp / "cache"))
            result = fit(small(request.param), folder, data_dir=mnist_dir)
        return request.param, folder, result

    def test_files(self, run):
        _, folder, _ = run
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        pictures = [f"epochs/00{i}.png" for i in (1, 2, 3)]
        assert files == [*pictures, "history.csv", "model.keras", "run.json"]

    def test_run_json(self, run):
        name, folder, result = run
        facts = json.loads((folder / "run.json").read_text())
        assert facts["finished"] is True and facts["format"] == checkpoints.FORMAT
        assert Settings.from_dict(facts["settings"]) == building.settled(small(name))
        about = facts["data"]
        assert (about["name"], about["version"]) == ("mnist", "3.0.1")
        assert (about["train_images"], about["test_images"]) == (50, 50)
        assert facts["environment"]["backend"] == keras.backend.backend()
        assert facts["environment"]["versions"]["keras"] == keras.__version__
        assert facts["final"]["epochs"] == 3
        assert facts["final"]["val_loss"] == result["history"][-1]["val_loss"]

    def test_history(self, run):
        name, folder, result = run
        rows = history(folder)
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        terms = {"loss", "reconstruction"} | (set() if name == "ae" else {"kl", "kl_weight"})
        assert set(rows[0]) == {"epoch", "seconds", *terms, *(f"val_{t}" for t in terms)}
        for row, kept in zip(rows, result["history"], strict=True):
            assert {k: float(v) for k, v in row.items()} == pytest.approx(kept)

    def test_result(self, run):
        _, folder, result = run
        assert result["run"] == str(folder) and result["epochs"] == 3
        seconds = sorted(row["seconds"] for row in result["history"])
        assert result["seconds_per_epoch"] == seconds[1]
        assert result["images_per_second"] == pytest.approx(50 / seconds[1], rel=0.01)
        assert result["seconds"] >= sum(seconds)

    def test_the_model_loads_and_is_that_of_the_last_epoch(self, run, digits):
        name, folder, result = run
        model = checkpoints.load_model(folder / "model.keras")
        assert type(model) is models.MODELS[name] and not hasattr(model, "optimizer")
        if name == "ae":
            model.compile()
            images = fitting.data.load_splits("mnist", limit=50)[1].images
            loss = model.evaluate(images, batch_size=256, verbose=0)
            loss = loss[0] if isinstance(loss, list) else loss
            assert loss == pytest.approx(result["history"][-1]["val_loss"], rel=1e-4)
        else:
            assert float(model.kl_weight) == small(name).kl_weight
            assert type(model.prior).__name__ == "ClassMixture"

    def test_pictures_show_the_test_digits_over_their_reconstructions(self, run, mnist_dir):
        name, folder, _ = run
        _, test = fitting.data.load_splits("mnist", mnist_dir, limit=20)
        picture = np.array(Image.open(folder / "epochs" / "003.png"))
        title, names = 22, 18  # pixels of the strip above each part, and above each row of pairs
        for i in range(10):
            left = 2 * (1 + i * 29)
            top = title + names + 2
            shown = picture[top : top + 56 : 2, left : left + 56 : 2]
            np.testing.assert_array_equal(shown, test.images[i, ..., 0])
        pairs = title + 2 * (names + 2 * (2 * 29 + 1))  # two rows of them
        rows = {"ae": 0, "vae": 4, "cvae": 10}[name]
        samples = 8 + title + 2 * (rows * 29 + 1) if rows else 0
        assert picture.shape[0] == pairs + samples


@pytest.mark.parametrize("model", ["ae", "cvae"])
def test_one_seed_makes_one_run_and_another_seed_another(model, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(small(model, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


class Killed(BaseException):
    """Stands for a signal."""


def killed(*args, **kwargs):
    raise Killed


def replaced_and_killed(run, monkeypatch):
    """Replace the run in a folder, and kill the new one as its backup is to be moved there from `.next`."""
    replace = os.replace

    def fatal(source, target):
        if os.path.basename(source) == "state.npz":
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", fatal)
        patch.setattr(fitting.Run, "undone", contextlib.nullcontext)
        fit(small("vae"), run, force=True)


def kill_after_backup(monkeypatch, epochs, batches=0):
    """Stop the next run when the backup of a step has just been written; there is one a step."""
    write = checkpoints.write_backup

    def write_and_die(folder, model, progress):
        write(folder, model, progress)
        if (progress.epochs, progress.batches) == (epochs, batches):
            raise Killed

    monkeypatch.setattr(callbacks, "BACKUP_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "write_backup", write_and_die)


def kill_before_backup(monkeypatch):
    """Stop the next run when it is about to write its first backup."""
    monkeypatch.setattr(checkpoints, "write_backup", killed)


def kill_in_epoch(monkeypatch, epoch):
    """Stop the next run at the second batch of an epoch, from 0; there are backups of epochs alone."""
    get = Feed.__getitem__

    def get_or_die(feed, index):
        if feed.epoch == epoch and index == 1:
            raise Killed
        return get(feed, index)

    monkeypatch.setattr(Feed, "__getitem__", get_or_die)


KILLS = {
    "after the first epoch": (kill_after_backup, 1),
    "after the last epoch": (kill_after_backup, 3),
    "after the first step": (kill_after_backup, 0, 1),
    "before the last step of an epoch": (kill_after_backup, 1, 3),
    "amid the last epoch": (kill_after_backup, 2, 2),
    "amid the last epoch, without a backup of it": (kill_in_epoch, 2),
    "amid the first epoch": (kill_in_epoch, 0),
    "before the first backup": (kill_before_backup,),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kill", KILLS)
def test_a_resumed_run_is_the_uninterrupted_one(model, kill, tmp_path, whole_run):
    settings, whole = whole_run(model)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill, *where = KILLS[kill]
        kill(patch, *where)
        fit(settings, tmp_path)
    fit(settings, tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


@pytest.fixture(scope="module")
def whole_run(mnist_dir, shared_tmp, tmp_path_factory):
    """A function: settings and the folder of an uninterrupted run of a model."""
    runs = {}

    def get(model):
        settings = small(
            model, binarize=model == "cvae", backbone="mlp" if model == "ae" else "conv"
        )
        if model not in runs:
            runs[model] = tmp_path_factory.mktemp(f"whole-{model}")
            fit(settings, runs[model], data_dir=mnist_dir)
        return settings, runs[model]

    return get


@pytest.mark.parametrize("number", [getattr(signal, name) for name in callbacks.STOPPING])
def test_a_signal_costs_nothing(number, tmp_path, whole_run, monkeypatch):
    """The run ends after the step under way, and goes on with the next one."""
    settings, whole = whole_run("vae")
    with monkeypatch.context() as patch:
        send_at_step(patch, number, 6)
        with pytest.raises(KeyboardInterrupt):
            fit(settings, tmp_path)
    said = []
    fitting.fit(settings, tmp_path, resume=True, verbose=0, report=said.append)
    assert any("after epoch 1 of 3, step 2 of 4" in line for line in said), said
    assert_same_run(whole, tmp_path)


def test_a_signal_in_the_last_step_of_an_epoch_ends_the_run_with_the_epoch(
    tmp_path, whole_run, monkeypatch
):
    settings, whole = whole_run("vae")
    with monkeypatch.context() as patch:
        send_at_step(patch, signal.SIGTERM, 8)
        with pytest.raises(KeyboardInterrupt):
            fit(settings, tmp_path)
    assert len(history(tmp_path)) == 2
    fit(settings, tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_a_signal_amid_the_fit_of_the_prior(tmp_path, whole_run, monkeypatch):
    settings, whole = whole_run("vae")
    with monkeypatch.context() as patch:
        patch.setattr(
            models.VAE, "fit_prior", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
        )
        with pytest.raises(KeyboardInterrupt):
            fit(settings, tmp_path)
    assert len(history(tmp_path)) == 3 and checkpoints.can_resume(tmp_path)
    fit(settings, tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_a_run_that_is_stopped_again_and_again_is_the_uninterrupted_one(tmp_path, whole_run):
    """A signal after every single step."""
    settings, whole = whole_run("cvae")
    stops = 0
    while not checkpoints.read_run(tmp_path).get("finished"):
        with pytest.MonkeyPatch.context() as patch:
            send_at_step(patch, signal.SIGTERM, 1)
            try:
                fit(settings, tmp_path, resume=stops > 0)
            except KeyboardInterrupt:
                stops += 1
    assert stops == 3 * 4
    assert_same_run(whole, tmp_path)


def send_at_step(monkeypatch, number, step):
    """Send this process a signal at the so-manieth step, from 1, of the next run."""
    left = [step]

    class Stopwatch(callbacks.Stopwatch):
        def on_train_batch_begin(self, batch, logs=None):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(fitting, "Stopwatch", Stopwatch)


def stop_and_resume(monkeypatch, settings, folder, step):
    """A run that is stopped by SIGTERM after a step, and goes on."""
    with monkeypatch.context() as patch:
        send_at_step(patch, signal.SIGTERM, step)
        with pytest.raises(KeyboardInterrupt):
            fit(settings, folder)
    fit(settings, folder, resume=True)


def test_weights_that_are_no_numbers_do_not_replace_a_backup(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "BACKUP_SECONDS", 0.0)
    poison(monkeypatch, epoch=1, batch=1)
    with pytest.raises(RunError, match="became nan"):
        fit(small("vae"), tmp_path)
    with np.load(tmp_path / "backup" / "state.npz") as backup:
        assert json.loads(str(backup["about"]))["batches_done"] == 1
        assert all(np.isfinite(backup[name]).all() for name in backup if "/" in name)


class TestRules:
    @pytest.fixture
    def finished(self, tmp_path):
        fit(small("ae", epochs=1), tmp_path / "run")
        return tmp_path / "run"

    @pytest.fixture
    def unfinished(self, tmp_path, monkeypatch):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after_backup(patch, 1)
            fit(small("ae", epochs=2), tmp_path / "run")
        return tmp_path / "run"

    def test_a_finished_run_is_not_replaced_unasked(self, finished):
        before = (finished / "model.keras").read_bytes()
        with pytest.raises(RunError, match="finished run; --force replaces it"):
            fit(small("ae", seed=9), finished)
        assert (finished / "model.keras").read_bytes() == before

    def test_a_finished_run_is_not_resumed(self, finished):
        with pytest.raises(RunError, match="nothing is left to resume"):
            fit(small("ae", epochs=1), finished, resume=True)

    def test_force_replaces_a_run_and_nothing_else(self, finished):
        (finished / "notes.txt").write_text("mine")
        fit(small("vae", epochs=1), finished, force=True)
        assert (finished / "notes.txt").read_text() == "mine"
        assert type(checkpoints.load_model(finished / "model.keras")).__name__ == "VAE"

    def test_force_leaves_the_old_run_where_the_new_one_cannot_start(self, finished):
        with pytest.raises(DataError):
            fit(small("ae", dataset="no_such_dataset"), finished, force=True)
        assert (finished / "model.keras").is_file() and checkpoints.read_run(finished)["finished"]

    def test_force_keeps_the_old_run_where_the_new_one_fails(self, tmp_path, finished, monkeypatch):
        """Its loss is no number in its first epoch; nothing of it stays."""
        before = contents(finished)
        with monkeypatch.context() as patch, pytest.raises(RunError, match="became nan"):
            poison(patch, epoch=0, batch=1)
            patch.setattr(callbacks, "BACKUP_SECONDS", 0.0)
            fit(small("vae"), finished, force=True)
        assert contents(finished) == before

    def test_force_replaces_a_run_at_the_first_epoch_of_the_new_one(self, tmp_path, monkeypatch):
        """Until then the old one is what it was; stopped then, `resume` goes on with the new one."""
        run, alone = tmp_path / "run", tmp_path / "alone"
        fit(small("ae", epochs=4), run)
        fit(small("ae", epochs=2, seed=5), alone)
        before = contents(run)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 2)
            fit(small("ae", epochs=2, seed=5), run, force=True)
        left = contents(run)
        assert left.pop(".next/run.json") and left.pop(".next/backup/state.npz")
        assert left == before and checkpoints.can_resume(run)
        with pytest.raises(
            RunError, match="beginning of its successor, which --resume goes on with"
        ):
            fit(small("ae", epochs=2, seed=5), run)
        fit(small("ae", epochs=2, seed=5), run, resume=True)
        assert_same_run(alone, run)
        assert contents(run).keys() == contents(alone).keys()
        assert checkpoints.read_run(run)["settings"]["seed"] == 5

    def test_force_replaces_a_damaged_run(self, finished):
        (finished / "run.json").write_text("{")
        fit(small("ae", epochs=1), finished, force=True)
        assert checkpoints.read_run(finished)["finished"]

    @pytest.mark.parametrize(
        "name", ["model.keras", "history.csv", "epochs/002.png", "backup/state.npz"]
    )
    def test_what_no_run_wrote_is_not_replaced_unasked(self, name, tmp_path):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(RunError, match=f"holds a {name} that no run there wrote"):
            fit(small("ae", epochs=2), tmp_path)
        assert contents(tmp_path) == {name: b"mine"}
        fit(small("ae", epochs=2), tmp_path, force=True)
        assert (
            checkpoints.read_run(tmp_path)["finished"]
            and (tmp_path / "epochs" / "002.png").stat().st_size > 99
        )
        assert not (tmp_path / "backup").exists() and not (tmp_path / ".next").exists()

    def test_a_picture_of_nobodys_where_the_number_of_epochs_follows_from_the_images(
        self, tmp_path
    ):
        (tmp_path / "epochs").mkdir()
        (tmp_path / "epochs" / "001.png").write_text("mine")
        with pytest.raises(RunError, match="holds a epochs/001.png that no run there wrote"):
            fit(small("ae", epochs=None), tmp_path)

    def test_the_beginning_of_a_run_is_not_removed_unasked(self, tmp_path, monkeypatch):
        run = tmp_path / "run"
        fit(small("ae", epochs=1), run)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 2)
            fit(small("ae", epochs=2, seed=5), run, force=True)
        for name in ("run.json", "model.keras", "history.csv", "epochs"):
            (run / name).rename(tmp_path / name)
        before = contents(run)
        with pytest.raises(RunError, match="holds an unfinished run; --resume goes on with it"):
            fit(small("ae", epochs=2), run)
        assert contents(run) == before

    def test_force_removes_what_the_run_wrote_alone(self, tmp_path):
        run = tmp_path / "run"
        fit(small("ae", epochs=3), run)
        mine = [
            "epochs/004.png",
            "epochs/1.png",
            "backup/notes",
            "tensorboard/notes",
            ".next/notes",
            "x.png",
        ]
        for name in mine:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("mine")
        fit(small("ae", epochs=1), run, force=True)
        left = contents(run)
        assert {name for name, content in left.items() if content == b"mine"} == set(mine)
        assert left.keys() == {*mine, *checkpoints.ALWAYS, "epochs/001.png"}

    def test_nothing_is_removed_or_written_behind_a_link(self, tmp_path):
        run = tmp_path / "run"
        fit(small("ae", epochs=3), run)
        (run / "epochs").rename(tmp_path / "elsewhere")
        (run / "epochs").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "epochs").symlink_to(tmp_path / "elsewhere")
        before = contents(tmp_path / "elsewhere")
        for folder, force in ((run, True), (tmp_path / "new", False)):
            with pytest.raises(RunError, match="epochs is a link"):
                fit(small("ae", epochs=1), folder, force=force)
        assert contents(tmp_path / "elsewhere") == before
        assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == {
            "001.png",
            "002.png",
            "003.png",
        }

    @pytest.mark.parametrize("name", ["backup", ".next", ".next/backup", "tensorboard/train"])
    def test_a_folder_that_leads_into_another_run_is_refused(self, name, finished, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        for file in ("run.json", "state.npz"):
            (other / file).write_text("of another run")
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).symlink_to(other)
        before = contents(finished)
        for force in (False, True):
            with pytest.raises(RunError, match=f"{name} is a link"):
                fit(small("ae", epochs=1), finished, force=force)
        assert contents(finished) == before and len(contents(other)) == 2

    @pytest.mark.parametrize("resume", [False, True])
    def test_what_a_kill_at_the_very_end_left_is_swept(self, resume, tmp_path, monkeypatch):
        """Unlike a backup of an earlier epoch that somebody put back."""
        settings = small("ae", epochs=2)
        with monkeypatch.context() as patch:
            kill_after_backup(patch, 1)
            with pytest.raises(Killed):
                fit(settings, tmp_path)
        earlier = shutil.copytree(tmp_path / "backup", tmp_path / "earlier")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "remove_backup", killed)
            with pytest.raises(Killed):
                fit(settings, tmp_path, resume=True)
        assert checkpoints.read_run(tmp_path)["finished"] and checkpoints.has_backup(tmp_path)
        with pytest.raises(RunError, match="finished"):
            fit(settings, tmp_path, resume=resume)
        assert not (tmp_path / "backup").exists()
        for content in (None, b"no backup"):
            shutil.copytree(earlier, tmp_path / "backup", dirs_exist_ok=True)
            if content:
                (tmp_path / "backup" / "state.npz").write_bytes(content)
            with pytest.raises(RunError, match="finished"):
                fit(settings, tmp_path, resume=resume)
            assert checkpoints.has_backup(tmp_path)

    @pytest.mark.parametrize("name", ["dataset", "start.keras"])
    def test_what_is_no_backup_stays_in_a_finished_run(self, name, finished):
        path = finished / "backup" / name
        path.parent.mkdir()
        path.write_text("mine")
        with pytest.raises(RunError, match="finished"):
            fit(small("ae", epochs=1), finished)
        assert path.read_text() == "mine"

    def test_a_successor_is_told_before_it_replaces_an_unfinished_run(self, unfinished):
        """Of which the user may think that --resume goes on with it."""
        before = contents(unfinished)

        class Stop(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(small("ae", epochs=1, seed=4), unfinished, force=True, callbacks=Stop())
        assert "to keep the run before, which this one replaces" in waiting(unfinished)
        (unfinished / ".next" / "history.csv").touch()  # a kill amid the replacement
        assert waiting(unfinished) == ""
        (unfinished / ".next" / "history.csv").unlink()
        with pytest.raises(
            RunError, match="its successor.* replaces it .*: move .*next away"
        ) as told:
            fit(small("ae", epochs=2), unfinished)
        state = unfinished / "backup" / "state.npz"
        kept = state.rename(unfinished / "kept")
        with pytest.raises(RunError, match="move .*next away to keep the run before; --force beg"):
            fit(small("ae", epochs=2), unfinished)
        kept.rename(state)
        shutil.rmtree(unfinished / ".next")
        assert waiting(unfinished) == ""
        with pytest.raises(RunError, match="unfinished run; --resume goes on with it, --force"):
            fit(small("ae", epochs=2), unfinished)
        assert contents(unfinished) == before and "go on with the run before" in str(told.value)

    def test_a_run_json_of_another_program_is_not_replaced_unasked(self, tmp_path):
        """Such as that of Sacred, which keeps one in a folder for each experiment."""
        for record in ('{"command": "main", "status": "RUNNING"}', "{}"):
            (tmp_path / "run.json").write_text(record)
            (tmp_path / "history.csv").write_text("mine")
            with pytest.raises(RunError, match="holds a (history.csv|run.json) that no run there"):
                fit(small("ae", epochs=1), tmp_path)
            (tmp_path / "history.csv").unlink()
            with pytest.raises(RunError, match="holds a run.json that no run there wrote"):
                fit(small("ae", epochs=1), tmp_path)
            assert (tmp_path / "run.json").read_text() == record
        fit(small("ae", epochs=1), tmp_path, force=True)
        assert checkpoints.read_run(tmp_path)["finished"]

    def test_keras_own_callbacks_that_write_files_go_on(self, tmp_path, monkeypatch):
        """A resumed run keeps the best epoch so far, here the first, and the rows of its epochs."""
        settings, run = small("vae", epochs=4), tmp_path / "run"

        def own(place, mode="min"):
            best = keras.callbacks.ModelCheckpoint(
                place / "best.keras", monitor="kl_weight", mode=mode, save_best_only=True
            )
            return [best, keras.callbacks.CSVLogger(place / "log.csv")]

        for name in ("alone", "stopped"):
            (tmp_path / name).mkdir()
        fit(settings, tmp_path / "alone" / "run", callbacks=own(tmp_path / "alone"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 10)
            fit(settings, run, callbacks=own(tmp_path / "stopped"))
        with pytest.raises(ValueError, match='needs mode="min" or "max" in a resumed run'):
            fit(settings, run, resume=True, callbacks=own(tmp_path / "stopped", "auto"))
        unknown = keras.callbacks.ModelCheckpoint(
            tmp_path / "x{epoch}.keras", "fid", mode="min", save_best_only=True
        )
        with pytest.raises(ValueError, match="of fid needs an initial_value_threshold, the best"):
            fit(settings, run, resume=True, callbacks=unknown)
        lines, gone = (
            [],
            keras.callbacks.ModelCheckpoint(
                tmp_path / "gone.keras", "kl_weight", mode="min", save_best_only=True
            ),
        )
        callbacks_ = [*own(tmp_path / "stopped"), gone]
        fitting.fit(
            settings, run, resume=True, callbacks=callbacks_, verbose=0, report=lines.append
        )
        assert f"{tmp_path / 'gone.keras'} is not there: its best epoch is looked for anew" in lines
        assert (tmp_path / "gone.keras").is_file()
        logs = [
            list(csv.DictReader((tmp_path / name / "log.csv").read_text().splitlines()))
            for name in ("alone", "stopped")
        ]
        assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
        best = [keras_ae.load_model(tmp_path / f / "best.keras") for f in ("alone", "stopped")]
        for alone, stopped in zip(*(model.get_weights() for model in best), strict=True):
            np.testing.assert_array_equal(alone, stopped)
        assert not np.array_equal(best[0].get_weights()[0], next(iter(weights(run).values())))

    def test_what_callbacks_do_as_an_epoch_begins_counts_once(self, tmp_path, monkeypatch):
        """They see the beginning of a broken epoch again: to lower the learning rate, and to draw noise."""
        settings = small("vae", epochs=4, lr_schedule="constant")

        class Draw(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.model.noise((2, 3))

            def on_epoch_begin(self, epoch, logs=None):
                self.model.noise((2, 3))

        def halved():
            return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2), Draw()]

        fit(settings, tmp_path / "alone", callbacks=halved())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 10)
            fit(settings, tmp_path / "run", callbacks=halved())
        with np.load(tmp_path / "run" / "backup" / "state.npz") as backup:
            assert json.loads(str(backup["about"]))["batches_done"]
        fit(settings, tmp_path / "run", resume=True, callbacks=halved())
        assert_same_run(tmp_path / "alone", tmp_path / "run")

    def test_the_training_of_a_resumed_run_begins_once_and_ends_once(self, tmp_path, monkeypatch):
        """The rest of a broken epoch is a `fit` of its own, which Keras' TensorBoard would take for the end."""
        seen = []

        class Opened(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                seen.append("begin")

            def on_epoch_end(self, epoch, logs=None):
                seen.append(epoch)

            def on_train_end(self, logs=None):
                seen.append("end")
                assert "val_loss" in logs

        settings = small("vae", epochs=4)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 10)
            fit(settings, tmp_path, callbacks=Opened())
        began, seen, lines = seen, [], []
        own = [Opened(), keras.callbacks.EarlyStopping("kl_weight", mode="max")]
        fitting.fit(settings, tmp_path, resume=True, callbacks=own, verbose=0, report=lines.append)
        assert "EarlyStopping begins anew, and knows of no epoch before" in lines
        assert began[0] == "begin" and "end" not in began
        assert seen == ["begin", *range(len(began) - 1, 4), "end"] and len(seen) > 3

    def test_a_run_that_a_callback_ended_stays_ended(self, tmp_path, monkeypatch):
        """Though it is stopped amid the fit of the prior; its figures are those of the weights that it ends with."""

        def early():
            return keras.callbacks.EarlyStopping(
                "kl", mode="min", patience=2, restore_best_weights=True
            )

        settings, places = small("vae", epochs=6), (tmp_path / "alone", tmp_path / "run")
        lines = []
        with pytest.warns(UserWarning, match="would choose an early epoch"):
            fit(settings, tmp_path / "other", callbacks=keras.callbacks.EarlyStopping(patience=9))
        fitting.fit(settings, places[0], verbose=0, callbacks=early(), report=lines.append)
        assert any("a callback changed the weights" in line for line in lines)

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(keras_ae.VAE, "fit_prior", interrupt)
            fit(settings, places[1], callbacks=early())
        fit(settings, places[1], resume=True, callbacks=early())

        class Signal(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if self.model.stop_training:
                    os.kill(os.getpid(), signal.SIGTERM)

        third = tmp_path / "third"
        with pytest.raises(KeyboardInterrupt):
            fit(settings, third, callbacks=[early(), Signal()])
        fit(settings, third, resume=True, callbacks=early())
        assert_same_run(places[0], third)
        assert 2 < len(history(places[0])) == len(history(places[1])) < 6
        assert_same_run(*places)
        finals = [checkpoints.read_run(place)["final"] for place in places]
        for final in finals:
            for name in ("seconds", "seconds_per_epoch", "images_per_second"):
                del final[name]
        assert finals[0] == finals[1]
        # Of the epoch before the last two, which does not depend on the noise.
        rows = [float(row["val_kl"]) for row in history(places[0])]
        assert finals[0]["val_kl"] == pytest.approx(rows[-3], rel=1e-4) != rows[-1]

    def test_one_signal_as_the_training_ends_costs_nothing(self, tmp_path, monkeypatch):
        """What is restored then is kept; after a kill there, the last epoch is trained again, and that is told."""

        def early():
            return keras.callbacks.EarlyStopping("kl", mode="min", restore_best_weights=True)

        def during(act):
            """A patch of `write_backup` that acts in the backup of the end of the training."""
            write = checkpoints.write_backup

            def acting(folder, model, progress):
                if progress.ended:
                    act()
                write(folder, model, progress)

            patch.setattr(checkpoints, "write_backup", acting)

        settings, alone, run = small("vae", epochs=3), tmp_path / "alone", tmp_path / "run"
        fit(settings, alone, callbacks=early())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            during(lambda: os.kill(os.getpid(), signal.SIGTERM))
            fit(settings, run, callbacks=early())
        fit(settings, run, resume=True, callbacks=early())
        assert_same_run(alone, run)
        lines = []
        with monkeypatch.context() as patch, pytest.raises(Killed):
            during(killed)
            fit(settings, run, callbacks=early(), force=True)
        told = {"resume": True, "callbacks": early(), "verbose": 0, "report": lines.append}
        fitting.fit(settings, run, **told)
        assert any("EarlyStopping begins anew" in line for line in lines)
        for ours, theirs in zip(history(run), history(alone), strict=True):
            assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}

    def test_a_signal_in_the_epoch_of_our_own_early_stopping(self, tmp_path, monkeypatch):
        """The users' callbacks see the end of the training all the same."""

        class First(keras.callbacks.EarlyStopping):
            def get_monitor_value(self, logs):
                self.seen = getattr(self, "seen", 0) + 1
                return self.seen

        def run(folder, *more, **how):
            best = First("val_loss", mode="min", patience=9, restore_best_weights=True)
            with warnings.catch_warnings(action="ignore"):
                fit(settings, folder, callbacks=[best, *more], **how)

        def signals(epoch, logs):
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(  # stops after the third epoch
            callbacks.EarlyStopping, "get_monitor_value", lambda self, logs: logs["kl_weight"]
        )
        settings = small("vae", epochs=6, early_stopping=2, kl_schedule="constant")
        run(tmp_path / "alone")
        assert len(history(tmp_path / "alone")) == 3
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", keras.callbacks.LambdaCallback(on_epoch_end=signals))
        run(tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "alone", tmp_path / "run")

    def test_a_learning_rate_that_is_set_as_a_resumed_training_begins_stays(
        self, tmp_path, monkeypatch
    ):
        settings, rates = small("vae", epochs=3, lr_schedule="constant"), []

        class Lower(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.model.optimizer.learning_rate = 1e-5

            def on_epoch_end(self, epoch, logs=None):
                rates.append(float(self.model.optimizer.learning_rate))

        class Decays(Lower):
            def on_epoch_begin(self, epoch, logs=None):
                self.model.optimizer.learning_rate = 1e-5 * 0.1**epoch

        for before, own, expected in (
            (None, Lower(), [1e-5] * 2),
            (Decays(), Decays(), [1e-6, 1e-7]),
        ):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                send_at_step(patch, signal.SIGTERM, 6)
                fit(settings, tmp_path, force=True, callbacks=before)
            rates.clear()
            fit(settings, tmp_path, resume=True, callbacks=own)
            assert rates == pytest.approx(expected)

    def test_a_kill_at_the_end_of_an_epoch_that_a_callback_broke_off(self, tmp_path, monkeypatch):
        class Enough(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.stop_training = batch == 1

        settings = small("vae", epochs=3)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(callbacks.BackUp, "on_epoch_end", killed)
            fit(settings, tmp_path, callbacks=Enough())
        fit(settings, tmp_path, resume=True, callbacks=Enough())
        assert len(history(tmp_path)) == 1

    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_an_epoch_in_whose_end_a_run_died_is_shown_again(self, at, tmp_path):
        """To all of the user's callbacks, as some may not have seen it."""
        seen, full = [], [True]

        class Tracker(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.began = epoch

            def on_epoch_end(self, epoch, logs=None):
                if full[0] and epoch == at:
                    raise OSError(errno.ENOSPC, "No space left on device")
                assert self.began == epoch
                assert set(logs) == {*names, *(f"val_{name}" for name in names)}
                seen.append((epoch, logs["val_loss"]))

            def on_train_end(self, logs=None):
                seen.append("end")

        names = ("loss", "reconstruction", "kl", "kl_weight")
        settings, best = small("vae", epochs=3), tmp_path / "best.keras"

        def own():
            kept = keras.callbacks.ModelCheckpoint(
                best, "val_reconstruction", mode="min", save_best_only=True
            )
            return [Tracker(), kept]

        with pytest.raises(OSError, match="No space"):
            fit(settings, tmp_path / "run", callbacks=own())
        full[0] = False
        fit(settings, tmp_path / "run", resume=True, callbacks=own())
        rows = history(tmp_path / "run")
        assert seen == [*((i, float(row["val_loss"])) for i, row in enumerate(rows)), "end"]
        lowest = min(float(row["val_reconstruction"]) for row in rows)
        of_last = float(rows[-1]["val_reconstruction"]) == lowest
        ours, theirs = (checkpoints.load_model(p) for p in (best, tmp_path / "run" / "model.keras"))
        assert (
            all(map(np.array_equal, ours.encoder.get_weights(), theirs.encoder.get_weights()))
            == of_last
        )

    def test_a_best_file_elsewhere_is_not_looked_for(self):
        """Such as one in a bucket."""
        lines, kept = (
            [],
            keras.callbacks.ModelCheckpoint(
                "gs://mine/best.keras", "val_loss", save_best_only=True
            ),
        )
        callbacks.go_on([kept], [{"val_loss": 2.0}, {"val_loss": 1.0}], lines.append)
        assert kept.best == 1.0 and not lines

    def test_a_weight_of_the_kl_term_that_an_interrupted_run_left_is_told(self, tmp_path):
        settings, lines = Settings("vae", epochs=2, limit=50, batch_size=16), []

        def stop(epoch, logs):
            raise KeyboardInterrupt

        model = of_ones_own()
        with pytest.raises(KeyboardInterrupt):
            stopped = keras.callbacks.LambdaCallback(on_epoch_end=stop)
            fit(settings, tmp_path, model=model, callbacks=stopped)
        more = {"force": True, "model": model, "verbose": 0, "report": lines.append}
        fitting.fit(settings, tmp_path, **more)
        assert "kl_weight 0.5, which the model has now; it was made with 1" in lines
        lines.clear()
        more["model"] = Mine((28, 28, 1), 3, "mlp", (16, 8), kl_weight=0.1)
        more["model"].encoder.trainable = False
        fitting.fit(settings, tmp_path, **more)
        assert not any("kl_weight" in line for line in lines)
        assert "frozen, and not trained: encoder" in lines

    @pytest.mark.parametrize("settings", [{}, {"model": "vae"}])
    def test_a_run_json_of_another_program_with_settings_is_not_ours(self, settings, tmp_path):
        """Nor are the curves and the files of backups beside it."""
        for name in ("tensorboard/train/events.out.tfevents.1.host", "backup/dataset"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text("mine")
        (tmp_path / "run.json").write_text(json.dumps({"settings": settings, "results": [1]}))
        before = contents(tmp_path)
        with pytest.raises(errors.UserError):
            fit(small("vae", epochs=1), tmp_path)
        assert contents(tmp_path) == before

    def test_curves_that_a_run_did_not_write_stay(self, tmp_path):
        fit(small("vae", epochs=1), tmp_path)
        mine = tmp_path / "tensorboard" / "train" / "events.out.tfevents.1.mine"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        fit(small("vae", epochs=1), tmp_path, force=True)
        assert mine.read_text() == "mine"
        pytest.importorskip("tensorboard")
        for _ in range(2):
            lines, curves = [], [callbacks.TensorBoard(tmp_path)]
            again = {"callbacks": curves, "force": True, "verbose": 0, "report": lines.append}
            fitting.fit(small("vae", epochs=1), tmp_path, **again)
            assert mine.read_text() == "mine"
            assert any("curves of no run known stay" in line for line in lines)

    def test_keras_callbacks_that_a_run_cannot_do_with_are_refused(self, tmp_path):
        rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        for callback, words in (
            (rate, 'give the settings lr_schedule="constant"'),
            (keras.callbacks.ReduceLROnPlateau(), 'give the settings lr_schedule="constant"'),
            (keras.callbacks.BackupAndRestore(tmp_path / "b"), "A run keeps its own backup"),
            (keras.callbacks.TerminateOnNaN, "callbacks are keras.callbacks.Callback; got <class"),
            (keras.callbacks.CSVLogger(tmp_path / "run" / "history.csv"), "another file"),
            (keras.callbacks.ModelCheckpoint(tmp_path / "run" / "model.keras"), "another file"),
            (keras.callbacks.SwapEMAWeights(), "The setting ema of a run averages its weights"),
            (keras_ae.KLAnnealing(), "The settings of a run say how its KL weight rises"),
        ):
            with pytest.raises(ValueError, match=words):
                fit(small("vae", epochs=1), tmp_path / "run", callbacks=callback)
        with pytest.raises(ValueError, match="settings are a keras_ae.Settings; got 'vae'"):
            fit("vae", tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_model_of_ones_own_with_another_argument_is_refused(self, tmp_path, monkeypatch):
        @keras.saving.register_keras_serializable("test_fitting")
        class Beta(keras_ae.VAE):
            def __init__(self, *args, beta=1.0, **kwargs):
                super().__init__(*args, **kwargs)
                self.beta = beta

            def get_config(self):
                return {**super().get_config(), "beta": self.beta}

            def term_weights(self):
                return {"kl": self.beta * super().term_weights()["kl"]}

        def fit_own(beta, **kwargs):
            model = Beta((28, 28, 1), 3, "mlp", (16, 8), beta=beta)
            fit(small("vae", epochs=2), tmp_path, model=model, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 2)
            fit_own(4.0)
        with pytest.raises(RunError, match="the model Beta, the arguments beta=4.0 of its maker"):
            fit_own(50.0, resume=True)
        fit_own(4.0, resume=True)
        assert checkpoints.read_run(tmp_path)["own"]["arguments"] == "beta=4.0"

    def test_to_resume_and_to_replace_are_two_things(self, unfinished):
        before = contents(unfinished)
        with pytest.raises(RunError, match="give one of them"):
            fit(small("ae", epochs=2), unfinished, resume=True, force=True)
        assert contents(unfinished) == before

    @pytest.mark.parametrize("edit", [{"backbone": "mine"}, {"model": "theirs"}])
    def test_the_pictures_of_a_run_of_names_that_are_not_registered_are_its_own(
        self, edit, tmp_path
    ):
        fit(small("ae", epochs=3), tmp_path)
        run = json.loads((tmp_path / "run.json").read_text())
        run["settings"].update(edit)
        (tmp_path / "run.json").write_text(json.dumps(run))
        fit(small("ae", epochs=1), tmp_path, force=True)
        assert sorted(os.listdir(tmp_path / "epochs")) == ["001.png"]

    def test_a_strangers_run_json_makes_no_line_of_megabytes(self, unfinished):
        record = json.loads((unfinished / "run.json").read_text())
        for key, value in (("data", {"version": "9" * 5_000_000}), ("own", {"encoder": "E" * 5_000_000})):  # fmt: skip
            (unfinished / "run.json").write_text(json.dumps({**record, key: value}))
            with pytest.raises(RunError) as caught:
                fit(resuming.stored_settings(unfinished), unfinished, resume=True)
            assert len(str(caught.value)) < 1000

    def test_an_unfinished_run_names_both_ways_on(self, unfinished):
        with pytest.raises(RunError, match="--resume goes on with it, --force replaces it"):
            fit(small("ae", epochs=2), unfinished)

    def test_an_unfinished_run_has_a_model_of_its_last_epoch(self, unfinished):
        assert type(checkpoints.load_model(unfinished / "model.keras")).__name__ == "AE"
        assert checkpoints.read_run(unfinished)["finished"] is False

    def test_other_settings_are_not_resumed(self, unfinished):
        with pytest.raises(RunError, match="latent_dim, seed"):
            fit(small("ae", epochs=2, latent_dim=4, seed=5), unfinished, resume=True)

    def test_a_damaged_backup_is_not_resumed(self, unfinished):
        backup = unfinished / "backup" / "state.npz"
        backup.write_bytes(backup.read_bytes()[:500])
        with pytest.raises(checkpoints.CheckpointError, match="damaged .* --force"):
            fit(small("ae", epochs=2), unfinished, resume=True)

    @pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, None])
    def test_a_backup_that_cannot_be_read_now_is_not_called_damaged(
        self, unfinished, error, monkeypatch
    ):
        before = contents(unfinished)

        def fails(self, size=-1):
            raise OSError(error, os.strerror(error)) if error else MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(files._Zip, "read", fails)
            wanted = checkpoints.CheckpointError if error else MemoryError
            with pytest.raises(wanted) as caught:
                fit(small("ae", epochs=2), unfinished, resume=True)
        assert "--force" not in str(caught.value) and (not error or "cannot be read: " in str(caught.value))  # fmt: skip
        assert contents(unfinished) == before

    @pytest.mark.parametrize(
        "part", ["position", "step", "negative step", "figure", "seconds", "loss", "epoch"]
    )
    def test_an_edited_backup_is_not_resumed(self, unfinished, part):
        path = unfinished / "backup" / "state.npz"
        with np.load(path) as archive:
            arrays = dict(archive)
        about = json.loads(str(arrays["about"]))
        if part == "position":
            about["batches_done"] = 4  # of batches 0 to 3
        elif part.endswith("step"):
            step = next(k for k, v in arrays.items() if k.startswith("optimizer/") and v.ndim == 0)
            arrays[step] = np.array(-7 if "negative" in part else 2**31 - 1, arrays[step].dtype)
        elif part == "figure":
            about["history"][0]["val_loss"] = "low"
        elif part in ("seconds", "loss"):
            del about["history"][0][part]
        else:
            about["history"][0]["epoch"] = 2
        np.savez(path, **{**arrays, "about": np.array(json.dumps(about))})
        with pytest.raises(UserError, match="--force starts over"):
            fit(small("ae", epochs=2), unfinished, resume=True)

    def test_a_run_that_is_not_there_is_not_resumed(self, tmp_path):
        with pytest.raises(RunError, match="no run in .*nowhere to resume"):
            fit(small("ae"), tmp_path / "nowhere", resume=True)

    @pytest.mark.parametrize("inside", [".", "runs/ae"])
    def test_a_file_in_the_place_of_the_folder(self, inside, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(RunError, match="Cannot write to"):
            fit(small("ae"), tmp_path / "file" / inside)
        assert (tmp_path / "file").read_text() == "mine"


def poison(monkeypatch, epoch, batch):
    """Make a weight NaN after a batch of an epoch of the next run, both from 0."""
    calls, train_step = itertools.count(), keras_ae.AE.train_step

    def poisoned(self, data):
        logs = train_step(self, data)
        if next(calls) == epoch * 4 + batch:
            bias = self.decoder.get_layer("pixels").bias
            bias.assign(np.full(bias.shape, np.nan, "float32"))
        return logs

    monkeypatch.setattr(keras_ae.AE, "train_step", poisoned)


@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_epoch(
    steps, tmp_path, monkeypatch
):
    monkeypatch.setattr(fitting, "steps_per_execution", lambda *_: steps)
    poison(monkeypatch, epoch=1, batch=1)
    with pytest.raises(RunError, match="became nan in epoch 2, batch 3.*learning-rate"):
        fit(small("vae"), tmp_path)
    assert all(np.isfinite(w).all() for w in weights(tmp_path).values())
    assert len(history(tmp_path)) == 1


@pytest.mark.parametrize("steps", [2, 3, 16])
def test_steps_between_two_calls_of_the_callbacks_change_nothing(
    steps, tmp_path, whole_run, monkeypatch
):
    settings, whole = whole_run("cvae")
    monkeypatch.setattr(fitting, "steps_per_execution", lambda *_: steps)
    fit(settings, tmp_path)
    assert_same_run(whole, tmp_path)


def test_steps_an_execution():
    assert [steps_per_execution(n) for n in (1, 128, 1024, 5000)] == [16, 16, 2, 1]
    # A signal waits for them: of large images they are fewer.
    large = keras_ae.AE((256, 256, 1), 2, "mlp", (4,))
    assert [steps_per_execution(n, model=large) for n in (1, 32, 96, 5000)] == [16, 4, 1, 1]


def test_keras_own_loop_over_devices_takes_single_steps(monkeypatch):
    token = distributed._replicas.set(1)
    try:
        assert distributed.devices() == 1 and steps_per_execution(128) == 1
    finally:
        distributed._replicas.reset(token)


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(tmp_path, monkeypatch):
    poison(monkeypatch, epoch=1, batch=3)
    with pytest.raises(RunError, match="in the validation of epoch 2"):
        fit(small("vae"), tmp_path)
    assert all(np.isfinite(w).all() for w in weights(tmp_path).values())
    assert len(history(tmp_path)) == 1


def test_a_run_trains_on_the_training_images_alone(tmp_path, monkeypatch):
    fed, init = [], Feed.__init__
    monkeypatch.setattr(
        Feed,
        "__init__",
        lambda self, images, *rest, **kw: fed.append(images) or init(self, images, *rest, **kw),
    )
    fit(small("ae", epochs=1), tmp_path)
    train, test = fitting.data.load_splits("mnist", limit=50)
    np.testing.assert_array_equal(fed[0], train.images)
    assert not any((image == train.images).all((1, 2, 3)).any() for image in test.images)


def test_a_dataset_without_labels_is_no_food_for_a_cvae():
    images = fitting.data.ImageData(
        "x", "1.0.0", "train", np.zeros((2, 8, 8, 1), "uint8"), None, None
    )
    with pytest.raises(RunError, match="x has no labels"):
        building.build_model(small("cvae"), images)


class TestStreaming:
    @pytest.mark.parametrize("binarize", [False, True])
    def test_images_on_disk_make_the_run_of_images_in_memory(self, tmp_path, monkeypatch, binarize):
        fit(small("cvae", binarize=binarize), tmp_path / "memory")
        monkeypatch.setenv("KAE_MEMORY", str(20_000 / 2**30))  # 25 images
        fit(small("cvae", binarize=binarize), tmp_path / "disk")
        assert_same_run(tmp_path / "memory", tmp_path / "disk")
        streamed = [
            json.loads((tmp_path / name / "run.json").read_text())["environment"]["streamed"]
            for name in ("memory", "disk")
        ]
        assert streamed == [False, True]

    def test_the_prior_of_a_large_set_is_that_of_a_sample(self, digits, monkeypatch):
        from keras_ae import models

        images, labels = digits[0][:200], digits[1][:200]
        cvae = models.CVAE(latent_dim=2, backbone="mlp", hidden=(8,))
        seen = []
        posterior = cvae.posterior
        monkeypatch.setattr(cvae, "posterior", lambda x: seen.append(x) or posterior(x))
        monkeypatch.setattr(models, "PRIOR_IMAGES", 120)
        cvae.fit_prior((images, labels))
        rows, marks = seen[0]
        assert len(rows) == len(marks) == 120 and len(np.unique(rows.rows)) == 120
        assert np.array_equal(marks, labels[rows.rows])
        mean, _ = cvae.posterior((rows, marks))
        expected, _ = cvae.posterior((images, labels))
        np.testing.assert_allclose(mean, expected[rows.rows], atol=1e-6)


class TestAugmented:
    SETTINGS = {"augment": "shift,flip", "epochs": 2}

    @pytest.fixture(scope="class")
    def whole(self, mnist_dir, tmp_path_factory):
        folder = tmp_path_factory.mktemp("augmented")
        fit(small("cvae", **self.SETTINGS), folder, data_dir=mnist_dir)
        return folder

    @pytest.mark.parametrize("step", [2, 4, 6])
    def test_a_resumed_run_is_the_uninterrupted_one(self, step, whole, tmp_path, monkeypatch):
        settings = small("cvae", **self.SETTINGS)
        stop_and_resume(monkeypatch, settings, tmp_path, step)
        assert_same_run(whole, tmp_path)

    def test_training_images_alone_are_changed_and_the_model_does_not_know(
        self, whole, whole_run, tmp_path
    ):
        fit(small("cvae", epochs=2), tmp_path)
        plain, augmented = (checkpoints.load_model(f / "model.keras") for f in (tmp_path, whole))
        assert plain.get_config() == augmented.get_config()
        assert [w.path for w in plain.weights] == [w.path for w in augmented.weights]
        ours, theirs = weights(whole), weights(tmp_path)
        assert any((ours[path] != theirs[path]).any() for path in ours)
        run = checkpoints.read_run(whole)
        assert run["settings"]["augment"] == ["flip", "shift"]

    def test_colours_of_grey_images_are_refused(self, tmp_path):
        with pytest.raises(RunError, match="colour is for RGB images.*mnist have 1"):
            fit(small("ae", augment=("colour",)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestStart:
    """Runs that start from a checkpoint."""

    @pytest.fixture(scope="class")
    def first(self, mnist_dir, tmp_path_factory):
        folder = tmp_path_factory.mktemp("first")
        fit(small("cvae", epochs=1), folder, data_dir=mnist_dir)
        return folder

    SETTINGS = {"epochs": 2, "kl_schedule": "constant"}

    @pytest.fixture(scope="class")
    def more(self, first, mnist_dir, tmp_path_factory):
        folder = tmp_path_factory.mktemp("more")
        fit(small("cvae", **self.SETTINGS), folder, data_dir=mnist_dir, start=first)
        return folder

    def test_it_starts_from_the_weights_and_says_so(self, first, more, tmp_path):
        begun = {}

        class Look(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                begun.update(zip(range(99), self.model.get_weights()))

        settings = small("cvae", learning_rate=1e-9, **self.SETTINGS)
        fit(settings, tmp_path, start=first, callbacks=[Look()])
        given = checkpoints.load_model(first).get_weights()
        for i, weight in enumerate(given):
            np.testing.assert_array_equal(begun[i], weight)
        origin = checkpoints.read_run(more)["from"]
        assert (
            origin["name"] == first.name
            and str(first.parent) not in (more / "run.json").read_text()
        )
        assert (origin["dataset"], origin["epochs"]) == ("mnist", 1)
        files = {str(p.relative_to(more)) for p in more.rglob("*") if p.is_file()}
        assert not any("backup" in name for name in files)

    def test_a_run_killed_without_a_backup_is_the_uninterrupted_one(self, first, more, tmp_path):
        settings = small("cvae", **self.SETTINGS)
        source = shutil.copytree(first, tmp_path / "source")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_in_epoch(patch, 0)
            fit(settings, tmp_path / "run", start=source)
        shutil.rmtree(source)  # nobody needs it any more
        fit(settings, tmp_path / "run", resume=True)
        assert_same_run(more, tmp_path / "run")

    @pytest.mark.parametrize("step", [1, 4, 6])
    def test_a_resumed_run_that_replaced_its_start_is_the_uninterrupted_one(
        self, step, first, more, tmp_path
    ):
        source = shutil.copytree(first, tmp_path / "run")
        settings = small("cvae", **self.SETTINGS)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, step)
            fit(settings, source, start=source, force=True)
        fit(settings, source, resume=True)
        assert_same_run(more, source)
        assert not (source / "backup").exists()

    def test_what_differs_is_refused(self, first, tmp_path, images_of):
        out = tmp_path / "run"
        for settings, error, words in (
            (small("cvae", latent_dim=5), ValueError, "latent_dim 3, and the settings 5"),
            (small("vae"), ValueError, "is of the model cvae, not vae"),
        ):
            with pytest.raises(error, match=words):
                fit(settings, out, start=first)
        images, labels = images_of((20, 16, 1), 12), np.arange(12) % 10
        with pytest.raises(UserError, match=r"takes images of \(28, 28, 1\)"):
            fit(small("cvae"), out, start=first, train=(images, labels), test=(images, labels))
        images, labels = images_of((28, 28, 1), 12), np.arange(12) % 3
        with pytest.raises(RunError, match="knows the classes 0, 1, .*those of arrays are 0, 1, 2"):
            fit(small("cvae"), out, start=first, train=(images, labels), test=(images, labels))
        with pytest.raises(ValueError, match="or a checkpoint"):
            fit(small("cvae"), out, start=first, model=checkpoints.load_model(first))
        assert not out.exists()

    def test_another_start_is_not_resumed(self, first, more, tmp_path):
        settings = small("cvae", **self.SETTINGS)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after_backup(patch, 1)
            fit(settings, tmp_path, start=first)
        with pytest.raises(RunError, match="started from .*leave --from out"):
            fit(settings, tmp_path, start=more, resume=True)
        fit(settings, tmp_path, start=first, resume=True)
        assert_same_run(more, tmp_path)


def test_where_test_images_part_from_training_images(tmp_path):
    def rows(*pairs):
        return [
            {"epoch": i + 1, "reconstruction": a, "val_reconstruction": b}
            for i, (a, b) in enumerate(pairs)
        ]

    settings = small("ae", epochs=4)
    assert overfitting.parted(rows((50, 52), (40, 45), (30, 37)), settings) is None
    # Both rise: that is what a KL weight that rises does.
    assert overfitting.parted(rows((30, 31), (40, 42), (50, 53)), settings) is None
    assert "l1 is 40 an image, 33% above 30;" in overfitting.parted(
        rows((50, 52), (30, 40)), settings
    )
    # In the last epoch the weights still changed; measured at the end, both are rebuilt alike.
    assert overfitting.parted(rows((50, 52), (30, 40)), settings, measured=(39, 40)) is None
    assert "l1 is 41 an image, 37% above 30;" in overfitting.parted(
        rows((50, 52), (30, 40)), settings, measured=(30, 41)
    )
    for measured in ((0.0, 3.0), (48.0, 45.0)):  # exactly rebuilt; test images are rebuilt better
        assert overfitting.parted(rows((50, 52), (45, 46), (40, 48)), settings, measured) is None
    said = overfitting.parted(rows((50, 52), (45, 46), (40, 48)), settings)
    assert "20% above 40, and was 46 in epoch 2;" in said and said.endswith("--early-stopping 5")
    said = overfitting.parted(rows((30, 40)), small("vae"))
    assert said.endswith("--early-stopping 5 --kl-warmup 0.5")
    small("vae", early_stopping=5, kl_warmup=0.5)  # which is then taken
    lines = []
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), "uint8")
    noise = small("ae", epochs=60, latent_dim=16, limit=None, batch_size=10, learning_rate=0.01)
    fitting.fit(
        noise, tmp_path, verbose=0, report=lines.append, train=images[:10], test=images[10:]
    )
    assert any(line.startswith("test images are rebuilt worse") for line in lines)


def toy(images, labels=None, names=None):
    """An `ImageData` of some images."""
    return fitting.data.ImageData("toy", "1.0.0", "train", images, labels, names)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("n", "classes", "shape"),
    [(1, [0], (8, 8, 1)), (1, [1], (9, 5, 3)), (7, [2], (8, 8, 4)), (30, [0, 2], (1, 1, 1))],
    ids=[
        "one image",
        "one image of one class of two",
        "one class of three",
        "an empty class, a pixel",
    ],
)
def test_little_data(model, n, classes, shape, tmp_path, monkeypatch):
    """One image, a single class, classes without images: a run ends, and samples what it knows."""
    names = tuple("abc"[: max(classes) + 1])
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), "uint8")
    train = toy(images, np.resize(np.array(classes, "int32"), n), names)
    monkeypatch.setattr(fitting.data, "load_splits", lambda *args, **kwargs: (train, train))
    fit(small(model, epochs=1), tmp_path)
    trained = checkpoints.load_model(tmp_path / "model.keras")
    if model != "ae":
        labels = np.arange(len(names)) if model == "cvae" else None  # classes without images too
        drawn = trained.sample(len(names), labels)
        assert drawn.shape == (len(names), *shape) and np.isfinite(drawn).all()


def test_a_network_that_no_memory_holds(tmp_path):
    with pytest.raises(RunError, match="weights, whose training takes .* GiB.*--latent-dim"):
        fit(small("vae", latent_dim=10**9), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
def test_every_seed_trains(seed, tmp_path):
    fit(small("vae", epochs=1, seed=seed), tmp_path)
    assert checkpoints.read_run(tmp_path)["finished"]


def test_a_loaded_model_in_another_precision_keeps_its_prior(digits):
    model = keras_ae.VAE((28, 28, 1), 2, "mlp", (4,))
    model.fit_prior(digits[0][:100])
    other = building.in_dtype(model, "mixed_bfloat16")
    np.testing.assert_array_equal(other.prior.means, model.prior.means)


def test_how_the_images_of_one_run_were_prepared_is_not_said_of_the_next(digits, tmp_path):
    model, images = keras_ae.VAE((28, 28, 1), 3, "mlp", (16, 8)), digits[0][:50]
    prepared = ImageData(
        "mine", "", "train", images, None, None, preparation=Preparation(crop=True)
    )
    fit(small("vae", epochs=1), tmp_path / "a", model=model, train=prepared, test=prepared)
    assert model.preparation.crop
    fit(small("vae", epochs=1), tmp_path / "b", model=model)
    assert model.preparation is None


class TestKerasCallbacks:
    """Averages of the weights, early stopping, TensorBoard and callbacks of users."""

    AVERAGED = {"ema": 0.8, "early_stopping": 2, "kl_schedule": "constant", "epochs": 4}

    @pytest.fixture(scope="class")
    def averaged(self, mnist_dir, tmp_path_factory):
        folder = tmp_path_factory.mktemp("averaged")
        fit(small("vae", **self.AVERAGED), folder, data_dir=mnist_dir)
        return folder

    @pytest.mark.parametrize("step", [None, 7])
    def test_a_callback_that_ends_the_training_ends_a_resumed_epoch_too(
        self, step, tmp_path, monkeypatch
    ):
        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.stop_training = epoch == 1

        if step is not None:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                send_at_step(patch, signal.SIGTERM, step)
                fit(small("vae", epochs=4), tmp_path, callbacks=[Stop()])
            assert np.load(tmp_path / "backup/state.npz") is not None
        fit(small("vae", epochs=4), tmp_path, resume=step is not None, callbacks=[Stop()])
        assert len(history(tmp_path)) == 2

    def test_a_signal_within_a_callback_costs_nothing(self, tmp_path, monkeypatch):
        """The backup is of the step after which the run ends, wherever between the callbacks the signal came."""
        monkeypatch.setattr(callbacks, "BACKUP_SECONDS", 1e9)

        class Kill(keras.callbacks.Callback):
            steps = 0

            def on_train_batch_end(self, batch, logs=None):
                self.steps += 1
                if self.steps == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        kill = Kill()
        with pytest.raises(KeyboardInterrupt):
            fit(small("vae", epochs=2), tmp_path, callbacks=[kill])
        with np.load(tmp_path / "backup" / "state.npz") as archive:
            assert json.loads(str(archive["about"]))["batches_done"] == kill.steps

    def test_the_average_is_the_mean_of_the_weights_after_each_step(self, tmp_path):
        """Against a loop of its own over the weights that each step leaves."""
        steps, momentum = [], 0.8

        class Collect(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                variables = self.model.trainable_variables
                steps.append([np.array(keras.ops.convert_to_numpy(v)) for v in variables])

        fit(small("ae", epochs=2, ema=momentum), tmp_path, callbacks=[Collect()])
        average = steps[0]
        for weights_now in steps[1:]:
            average = [momentum * a + (1 - momentum) * w for a, w in zip(average, weights_now)]
        model = checkpoints.load_model(tmp_path / "model.keras")
        for saved, expected in zip(model.trainable_variables, average, strict=True):
            np.testing.assert_allclose(keras.ops.convert_to_numpy(saved), expected, atol=1e-6)
        assert not np.allclose(average[0], steps[-1][0], atol=1e-5)

    @pytest.mark.parametrize("step", [2, 4, 6, 8])
    def test_a_resumed_run_has_the_same_average(self, step, averaged, tmp_path, monkeypatch):
        """Stopped within an epoch and at the end of one."""
        settings = small("vae", **self.AVERAGED)
        stop_and_resume(monkeypatch, settings, tmp_path, step)
        assert_same_run(averaged, tmp_path)

    def test_a_run_ends_after_epochs_without_a_lower_loss(self, tmp_path, monkeypatch):
        losses = iter([9.0, 7.0, 8.0, 7.5, 6.0])
        monkeypatch.setattr(
            callbacks.EarlyStopping, "get_monitor_value", lambda self, logs: next(losses)
        )
        said = []
        result = fitting.fit(
            small("ae", epochs=9, early_stopping=2), tmp_path, verbose=0, report=said.append
        )
        assert result["epochs"] == len(result["history"]) == 4
        assert "stopped early: no lower validation loss in 2 epochs" in said
        assert checkpoints.read_run(tmp_path)["final"]["epochs"] == 4

    def test_a_resumed_run_stops_where_the_whole_one_does(self, tmp_path, monkeypatch):
        """Keras' callback by itself forgets how long it has waited."""
        values = iter([7.0, 8.0, 8.5, 6.0])
        losses = {}

        def value(self, logs):
            key = logs["loss"]
            if key not in losses:
                losses[key] = next(values)
            return losses[key]

        monkeypatch.setattr(callbacks.EarlyStopping, "get_monitor_value", value)
        settings = small("ae", epochs=9, early_stopping=2)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after_backup(patch, 2)
            fit(settings, tmp_path)
        assert fit(settings, tmp_path, resume=True)["epochs"] == 3

    def test_a_run_that_was_killed_after_it_had_stopped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            callbacks.EarlyStopping, "get_monitor_value", lambda self, logs: 1.0
        )  # never lower than the first
        settings = small("ae", epochs=9, early_stopping=1)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after_backup(patch, 2)
            fit(settings, tmp_path)
        assert fit(settings, tmp_path, resume=True)["epochs"] == 2

    def test_stopping_before_the_warm_up_ends_is_refused(self):
        with pytest.raises(ValueError, match="kl_warmup below 1"):
            small("vae", early_stopping=3, epochs=2)
        with pytest.raises(ValueError, match="all 1 epochs: give more epochs"):
            small("vae", early_stopping=3, epochs=1)
        assert small("vae", early_stopping=3, kl_warmup=0.5, epochs=5).warmup_epochs == 3

    def test_callbacks_of_users_see_a_written_epoch(self, tmp_path):
        best = tmp_path / "best.keras"
        keep = keras.callbacks.ModelCheckpoint(
            best, monitor="val_reconstruction", mode="min", save_best_only=True
        )
        seen = []
        look = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append(
                (
                    epoch,
                    (tmp_path / "epochs" / f"{epoch + 1:03d}.png").is_file(),
                    "val_loss" in logs,
                )
            )
        )
        fit(small("vae"), tmp_path, callbacks=[keep, look])
        assert seen == [(epoch, True, True) for epoch in range(3)]
        assert best.is_file()

    def test_tensorboard_has_curves_and_pictures(self, tmp_path, monkeypatch):
        reader = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator"
        ).EventAccumulator
        settings = small("vae")
        with monkeypatch.context() as patch:
            send_at_step(patch, signal.SIGTERM, 6)
            with pytest.raises(KeyboardInterrupt):
                fit(settings, tmp_path, callbacks=[callbacks.TensorBoard(tmp_path)])
        fit(settings, tmp_path, resume=True, callbacks=[callbacks.TensorBoard(tmp_path)])
        steps = {}
        for split in ("train", "validation"):
            events = reader(str(tmp_path / "tensorboard" / split), {"tensors": 0}).Reload()
            for tag in events.Tags()["tensors"]:
                steps[split, tag] = [event.step for event in events.Tensors(tag)]
        for split, tag in (
            ("train", "epoch_loss"),
            ("validation", "epoch_kl"),
            ("validation", "epoch"),
        ):
            assert steps[split, tag] == [0, 1, 2], tag

    def test_frozen_weights_are_nothing_to_train(self, tmp_path):
        model = models.VAE((28, 28, 1), 2, "mlp", (4,))
        model.trainable = False
        with pytest.raises(errors.RunError, match="all its weights are frozen"):
            fit(Settings("vae", epochs=1), tmp_path, model=model)

    def test_a_step_that_takes_more_memory_than_there_is(self, tmp_path):
        settings = small("vae", backbone="conv", hidden=(2,) * 30 + (4,), batch_size=8)
        with pytest.raises(errors.RunError, match="A step of 8 images takes .* GiB"):
            fit(settings, tmp_path)

    def test_a_prior_that_takes_more_memory_than_there_is(self, tmp_path):
        settings = small("vae", latent_dim=200_000, hidden=(1,))
        with pytest.raises(errors.RunError, match="The prior of 200,000 latents takes .* GiB"):
            fit(settings, tmp_path)

    def test_a_run_whose_backup_is_gone_is_not_begun_anew(self, tmp_path):
        fit(small("vae", epochs=2), tmp_path)
        record = checkpoints.read_run(tmp_path)
        checkpoints.write_run(tmp_path, {**record, "finished": False})
        before = (tmp_path / "model.keras").read_bytes()
        for resume in (True, False):
            with pytest.raises(errors.RunError, match="The backup of the .* is missing: --from"):
                fit(small("vae", epochs=2), tmp_path, resume=resume)
        assert (tmp_path / "model.keras").read_bytes() == before

    def test_a_run_whose_backup_is_gone_after_one_epoch_is_not_begun_anew(self, tmp_path):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 5)
            fit(small("vae", epochs=2), tmp_path)
        shutil.rmtree(tmp_path / "backup")
        before = (tmp_path / "model.keras").read_bytes()
        for resume in (True, False):
            with pytest.raises(errors.RunError, match="The backup of the .* is missing: --from"):
                fit(small("vae", epochs=2), tmp_path, resume=resume)
        assert (tmp_path / "model.keras").read_bytes() == before

    @pytest.mark.parametrize("write", ["write_source", "save_start", "write_backup"])
    @pytest.mark.parametrize("replaced", [False, True])
    def test_a_run_killed_before_its_first_backup_is_begun_anew(
        self, replaced, write, tmp_path, monkeypatch
    ):
        first = tmp_path / "first"
        fit(small("vae"), first)
        run = shutil.copytree(first, tmp_path / "run") if replaced else tmp_path / "run"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoints, write, killed)
            patch.setattr(fitting.Run, "undone", contextlib.nullcontext)  # a kill undoes nothing
            fit(small("vae", seed=3), run, start=first, force=replaced)
        if write == "save_start" and replaced:
            assert not checkpoints.read_run(run / ".next")
            with pytest.raises(errors.RunError, match="is finished: nothing is left"):
                fit(small("vae"), run, resume=True)
            fit(small("vae", seed=3), run, start=first, force=True)
        elif write == "write_backup" or replaced:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(
                    checkpoints, "write_history", killed
                )  # amid the end of its first epoch
                fit(small("vae", seed=3), run, resume=True)
            fit(small("vae", seed=3), run, resume=True)
        else:
            assert not checkpoints.can_resume(run)
            with monkeypatch.context() as patch, pytest.raises(Killed):  # once more
                patch.setattr(checkpoints, write, killed)
                patch.setattr(fitting.Run, "undone", contextlib.nullcontext)
                fit(small("vae", seed=3), run, start=first)
            if write == "write_source":  # this time it has its start
                fit(small("vae", seed=3), run, resume=True)
            else:
                with pytest.raises(errors.RunError, match="killed before it began: give the comm"):
                    fit(small("vae", seed=3), run, resume=True)
                fit(small("vae", seed=3), run, start=first)
        assert checkpoints.read_run(run)["finished"] and not (run / "backup").exists()
        assert not (run / ".next").exists()

    @pytest.mark.parametrize("make", [of_ones_own, noisy, twice, with_dropout])
    @pytest.mark.parametrize("step", [2, 6])
    def test_a_run_of_a_model_of_ones_own_goes_on_with_that_model_alone(self, make, step, tmp_path):
        settings = Settings("vae", epochs=2, limit=50, batch_size=16, kl_weight=0.5)
        fit(settings, tmp_path / "alone", model=make())
        run = tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, step)
            fit(settings, run, model=make())
        before = contents(run)
        with pytest.raises(errors.RunError, match="of its maker's own, .*give keras_ae.fit"):
            fit(resuming.stored_settings(run), run, resume=True)
        assert contents(run) == before
        fit(settings, run, resume=True, model=make())
        ours, theirs = (
            [{**row, "seconds": 0} for row in history(tmp_path / name)] for name in ("run", "alone")
        )
        assert ours == theirs
        models = [
            checkpoints.load_model(tmp_path / name, trusted=True) for name in ("run", "alone")
        ]
        for ours, theirs in zip(*(model.get_weights() for model in models)):
            np.testing.assert_array_equal(ours, theirs)

    def test_metrics_that_are_built_late_do_not_keep_a_run_from_going_on(self, tmp_path):
        """What a callback of the user changes at the end of an epoch is kept as well."""
        settings = Settings("vae", epochs=2, limit=50, batch_size=16, kl_weight=0.5)

        class Lower(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.encoder.weights[0].assign(self.model.encoder.weights[0] * 0.5)

        def run(name, **more):
            made = Measured((28, 28, 1), 3, "mlp", (16, 8))
            fit(settings, tmp_path / name, model=made, callbacks=Lower(), **more)

        keras.utils.set_random_seed(1)
        run("alone")
        for name, step in (("amid", 2), ("at the end", 4)):
            keras.utils.set_random_seed(1)
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                send_at_step(patch, signal.SIGTERM, step)
                run(name)
            run(name, resume=True)
            models = [checkpoints.load_model(tmp_path / x, trusted=True) for x in (name, "alone")]
            for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
                np.testing.assert_array_equal(ours, theirs)

    def test_a_resumed_run_says_which_optimizers_begin_anew(self, tmp_path):
        """The backup has that of `compile`."""
        settings, lines = Settings("vae", epochs=2, limit=50, batch_size=16, kl_weight=0.5), []

        def model():
            made = of_ones_own()
            made.critic_optimizer = keras.optimizers.Adam(1e-4)
            return made

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 2)
            fit(settings, tmp_path, model=model())
        fitting.fit(settings, tmp_path, verbose=0, resume=True, model=model(), report=lines.append)
        assert "the backup keeps one optimizer: critic_optimizer begins anew" in lines
        assert not any("replaces the one" in line for line in lines)

    @pytest.mark.parametrize("kind", ["class", "function", "arguments"])
    def test_a_model_that_no_file_can_keep_is_refused_before_anything_is_replaced(
        self, kind, tmp_path
    ):
        class Unregistered(keras_ae.VAE):
            pass

        @keras.saving.register_keras_serializable("test_fitting")
        class Lacks(keras_ae.VAE):
            def __init__(self, *arguments, extra, **more):
                super().__init__(*arguments, **more)

        size = ((28, 28, 1), 3, "mlp", (16, 8))
        model = {
            "class": lambda: Unregistered(*size),
            "function": lambda: keras_ae.VAE(*size, reconstruction=lambda x, y: abs(x - y)),
            "arguments": lambda: Lacks(*size, extra=1),
        }[kind]()
        fit(small("vae"), tmp_path)
        before = contents(tmp_path)
        settings = Settings("vae", epochs=1, limit=50)
        with pytest.raises(errors.UserError, match="@keras.saving.register_keras_ser"):
            fit(settings, tmp_path, model=model, force=True)
        assert contents(tmp_path) == before

    def test_a_run_of_a_stock_model_does_not_go_on_with_one_of_ones_own(self, tmp_path):
        settings = small("vae", epochs=2)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 2)
            fit(settings, tmp_path)
        with pytest.raises(errors.RunError, match="no model of its maker's own"):
            fit(settings, tmp_path, resume=True, model=of_ones_own())

    @pytest.mark.parametrize("epochs", [1, 2])
    @pytest.mark.parametrize("write", ["save_model", "write_backup", "write_history", "take_place"])
    def test_a_kill_at_the_end_of_the_first_epoch_of_a_run_that_replaces_another(
        self, write, epochs, tmp_path, monkeypatch
    ):
        run = tmp_path / "run"
        fit(small("vae", seed=8), run)
        before, calls, function = contents(run), itertools.count(), getattr(checkpoints, write)

        def fatal(*arguments):
            if next(calls) == (
                write == "write_backup"
            ):  # whose first call is before the first step
                raise Killed
            return function(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoints, write, fatal)
            patch.setattr(fitting.Run, "undone", contextlib.nullcontext)
            fit(small("vae", epochs=epochs), run, force=True)
        now = {k: v for k, v in contents(run).items() if not k.startswith(".next")}
        # The backup comes last; until then there is that of the start.
        took_place = write == "write_backup"
        assert (now == before) is not took_place and checkpoints.can_resume(run)
        fit(small("vae", epochs=epochs), run, resume=True)
        fit(small("vae", epochs=epochs), tmp_path / "whole")
        assert_same_run(run, tmp_path / "whole")
        assert checkpoints.read_run(run)["finished"]
        assert contents(run).keys() == contents(tmp_path / "whole").keys()

    @pytest.mark.long
    @pytest.mark.parametrize("killed_at", range(9))
    @pytest.mark.parametrize("then", ["resume", "force"])
    def test_a_kill_as_a_run_takes_the_place_of_another(
        self, killed_at, then, tmp_path, monkeypatch
    ):
        """Before any of the moves and removals: the old run is whole, or the new one is after the next `fit`."""
        fit(small("vae", seed=8), tmp_path)
        before, calls = contents(tmp_path), itertools.count()

        def fatal(function):
            def run(*arguments, **options):
                if next(calls) == killed_at:
                    raise Killed
                return function(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            take = checkpoints.take_place

            def taken(*arguments):
                with monkeypatch.context() as inner:
                    inner.setattr(os, "replace", fatal(os.replace))
                    inner.setattr(checkpoints, "remove", fatal(checkpoints.remove))
                    take(*arguments)

            patch.setattr(checkpoints, "take_place", taken)
            patch.setattr(fitting.Run, "undone", contextlib.nullcontext)
            with contextlib.suppress(Killed):
                fit(small("vae"), tmp_path, force=True)
        if checkpoints.place_of(tmp_path) != tmp_path and killed_at == 0:
            kept = {k: v for k, v in contents(tmp_path).items() if not k.startswith(".next")}
            assert kept == before
        if then == "force":
            with monkeypatch.context() as patch, pytest.raises(errors.RunError):
                poison(patch, epoch=0, batch=0)
                fit(small("vae", seed=9), tmp_path, force=True)
            assert not (tmp_path / ".next").exists()
        if checkpoints.can_resume(tmp_path):
            fit(small("vae"), tmp_path, resume=True)
        fit(small("vae"), whole := tmp_path.with_name(f"{tmp_path.name}-whole"))
        assert_same_run(tmp_path, whole)
        assert not (tmp_path / ".next").exists() and not (tmp_path / "backup").exists()

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_run_that_is_put_back_after_a_kill_stays(self, whole, tmp_path, monkeypatch):
        """What the killed one left in `.next` is not moved over it."""
        copy, run = tmp_path / "copy", tmp_path / "run"

        def stop(epoch, logs):
            if not whole and epoch == 1:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            stopped = keras.callbacks.LambdaCallback(on_epoch_end=stop)
            fit(small("vae", seed=8), copy, callbacks=stopped)
        shutil.copytree(copy, run)
        replaced_and_killed(run, monkeypatch)
        assert checkpoints.read_run(run)["settings"]["seed"] == 0 and (run / ".next").exists()
        shutil.copytree(copy, run, dirs_exist_ok=True)
        with pytest.raises(errors.RunError, match="finished run; --"):
            fit(small("vae", seed=8), run)
        kept = contents(run)
        assert {name: kept[name] for name in contents(copy)} == contents(copy)

    def test_what_the_users_own_prior_does_wrong_is_no_divergence(self, tmp_path, monkeypatch):
        def fit_prior(*arguments, **options):
            raise ValueError("fit of Mine must return a prior.")

        @keras.saving.register_keras_serializable("test_fitting")
        class Flat(keras_ae.StandardNormal):
            """A prior of the user's own."""

        model = of_ones_own()
        model.set_prior(Flat(3))
        with monkeypatch.context() as patch:
            patch.setattr(Mine, "fit_prior", fit_prior)
            with pytest.raises(errors.RunError, match="must return a prior. Mend the fit of Flat"):
                fit(Settings("vae", epochs=1, limit=50), tmp_path, model=model)

    def test_what_is_given_to_fit_may_be_plain(self, digits, tmp_path):
        """A tensor as images, big-endian floats, one callback or None; and no model of another kind."""
        images = digits[0][:32].astype("float32") / 255
        tensor = keras.ops.convert_to_tensor(images)
        for i, train in enumerate((tensor, images.astype(">f4"))):
            fit(small("ae", epochs=1), tmp_path / f"{i}", train=train, test=images, callbacks=None)
            assert checkpoints.read_run(tmp_path / f"{i}")["data"]["name"] == "arrays"
        with pytest.raises(ValueError, match="trains an AE, or a subclass; got a Sequential"):
            fit(small("ae", epochs=1), tmp_path / "other", model=keras.Sequential())

    def test_masks_of_0_and_1_are_told(self, digits, tmp_path):
        """Whose white is 255, as that of all whole numbers."""
        masks = digits[0][:32] > 127
        for kind in ("bool", "float32", "uint8", "int64"):
            lines, images = [], masks.astype(kind)
            settings, folder = small("ae", epochs=1), tmp_path / kind
            fitting.fit(settings, folder, verbose=0, report=lines.append, train=images, test=images)
            told = [line for line in lines if "give masks as booleans or as floats" in line]
            assert len(told) == ("int" in kind)

    @pytest.mark.parametrize("name", ["ae", "vae"])
    def test_a_run_that_goes_on_after_its_last_epoch_writes_what_is_missing(self, name, tmp_path):
        """Its backup, which has weights and history, is removed then."""

        def stop(epoch, logs):
            if epoch == 1:
                raise KeyboardInterrupt

        run, alone = tmp_path / "run", tmp_path / "alone"
        fit(small(name, epochs=2), alone)
        with pytest.raises(KeyboardInterrupt):
            stopped = keras.callbacks.LambdaCallback(on_epoch_end=stop)
            fit(small(name, epochs=2), run, callbacks=stopped)
        for file in ("model.keras", "history.csv"):
            (run / file).unlink()
        fit(small(name, epochs=2), run, resume=True)
        assert_same_run(run, alone)

    def test_a_backup_of_no_run_is_not_taken_for_that_of_a_killed_successor(
        self, tmp_path, monkeypatch
    ):
        """As where somebody lost run.json, and then gave --force."""
        run = tmp_path / "run"

        def stop(epoch, logs):
            raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            stopped = keras.callbacks.LambdaCallback(on_epoch_end=stop)
            fit(small("vae", seed=8), run, callbacks=stopped)
        (run / "run.json").unlink()
        replaced_and_killed(run, monkeypatch)
        fit(small("vae"), run, resume=True)
        fit(small("vae"), tmp_path / "alone")
        assert_same_run(run, tmp_path / "alone")

    def test_a_finished_run_in_next_replaces_none(self, tmp_path):
        """As a user, or a stranger's archive, may have put one there."""
        fit(small("ae", epochs=1, seed=8), tmp_path / "run")
        fit(small("ae", epochs=1), tmp_path / "other")
        (tmp_path / "other").rename(tmp_path / "run" / ".next")
        (tmp_path / "link").symlink_to(tmp_path / "run" / ".next")
        before = contents(tmp_path / "run")
        for how in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(errors.RunError, match="next holds a finished run.*: move it"):
                fit(small("ae", epochs=1, seed=8), tmp_path / "run", **how)
        with pytest.raises(errors.RunError, match="where a run that replaces another one begins"):
            fit(small("ae", epochs=1), tmp_path / "link", force=True)
        assert contents(tmp_path / "run") == before

    def test_the_permissions_of_a_run_that_is_replaced_stay(self, tmp_path):
        fit(small("ae", epochs=1), tmp_path)
        for name in ("model.keras", "run.json", "history.csv"):
            (tmp_path / name).chmod(0o600)
        fit(small("ae", epochs=1), tmp_path, force=True)
        for name in ("model.keras", "run.json", "history.csv"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("name", ["epochs", "backup"])
    def test_a_folder_that_becomes_a_link_amid_a_run(self, name, tmp_path):
        (other := tmp_path / "other").mkdir()
        run = tmp_path / "run"

        def swap(epoch, logs):
            (run / name).rename(tmp_path / "away")
            (run / name).symlink_to(other)

        with pytest.raises(errors.RunError, match=f"{name} became a link"):
            fit(
                small("ae", epochs=2),
                run,
                callbacks=keras.callbacks.LambdaCallback(on_epoch_end=swap),
            )
        assert not list(other.iterdir())

    @pytest.mark.parametrize("name", ["epoch", "seconds", "a\nb"])
    def test_a_figure_whose_name_the_history_cannot_hold(self, name, tmp_path):
        fit(small("vae"), tmp_path)
        before, model = contents(tmp_path), of_ones_own()
        model.own_mean = keras.metrics.Mean(name=name)
        with pytest.raises(errors.RunError, match="which the history cannot hold"):
            fit(Settings("vae", epochs=1, limit=50), tmp_path, model=model, force=True)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("write", ["picture_of", "atomic"])
    def test_a_folder_that_takes_the_place_of_the_runs_within_an_epoch(
        self, write, tmp_path, monkeypatch
    ):
        other, run = tmp_path / "other", tmp_path / "run"
        fit(small("vae", seed=8), other)
        before, draw = contents(other), getattr(callbacks, write)

        def moved(*arguments):
            if other.exists():
                run.rename(tmp_path / "away")
                other.rename(run)
            return draw(*arguments)

        monkeypatch.setattr(callbacks, write, moved)
        with pytest.raises(errors.RunError, match="is gone"):
            fit(small("vae"), run)
        before.pop("epochs/001.png")
        now = contents(run)
        assert {name: now[name] for name in before} == before

    @pytest.mark.parametrize("name", ["model.keras", "history.csv", "epochs/001.png"])
    def test_files_in_next_that_no_run_wrote_are_refused(self, name, tmp_path):
        path = tmp_path / ".next" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
        with pytest.raises(errors.RunError, match=f"holds a .next/{name} that no run there wrote"):
            fit(small("ae", epochs=1), tmp_path)
        assert path.read_bytes() == b"mine"
        with pytest.raises(errors.RunError, match="where a run that replaces another one begins"):
            fit(small("ae", epochs=1), tmp_path / ".next", force=True)

    def test_a_successor_whose_run_json_is_removed_replaces_nothing(self, tmp_path):
        fit(small("vae", seed=8), tmp_path)
        before = contents(tmp_path)
        remove = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: (tmp_path / ".next" / "run.json").unlink(
                missing_ok=True
            )
        )
        with pytest.raises(errors.RunError, match="run.json was removed meanwhile"):
            fit(small("vae"), tmp_path, force=True, callbacks=remove)
        assert contents(tmp_path) == before

    def test_a_figure_that_is_no_number_costs_no_run(self, tmp_path):
        @keras.saving.register_keras_serializable("test_fitting")
        class Wide(keras_ae.VAE):
            def get_metrics_result(self):
                return {**super().get_metrics_result(), "wide": np.arange(3.0)}

        fit(small("vae"), tmp_path)
        before, model = contents(tmp_path), Wide((28, 28, 1), 3, "mlp", (16, 8))
        with pytest.raises(errors.RunError, match="figure .*wide of an epoch must be a number"):
            fit(Settings("vae", epochs=1, limit=50), tmp_path, model=model, force=True)
        assert contents(tmp_path) == before
        with pytest.raises(errors.RunError, match="figure wide of an epoch must be a number"):
            settings = Settings("vae", epochs=1, limit=50)
            fitting.fit(settings, tmp_path, model=model, force=True, verbose=1)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("name", ["0001.png", "0000002.png", "٠٠٢.png"])
    def test_pictures_called_nearly_as_epochs_are_nobodys(self, name, tmp_path):
        fit(small("vae"), tmp_path)
        (tmp_path / "epochs" / name).write_text("mine")
        fit(small("vae"), tmp_path, force=True)
        assert (tmp_path / "epochs" / name).read_text() == "mine"

    def test_a_successor_that_was_given_up_is_not_gone_on_with(self, tmp_path, monkeypatch):
        """A kill between the removal of its files."""
        stopped, successor = small("vae", epochs=2), small("vae", seed=3)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 5)
            fit(stopped, tmp_path)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            send_at_step(patch, signal.SIGTERM, 2)
            fit(successor, tmp_path, force=True)
        assert (tmp_path / ".next" / "backup" / "state.npz").exists()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoints, "remove", killed)
            checkpoints.remove_next(tmp_path)
        fit(stopped, tmp_path, resume=True)
        assert checkpoints.read_run(tmp_path)["settings"]["seed"] == stopped.seed
        assert not (tmp_path / ".next").exists()

    def test_names_of_classes_that_no_model_file_holds(self, tmp_path, monkeypatch):
        monkeypatch.setattr(building, "JSON_BYTES", 90)
        with pytest.raises(errors.RunError, match="names of 10 classes are longer"):
            fit(small("cvae"), tmp_path)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "made"),
        [("backup", "file"), ("epochs", "file"), (".next", "file"), ("history.csv", "folder"), ("backup/dataset", "folder"), (".next/run.json", "folder"), ("epochs/001.png", "folder")],
    )  # fmt: skip
    def test_files_and_folders_in_the_way_are_told_before_the_first_step(
        self, name, made, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(keras_ae.VAE, "train_step", killed)
        if made == "file":
            (tmp_path / name).write_text("mine")
        else:
            (tmp_path / name).mkdir(parents=True)
        for force in (False, True):
            with pytest.raises(errors.RunError, match=f"{name} is .*: move it away"):
                fit(small("vae"), tmp_path, force=force)

    def test_figures_that_come_and_go(self, tmp_path):
        class Moody(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.moody = True

        @keras.saving.register_keras_serializable("test_fitting")
        class Fickle(keras_ae.VAE):
            moody = False

            def get_metrics_result(self):
                more = {"mood": 1.0} if self.moody else {}
                return {**super().get_metrics_result(), **more}

        model, settings = Fickle((28, 28, 1), 2, "mlp", (4,)), Settings("vae", epochs=3, limit=40)
        with pytest.raises(errors.RunError, match="mood.*: logged in epoch 2"):
            fit(settings, tmp_path, model=model, callbacks=[Moody()])
        assert len(history(tmp_path)) == 1 and checkpoints.can_resume(tmp_path)

    def test_tensorboard_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard" / "train").write_text("in the way")
        with pytest.raises(OSError, match="TensorBoard's files cannot be written"):
            fit(small("vae"), tmp_path, callbacks=[callbacks.TensorBoard(tmp_path)])
        assert (tmp_path / "tensorboard" / "train").read_text() == "in the way"

    def test_tensorboard_whose_folder_is_a_file(self, tmp_path):
        (tmp_path / "tensorboard").write_text("in the way")
        with pytest.raises(errors.RunError, match="tensorboard is no folder"):
            callbacks.TensorBoard(tmp_path)

    def test_force_that_fails_leaves_no_curves_in_the_old_run(self, tmp_path):
        def run(**settings):
            board = [callbacks.TensorBoard(tmp_path)]
            fit(small("vae", **settings), tmp_path, callbacks=board, force=True)

        fit(small("vae"), tmp_path)
        (tmp_path / "tensorboard" / "train").mkdir(parents=True)
        mine = tmp_path / "tensorboard" / "train" / "events.out.tfevents.1"
        mine.touch()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(errors.RunError):
            run(learning_rate=1e30)
        assert sorted(tmp_path.rglob("*")) == before

    def test_force_that_fails_later_keeps_its_own_curves(self, tmp_path, monkeypatch):
        fit(small("vae"), tmp_path)
        poison(monkeypatch, epoch=2, batch=1)
        with pytest.raises(errors.RunError, match="became nan"):
            fit(small("vae"), tmp_path, callbacks=[callbacks.TensorBoard(tmp_path)], force=True)
        assert checkpoints.curves_of(tmp_path) and checkpoints.can_resume(tmp_path)

    def test_tensorboard_that_is_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(errors, "installed", lambda name: False)
        with pytest.raises(errors.UserError, match="pip install .*tensorboard"):
            callbacks.TensorBoard(tmp_path)
