"""Pictures of a user's own: from a folder to a model, and files again, by the commands as they are printed."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from kae.main import cli
from PIL import Image, ImageDraw

from keras_ae import checkpoints, data, evaluation
from keras_ae.errors import UserError
from keras_ae.settings import Settings

SMALL = ["--backbone", "mlp", "--hidden", "16,8", "--latent-dim", "3", "--batch-size", "16", "--epochs", "2", "-q"]  # fmt: skip


def draw(folder, n=30, classes=("disc", "bar"), side=24):
    """Coloured shapes on transparent ground, of several proportions, in a folder for each class or in one."""
    random = np.random.default_rng(0)
    for i in range(n):
        kind = classes[i % len(classes)]
        size = side, side + 8 * (i % 3)
        picture = Image.new("RGBA", size)
        box = [*random.integers(0, side // 3, 2), *random.integers(side // 2, side, 2)]
        shape = ImageDraw.Draw(picture)
        shape = shape.ellipse if kind == "disc" else shape.rectangle
        shape([int(v) for v in box], fill=tuple(int(v) for v in random.integers(60, 256, 3)))
        path = folder / kind / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


class Kae:
    """Runs `kae` in this process, in a folder of these tests."""

    def __init__(self, folder):
        self.folder, self.said = folder, ""

    def __call__(self, *arguments, code=0):
        done = CliRunner().invoke(cli, list(map(str, arguments)), prog_name="kae")
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        self.said = done.stderr
        return done.stdout

    def refused(self, *arguments, code=2):
        assert self(*arguments, code=code) == ""
        return self.said.strip().splitlines()[-1]

    def hinted(self):
        """The command that the last one ended by, as a shell takes it."""
        command = re.search("next: (.*)", self.said)[1]
        assert shlex.split(command)[0] == "kae"
        return shlex.split(command)[1:]


@pytest.fixture(scope="module")
def kae(tmp_path_factory):
    """`Kae` where pictures/ are imported as toys, and cvae-toys and ae-toys are trained by the hints."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAE_CACHE", str(folder / "cache"))
        patch.delenv("KAE_DATA_DIR", raising=False)
        patch.chdir(folder)
        run = Kae(folder)
        draw(folder / "pictures")
        how = ["--resize", "16x12", "--crop", "--background", "black", "--data-dir", "my data"]
        run("data", "import", "toys", "pictures", *how)
        hint = run.hinted()
        assert hint == ["fit", "cvae", "--dataset", "toys", "--data-dir", "my data"]
        run(*hint, *[word for word in SMALL if word != "-q"])
        run.next_of_cvae = run.hinted()
        run("fit", "ae", *hint[2:], *[word for word in SMALL if word != "-q"])
        run.next_of_ae = run.hinted()
        yield run


def test_hints_work_as_printed(kae):
    assert kae.next_of_cvae == ["sample", "cvae-toys"]
    assert kae(*kae.next_of_cvae) == "samples/cvae-toys.png\n"
    assert "using checkpoints/cvae-toys/model.keras (trained here)" in kae.said
    assert kae.next_of_ae == ["reconstruct", "ae-toys", "--data-dir", "my data"]
    assert kae(*kae.next_of_ae) == "samples/ae-toys-reconstructions.png\n"


def test_a_run_is_named_in_every_command(kae):
    where = ["--data-dir", "my data"]
    kae("info", "cvae-toys")
    assert "black" in kae("info", "cvae-toys", "--json")
    assert kae("compare", "cvae-toys", "ae-toys").split()[:2] == ["cvae-toys", "ae-toys"]
    assert kae("animate", "cvae-toys") == "samples/cvae-toys.gif\n"
    assert kae("interpolate", "cvae-toys", "disc", "bar") == "samples/cvae-toys-interpolation.png\n"
    for command in ("scatter", "report", "explore"):
        kae(command, "cvae-toys", *where)
    page = (kae.folder / "samples" / "cvae-toys-explore.html").read_text(encoding="utf-8")
    assert '"ground":"black"' in page  # that a picture is laid over there, too
    assert "--dataset toys" in kae.refused("reconstruct", "cvae-toys")
    assert kae("reconstruct", "cvae-toys", "--dataset", "my data/toys").startswith("samples/")
    assert "Did you mean cvae-toys?" in kae.refused("sample", "cvae-toy")


