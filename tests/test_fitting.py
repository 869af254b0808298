"""Runs from settings to a folder, on real MNIST: contents, resuming, order, and what stops a run."""

import contextlib
import csv
import json
import os
import signal
import time

import keras
import numpy as np
import pytest
from PIL import Image

from keras_ae import checkpoints, fitting
from keras_ae.data import DataError
from keras_ae.fitting import Feed, RunError, binarized
from keras_ae.settings import MODELS, Settings

pytestmark = pytest.mark.usefixtures("mnist_env")


def small(model="vae", **kwargs):
    """Settings of a run of well under a second: 50 images in batches of 16, 16, 16 and 2."""
    values = {"backbone": "mlp", "hidden": (16, 8), "latent_dim": 3, "limit": 50, "batch_size": 16}
    return Settings(model, **{"epochs": 3, **values, **kwargs})


def fit(settings, folder, **kwargs):
    return fitting.fit(settings, folder, verbose=0, report=lambda line: None, **kwargs)


def weights(folder):
    model = checkpoints.load_model(folder / "model.keras")
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


def history(folder):
    return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


def assert_same_run(a, b):
    """Weights bit for bit, and histories but for the seconds."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
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
        assert Settings.from_dict(facts["settings"]) == small(name)
        assert facts["data"] == {
            "name": "mnist",
            "version": "3.0.1",
            "train_images": 50,
            "test_images": 50,
        }
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
        assert type(model) is fitting.MODEL_CLASSES[name] and not hasattr(model, "optimizer")
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
        assert picture.ndim == 2 and picture.shape[1] == 2 * (10 * 29 + 1)
        for i in range(10):
            left = 2 * (1 + i * 29)
            shown = picture[2 : 2 + 56 : 2, left : left + 56 : 2]
            np.testing.assert_array_equal(shown, test.images[i, ..., 0])
        rows = {"ae": 4, "vae": 4 + 4, "cvae": 4 + 10}[name]  # 20 pairs, then 40 or 10 a class
        gap = 8 if rows > 4 else 0
        assert picture.shape[0] == 2 * (rows * 29 + 1) + gap + (2 if gap else 0)


@pytest.mark.parametrize("model", ["ae", "cvae"])
def test_one_seed_makes_one_run_and_another_seed_another(model, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(small(model, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


class Killed(BaseException):
    """Stands for a signal."""


def kill_after_epoch(monkeypatch, last):
    """Stop the next run when the backup of an epoch has just been written."""
    write = checkpoints.write_backup

    def write_and_die(folder, model, epochs_done, history):
        write(folder, model, epochs_done, history)
        if epochs_done == last:
            raise Killed

    monkeypatch.setattr(checkpoints, "write_backup", write_and_die)


def kill_in_epoch(monkeypatch, epoch):
    """Stop the next run at the second batch of an epoch, from 0."""
    get = Feed.__getitem__

    def get_or_die(feed, index):
        if feed.epoch == epoch and index == 1:
            raise Killed
        return get(feed, index)

    monkeypatch.setattr(Feed, "__getitem__", get_or_die)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("kill", "epoch"),
    [(kill_after_epoch, 1), (kill_after_epoch, 3), (kill_in_epoch, 2), (kill_in_epoch, 0)],
    ids=["after the first", "after the last", "in the last", "in the first"],
)
def test_a_resumed_run_is_the_uninterrupted_one(model, kill, epoch, tmp_path):
    settings = small(model, binarize=model == "cvae")
    fit(settings, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill(patch, epoch)
        fit(settings, tmp_path / "cut")
    fit(settings, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


class TestRules:
    @pytest.fixture
    def finished(self, tmp_path):
        fit(small("ae", epochs=1), tmp_path / "run")
        return tmp_path / "run"

    @pytest.fixture
    def unfinished(self, tmp_path, monkeypatch):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after_epoch(patch, 1)
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

    def test_force_replaces_a_damaged_run(self, finished):
        (finished / "run.json").write_text("{")
        fit(small("ae", epochs=1), finished, force=True)
        assert checkpoints.read_run(finished)["finished"]

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
    at = (epoch, batch)

    class Stopwatch(fitting.Stopwatch):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == at:
                bias = self.model.decoder.get_layer("pixels").bias
                bias.assign(np.full(bias.shape, np.nan, "float32"))

    monkeypatch.setattr(fitting, "Stopwatch", Stopwatch)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_epoch(tmp_path, monkeypatch):
    poison(monkeypatch, epoch=1, batch=1)
    with pytest.raises(RunError, match=r"became nan at step 7 \(epoch 2, batch 3\).*learning-rate"):
        fit(small("vae"), tmp_path)
    assert all(np.isfinite(w).all() for w in weights(tmp_path).values())
    assert len(history(tmp_path)) == 1


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(tmp_path, monkeypatch):
    poison(monkeypatch, epoch=1, batch=3)
    with pytest.raises(RunError, match="after step 8"):
        fit(small("vae"), tmp_path)
    assert all(np.isfinite(w).all() for w in weights(tmp_path).values())
    assert len(history(tmp_path)) == 1


class TestFeed:
    IMAGES = np.arange(23, dtype="uint8").reshape(23, 1, 1, 1)
    LABELS = np.arange(23) + 100

    def order(self, seed, epoch):
        feed = Feed(self.IMAGES, None, 7, seed)
        feed.set_epoch(epoch)
        batches = [feed[i][0] for i in range(len(feed))]
        assert [len(b) for b in batches] == [7, 7, 7, 2]
        return np.concatenate(batches).ravel().tolist()

    def test_every_image_comes_once_an_epoch(self):
        assert sorted(self.order(0, 5)) == list(range(23))

    def test_the_order_is_a_function_of_seed_and_epoch(self):
        assert self.order(1, 2) == self.order(1, 2)
        assert self.order(1, 2) != self.order(1, 3)
        assert self.order(1, 2) != self.order(2, 2)

    def test_labels_stay_with_their_images(self):
        feed = Feed(self.IMAGES, self.LABELS, 7, 0)
        for i in range(len(feed)):
            ((images, labels),) = feed[i]
            np.testing.assert_array_equal(images.ravel() + 100, labels)

    def test_binarized_batches_differ_by_epoch_and_repeat_by_seed(self):
        grey = np.full((8, 28, 28, 1), 128, "uint8")
        first, again = (Feed(grey, None, 8, 3, binarize=True) for _ in range(2))
        np.testing.assert_array_equal(first[0][0], again[0][0])
        again.set_epoch(1)
        assert (first[0][0] != again[0][0]).mean() > 0.4


def test_binarized_pixels_are_coins_of_their_grey_value():
    """`image < uniform` would draw the negative."""
    grey = np.array([0, 26, 128, 230, 255], "uint8")
    coins = binarized(np.tile(grey, (20_000, 1)), seed=0)
    assert set(np.unique(coins)) == {0, 255} and coins.dtype == np.uint8
    np.testing.assert_allclose(coins.mean(0), grey, atol=3)
    assert (coins[:, 0] == 0).all() and (coins[:, 4] == 255).all()


def test_a_run_trains_on_the_training_images_alone(tmp_path, monkeypatch):
    fed, init = [], Feed.__init__
    monkeypatch.setattr(
        Feed,
        "__init__",
        lambda self, images, *rest: fed.append(images) or init(self, images, *rest),
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
        fitting.build_model(small("cvae"), images)


def test_ctrl_c_that_keras_swallows_ends_the_run_all_the_same():
    """A bare `except:` of Keras' functional models takes KeyboardInterrupt for a mismatch of inputs."""
    with fitting.StopAtInterrupt() as stop:
        stop.on_train_batch_end(0)
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        with pytest.raises(KeyboardInterrupt):
            stop.on_train_batch_end(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
