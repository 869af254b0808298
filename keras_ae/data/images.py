"""Image files of any kind as arrays of one shape, and one line for what is wrong with one."""

import contextlib
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from keras_ae.data.disk import DataError
from keras_ae.data.preparation import Preparation

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO")  # MPO: JPEGs of some phones
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"
)  # fmt: skip
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels to Pillow's name for them


@contextlib.contextmanager
def opened(path, advice="mend or remove it"):
    """A file as a Pillow image; DataError, which ends in the advice, for whatever is wrong with it."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe would wait for ever
            raise DataError(f"{path} is no file: {advice}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow warns from here on, and raises the error at twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
                    raise DataError(
                        f"{path} has 32 bits a pixel, and nothing says which value is white: "
                        "convert it to 8 or 16 bits first"
                    )
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which is Pillow's limit: scale it "
            "down first"
        ) from error
    except DataError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        why = str(error).partition("\n")[0] if str(path) not in str(error) else "no image"
        if isinstance(error, FileNotFoundError):
            why = "there is no such file"
        raise DataError(f"{path} cannot be read ({why}): {advice}") from error


def upright_size(image):
    """(width, height) of a Pillow image when it is turned as its EXIF data says."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def read_image(path, resize, crop, mode, background, advice="mend or remove it"):
    """An image file as a Pillow image in mode L, RGB or RGBA, upright, of the size (height, width)."""
    with opened(path, advice) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would cut at 255
            values = np.asarray(image).astype("float64") / 257
            image = Image.fromarray(np.rint(values).astype(np.uint8))
        if image.has_transparency_data and mode != "RGBA":
            image = image.convert("RGBA")
            behind = Image.new("RGBA", image.size, background)
            image = Image.alpha_composite(behind, image).convert("RGB")
        image = image.convert(mode)
        if resize is not None and image.size != resize[::-1]:
            if crop:
                image = ImageOps.fit(image, resize[::-1], Image.Resampling.LANCZOS)
            else:
                image = image.resize(resize[::-1], Image.Resampling.LANCZOS)
        image.load()
        return image


def find_files(paths):
    """Image files, and those in folders and the folders in these, each folder's in order of their paths.

    Hidden files and folders, and `__MACOSX`, are left out; links to folders are not followed.

    Returns:
        The paths of the files; those given as files as they are. And how many files of folders were left
        out for their suffix, which is no image's.

    Raises:
        DataError: a folder without images, or that cannot be read.
    """
    files, others = [], 0
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        inside = []
        for folder, folders, names in os.walk(path, onerror=_unreadable):
            folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
            names = [name for name in names if not name.startswith(".")]
            pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
            others += len(names) - len(pictures)
            inside += [Path(folder, name) for name in pictures]
        if not inside:
            raise DataError(f"{path} has no images in it")
        files += sorted(inside)
    return files, others


def _unreadable(error):
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def read_files(paths, shape, crop=False, invert=False, preparation=None):
    """Image files as a model takes them.

    Colours become grey, or grey becomes RGB; each is scaled to the size of the shape; the rest as for
    `import_folder`. A file of a dataset comes as the very pixels that the import made of it.

    Args:
        paths: files.
        shape: (H, W, C) of the model's images, C 1, 3 or 4.
        crop: cut off what is over at two opposite sides, of an image of other proportions.
        invert: take white for black: for ink on paper, where the model knows light on dark.
        preparation: what was done to the images that the model was trained on, a `Preparation`. None
            for a white background, nothing cut off and nothing stretched.

    Returns:
        (N, H, W, C) uint8.

    Raises:
        DataError: a file that is no image, cannot be read, has more pixels than Pillow's limit or,
            where nothing is to be cropped or stretched, other proportions than the shape; a shape of
            other channels.
    """
    preparation = preparation or Preparation()
    crop = crop or preparation.crop
    height, width, channels = shape
    if channels not in MODES:
        raise DataError(f"image files have 1, 3 or 4 channels, this model's images {channels}")
    images = np.empty((len(paths), *shape), np.uint8)
    for i, path in enumerate(paths):
        with opened(path) as image:
            wide, high = upright_size(image)
        # Half a pixel of the result is what rounding costs.
        stretched = abs(wide / high - width / height) * min(height, width) > 0.5 * wide / high
        if stretched and not crop and not preparation.stretch:
            raise DataError(
                f"{path} is {wide}x{high} (width x height), and this model's images are "
                f"{width}x{height}: --crop cuts it to these proportions"
            )
        image = read_image(path, (height, width), crop, MODES[channels], preparation.background)
        images[i] = np.asarray(image).reshape(shape)
    if invert:
        images[..., :3] = 255 - images[..., :3]
    return images
