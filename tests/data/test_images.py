"""Image files of users: kinds, sizes, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_ae import data
from keras_ae.data import DataError
from keras_ae.data.images import upright, upright_size


@pytest.fixture
def saved(tmp_path, digits):
    """A function: the first test digit, changed by a function of Pillow images, as a file."""

    def save(name, change=lambda image: image):
        path = tmp_path / name
        change(Image.fromarray(digits[0][0, ..., 0])).save(path)
        return path

    return save


def test_a_grey_image_of_the_size_comes_as_it_is(saved, digits):
    images = data.read_files([saved("a.png"), saved("b.bmp")], (28, 28, 1))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.stack([digits[0][0]] * 2))


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_a_list_of_one(kind, saved, digits, tmp_path):
    path = saved("a.png")
    assert data.find_files(kind(path)) == data.find_files(kind(tmp_path)) == ([path], 0)
    np.testing.assert_array_equal(data.read_files(kind(path), (28, 28, 1))[0], digits[0][0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "CMYK"])
def test_other_modes_become_grey(saved, digits, mode):
    def change(image):
        return image.quantize(256) if mode == "P" else image.convert(mode)

    suffix = "tif" if mode == "CMYK" else "png"
    images = data.read_files([saved(f"a.{suffix}", change)], (28, 28, 1))
    assert np.abs(images[0].astype(int) - digits[0][0]).max() <= 1


def test_grey_becomes_rgb(saved, digits):
    images = data.read_files([saved("a.png")], (28, 28, 3))
    np.testing.assert_array_equal(images[0], digits[0][0].repeat(3, -1))


def test_a_larger_image_is_scaled(saved, digits):
    images = data.read_files([saved("a.png", lambda i: i.resize((280, 280), 0))], (28, 28, 1))
    assert np.abs(images[0].astype(int) - digits[0][0]).mean() < 3


def tiff(path, bits, zero_is_black, content):
    """An uncompressed grey TIFF of 28 x 28 pixels."""
    tags = [(256, 3, 28), (257, 3, 28), (258, 3, bits), (259, 3, 1), (262, 3, int(zero_is_black))]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, 28), (279, 4, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(content)) + content
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize(("bits", "zero_is_black"), [(12, True), (16, False)])
def test_deep_tiffs_that_pillow_reads_as_others_are_refused(bits, zero_is_black, tmp_path):
    path = tiff(tmp_path / "a.tif", bits, zero_is_black, b"\xff" * (28 * 28 * bits // 8))
    with pytest.raises(data.DataError, match="convert it to 8 bits first"):
        data.read_files([path], (28, 28, 1))
    plain = tiff(tmp_path / "b.tif", 16, True, b"\xff" * (28 * 28 * 2))
    assert (data.read_files([plain], (28, 28, 1)) == 255).all()


def test_a_transparent_grey_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.zeros((28, 28), "uint16")).save(tmp_path / "a.png", transparency=0)
    with pytest.raises(data.DataError, match="a transparent grey"):
        data.read_files([tmp_path / "a.png"], (28, 28, 1))


def png(path, bits, kind, row, clear):
    """A PNG of 28 equal rows of bytes, with a transparent grey or colour."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 28, 28, bits, kind, 0, 0, 0))]
    parts += [(b"tRNS", clear), (b"IDAT", zlib.compress((b"\0" + row) * 28)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
            for name, content in parts
        )
    )
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("value", [0, 1])
def test_a_transparent_grey_of_few_bits(bits, value, tmp_path):
    """Half of the pixels have it, and show the background."""
    values = np.repeat([value, 1 - value], 14)
    row = np.packbits((values[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    path = png(tmp_path / "a.png", bits, 0, row, struct.pack(">H", value))
    read = data.read_files(
        [path], (28, 28, 1), preparation=data.Preparation("black" if value else "white")
    )
    scaled = np.where(values == value, 0 if value else 255, values * 255 // (2**bits - 1))
    np.testing.assert_array_equal(read[0, ..., 0], np.tile(scaled, (28, 1)))


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path):
    path = png(tmp_path / "a.png", 16, 2, bytes(28 * 6), struct.pack(">HHH", 0, 0, 1))
    with pytest.raises(data.DataError, match="a transparent colour: convert it to 8 bits"):
        data.read_files([path], (28, 28, 3))


@pytest.mark.parametrize("most", [65535, 4095])
def test_a_pgm_of_16_bits(most, tmp_path):
    values = np.linspace(0, most, 784).round().astype(">u2")
    (tmp_path / "a.pgm").write_bytes(f"P5 28 28 {most}\n".encode() + values.tobytes())
    read = data.read_files([tmp_path / "a.pgm"], (28, 28, 1)).reshape(-1)
    np.testing.assert_allclose(read, values / most * 255, atol=0.51)


def test_16_bits_are_scaled_to_8(tmp_path):
    wide = (np.arange(784, dtype="uint16") * 83).reshape(28, 28)
    Image.fromarray(wide).save(tmp_path / "deep.png")
    images = data.read_files([tmp_path / "deep.png"], (28, 28, 1))
    np.testing.assert_array_equal(images[0, ..., 0], np.rint(wide / 257).astype("uint8"))


def test_transparent_is_white_and_inverted_black(saved, digits):
    see_through = lambda image: Image.new("RGBA", image.size)  # noqa: E731
    path = saved("a.png", see_through)
    assert (data.read_files([path], (28, 28, 1)) == 255).all()
    assert (data.read_files([path], (28, 28, 1), invert=True) == 0).all()


def test_turned_as_exif_says(saved, digits, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(digits[0][0, :, :20, 0]).save(path, exif=exif)
    images = data.read_files([path], (20, 28, 1))
    np.testing.assert_array_equal(images[0, ..., 0], np.rot90(digits[0][0, :, :20, 0], -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation, suffix, saved, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    with Image.open(saved("a.png", lambda i: i.crop((0, 0, 20, 28)).convert("RGB"))) as image:
        image.save(tmp_path / f"b.{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"b.{suffix}") as a, Image.open(tmp_path / f"b.{suffix}") as b:
        size = upright_size(a)
        turned, expected = upright(a), ImageOps.exif_transpose(b)
    assert turned.size == expected.size == size
    np.testing.assert_array_equal(turned, expected)


def test_odd_exif_data_is_no_fault_of_the_pixels(saved, digits):
    """Beside the orientation, a number that is a text."""
    entries = [(0x0100, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\3\0\0\0")]
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
    path = saved("a.png")
    with Image.open(path) as image:
        image.save(path, exif=exif)
    read = data.read_files([path], (28, 28, 1))
    np.testing.assert_array_equal(read[0], digits[0][0][::-1, ::-1])


def test_other_proportions_are_refused_unless_cropped(saved, digits):
    path = saved("wide.png", lambda i: i.resize((56, 28), 0))
    with pytest.raises(DataError, match=r"wide.png is 56x28 .*28x28: --crop"):
        data.read_files([path], (28, 28, 1))
    images = data.read_files([path], (28, 28, 1), crop=True)
    expected = digits[0][0].repeat(2, axis=1)[:, 14:42]
    np.testing.assert_array_equal(images[0], expected)


def test_a_pixel_of_rounding_is_no_other_proportion(saved):
    path = saved("nearly.png", lambda i: i.resize((1001, 1000)))
    assert data.read_files([path], (28, 28, 1)).shape == (1, 28, 28, 1)


def test_what_is_refused(saved, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    known = (
        r"text.png cannot be read \(no image of a format that is known\): mend it or leave it out"
    )
    with pytest.raises(DataError, match=known):
        data.read_files([tmp_path / "text.png"], (28, 28, 1))
    with pytest.raises(DataError, match="none.png cannot be read .there is no such file"):
        data.read_files([tmp_path / "none.png"], (28, 28, 1))
    cut = tmp_path / "cut.png"
    cut.write_bytes(saved("whole.png").read_bytes()[:-200])
    with pytest.raises(DataError, match="cut.png cannot be read"):
        data.read_files([cut], (28, 28, 1))
    with pytest.raises(DataError, match="is no file: mend it or leave it out"):
        data.read_files([tmp_path], (28, 28, 1))
    with pytest.raises(DataError, match="1, 3 or 4 channels, this model's images 2"):
        data.read_files([saved("a.png")], (28, 28, 2))


@pytest.mark.parametrize("name", ["a.jpg", "a.mpo"])
def test_two_pictures_of_a_phone_in_one_file(name, saved, digits, tmp_path):
    with Image.open(saved("a.png")) as image:
        image.save(tmp_path / name, "MPO", save_all=True, append_images=[image.copy()], quality=95)
    with Image.open(tmp_path / name) as image:
        assert image.format == "MPO"
    read = data.read_files([tmp_path / name], (28, 28, 1))
    assert np.abs(read[0].astype(int) - digits[0][0]).mean() < 2


def test_jpegs_of_many_scans_are_refused(repeat_scan, digits, tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(digits[0][0, ..., 0]).save(path, progressive=True, quality=95)
    whole = path.read_bytes()
    path.write_bytes(repeat_scan(whole, 50))
    assert data.read_files([path], (28, 28, 1)).shape == (1, 28, 28, 1)
    for padding in (0, 4 << 20):
        path.write_bytes(repeat_scan(whole, 200) + bytes(padding))
        with pytest.raises(DataError, match="a JPEG of more than 100 scans.*: save it as PNG"):
            data.read_files([path], (28, 28, 1))


def test_a_film_behind_a_picture_is_no_scan(saved, digits):
    path = saved("a.jpg")
    film = np.random.default_rng(0).bytes(12 << 20)
    assert film.count(b"\xff\xda") > 100
    path.write_bytes(path.read_bytes() + film)
    assert data.read_files([path], (28, 28, 1)).shape == (1, 28, 28, 1)


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_pictures_in_text_are_refused(kind, tmp_path):
    most = "" if kind == "P1" else "1"
    (tmp_path / "a.ppm").write_text(f"{kind} 2 2 {most}\n" + "1 " * 12)
    with pytest.raises(DataError, match="in text, .*: save it as PNG"):
        data.read_files([tmp_path / "a.ppm"], (2, 2, 1))


def test_a_preparation_that_is_a_dict(saved):
    with pytest.raises(TypeError, match="Preparation.from_dict makes"):
        data.read_files([saved("a.png")], (28, 28, 1), preparation={"crop": True})


@pytest.mark.parametrize("side", [11, 20])
def test_decompression_bombs_are_refused(saved, monkeypatch, side):
    path = saved("bomb.png", lambda i: i.resize((side, side)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="more than 100 pixels"):
        data.read_files([path], (28, 28, 1))


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("options", [{}, {"crop": True}, {"mode": "grey"}])
def test_files_of_a_dataset_are_its_very_pixels(tmp_path, options, background):
    """Transparent pictures of several proportions: imported, and read again as files."""
    random, folder = np.random.default_rng(0), tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    for i in range(4):
        pixels = random.integers(0, 256, (20 + 7 * i, 30, 4), "uint8")
        Image.fromarray(pixels).save(folder / "a" / f"{i}.png")
    options = {"resize": (12, 18), "background": background, "test_fraction": 0, **options}
    data.import_folder("mine", folder, tmp_path / "data", **options)
    stored = data.load("mine", "train", tmp_path / "data")
    assert stored.preparation == data.Preparation(
        background, crop="crop" in options, stretch="crop" not in options
    )
    files, shape = sorted((folder / "a").iterdir()), stored.images.shape[1:]
    images = data.read_files(files, shape, preparation=stored.preparation)
    assert sorted(i.tobytes() for i in images) == sorted(i.tobytes() for i in stored.images)
    other = data.Preparation("white" if background == "black" else "black", crop=True)
    assert not np.array_equal(data.read_files(files, shape, preparation=other), images)
    # From the cache, too, and of the part that is held out.
    train, test = data.load_splits("mine", tmp_path / "data")
    assert train.preparation == test.preparation == stored.preparation
