"""The commands that look at a model, run in this process on real MNIST."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from kae import console, score
from kae.main import cli
from PIL import Image

import keras_ae
from keras_ae import checkpoints, files, inference, sweeping
from keras_ae.data import ImageData
from keras_ae.errors import UserError
from keras_ae.settings import Settings

TITLE = 22  # pixels of the line with the name of a class
SMALL = ["--backbone", "mlp", "--hidden", "16,8", "--latent-dim", "3", "--limit", "60", "--batch-size", "16"]  # fmt: skip


@pytest.fixture(scope="module")
def kae(mnist_dir, shared_tmp, tmp_path_factory):
    """A function that runs `kae` in a folder of these tests, where ae, vae and cvae are trained."""
    folder = tmp_path_factory.mktemp("looking")
    before = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAE_DATA_DIR", str(mnist_dir))
        patch.setenv("KAE_CACHE", str(shared_tmp / "cache"))
        patch.chdir(folder)

        def run(*arguments):
            done = CliRunner().invoke(cli, list(map(str, arguments)), prog_name="kae")
            if done.exception and not isinstance(done.exception, SystemExit):
                raise done.exception
            return done

        run.folder = folder
        for name in ("ae", "vae", "cvae"):
            assert run("fit", name, *SMALL, "--epochs", 2, "-q").exit_code == 0
        yield run
    assert os.getcwd() == before


def refused(done, code, *words):
    """Exit code, nothing on stdout, and one line `Error: …` with all the words."""
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    for word in words:
        assert word in line, line


@pytest.fixture(scope="module")
def photo(kae, digits):
    """A test digit as a user has it: dark ink on white paper, in colour, large."""
    image = Image.fromarray(255 - digits[0][3, ..., 0]).convert("RGB").resize((280, 280))
    image.save(kae.folder / "photo.jpg", quality=95)
    return "photo.jpg"


def size(kae, done):
    assert done.exit_code == 0, done.output
    return Image.open(kae.folder / done.stdout.strip()).size


def test_interpolate_test_images(kae):
    done = kae("interpolate", "vae", 0, "test:1", 2, "--steps", 4)
    assert done.stdout == "samples/vae-interpolation.png\n"
    assert size(kae, done) == (2 * (6 * 29 + 1), 2 * (2 * 29 + 1))


def test_interpolate_classes(kae):
    """The ends are what `sample` draws of these classes."""
    done = kae("interpolate", "cvae", 3, 8, 5, "-n", 2, "--steps", 5)
    width, height = 2 * (5 * 29 + 1), 2 * (2 * 29 + 1) + TITLE
    assert size(kae, done) == (width, 2 * height)  # "3 to 8", "8 to 5"
    done = kae("interpolate", "cvae", 3, 8, "-n", 2, "--steps", 5, "--out", "path.npy")
    assert done.exit_code == 0, done.output
    images = np.load(kae.folder / "path.npy").reshape(2, 5, 28, 28, 1)
    for label, end in ((3, 0), (8, -1)):
        kae("sample", "cvae", label, "-n", 2, "--out", f"end{label}.npy")
        drawn = np.load(kae.folder / f"end{label}.npy").astype(int)
        assert np.abs(images[:, end] - drawn).max() <= 1


def test_interpolate_from_a_file(kae, photo):
    done = kae("interpolate", "cvae", photo, "test:4", "--label", 0, "--invert", "--out", "p.png")
    assert size(kae, done)[0] == 2 * (12 * 29 + 1)


def test_interpolate_wrongly(kae, photo):
    refused(kae("interpolate", "vae", 0), 2, "two ends")
    refused(kae("interpolate", "vae", 0, 60_000), 2, "0 to 9999", "60000")
    refused(kae("interpolate", "vae", 0, "none.png"), 1, "none.png", "no such file")
    refused(kae("interpolate", "cvae", photo, 3), 2, "--label")
    refused(kae("interpolate", "cvae", "tree", 3), 2, "'tree' is no class (0, 1, 2", "no file")
    refused(kae("interpolate", "vae", 0, 1, "--label", 3), 2, "--label")


def test_manifold(kae):
    side = 2 * (3 * 29 + 1)
    assert size(kae, kae("manifold", "ae", "-n", 3)) == (side, side)
    assert size(kae, kae("manifold", "vae", "-n", 3)) == (side, side)
    done = kae("manifold", "cvae", 5, "-n", 3)
    assert done.stdout == "samples/cvae-5-manifold.png\n"
    assert size(kae, done) == (side, side + TITLE)
    assert size(kae, kae("manifold", "cvae", "-n", 3))[1] == 2 * (10 * 29 + 1)
    refused(kae("manifold", "vae", 5), 2, "no classes")


def test_numbers_that_are_none(kae):
    endless = "9" * 5000
    refused(kae("interpolate", "vae", 0, endless), 2, "0 to 9999")
    refused(kae("interpolate", "cvae", 0, f"test:{endless}"), 2, "0 to 9999")
    refused(kae("sample", "cvae", endless, "--out", "a.png"), 2, "0 to 9")
    refused(kae("score", "vae", "--odd", endless), 2, "0, 1, 2")
    refused(kae("animate", "vae", "--seconds", "nan"), 2, "nan")
    refused(kae("evaluate", "vae", "--classifier-minutes", "nan"), 2, "nan")


def test_traverse(kae, photo):
    assert size(kae, kae("traverse", "vae", "-n", 2))[1] == 2 * (2 * 29 + 1)
    done = kae("traverse", "cvae", photo, "--label", 0, "--out", "moved.npy", "--steps", 4)
    assert np.load(kae.folder / done.stdout.strip()).shape == (12, 28, 28, 1)


def test_notes_about_the_dataset_are_told_once(kae):
    """Also where FROM is a test image."""
    shutil.copy(kae.folder / "checkpoints" / "vae" / "model.keras", kae.folder / "unnamed.keras")
    done = kae("traverse", "unnamed.keras", "test:1", "--out", "told.npy", "-n", 1)
    assert done.exit_code == 0 and done.stderr.count("no run says what") == 1


def test_encode(kae, photo, digits):
    kae("encode", "vae", "--limit", 5, "--out", "codes.npy")
    codes = np.load(kae.folder / "codes.npy")
    assert codes.shape == (5, 3) and codes.dtype == np.float32
    head, *rows = kae("encode", "vae", "--limit", 5).stdout.splitlines()
    assert head == "image,class,z0,z1,z2" and len(rows) == 5
    read = np.array([row.split(",")[2:] for row in rows], "float32")
    np.testing.assert_array_equal(read, codes)  # csv has every digit of a float32
    done = kae("encode", "vae", photo, "--invert", "--out", "photo.csv")
    _, row = (kae.folder / "photo.csv").read_text().splitlines()
    assert done.stdout == "photo.csv\n" and row.startswith("photo.jpg,")


@pytest.mark.parametrize("command", [["encode"], ["score", "--limit", 5]])
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_name_that_breaks_a_line_is_in_one_row(kae, photo, command, end, tmp_path):
    name, (command, *options) = tmp_path / f"my{end}photo.jpg", command
    shutil.copy(kae.folder / photo, name)
    table = tmp_path / "rows.csv"
    done = kae(command, "vae", name, photo, *options, "--out", table)
    assert done.exit_code == 0, done.output
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [str(name), photo]
    assert len({len(row) for row in rows}) == 1


def test_reconstruct_a_file(kae, photo):
    done = kae("reconstruct", "cvae", photo, photo, "--label", 0, "--label", 4)
    assert size(kae, done)[0] == 2 * (2 * 29 + 1)
    refused(kae("reconstruct", "cvae", photo), 2, "--label once")
    refused(kae("reconstruct", "cvae", photo, "--label", "ten"), 2, "0 to 9", "'ten'")


@pytest.mark.long
def test_scatter_animate_and_report(kae):
    assert size(kae, kae("scatter", "vae", "--limit", 50))[0] > 300
    done = kae("animate", "vae")
    assert Image.open(kae.folder / done.stdout.strip()).n_frames == 2
    done = kae("report", "vae", "--out", "vae.html")
    assert done.exit_code == 0, done.output
    assert (kae.folder / "vae.html").read_text().startswith("<!doctype html>")
    refused(kae("report", "vae", "--out", "vae.html"), 1, "vae.html exists")


def test_compare(kae):
    lines = kae("compare", "vae", "cvae", "--out", "curves.svg").stdout.splitlines()
    seconds = next(line.split()[1] for line in lines if line.startswith("seconds"))
    assert re.fullmatch(r"\d+\.\d", seconds)
    assert lines[0].split() == ["vae", "cvae"] and lines[1].split() == ["model", "vae", "cvae"]
    assert {line.split()[0] for line in lines[2:]} == {
        "epochs", "seconds", "loss", "val_loss", "val_reconstruction", "val_kl", "kl_weight",
        "elbo", "bits_per_dimension", "psnr",
    }  # fmt: skip
    runs = json.loads(kae("compare", "vae", "cvae", "--json").stdout)["runs"]
    final = json.loads((kae.folder / "checkpoints/vae/run.json").read_text())["final"]
    assert runs[0]["final"]["val_loss"] == pytest.approx(final["val_loss"])
    assert runs[1]["settings"]["model"] == "cvae"
    assert "<svg" in (kae.folder / "curves.svg").read_text()


def test_compare_of_unlike_losses(kae):
    """A figure that they have in common, and each name once, of a run that is unfinished as well."""
    for name in ("mse", "bce"):
        done = kae(
            "fit", "vae", *SMALL, "--epochs", 1, "-q", "--reconstruction", name, "--out", name
        )
        assert done.exit_code == 0
    record = json.loads((kae.folder / "bce/run.json").read_text())
    record["settings"]["epochs"] = 9
    (kae.folder / "bce/run.json").write_text(json.dumps(record))
    *lines, note = kae("compare", "vae", "mse", "bce").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert len(rows) == len(lines) - 1
    assert rows["epochs"] == ["2", "1", "1", "of", "9"]
    assert all(4 < float(value) < 20 for value in rows["psnr"])
    assert rows["bits_per_dimension"][2] == "-" != rows["bits_per_dimension"][1]
    assert "(l1, mse, bce)" in note and "psnr" in note


@pytest.mark.parametrize("option", [["--label", "3"], ["--crop"], ["--invert"]])
@pytest.mark.parametrize(
    "command",
    [["reconstruct", "cvae"], ["encode", "cvae"], ["score", "cvae"], ["traverse", "cvae"], ["interpolate", "vae", 0, 1]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_options_of_files_without_files(kae, command, option):
    refused(kae(*command, *option), 2, option[0], "files")


@pytest.mark.parametrize(
    "command",
    [["interpolate", "vae", "photo.jpg", "photo.jpg"], ["interpolate", "cvae", 3, 8], ["manifold", "vae"], ["manifold", "cvae"], ["manifold", "cvae", 3]],
    ids=lambda command: "-".join(map(str, command)),
)  # fmt: skip
def test_a_dataset_of_which_nothing_would_be_used(kae, photo, command):
    refused(kae(*command, "--dataset", "fashion_mnist"), 2, "--dataset is for", "leave it out")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["interpolate", "vae", 0, 1, "-n", 5], "-n is for rows between classes"),
        (["interpolate", "vae", 0, 1, "--seed", 5], "--seed draws codes of classes"),
        (["traverse", "cvae", "test:3", "--seed", 5], "--seed draws the code of a class"),
        (["manifold", "vae", "--data-dir", "."], "--data-dir is for an ae"),
        (["interpolate", "cvae", 3, 8, "--data-dir", "."], "--data-dir is for test images"),
        (["scatter", "vae", "--seed", 5], "pca draws nothing"),
        (["manifold", "ae", "--seed", 5], "an ae has none"),
        (["score", "ae", "--seed", 3], "an ae has none"),
        (["reconstruct", "vae", ".", "--data-dir", "."], "--data-dir is for test images"),
        (["encode", "vae", ".", "--limit", 3], "--limit is for test images"),
        (["encode", "vae", ".", "--data-dir", "."], "--data-dir is for test images"),
        (["evaluate", "vae", "--no-classifier", "--classifier-minutes", 10], "leave --classifier-minutes out"),
        (["encode", "vae", "--force"], "name it with --out"),
        (["compare", "vae", "ae", "--force"], "name it with --out"),
        (["fit", "vae", "--kl-schedule", "constant", "--kl-warmup", 0.3], "this one is constant: leave"),
        (["fit", "vae", "--from", "vae", "--kl-warmup", 0.3], "this one is constant after --from"),
        (["sweep", "vae", "--kl-weight", 1, "--kl-schedule", "constant", "--kl-warmup", 0.3], "this one is constant: leave"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)  # fmt: skip
def test_options_without_effect(kae, command, words):
    refused(kae(*command), 2, words)


@pytest.mark.parametrize(
    ("names", "label", "found"),
    [
        ("012", "2", 2),
        ("012", "02", 2),
        ("012", "3", None),
        ("123", "1", 0),
        ("123", "0", None),
        ("Ab2", "0", 0),
        ("Ab2", "2", 2),
        ("Ab2", "a", 0),
        ("Ab2", "c", None),
    ],
)
def test_a_class_is_found_by_name_or_number(names, label, found):
    assert console.find_class(tuple(names), label) == found


def test_classes_that_are_called_by_other_numbers():
    names = tuple("123")
    model = keras_ae.CVAE((8, 8, 1), 2, "mlp", (4,), num_classes=3, class_names=names)
    images = ImageData("toy", "", "test", np.zeros((1, 8, 8, 1), "uint8"), np.zeros(1, int), names)
    for find in (
        lambda: console.class_index(model, "0"),
        lambda: score._classes(images, ["1", "0"]),
    ):
        with pytest.raises(click.UsageError, match=r"1, 2, 3.*got '0'"):
            find()
    assert score._classes(images, ["1", "3"]) == [0, 2]


@pytest.mark.parametrize("value", ["abc", "nan", "-1"])
@pytest.mark.parametrize(
    "command",
    [["sample", "vae", "-n", 1], ["scatter", "vae", "--limit", 9], ["animate", "vae"], ["fit", "ae", "--force"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_memory_that_is_no_number(kae, monkeypatch, command, value):
    """It is refused however little is needed, before anything else is said."""
    monkeypatch.setenv("KAE_MEMORY", value)
    done = kae(*command)
    refused(done, 1, f"KAE_MEMORY is a number of GiB, such as 4; got '{value}'")
    assert "reading" not in done.stderr


@pytest.mark.parametrize(
    ("command", "images"),
    [
        (["manifold", "ae", "-n", 20_000], "400,000,000"),
        (["manifold", "vae", "-n", 20_000], "400,000,000"),
        (["manifold", "cvae", 3, "-n", 20_000], "400,000,000"),
        (["manifold", "cvae", "-n", 10**8], "1,000,000,000"),
        (["sample", "vae", "-n", 10**9], "1,000,000,000"),
        (["sample", "cvae", "-n", 10**9], "1,000,000,000"),
        (["sample", "cvae", 3, "-n", 10**9, "--out", "much.npy"], "1,000,000,000"),
        (["traverse", "vae", "--steps", 10**8], "300,000,000"),
        (["interpolate", "vae", 0, 1, "--steps", 10**9], "1,000,000,000"),
        (["interpolate", "cvae", 3, 8, 5, "-n", 10**8], "2,000,000,000"),
    ],
    ids=str,
)
def test_more_images_than_memory_holds(kae, monkeypatch, command, images):
    """They are refused before any is made."""
    from keras_ae import VAE, latents

    monkeypatch.setattr(VAE, "decode", None)
    for name in ("plane", "path", "traversals"):
        monkeypatch.setattr(latents, name, None)
    before = set(kae.folder.rglob("*"))
    refused(kae(*command), 1, f"{images} images would be about", "KAE_MEMORY=")
    assert set(kae.folder.rglob("*")) == before


def test_images_alone_take_less_than_a_picture(kae, monkeypatch):
    monkeypatch.setattr(inference, "LEAST", 1)
    monkeypatch.setenv("KAE_MEMORY", str(400_000 / 2**30))
    refused(kae("sample", "vae", "-n", 64), 1, "64 images would be about")
    assert kae("sample", "vae", "-n", 64, "--out", "alone.npy").exit_code == 0


def test_a_picture_of_scores_is_not_replaced(kae):
    picture = kae.folder / "samples" / "ae-odd.png"
    for _ in range(2):
        assert kae("score", "ae", "--limit", 5).exit_code == 0
        picture.write_text("mine") if picture.read_bytes() != b"mine" else None
    assert picture.read_bytes() == b"mine"
    assert (kae.folder / "samples" / "ae-odd-2.png").is_file()
    assert kae("score", "ae", "--limit", 5, "--force").exit_code == 0
    assert Image.open(picture).format == "PNG"


@pytest.mark.parametrize("name", ["ae", "vae", "cvae"])
def test_score_test_images(kae, name):
    done = kae("score", name, "--limit", 30, "--out", f"{name}.csv")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((kae.folder / f"{name}.csv").open()))
    by = "negative_elbo" if name != "ae" else "reconstruction_error"
    assert len(rows) == 30 and ("negative_log_prior" in rows[0]) == (name != "ae")
    values = [float(row[by]) for row in rows]
    for row, value in zip(rows, values):
        share = 100 * np.mean([other < value for other in values])
        assert float(row[f"{by}_percentile"]) == pytest.approx(share)
    assert Image.open(kae.folder / f"{name}-odd.png").size[0] > 28
    refused(kae("score", name, "--out", f"{name}.csv"), 1, f"{name}.csv exists")


def test_a_file_that_is_scored_is_not_replaced(kae, photo):
    before = (kae.folder / photo).read_bytes()
    for name, code in (("scored.png", 0), ("scored-odd.png", 2)):
        (kae.folder / name).write_bytes(before)
        done = kae("score", "vae", name, "--limit", 5, "--out", "scored.csv", "--force")
        assert done.exit_code == code, done.output
        assert (kae.folder / name).read_bytes() == before


def test_score_a_class_and_a_file(kae, photo):
    result = json.loads(kae("score", "vae", "--odd", "3", "--limit", 60, "--json").stdout)
    odd = [row["negative_elbo"] for row in result["images"] if row["odd"]]
    usual = [row["negative_elbo"] for row in result["images"] if not row["odd"]]
    assert {row["class"] for row in result["images"] if row["odd"]} == {"3"}
    pairs = np.mean([a > b for a in odd for b in usual])
    assert result["auroc"]["negative_elbo"] == pytest.approx(pairs)
    assert result["reference_n"] == len(usual) and len(result["highest"]) == 20
    for name in ("vae", "cvae"):
        result = json.loads(kae("score", name, photo, "--limit", 30, "--json").stdout)
        (row,) = result["images"]
        assert row["image"] == photo and result["auroc"] is None
        assert 0 <= row["negative_elbo_percentile"] <= 100 and row["reconstruction_error"] > 0
    refused(kae("score", "vae", "--odd", "fish"), 2, "fish", "0, 1, 2")
    refused(kae("score", "vae", photo, "--odd", "3"), 2, "files, or")


def test_sweep(kae):
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--kl-weight"]
    done = kae(*command, "0.1,1", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    runs = result["runs"]
    assert [run["trained"] for run in runs] == [True, True]
    assert all(run["rate"] > 0 and run["distortion"] > 0 and run["psnr"] > 4 for run in runs)
    assert Image.open(kae.folder / result["plot"]).format == "PNG"
    folder = kae.folder / "checkpoints/sweep-vae"
    records = [json.loads((folder / f"kl_weight-{w}/run.json").read_text()) for w in ("0.1", "1")]
    assert [record["settings"]["kl_weight"] for record in records] == [0.1, 1.0]
    assert runs[0]["rate"] == records[0]["final"]["val_kl"]

    # A run that is there is not run again; one more is.
    before = (folder / "kl_weight-1/model.keras").stat().st_mtime_ns
    *lines, note = kae(*command, "0.1,0.5,1").stdout.splitlines()
    assert (folder / "kl_weight-1/model.keras").stat().st_mtime_ns == before
    assert (folder / "kl_weight-0.5/model.keras").is_file()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["kl_weight"] == ["0.1", "0.5", "1.0"] and len(rows["bits_per_dimension"]) == 3
    assert "KL in nats" in note
    refused(kae(*command, "1", "--epochs", 2), 1, "other epochs", "--force")
    # What nobody gives follows from the images, and is the same again.
    open_ones = ["sweep", "vae", "--backbone", "mlp", "--hidden", "8", "--limit", 20, "-q"]
    for trained in (True, False):
        done = kae(*open_ones, "--kl-weight", "1", "--out", "open", "--json")
        assert done.exit_code == 0, done.output
        (run,) = json.loads(done.stdout)["runs"]
        assert run["trained"] == trained
    kae(*open_ones, "--kl-weight", "0.5", "--latent-dim", 2, "--out", "open")
    mixed = kae(*open_ones, "--kl-weight", "0.5,1", "--out", "open")
    refused(mixed, 1, "kl_weight-0.5 holds a run with other latent_dim", "was begun with")
    # One that was killed before its first step is begun anew.
    died = kae.folder / "open" / "kl_weight-0.5"
    record = checkpoints.read_run(died)
    shutil.rmtree(died)
    died.mkdir()
    checkpoints.write_run(died, {"settings": record["settings"], "finished": False})
    assert kae(*open_ones, "--kl-weight", "0.5,1", "--out", "open").exit_code == 0
    assert checkpoints.read_run(died)["settings"]["latent_dim"] == 16
    refused(kae("sweep", "ae", "--kl-weight", "0.5"), 2, "no KL divergence")
    refused(kae("sweep", "vae", "--kl-weight", "1,1"), 2, "different")
    refused(kae("sweep", "vae", "--kl-weight", "1,x"), 2, "0.02,0.1,0.5")


def test_a_sweep_replaces_no_picture_of_another(kae):
    mine = kae.folder / "pictures" / "rate-distortion.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--kl-weight", "1", "--out", "pictures"]
    for i in (2, 3):
        plot = json.loads(kae(*command, "--json").stdout)["plot"]
        assert plot == f"pictures/rate-distortion-{i}.png" and mine.read_text() == "mine"
    mine.unlink()
    for _ in range(2):  # its own plot is drawn again
        plot = json.loads(kae(*command, "--json").stdout)["plot"]
        assert plot == "pictures/rate-distortion.png"


def test_a_sweep_puts_no_runs_of_two_datasets_side_by_side(kae):
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--out", "two", "--kl-weight", "1"]
    assert kae(*command).exit_code == 0
    run = kae.folder / "two" / "kl_weight-1" / "run.json"
    record = json.loads(run.read_text())
    record["settings"]["dataset"] = "another"
    run.write_text(json.dumps(record))
    refused(kae(*command), 1, "a run with other dataset", "--force")


def test_a_sweep_puts_no_runs_on_other_images_of_one_name_side_by_side(kae):
    """As after another import of that name."""
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--out", "other", "--kl-weight", "1"]
    assert kae(*command).exit_code == 0
    run = kae.folder / "other" / "kl_weight-1"
    record = checkpoints.read_run(run)
    checkpoints.write_run(run, {**record, "data": {**record["data"], "crc32": "00000000"}})
    refused(kae(*command), 1, "a run on other images", "--force")
    checkpoints.write_run(run, {**record, "data": {**record["data"], "version": "0.0.9"}})
    assert kae(*command).exit_code == 0  # the same images, imported again
    with pytest.raises(ValueError, match="KL weights that are numbers"):
        sweeping.sweep(keras_ae.Settings("vae"), ["auto"], kae.folder / "other")


def test_a_sweep_whose_images_are_replaced_amid_it_is_no_sweep(kae, monkeypatch):
    fit, calls = sweeping.fit, []

    def fit_on_others(settings, place, *arguments, **more):
        fit(settings, place, *arguments, **more)
        calls.append(place)
        if len(calls) == 2:
            record = checkpoints.read_run(place)
            data = {**record["data"], "crc32": "00000000", "version": "1.0.1"}
            checkpoints.write_run(place, {**record, "data": data})

    monkeypatch.setattr(sweeping, "fit", fit_on_others)
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--out", "amid", "--kl-weight"]
    done = kae(*command, "1,2,3")
    refused(done, 1, "kl_weight-2 is of other images (version 1.0.1", "than the runs before it")
    assert len(calls) == 2


def test_a_run_of_a_model_of_ones_own_is_not_repeated_by_its_settings(kae):
    record = checkpoints.read_run(kae.folder / "checkpoints" / "vae")
    checkpoints.write_run(kae.folder, {**record, "own": {"model": "Mine"}})
    again = ["vae", "-q", "--out", "again", "--config", "run.json"]
    refused(kae("fit", *again), 2, "has parts of its maker's own (model): name the model")
    refused(kae("sweep", *again, "--kl-weight", "1"), 2, "has parts of its maker's own (model), wh")


def test_the_prior_of_an_unfinished_run_is_that_of_its_start(kae):
    run = kae.folder / "unfinished"
    shutil.copytree(kae.folder / "checkpoints" / "vae", run)
    begun = {"finished": False, "from": {"name": "vae"}}
    checkpoints.write_run(run, {**checkpoints.read_run(run), **begun})
    assert (
        "its prior may be that of the model it started from" in kae("sample", run, "-n", 4).stderr
    )


def test_a_sweep_by_the_folder_of_a_dataset_of_another_name(kae, tmp_path, mnist_dir):
    shutil.copytree(next((mnist_dir / "mnist").glob("[0-9]*")), tmp_path / "digits")
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--out", "renamed", "--kl-weight", "1"]
    for _ in range(2):
        done = kae(*command, "--dataset", tmp_path / "digits")
        assert done.exit_code == 0, done.output


def test_a_run_that_is_none_is_not_compared(kae, photo):
    refused(kae("compare", "vae", photo), 2, f"{photo} is no run folder and no .keras file")
    shutil.copy(kae.folder / "checkpoints" / "vae" / "model.keras", kae.folder / "mine.keras")
    done = kae("compare", "mine.keras", "vae")
    assert done.exit_code == 0 and "unlike terms" not in done.stdout
    refused(kae("compare", "mine.keras", "--out", "none.png"), 1, "There is no history of epochs")


def test_a_run_that_started_from_another_is_repeated_from_there(kae):
    command = ["--epochs", 1, "--limit", 60, "-q"]
    assert kae("fit", "vae", "--from", "vae", *command, "--out", "more").exit_code == 0
    again = ["fit", "--config", "more/run.json", "vae", "-q", "--out", "again"]
    refused(kae(*again), 2, "started from the weights of another one: name the model")
    assert kae(*again, "--from", "vae").exit_code == 0


def test_a_run_of_the_first_version_to_start_from(kae, tmp_path):
    released = keras_ae.settings.released("ae")
    settings = json.loads((released / "run.json").read_text())["settings"]
    assert settings["kl_weight"] and "size" not in settings
    done = kae(
        "fit", "ae", "--from", released, "--epochs", 1, "--limit", 60, "-q", "--out", tmp_path / "a"
    )
    assert done.exit_code == 0, done.output
    shown = ["--epochs", 1, "--limit", 60, "-q", "--out", tmp_path / "b"]
    done = kae("fit", "--config", released / "run.json", "ae", *shown)
    assert done.exit_code == 0, done.output
    (tmp_path / "ae.toml").write_text('model = "ae"\nkl_weight = 0.5\n')
    refused(kae("fit", "--config", tmp_path / "ae.toml"), 2, "kl_weight is for a vae or a cvae")


def test_images_between_classes_alone_have_several_rows(kae):
    done = kae("interpolate", "cvae", 3, "test:1", "test:2", "--steps", 4, "--out", "rows.npy")
    assert done.exit_code == 0, done.output
    assert len(np.load(kae.folder / "rows.npy")) == 4 * (5 + 1)


def test_a_report_says_what_the_model_was_trained_on(kae, mnist_dir, tmp_path):
    shutil.copytree(next((mnist_dir / "mnist").glob("[0-9]*")), tmp_path / "digits")
    info = tmp_path / "digits" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "name": "digits"}))
    for shard in (tmp_path / "digits").glob("mnist-*"):
        shard.rename(shard.with_name(shard.name.replace("mnist", "digits")))
    done = kae("report", "vae", "--dataset", tmp_path / "digits", "--out", "other.html")
    assert done.exit_code == 0, done.output
    page = (kae.folder / "other.html").read_text()
    assert "Of test images of digits" in page and re.search(r"dataset</t[hd]>\s*<td>mnist<", page)


def test_a_sweep_that_was_stopped_says_how_to_go_on(kae, monkeypatch):
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "--out", "stopped", "--kl-weight", "1,2"]

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    assert kae(*command).exit_code == 0
    monkeypatch.setattr(sweeping, "sweep", stopped)
    refused(kae(*command, "--force"), 1, "Stopped before the run began")
    replaced = json.loads((kae.folder / "stopped" / "kl_weight-1" / "run.json").read_text())
    replaced["settings"]["seed"] = 1

    def stopped_later(*arguments, **options):
        checkpoints.write_run(kae.folder / "stopped" / "kl_weight-1", replaced)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "sweep", stopped_later)
    refused(kae(*command, "--force"), 1, "without --force, once you moved kl_weight-2 away")
    (kae.folder / "started.json").write_text(json.dumps({**replaced, "from": {"name": "vae"}}))
    refused(kae(*command, "--config", "started.json"), 2, "which a sweep does not")
    # A damaged run is replaced, too, and one of another weight is no run of this sweep.
    monkeypatch.undo()
    for weight in ("1", "9"):
        (kae.folder / "stopped" / f"kl_weight-{weight}").mkdir(exist_ok=True)
        (kae.folder / "stopped" / f"kl_weight-{weight}" / "run.json").write_text("{")
    assert kae(*command, "--force").exit_code == 0


def test_no_picture_is_written_over_what_it_is_made_of(kae):
    Image.new("L", (28, 28)).save(kae.folder / "photo.png")
    before = (kae.folder / "photo.png").read_bytes()
    done = kae("reconstruct", "vae", "photo.png", "--out", "photo.png", "--force")
    refused(done, 2, "photo.png is one of the files to read")
    (kae.folder / "pics").mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(kae.folder / "photo.png", kae.folder / "pics" / name)
    done = kae("reconstruct", "vae", "pics", "-n", 1, "--out", "pics/2.png", "--force")
    refused(done, 2, "pics/2.png is one of the files to read")
    done = kae("interpolate", "vae", "photo.png", "0", "--out", "photo.png", "--force")
    refused(done, 2, "photo.png is one of the files to read")
    done = kae("traverse", "vae", "photo.png", "--out", "photo.png", "--force")
    refused(done, 2, "photo.png is one of the files to read")
    assert (kae.folder / "photo.png").read_bytes() == before


def test_reconstructions_of_more_images_than_memory_holds(kae, monkeypatch):
    network = keras_ae.load_model(kae.folder / "checkpoints" / "vae" / "model.keras")
    monkeypatch.setenv("KAE_MEMORY", "1")

    class Many:
        """Black images that take no memory."""

        shape, dtype = (400_000, 28, 28, 1), np.dtype("uint8")

        def __len__(self):
            return self.shape[0]

        def __getitem__(self, rows):
            return np.zeros((len(range(*rows.indices(len(self)))), *self.shape[1:]), "uint8")

    with pytest.raises(UserError, match="400,000 outputs would be about 1.2 GiB"):
        network.reconstruct(Many())


def test_scores_among_images_that_the_run_does_not_find(kae, tmp_path, mnist_dir):
    run = kae.folder / "elsewhere"
    shutil.copytree(kae.folder / "checkpoints" / "vae", run)
    record = json.loads((run / "run.json").read_text())
    record["settings"]["dataset"] = "digits"
    (run / "run.json").write_text(json.dumps(record))
    refused(kae("score", "elsewhere", "--limit", 20), 2, "say --dataset digits")
    folder = next((mnist_dir / "mnist").glob("[0-9]*"))
    done = kae("score", "elsewhere", "--limit", 20, "--dataset", folder)
    assert done.exit_code == 0 and "scoring 20 images among 20 test images" in done.stderr
    assert f"are not here: those of {folder} are taken for usual" in done.stderr
    done = kae("score", "vae", "--limit", 20, "--dataset", folder)
    refused(done, 2, "is what the model was trained on: leave --dataset out")


def test_a_sweep_over_runs_that_say_odd_things(kae):
    place = kae.folder / "odd" / "kl_weight-0.5"
    place.mkdir(parents=True)
    command = ["sweep", "vae", *SMALL, "--epochs", 1, "-q", "--kl-weight", "0.5", "--out", "odd"]
    settings = Settings("vae", backbone="mlp", hidden=(16, 8), latent_dim=3, limit=60, batch_size=16, epochs=1, kl_weight=0.5)  # fmt: skip
    for run in ({}, {"settings": {}}, {"settings": {"seed": 1}}):
        checkpoints.write_run(place, {"finished": True, **run})
        refused(kae(*command), 1, "run.json is damaged", "lack the model")
    for final in (
        {},
        {"val_kl": "1"},
        {"val_kl": 1.0, "val_reconstruction": [2]},
        {"val_kl": 10**400},
    ):
        run = {"settings": settings.to_dict(), "finished": True, "final": final}
        checkpoints.write_run(place, run)
        refused(kae(*command), 1, "run.json is damaged", "is no number")


def test_one_seed_is_one_picture_on_every_backend(kae):
    command = ["manifold", "cvae", "5", "-n", "4", "--out"]
    assert kae(*command, "here.npy").exit_code == 0
    subprocess.run(
        [sys.executable, "-m", "kae", *command, "there.npy"],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        check=True,
    )
    here, there = (np.load(kae.folder / name).astype(int) for name in ("here.npy", "there.npy"))
    assert np.abs(here - there).max() <= 1


def test_a_default_name_that_is_taken_is_left_alone(kae):
    """A second call writes beside the first picture; --force replaces it."""
    command = ["sample", "cvae", "4", "-n", "4", "--seed"]
    assert kae(*command, 1).stdout == "samples/cvae-4.png\n"
    first = (kae.folder / "samples/cvae-4.png").read_bytes()
    assert kae(*command, 2).stdout == "samples/cvae-4-2.png\n"
    assert kae(*command, 3).stdout == "samples/cvae-4-3.png\n"
    assert (kae.folder / "samples/cvae-4.png").read_bytes() == first
    assert kae(*command, 2, "--force").stdout == "samples/cvae-4.png\n"
    second = (kae.folder / "samples/cvae-4-2.png").read_bytes()
    assert (kae.folder / "samples/cvae-4.png").read_bytes() == second != first


def test_what_another_command_writes_meanwhile_is_left_alone(kae, monkeypatch):
    monkeypatch.chdir(kae.folder)
    grid = keras_ae.pictures.grid

    def slow(*arguments):
        for name in ("samples/vae-manifold.png", "meanwhile.png"):
            (kae.folder / name).write_text("theirs")
        return grid(*arguments)

    monkeypatch.setattr(keras_ae.pictures, "grid", slow)
    done = kae("manifold", "vae", "-n", 2, "--out", "meanwhile.png")
    assert done.stdout == "meanwhile-2.png\n" and "wrote meanwhile-2.png" in done.stderr
    (kae.folder / "samples/vae-manifold.png").unlink()
    done = kae("manifold", "vae", "-n", 2)
    assert done.stdout == "samples/vae-manifold-2.png\n"
    assert (kae.folder / "samples/vae-manifold.png").read_text() == "theirs"
    assert Image.open(kae.folder / "samples/vae-manifold-2.png").format == "PNG"


def test_what_a_killed_command_left_is_swept(kae):
    half = kae.folder / "killed" / f"{files.UNFINISHED}a-0123456789abcdef.csv"
    half.parent.mkdir()
    half.write_text("half")
    assert kae("encode", "vae", "--limit", 5, "--out", "killed/a.csv").exit_code == 0
    assert [path.name for path in half.parent.iterdir()] == ["a.csv"]


def test_which_weights_are_used_is_said_where_there_are_two(kae):
    err = kae("sample", "vae", "-n", "1").stderr
    assert "using checkpoints/vae/model.keras (trained here; the released weights are " in err
    released = err.partition("weights are ")[2].partition(")")[0]
    assert kae("info", released, "--json").exit_code == 0


def test_an_unfinished_run_draws_from_the_standard_normal_and_says_so(kae):
    network = keras_ae.load_model(kae.folder / "checkpoints/vae")
    assert "N(0, I)" not in kae("sample", "vae", "-n", "1").stderr
    network.set_prior(keras_ae.StandardNormal(3))
    (kae.folder / "cut").mkdir()
    keras_ae.checkpoints.save_model(network, kae.folder / "cut/model.keras")
    keras_ae.checkpoints.write_run(kae.folder / "cut", {"finished": False})
    for command in (
        ["sample", "cut", "-n", "1"],
        ["manifold", "cut", "-n", "2"],
        ["export", "cut", "--format", "torch", "--part", "sampler"],
    ):
        err = kae(*command).stderr
        assert "the run is not finished; latents are drawn from N(0, I)" in err


@pytest.mark.parametrize(
    ("command", "module", "package"),
    [
        (["report", "vae"], "matplotlib", "matplotlib"),
        (["report", "vae"], "sklearn", "scikit-learn"),
        (["scatter", "vae"], "matplotlib", "matplotlib"),
        (["scatter", "vae", "--method", "tsne"], "sklearn", "scikit-learn"),
        (["scatter", "vae", "--method", "umap"], "umap", "umap-learn"),
        (["evaluate", "vae"], "sklearn", "scikit-learn"),
    ],
)
def test_what_is_missing_is_said_before_the_work(kae, monkeypatch, command, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    done = kae(*command)
    refused(done, 1, f"needs {module}: pip install {package}")
    assert "using" not in done.stderr, "nothing is loaded before"


def test_a_module_that_ends_the_program_is_no_module(kae, tmp_path, monkeypatch):
    (tmp_path / "ends_here.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    refused(
        kae("--import", "ends_here", "info", "vae"), 2, "ends_here cannot be imported (SystemExit"
    )
