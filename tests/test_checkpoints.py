"""Files of a run: written whole or not at all, found in order, and refused when foreign."""

import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_ae import AE, CVAE, VAE, Adam, checkpoints, files
from keras_ae.checkpoints import CheckpointError, Progress
from keras_ae.errors import UserError


@pytest.fixture
def vae():
    return VAE((8, 8, 1), 2, "mlp", (8,))


@pytest.fixture
def file(vae, tmp_path):
    """A good model file."""
    checkpoints.save_model(vae, tmp_path / "model.keras")
    return tmp_path / "model.keras"


def rewritten(path, edit):
    """Apply `edit` to the config in a .keras file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    edit(config)
    members["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class TestReadEpochs:
    def test_the_thousandth_comes_after_the_others(self, tmp_path):
        (tmp_path / "epochs").mkdir()
        for epoch in (1, 998, 999, 1000, 1001):
            Image.new("L", (epoch, 1)).save(tmp_path / "epochs" / f"{epoch:03d}.png")
        Image.new("L", (7, 1)).save(tmp_path / "epochs" / "0-mine.png")
        widths = [picture.width for picture in checkpoints.read_epochs(tmp_path)]
        assert widths == [1, 998, 999, 1000, 1001]

    def test_small_files_that_take_all_memory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KAE_MEMORY", "1")
        (tmp_path / "epochs").mkdir()
        Image.new("L", (8192, 8192)).save(tmp_path / "epochs" / "001.png")
        for epoch in range(2, 20):
            os.link(tmp_path / "epochs" / "001.png", tmp_path / "epochs" / f"{epoch:03d}.png")
        with pytest.raises(
            UserError, match="^The memory of the pictures .* KAE_MEMORY=2 allows it"
        ):
            checkpoints.read_epochs(tmp_path)


@pytest.mark.parametrize(
    ("file", "run", "name"),
    [
        ("alice/vae/model.keras", {"format": 1}, "vae"),
        ("alice/model.keras", {}, "model.keras"),
        ("alice/vae/mine.keras", {"format": 1}, "mine.keras"),
        ("../model.keras", {"format": 1}, "here"),
        ("model.keras", {"format": 1}, "inner"),
    ],
)
def test_the_name_of_a_checkpoint(file, run, name, tmp_path, monkeypatch):
    """That of the run's folder, or else of the file; no folder above."""
    (tmp_path / "here" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "inner")
    assert checkpoints.Checkpoint(Path(file), run, "path").name == name