def test_a_report_measures_by_the_training_images_of_the_dataset_that_was_asked_for(
    kae, monkeypatch
):
    taken = []

    def evaluate(network, train, test, **more):
        taken.append((train, test))
        return {"n": len(test.images)}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    kae("report", "ae-toys", "--dataset", "my data/toys", "--evaluate")
    train, test = taken[0]
    assert (train.name, train.split, test.split) == ("toys", "train", "test")


@pytest.mark.parametrize("more", [0, 20], ids=["as many", "more"])
def test_another_dataset_of_that_name_and_version_is_told(kae, tmp_path, more, mnist_dir):
    draw(tmp_path / "others", 30 + more, side=32)
    how = ["--resize", "16x12", "--crop", "--background", "black", "--data-dir", tmp_path]
    kae("data", "import", "toys", tmp_path / "others", *how)
    note = "note: the images of toys 1.0.0 are not those that the model was trained on"
    limit = ["--limit", 3] if more else []
    for place, told in (("my data", False), (tmp_path, True)):
        kae("encode", "ae-toys", "--data-dir", place, *limit)
        assert (note in kae.said) == told
    ours = ["--data-dir", "my data"]
    kae("score", "ae-toys", *ours, "--dataset", tmp_path / "toys", *limit)
    again = kae.refused("score", "ae-toys", *ours, "--dataset", "./my data/toys", *limit)
    assert "is what the model was trained on" in again
    digits = next((mnist_dir / "mnist").glob("[0-9]*"))
    of_digits = kae.refused("score", "ae-toys", *ours, "--dataset", digits, *limit, code=1)
    assert "those of mnist are (28, 28, 1)" in of_digits and "scoring" not in of_digits


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("mnist", "vae"),
        ("mnist:3.0.1", "vae"),
        ("emoji", "vae-emoji"),
        ("emnist/balanced", "vae-emnist-balanced"),
        ("/data/emoji", "vae-emoji"),
        ("./sets/emoji/1.0.0", "vae-emoji"),
    ],
)
def test_the_folder_of_a_run_that_nobody_names(dataset, folder):
    found = checkpoints.default_folder(Settings("vae", dataset))
    assert str(found) == f"checkpoints/{folder}"


def codes_in(text):
    """{name of the file: code} of a csv."""
    head, *rows = csv.reader(text.splitlines())
    first = head.index("z0")
    return {row[0]: np.array(row[first:], "float32") for row in rows}


def test_files_are_prepared_as_the_images_were(kae):
    """A model file alone, without its run and its dataset, gives the pictures the codes of its dataset."""
    shutil.copy("checkpoints/ae-toys/model.keras", "alone.keras")
    found = codes_in(kae("encode", "alone.keras", "pictures"))
    model = checkpoints.load_model("alone.keras")
    train, test = data.load_splits("toys", "my data")
    expected = model.encode(np.concatenate([train.images, test.images]))
    ours = np.stack(list(found.values()))
    assert ours.shape == expected.shape == (30, 3)
    ours, expected = (codes[np.lexsort(codes.round(4).T)] for codes in (ours, expected))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    # The corner of a picture on the sheet is the ground that the import laid it on, not white.
    kae("reconstruct", "alone.keras", "pictures/disc/00.png", "--out", "disc.png")
    assert np.asarray(Image.open("disc.png").convert("RGB"))[4, 4].tolist() == [0, 0, 0]


