"""Grids: where each pixel of each image goes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_ae import pictures
from keras_ae.errors import UserError

GREY = pictures.BACKGROUND


def constant_images(*values, shape=(2, 3, 1)):
    return np.stack([np.full(shape, v, np.uint8) for v in values])


def test_to_uint8_rounds_and_clips():
    floats = np.array([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 1.0, 2.0])
    assert pictures.to_uint8(floats).tolist() == [0, 0, 0, 1, 128, 255, 255]


def test_floats_that_are_the_bytes_of_a_picture_are_refused():
    images = np.arange(256).reshape(1, 16, 16, 1)
    with pytest.raises(ValueError, match="whole numbers up to 255: divide them by 255"):
        pictures.grid(images.astype("float32"))
    pictures.grid((images > 9).astype("float32"))


@pytest.mark.parametrize("kind", ["int64", "uint16", "int32"])
def test_whole_numbers_of_any_kind_are_0_to_255(kind):
    images = np.arange(256, dtype="uint8").reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(pictures.to_uint8(images.astype(kind)), images)
    same = pictures.to_float(images.astype(kind))
    assert same.dtype == np.float32
    np.testing.assert_array_equal(same, pictures.to_float(images))


def test_wide_images_are_not_enlarged_beyond_reason():
    assert pictures.grid(np.zeros((20, 1, 4096, 1), np.uint8), 10).size == (10 * 4097 + 1, 5)
    assert pictures.grid(np.zeros((1, 1, 64, 1), np.uint8)).size == (66 * 8, 3 * 8)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e308, -1e308])
@pytest.mark.parametrize("epochs", [3, 60])
def test_values_that_no_axis_can_show_are_left_out(value, epochs, tmp_path):
    rows = [{"epoch": i + 1, "loss": value if i % 2 else 3.0} for i in range(epochs)]
    pictures.save_plot(pictures.curves({"run": rows}), tmp_path / "curves.png")


def test_to_uint8_keeps_uint8_and_undoes_division_by_255():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_uint8(every), every)
    np.testing.assert_array_equal(pictures.to_uint8(every / np.float32(255)), every)


def test_grid_places_images_row_by_row():
    picture = np.array(pictures.grid(constant_images(10, 20, 30), columns=2, gap=1, zoom=1))
    g = GREY
    assert picture.tolist() == [
        [g, g, g, g, g, g, g, g, g],
        [g, 10, 10, 10, g, 20, 20, 20, g],
        [g, 10, 10, 10, g, 20, 20, 20, g],
        [g, g, g, g, g, g, g, g, g],
        [g, 30, 30, 30, g, g, g, g, g],
        [g, 30, 30, 30, g, g, g, g, g],
        [g, g, g, g, g, g, g, g, g],
    ]


def test_a_grid_of_no_images():
    with pytest.raises(ValueError, match="1 image or more"):
        pictures.grid(constant_images(1)[:0])


def test_zoom_repeats_pixels():
    small = np.array(pictures.grid(constant_images(10, 20), columns=2, zoom=1))
    large = np.array(pictures.grid(constant_images(10, 20), columns=2, zoom=3))
    np.testing.assert_array_equal(large, small.repeat(3, 0).repeat(3, 1))


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert pictures.grid(np.zeros((1, 28, 28, 1))).size == (60, 60)
    assert pictures.grid(np.zeros((1, 64, 64, 1))).size == (66, 66)


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (64, 8)])
def test_the_default_is_the_smallest_square_that_holds_all(n, columns):
    width, _ = pictures.grid(np.zeros((n, 4, 4, 1)), zoom=1).size
    assert width == columns * 5 + 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels_make_the_mode(channels, mode):
    picture = pictures.grid(constant_images(7, shape=(2, 2, channels)), zoom=1)
    assert picture.mode == mode
    assert np.array(picture)[1, 1].tolist() == ([7] * channels if channels > 1 else 7)


def test_no_images_make_no_picture():
    none = np.zeros((0, 4, 4, 1), np.uint8)
    drawn = {
        "grid": lambda: pictures.grid(none),
        "pairs": lambda: pictures.pairs(none, none),
        "class_rows": lambda: pictures.class_rows(none, [], []),
    }
    for draw in drawn.values():
        with pytest.raises(ValueError, match="needs 1 image or more; got none"):
            draw()


def test_pairs_put_each_row_over_its_reconstructions():
    originals = constant_images(1, 2, 3)
    rebuilt = constant_images(101, 102, 103) / np.float32(255)
    picture = np.array(pictures.pairs(originals, rebuilt, columns=2))
    zoom = 28  # 56 / 2
    centres = picture[zoom + zoom // 2 :: 3 * zoom, zoom + zoom // 2 :: 4 * zoom]
    assert centres.tolist() == [[1, 2], [101, 102], [3, GREY], [103, GREY]]


def test_pairs_of_unlike_images_are_refused():
    with pytest.raises(ValueError, match="must be of one shape; got .3, 4, 4, 1. and .2, 4, 4, 1."):
        pictures.pairs(np.zeros((3, 4, 4, 1)), np.zeros((2, 4, 4, 1)))


def test_a_long_name_above_thin_images():
    images = constant_images(1, 2, shape=(60, 1, 1))
    assert pictures.pairs(images, images, names=["a" * 60, "b"]).height > 2 * 60
    assert pictures.with_title(pictures.grid(images), "a" * 60).height > 60


def test_pairs_of_fewer_images_than_columns_are_one_row():
    picture = pictures.pairs(np.zeros((3, 28, 28, 1)), np.ones((3, 28, 28, 1)))
    assert picture.size == (2 * (3 * 29 + 1), 2 * (2 * 29 + 1))


def test_stack_puts_one_below_the_other():
    above = pictures.grid(constant_images(10), zoom=1)
    below = pictures.grid(constant_images(20, 30), columns=2, zoom=1)
    sheet = np.array(pictures.stack(above, below, gap=2))
    assert sheet.shape == (4 + 2 + 4, 9)
    np.testing.assert_array_equal(sheet[:4, :5], np.array(above))
    np.testing.assert_array_equal(sheet[6:], np.array(below))
    assert (sheet[4:6] == GREY).all()


def test_pictures_import_no_framework():
    code = (
        "import sys, keras_ae.pictures\n"
        "print([m for m in ('keras', 'torch', 'jax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_of_classes_hold_their_own_images_and_names():
    labels = np.array([0, 0, 0, 2, 2])
    sheet = pictures.class_rows(
        constant_images(1, 2, 3, 4, 5, shape=(2, 2, 1)), labels, ["ab", "no", "cd"]
    )
    rows = np.array(sheet)[:, -3 * 56 - 4 * 28 :]  # without the margin
    zoom = 28
    centres = rows[zoom + zoom // 2 :: 3 * zoom, zoom + zoom // 2 :: 3 * zoom]
    assert centres[:, :3].tolist() == [[1, 2, 3], [4, 5, GREY]]
    margin = np.array(sheet)[:, : -rows.shape[1]]
    for half in np.array_split(margin, 2):
        assert half.max() > 200  # a name is there, in light letters
    assert not np.array_equal(*np.array_split(margin, 2))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_names_and_titles_in_every_mode(channels):
    images = constant_images(1, 2, 3, shape=(28, 28, channels))
    plain = pictures.pairs(images, images, columns=2)
    named = pictures.pairs(images, images, columns=2, names=["short", "W" * 40, "Straße"])
    assert named.mode == plain.mode and named.width == plain.width
    assert named.height > plain.height
    titled = pictures.with_title(plain, "sneaker")
    below = titled.crop((0, titled.height - plain.height, *titled.size))
    assert np.array_equal(np.array(below), np.array(plain))
    assert (
        np.array(titled)[: titled.height - plain.height, ..., 0 if channels > 1 else None].max()
        > 200
    )
    one = pictures.class_rows(images, [0, 1, 1], ["a", "b"])
    assert one.mode == plain.mode


def test_an_animation_wider_than_a_gif(tmp_path):
    with pytest.raises(UserError, match="at most 65,535 pixels a side"):
        pictures.animation([Image.new("L", (70_000, 2))] * 2, tmp_path / "a.gif")
    with pytest.raises(UserError, match="pictures of one size"):
        pictures.animation([Image.new("L", (n, 2)) for n in (2, 3)], tmp_path / "a.gif")


def test_an_animation_shows_each_picture_and_repeats(tmp_path):
    frames = [pictures.grid(constant_images(v, shape=(8, 8, 1)), zoom=1) for v in (0, 100, 200)]
    pictures.animation(frames, tmp_path / "a.gif", seconds=0.2)
    gif = Image.open(tmp_path / "a.gif")
    assert gif.n_frames == 3 and gif.info["loop"] == 0
    durations, centres = [], []
    for i in range(3):
        gif.seek(i)
        durations.append(gif.info["duration"])
        centres.append(gif.convert("L").getpixel((4, 4)))
    assert durations == [200, 200, 800] and centres == [0, 100, 200]


def test_equal_pictures_that_last_too_long(tmp_path):
    frames = [pictures.grid(constant_images(9, shape=(8, 8, 1)), zoom=1)] * 14
    with pytest.raises(UserError, match="more than 655 seconds"):
        pictures.animation(frames, tmp_path / "a.gif", seconds=60)
    pictures.animation(frames, tmp_path / "a.gif", seconds=30)


def test_plots_are_the_same_bytes_again(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 2))
    for form in ("png", "svg"):
        for name in ("a", "b"):
            figure = pictures.scatter(points, np.arange(50) % 3, ("x", "y", "z"))
            pictures.save_plot(figure, tmp_path / name, form)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "settings", [b"text.usetex: True\nfont.size: 40\n", b"font.family: \xff\n"]
)
def test_the_settings_of_a_working_folder_change_no_plot(settings, tmp_path):
    """LaTeX would be asked for by the first; the second is no text, which matplotlib itself refuses."""
    draw = (
        "import sys; from keras_ae import pictures; from keras_ae.errors import UserError\n"
        "try: pictures.save_plot(pictures.bars([1, 2], ['$a', 'b_c']), sys.argv[1])\n"
        "except UserError as error: sys.exit(str(error))"
    )
    (tmp_path / "matplotlibrc").write_bytes(settings)
    here = {**os.environ, "PYTHONPATH": str(Path(pictures.__file__).parents[1])}

    def run(folder):
        command = [sys.executable, "-c", draw, tmp_path / "plot.png"]
        return subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True)

    done = run(tmp_path)
    if done.returncode:
        assert (
            settings.endswith(b"\xff\n")
            and "matplotlib cannot read" in done.stderr.splitlines()[-1]
        )
        return
    first = (tmp_path / "plot.png").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    assert run(tmp_path / "elsewhere").returncode == 0
    assert (tmp_path / "plot.png").read_bytes() == first


def test_a_pipe_called_as_the_settings_of_plots_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "matplotlibrc")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="matplotlib would read it without end"):
        pictures.bars([1, 2], ["a", "b"])


@pytest.mark.parametrize("form", ["png", "svg"])
def test_letters_that_no_font_has_are_drawn_without_a_warning(form, tmp_path):
    names = ("👨‍👩‍👧", "हिन्दी", "漢字")
    figure = pictures.scatter(np.eye(3, 2), np.arange(3), names)
    curves = pictures.curves({name: [{"epoch": 1, "loss": 3.0}] for name in names})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.save_plot(figure, tmp_path / "scatter", form)
        pictures.save_plot(curves, tmp_path / "curves", form)


def test_a_scatter_has_a_colour_and_a_name_for_each_class():
    points, labels = np.arange(24.0).reshape(12, 2), np.arange(12)
    plot = pictures.scatter(points, labels, axes=("a", "b")).axes[0]
    drawn = {c.get_label(): c.get_offsets().tolist() for c in plot.collections}
    assert drawn == {str(i): [points[i].tolist()] for i in range(12)}
    assert len({tuple(c.get_facecolor()[0]) for c in plot.collections}) == 12
    assert (plot.get_xlabel(), plot.get_ylabel()) == ("a", "b")


def test_curves_have_a_panel_for_each_figure_and_a_line_for_each_run():
    row = {"loss": 3.0, "val_loss": 4.0, "kl_weight": 0.5, "val_kl_weight": 1.0}
    histories = {"one": [{"epoch": 1, **row}], "two": [{"epoch": 1, "loss": 2.0, "val_loss": 1.0}]}
    loss, weight = pictures.curves(histories).axes
    assert [p.get_title() for p in (loss, weight)] == ["loss", "kl_weight"]
    assert [line.get_ydata()[0] for line in loss.lines] == [3, 4, 2, 1]
    assert {line.get_ydata()[0] for line in weight.lines} == {0.5}
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["one", "two", "training"]


def test_curves_of_runs_without_a_validation_are_told_apart():
    (loss,) = pictures.curves({run: [{"epoch": 1, "loss": 3.0}] for run in ("one", "two")}).axes
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["one", "two"]


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="A plot needs matplotlib: pip install matplotlib"):
        pictures.bars([1.0], ["a"])


@pytest.mark.parametrize(("points", "area"), [(50, 40), (757, 13.2), (2000, 5), (60_000, 1)])
def test_few_dots_are_large_and_many_are_small(points, area):
    figure = pictures.scatter(np.random.default_rng(0).normal(size=(points, 2)))
    assert figure.axes[0].collections[0].get_sizes() == pytest.approx([area], rel=0.01)