def test_a_small_backup_that_takes_all_memory(vae, tmp_path):
    vae.compile(Adam())
    checkpoints.write_backup(tmp_path, vae, Progress([]))
    path = tmp_path / "backup" / "state.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez_compressed(path, bomb=np.zeros(1 << 28, "uint8"), **arrays)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.read_backup(tmp_path, vae)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_a_compressed_backup_that_lies_about_its_size(vae, tmp_path):
    (tmp_path / "backup").mkdir()
    with zipfile.ZipFile(tmp_path / "backup" / "state.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("about.npy", b"x" * 10)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        checkpoints.read_backup(tmp_path, vae)
    assert "compressed" in str(caught.value.__cause__)


def test_a_backup_of_thousands_of_arrays(vae, tmp_path):
    (tmp_path / "backup").mkdir()
    np.savez(tmp_path / "backup" / "state.npz", **{f"model/{i}": np.zeros(0) for i in range(5000)})
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        checkpoints.read_backup(tmp_path, vae)
    assert "its directory has" in str(caught.value.__cause__)
    np.savez(tmp_path / "backup" / "state.npz", **{f"model/{i}": np.zeros(0) for i in range(500)})
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        checkpoints.read_backup(tmp_path, vae)
    assert "more arrays than this model" in str(caught.value.__cause__)


def test_a_backup_of_more_epochs_than_its_history(vae, tmp_path):
    vae.compile(Adam())
    vae.optimizer.build(vae.trainable_variables)
    checkpoints.write_backup(tmp_path, vae, Progress([], 1 << 40))
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        checkpoints.read_backup(tmp_path, vae)
    assert "history is of other epochs" in str(caught.value.__cause__)


class TestAtomic:
    def test_the_file_appears_whole_and_alone(self, tmp_path):
        checkpoints.write_bytes(tmp_path / "new" / "a.txt", "hello")
        assert (tmp_path / "new" / "a.txt").read_text() == "hello"
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("name", ["像" * 80, "a" + "é" * 120])
    def test_a_long_name_that_is_no_ascii(self, name, tmp_path):
        path = tmp_path / f"{name}.txt"
        with files.atomic(path) as temporary:
            temporary.encode()
            Path(temporary).write_text("new")
        assert path.read_text() == "new"

    def test_until_the_end_readers_see_the_old_file(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with files.atomic(path) as temporary:
            Path(temporary).write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    def test_a_failing_write_leaves_the_old_file_and_nothing_else(self, tmp_path, error):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(type(error)), files.atomic(path) as temporary:
            Path(temporary).write_text("half of the n")
            raise error
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_a_failing_save_leaves_the_old_model(self, vae, file, monkeypatch):
        before = file.read_bytes()

        def half(self, path, **kwargs):
            Path(path).write_bytes(before[:100])
            raise OSError("disk full")

        monkeypatch.setattr(VAE, "save", half)
        with pytest.raises(OSError, match="disk full"):
            checkpoints.save_model(vae, file)
        assert file.read_bytes() == before

    def test_permissions_are_those_of_a_plain_file(self, tmp_path):
        checkpoints.write_bytes(tmp_path / "a.txt", "hello")
        (tmp_path / "b.txt").write_text("hello")
        assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


class TestModelFile:
    @pytest.mark.parametrize("make", [AE, VAE, CVAE])
    def test_round_trip_without_the_optimizer(self, make, tmp_path):
        model = make((20, 16, 1), 2, "conv", (4, 8))
        inputs = np.full((6, 20, 16, 1), 99, "uint8")
        inputs = (inputs, np.arange(6)) if make is CVAE else inputs
        model.compile(Adam())
        model.fit(inputs, verbose=0)
        checkpoints.save_model(model, tmp_path / "model.keras")
        loaded = checkpoints.load_model(tmp_path / "model.keras")
        assert type(loaded) is make and not loaded.compiled
        np.testing.assert_array_equal(loaded.reconstruct(inputs), model.reconstruct(inputs))
        with zipfile.ZipFile(tmp_path / "model.keras") as archive:
            assert not json.loads(archive.read("config.json")).get("compile_config")

    def test_saving_does_not_disturb_a_model_in_training(self, vae, tmp_path):
        vae.compile(Adam())
        x = np.zeros((4, 8, 8, 1), "uint8")
        vae.fit(x, verbose=0)
        checkpoints.save_model(vae, tmp_path / "model.keras")
        vae.fit(x, verbose=0)
        assert int(vae.optimizer.iterations) == 2

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match="There is no file"):
            checkpoints.load_model(tmp_path / "model.keras")

    @pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
    def test_what_is_no_archive(self, content, tmp_path):
        path = tmp_path / "model.keras"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be loaded: it is no Keras model file"):
            checkpoints.load_model(path)

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
    def test_a_truncated_file(self, file, kept):
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(CheckpointError):
            checkpoints.load_model(file)

    def test_a_file_with_flipped_bytes(self, file):
        content = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            weights = archive.getinfo("model.weights.h5")
        start = weights.header_offset + 300
        content[start : start + 2000] = bytes(2000)
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            checkpoints.load_model(file)

    def test_an_archive_without_weights(self, file):
        with zipfile.ZipFile(file) as archive:
            config = archive.read("config.json")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("config.json", config)
        with pytest.raises(CheckpointError):
            checkpoints.load_model(file)

    def test_another_keras_model(self, tmp_path):
        path = tmp_path / "model.keras"
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(path)
        with pytest.raises(CheckpointError, match="not an AE, VAE or CVAE"):
            checkpoints.load_model(path)

    def test_a_lambda_layer(self, tmp_path):
        path = tmp_path / "model.keras"
        model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
        model.save(path)
        with pytest.raises(CheckpointError, match="not an AE, VAE or CVAE"):
            checkpoints.load_model(path)
        # ... nor when it claims to be ours
        rewritten(path, lambda config: config.update(registered_name="keras_ae>VAE"))
        with pytest.raises(CheckpointError):
            checkpoints.load_model(path)

    def test_a_lambda_layer_in_the_place_of_the_prior(self, file, tmp_path):
        ran = tmp_path / "ran"
        layer = keras.layers.Lambda(lambda x, path=str(ran): os.mkdir(path))
        config = keras.saving.serialize_keras_object(layer)
        rewritten(file, lambda whole: whole["config"].update(prior=config))
        with pytest.raises(CheckpointError):
            checkpoints.load_model(file)
        assert not ran.exists()

    def test_a_config_that_no_model_takes(self, file):
        rewritten(file, lambda whole: whole["config"].update(latent_dim=0))
        with pytest.raises(CheckpointError, match="has the latent_dim"):
            checkpoints.load_model(file)

    def test_weights_of_another_size(self, file):
        rewritten(file, lambda whole: whole["config"].update(latent_dim=3))
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            checkpoints.load_model(file)

    def test_errors_are_one_line(self, file):
        rewritten(file, lambda whole: whole["config"].update(hidden=[9]))
        with pytest.raises(CheckpointError) as caught:
            checkpoints.load_model(file)
        assert "\n" not in str(caught.value)


class TestFind:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        """Works in a folder of its own, with released weights of a cvae alone."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(checkpoints, "released", lambda name: tmp_path / "released" / name)
        for name in ("cvae", "cvae-garments"):
            self.put(f"released/{name}")
            Path(f"released/{name}/run.json").write_text('{"format": 1}')

    def put(self, folder):
        os.makedirs(folder, exist_ok=True)
        Path(folder, "model.keras").touch()

    def test_a_name_finds_what_was_trained_here_first(self):
        self.put("checkpoints/cvae")
        found = checkpoints.find_checkpoint("cvae")
        assert found.path == Path("checkpoints/cvae/model.keras")
        assert found.origin == "trained here"

    def test_a_name_finds_the_released_weights_second(self, tmp_path):
        os.makedirs("checkpoints/cvae")  # of a run that made its folder, and was killed
        Path("checkpoints/cvae/.DS_Store").touch()
        found = checkpoints.find_checkpoint("cvae")
        assert found.path == tmp_path / "released/cvae/model.keras"
        assert found.origin == "released with keras-ae"

    def test_released_weights_have_names_of_their_own(self, tmp_path):
        found = checkpoints.find_checkpoint("cvae-garments")
        assert found.path == tmp_path / "released/cvae-garments/model.keras"
        self.put("checkpoints/cvae-garments")
        assert checkpoints.find_checkpoint("cvae-garments").origin == "trained here"

    @pytest.mark.parametrize("name", ["cvae", "cvae-garments"])
    @pytest.mark.parametrize("left", ["run.json", "history.csv", "backup/state.npz"])
    def test_a_broken_run_is_not_passed_over_for_the_released_weights(self, left, name):
        path = Path("checkpoints", name, left)
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(CheckpointError, match="holds a run without a model.keras.*released"):
            checkpoints.find_checkpoint(name)

    def test_a_finished_run_without_its_model_is_not_to_be_resumed(self):
        run = Path("checkpoints", "vae")
        run.mkdir(parents=True)
        checkpoints.write_run(run, {"finished": True, "settings": {}})
        for _ in range(2):
            with pytest.raises(CheckpointError, match="it is broken. Put that file back, or move"):
                checkpoints.find_checkpoint("vae")
            (run / "backup").mkdir(exist_ok=True)  # left by a kill at the very end
            (run / "backup" / "state.npz").touch()

    @pytest.mark.parametrize("place", [".", ".next"])
    def test_a_run_that_was_killed_as_it_began_is_to_be_resumed(self, place):
        run = Path("checkpoints", "vae")
        (run / place).mkdir(parents=True)
        checkpoints.write_run(run / place, {"finished": False, "settings": {}})
        with pytest.raises(CheckpointError, match="Go on with it .`kae fit vae --resume`."):
            checkpoints.find_checkpoint("vae")

    def test_a_run_that_was_killed_before_its_start_was_kept_is_to_be_begun_again(self):
        run = Path("checkpoints", "vae")
        run.mkdir(parents=True)
        begun = {"finished": False, "settings": {}, "from": {"name": "cvae"}}
        checkpoints.write_run(run, begun)
        with pytest.raises(CheckpointError, match="before it began. Give the command that began"):
            checkpoints.find_checkpoint("vae")

    @pytest.mark.parametrize("kind", ["file", "link", "folder of others"])
    def test_what_is_no_run_is_not_passed_over_for_the_released_weights(self, kind):
        place = Path("checkpoints", "cvae")
        place.parent.mkdir()
        if kind == "file":
            place.write_text("mine")
        elif kind == "link":
            place.symlink_to("nowhere")
        else:
            (place / "epochs").mkdir(parents=True)
        with pytest.raises(CheckpointError, match="is no run: move it away for the released"):
            checkpoints.find_checkpoint("cvae")

    def test_a_name_that_finds_nothing_says_how_to_train(self):
        with pytest.raises(CheckpointError, match="train one with `kae fit vae`"):
            checkpoints.find_checkpoint("vae")

    @pytest.mark.parametrize("model", ["runs/mine", "runs/mine/", "runs/mine/model.keras"])
    def test_a_folder_or_a_file(self, model):
        self.put("runs/mine")
        Path("runs/mine/run.json").write_text('{"format": 1, "settings": {"dataset": "kmnist"}}')
        found = checkpoints.find_checkpoint(model)
        assert found.path == Path("runs/mine/model.keras") and found.origin == "path"
        assert found.settings == {"dataset": "kmnist"}

    def test_a_folder_named_like_a_model_is_reached_by_its_path(self):
        self.put("cvae")
        assert checkpoints.find_checkpoint("./cvae").path == Path("cvae/model.keras")

    @pytest.mark.parametrize("model", ["no/such", "model.keras", "gan"])
    def test_what_is_not_there(self, model):
        with pytest.raises(CheckpointError, match="There is no checkpoint"):
            checkpoints.find_checkpoint(model)


class TestHistory:
    @pytest.mark.parametrize(
        "text",
        [
            "epoch,loss\n1,2\n", "loss\n1\n", "epoch,loss,seconds\n1,2\n", "epoch,loss,seconds\n1,2,3,4\n",
            "epoch,loss,seconds\ninf,1,1\n", "epoch,loss,seconds\nnan,1,1\n", "epoch,loss,seconds\n1e300,1,1\n",
            "epoch,loss,seconds\n1,1,1\n1,1,1\n", "epoch,loss,seconds\na,b,c\n", "epoch,loss,seconds\n-5,1,1\n",
        ],
        ids=range(10),
    )  # fmt: skip
    def test_what_is_no_history_is_refused(self, text, tmp_path):
        (tmp_path / "history.csv").write_text(text)
        with pytest.raises(CheckpointError, match=r"history.csv is damaged: \S+"):
            checkpoints.read_history(tmp_path)

    @pytest.mark.parametrize("loss", ["inf", "nan", "1e308", "-1e308"])
    def test_losses_may_be_anything(self, loss, tmp_path):
        (tmp_path / "history.csv").write_text(
            f"epoch,loss,val_loss,seconds\n1,{loss},1,1\n2,1,{loss},1\n"
        )
        assert [row["epoch"] for row in checkpoints.read_history(tmp_path)] == [1, 2]


class TestRunJson:
    @pytest.mark.parametrize(
        "edit",
        [
            {"data": [1]}, {"data": "mnist"}, {"environment": 7}, {"environment": {"versions": [1]}}, {"final": [1]},
            {"own": {"dataset": 5}}, {"own": {"model": None}}, {"finished": "yes"}, {"finished": [False]}, {"prior": 3}, {"settings": [1]}, {"earlier_environments": {}},
            {"settings": {"model": None}}, {"settings": {"hidden": "ab"}}, {"settings": {"hidden": [1, "2"]}},
            {"settings": {"kl_weight": "1"}}, {"settings": {"ema": []}}, {"settings": {"epochs": True}},
            {"settings": {"epochs": float("inf")}}, {"settings": {"dataset": 7}}, {"format": "1"}, {"format": [1]},
        ],
        ids=str,
    )  # fmt: skip
    def test_kinds_that_are_swapped_are_refused(self, edit, tmp_path):
        (tmp_path / "run.json").write_text(json.dumps(edit))
        with pytest.raises(CheckpointError, match="run.json is"):
            checkpoints.read_run(tmp_path)

    @pytest.mark.parametrize("settings", [{}, {"epochs": None}])
    def test_files_of_a_run_of_unknown_epochs(self, settings, tmp_path):
        """Of its pictures nothing tells whether the run wrote them."""
        checkpoints.write_run(tmp_path, {"finished": True, "settings": settings})
        (tmp_path / "epochs").mkdir()
        (tmp_path / "epochs" / "001.png").touch()
        assert checkpoints.files_of(tmp_path) == [tmp_path / "run.json"]
        assert checkpoints.strangers(tmp_path, 1) == [tmp_path / "epochs" / "001.png"]

    @pytest.mark.parametrize("field", ["model", "backbone", "reconstruction"])
    def test_a_name_of_a_module_that_is_not_imported(self, field, tmp_path):
        (tmp_path / "run.json").write_text(json.dumps({"settings": {field: "mine"}}))
        message = f"names the {field} 'mine', which is not known here: import the module"
        with pytest.raises(CheckpointError, match=message):
            checkpoints.read_run(tmp_path)

    def test_round_trip(self, tmp_path):
        checkpoints.write_run(tmp_path, {"finished": True, "settings": {"model": "ae"}})
        run = checkpoints.read_run(tmp_path)
        assert run == {
            "format": checkpoints.FORMAT,
            "finished": True,
            "settings": {"model": "ae"},
        }

    def test_none_is_empty(self, tmp_path):
        assert checkpoints.read_run(tmp_path) == {}

    def test_a_newer_format_is_refused(self, tmp_path):
        (tmp_path / "run.json").write_text(json.dumps({"format": checkpoints.FORMAT + 1}))
        with pytest.raises(CheckpointError, match="format 2, .* up to 1: upgrade keras-ae"):
            checkpoints.read_run(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "one"}'])
    def test_a_damaged_one_is_refused(self, text, tmp_path):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointError):
            checkpoints.read_run(tmp_path)


class TestBackup:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Adam(1e-2),
            lambda: Adam(keras.optimizers.schedules.CosineDecay(1e-2, 10)),
            lambda: Adam(1e-2, use_ema=True, ema_overwrite_frequency=2),
            lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
        ],
        ids=["adam", "schedule", "ema", "momentum"],
    )
    def test_round_trip_of_weights_optimizer_and_progress(self, make, tmp_path):
        x = np.arange(256, dtype="uint8").reshape(4, 8, 8, 1)

        def trained(epochs):
            model = VAE((8, 8, 1), 2, "mlp", (8,))
            model.compile(make())
            model.fit(x, epochs=epochs, verbose=0)
            return model

        one, other = trained(3), trained(1)
        metrics = [np.float32(0.1 * i) for i in range(len(one.metrics_variables))]
        row = {"epoch": 1, "loss": 3.5, "val_loss": 2.5, "seconds": 0.5}
        progress = Progress([row], 1, 7, 1.5, metrics)
        checkpoints.write_backup(tmp_path, one, progress)
        assert checkpoints.read_backup(tmp_path, other) == progress
        ours = [*one.weights, *one.optimizer.variables]
        theirs = [*other.weights, *other.optimizer.variables]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)), err_msg=a.path)

    def test_none_is_a_run_at_its_start(self, vae, tmp_path):
        assert checkpoints.read_backup(tmp_path, vae) == Progress([])

    def test_one_of_another_model_is_refused(self, vae, tmp_path):
        vae.compile(Adam())
        vae.optimizer.build(vae.trainable_variables)
        checkpoints.write_backup(tmp_path, vae, Progress([], 1))
        other = VAE((8, 8, 1), 3, "mlp", (8,))
        other.compile(Adam())
        with pytest.raises(CheckpointError, match="damaged or of another model"):
            checkpoints.read_backup(tmp_path, other)

    def test_one_of_an_earlier_version_is_called_so(self, vae, tmp_path):
        vae.compile(Adam())
        vae.optimizer.build(vae.trainable_variables)
        checkpoints.write_backup(tmp_path, vae, Progress([]))
        path = tmp_path / "backup" / "state.npz"
        with np.load(path) as state:
            arrays = dict(state)
        np.savez(path, **{k: v for k, v in arrays.items() if not k.startswith("seeds/")})
        with pytest.raises(
            CheckpointError, match="written by an earlier version .*: finish the run"
        ):
            checkpoints.read_backup(tmp_path, vae)

    def test_one_whose_array_claims_to_be_huge_is_refused(self, vae, tmp_path):
        vae.compile(Adam())
        vae.optimizer.build(vae.trainable_variables)
        checkpoints.write_backup(tmp_path, vae, Progress([]))
        path = tmp_path / "backup" / "state.npz"
        content = path.read_bytes()
        honest, huge = b"(8,), }" + b" " * 12, b"(8" + b"0" * 12 + b",), }"
        assert len(honest) == len(huge) and honest in content
        path.write_bytes(content.replace(honest, huge))
        with pytest.raises(CheckpointError, match="damaged or of another model"):
            checkpoints.read_backup(tmp_path, vae)

    def test_one_of_another_optimizer_is_refused(self, vae, tmp_path):
        """Keras would warn, and go on with an optimizer at its start."""
        vae.compile(Adam())
        vae.optimizer.build(vae.trainable_variables)
        checkpoints.write_backup(tmp_path, vae, Progress([]))
        vae.compile(keras.optimizers.SGD(momentum=0.9))
        with pytest.raises(CheckpointError, match="damaged or of another model"):
            checkpoints.read_backup(tmp_path, vae)

    def test_one_that_is_cut_is_refused(self, vae, tmp_path):
        vae.compile(Adam())
        vae.optimizer.build(vae.trainable_variables)
        checkpoints.write_backup(tmp_path, vae, Progress([], 1))
        path = tmp_path / "backup" / "state.npz"
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.read_backup(tmp_path, vae)