def test_encode_a_folder(kae):
    (kae.folder / "pictures" / "notes.txt").write_text("none")
    text = kae("encode", "cvae-toys", "pictures")
    assert "left out, without the suffix of an image: 1 of the files" in kae.said
    head, *rows = csv.reader(text.splitlines())
    assert head == ["file", "class", "z0", "z1", "z2"]
    names = [row[0] for row in rows]
    assert names == sorted(names) and len(names) == 30
    assert names[0] == "pictures/bar/01.png" and names[-1] == "pictures/disc/28.png"
    assert all(f"/{row[1]}/" in row[0] for row in rows)  # the class is that of the folder
    kae("encode", "cvae-toys", "pictures", "--out", "codes.npy")
    read = np.array([row[2:] for row in rows], "float32")
    np.testing.assert_array_equal(np.load("codes.npy"), read)
    os.makedirs("empty", exist_ok=True)
    assert "empty has no images" in kae.refused("encode", "ae-toys", "empty", code=1)
    (kae.folder / "empty" / "a.png").write_bytes(b"none")
    assert "empty/a.png cannot be read" in kae.refused("encode", "ae-toys", "empty", code=1)
    assert "leave it out, or the files" in kae.refused(
        "encode", "ae-toys", "pictures", "--limit", 3
    )
    assert "--label once" in kae.refused("encode", "cvae-toys", "disc.png")


def test_batches_change_nothing(kae, monkeypatch):
    whole = kae("encode", "ae-toys", "pictures")
    monkeypatch.setattr("kae.encode.BATCH", 7)
    parts = kae("encode", "ae-toys", "pictures")
    ours, theirs = codes_in(whole), codes_in(parts)
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def test_rows_are_added_or_refused_and_never_lost(kae):
    """What xargs does with a long list: one command after another, with one --out."""
    files = [f"pictures/disc/{i:02d}.png" for i in range(0, 30, 2)]
    parts = [files[:5], files[5:10], files[10:]]
    kae("encode", "ae-toys", *parts[0], "--out", "codes.csv")
    answer = kae.refused("encode", "ae-toys", *parts[1], "--out", "codes.csv", code=1)
    assert answer == "Error: codes.csv exists; --append adds to it, --force replaces it."
    for part in parts[1:]:
        kae("encode", "ae-toys", *part, "--out", "codes.csv", "--append")
    assert f"added {len(parts[2])} rows to codes.csv" in kae.said
    kae("encode", "ae-toys", *files, "--out", "new.csv", "--append")
    text = (kae.folder / "codes.csv").read_text()
    assert list(codes_in(text)) == files and text.count("file") == 1
    new = codes_in((kae.folder / "new.csv").read_text())
    assert list(new) == files
    for name, code in codes_in(text).items():
        np.testing.assert_allclose(new[name], code, atol=1e-5)
    other = kae.refused("encode", "cvae-toys", "pictures", "--out", "codes.csv", "--append", code=1)
    assert "codes.csv has the columns file,z0,z1,z2" in other
    assert "give one of them" in kae.refused(
        "encode", "ae-toys", files[0], "--out", "codes.csv", "--append", "--force"
    )
    assert ".csv" in kae.refused("encode", "ae-toys", files[0], "--append")
    assert (kae.folder / "codes.csv").read_text() == text


