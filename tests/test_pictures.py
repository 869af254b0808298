"""Grids: where each pixel of each image goes."""

import subprocess
import sys

import numpy as np
import pytest

from keras_ae import pictures

GREY = pictures.BACKGROUND


def constant_images(*values, shape=(2, 3, 1)):
    return np.stack([np.full(shape, v, np.uint8) for v in values])


def test_to_uint8_rounds_and_clips():
    floats = np.array([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 1.0, 2.0])
    assert pictures.to_uint8(floats).tolist() == [0, 0, 0, 1, 128, 255, 255]


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


def test_pairs_put_each_row_over_its_reconstructions():
    originals = constant_images(1, 2, 3)
    rebuilt = constant_images(101, 102, 103) / np.float32(255)
    picture = np.array(pictures.pairs(originals, rebuilt, columns=2))
    zoom = 28  # 56 / 2
    centres = picture[zoom + zoom // 2 :: 3 * zoom, zoom + zoom // 2 :: 4 * zoom]
    assert centres.tolist() == [[1, 2], [101, 102], [3, GREY], [103, GREY]]


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