def test_processes_add_to_one_file(tmp_path):
    script = """
import io, sys
from keras_ae.files import append_lines
for i in range(40):
    append_lines("rows.csv", "a,b\\n", io.StringIO("".join(f"{sys.argv[1]},{i}\\n" for _ in range(50))))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(i)], cwd=tmp_path) for i in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    head, *rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert head == "a,b" and len(rows) == 3 * 40 * 50
    blocks = [rows[i : i + 50] for i in range(0, len(rows), 50)]
    assert all(len(set(block)) == 1 for block in blocks)  # each came whole


def test_a_row_that_is_not_whole_is_not_added_to(tmp_path):
    from keras_ae.files import append_lines

    (tmp_path / "rows.csv").write_text("a,b\n1,2")
    with pytest.raises(UserError, match="last line of .*rows.csv is not whole"):
        append_lines(tmp_path / "rows.csv", "a,b\n", iter(()))


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"a,b\r\n", "has lines that end in CRLF"),
        (b"\xef\xbb\xbfa,b\n", "begins with a byte order mark"),
        (b"\xef\xbb\xbfa,b\r\n", "begins with a byte order mark"),
        (b"a,c\r\n", "has the columns a,c"),
    ],
)
def test_a_table_that_another_program_saved(start, says, tmp_path):
    from keras_ae.files import check_header

    (tmp_path / "rows.csv").write_bytes(start)
    with pytest.raises(UserError, match=f"rows.csv {says}"):
        check_header(tmp_path / "rows.csv", "a,b\n")


def test_pictures_without_classes(kae):
    """A flat folder of 100 pictures, from the import to every look at the model."""
    for file in (draw(kae.folder / "in", 100, ("flat",)) / "flat").iterdir():
        (kae.folder / "flat").mkdir(exist_ok=True)
        file.rename(kae.folder / "flat" / file.name)
    kae("data", "import", "flat", "flat", "--resize", "16", "--data-dir", "data")
    hint = kae.hinted()
    assert hint == ["fit", "vae", "--dataset", "flat", "--data-dir", "data"]
    kae(*hint, *SMALL)
    answer = kae.refused("fit", "cvae", *hint[2:], *SMALL, code=1)
    assert "flat has no labels, which a cvae needs: fit an ae or a vae" in answer
    assert not (kae.folder / "checkpoints" / "cvae-flat").exists()
    run = json.loads((kae.folder / "checkpoints" / "vae-flat" / "run.json").read_text())
    assert (run["data"]["train_images"], run["data"]["test_images"]) == (90, 10)
    where = ["--data-dir", "data"]
    kae("sample", "vae-flat")
    kae("interpolate", "vae-flat", 0, "flat/00.png", *where)
    for command in ("reconstruct", "scatter", "report", "explore", "encode", "traverse"):
        kae(command, "vae-flat", *where)
    assert len(codes_in(kae("encode", "vae-flat", "flat"))) == 100


def test_a_finished_run_goes_on(kae):
    where = ["--data-dir", "my data"]
    more = ["fit", "cvae", "--from", "cvae-toys", "--epochs", 1, *where]
    kae(*more, "--augment", "flip,colour")
    assert "starting from checkpoints/cvae-toys/model.keras" in kae.said
    assert kae.hinted() == ["sample", "cvae-toys-more"]
    run = json.loads((kae.folder / "checkpoints" / "cvae-toys-more" / "run.json").read_text())
    chosen = run["settings"]
    assert (chosen["hidden"], chosen["latent_dim"], chosen["batch_size"]) == ([16, 8], 3, 16)
    assert (chosen["dataset"], chosen["kl_schedule"], chosen["epochs"]) == ("toys", "constant", 1)
    assert chosen["augment"] == ["flip", "colour"]
    assert run["from"]["name"] == "cvae-toys"
    # The weights alone: the settings are those of the command.
    alone = ["fit", "ae", "--from", "alone.keras", "--dataset", "toys", *where, "--out", "again"]
    shutil.copy("checkpoints/ae-toys/model.keras", "alone.keras")
    assert "has the latent_dim 3, not 16: leave --latent-dim out" in kae.refused(
        *alone, "--latent-dim", 16
    )
    assert "is of the model ae, not vae" in kae.refused("fit", "vae", *alone[2:])
    kae(*alone, "--epochs", 1, "-q")
    assert "finished run" in kae.refused(*more, code=1)
    assert "There is no checkpoint vae-toys" in kae.refused(
        "fit", "vae", "--from", "vae-toys", code=1
    )
