"""Reads image files of many formats into arrays of one shape, and explains errors in one line."""

import contextlib
import errno
import math
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_ae.data.disk import DataError, is_damage
from keras_ae.data.preparation import Preparation
from keras_ae.data.reading import SCANS, has_many_scans
from keras_ae.errors import LEAST, UserError, memory_bound

# Pillow opens the MPO files of some phones as JPEGs, and has no format of that name to be opened.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"
)  # fmt: skip
ORIENTATION = 0x0112  # the tag that says how an image is turned
# Pillow scales grey pixels of 2 and 4 bits to 8, but not the grey that is transparent.
SCALES = {"L;2": 255 // 3, "L;4": 255 // 15}
# What makes an image of this orientation upright.
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels: Pillow's mode
# For files of the user's that are needed by nothing but the command.
NAMED = "mend it or leave it out"


@contextlib.contextmanager
def opened(path, advice="mend it or move it elsewhere"):
    """Opens a file as a Pillow image. Every problem is a DataError, most of which end with `advice`."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
            raise DataError(f"{path} is no file: {advice}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Above its limit of pixels, Pillow only warns; it raises an error above twice the limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.format == "PPM" and image.tile[0][0] == "ppm_plain":
                    raise DataError(
                        f"{path} is a picture in text, which may take long to read: save it as PNG"
                    )
                if has_many_scans(image):
                    raise DataError(
                        f"{path} is a JPEG of more than {SCANS} scans, which is read slowly: save it as PNG"
                    )
                deep = image.mode.startswith("I")
                if image.mode == "F" or image.mode == "I" and image.format not in ("PNG", "PPM"):
                    raise DataError(
                        f"{path} has 32 bits a pixel, and nothing says which value is white: "
                        "convert it to 8 or 16 bits first"
                    )
                if deep and image.format == "TIFF" and not _is_plain(image):
                    raise DataError(
                        f"{path} is a TIFF of other than 16 bits a pixel, or whose 0 is white: convert it to 8 bits first"
                    )
                if deep and "transparency" in image.info:
                    raise DataError(
                        f"{path} has 16 bits a pixel and a transparent grey: convert it to 8 bits first"
                    )
                clear = image.format == "PNG" and "transparency" in image.info
                packed = image.tile[0][3] if clear else None
                if packed == "RGB;16B":
                    raise DataError(
                        f"{path} has 16 bits a pixel and a transparent colour: convert it to 8 bits first"
                    )
                if packed in SCALES:
                    image.info["transparency"] *= SCALES[packed]
                raw = image.format == "TIFF" and image.info.get("compression") == "raw"
                if raw and _lies(image):
                    raise DataError(
                        f"{path} is an uncompressed TIFF that lies on its side, whose pixels Pillow mixes up: "
                        "save it upright or compressed"
                    )
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which is Pillow's limit: scale it "
            "down first"
        ) from error
    except UserError:
        raise  # a DataError from above, or an error of the caller, which is no fault of the file
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory: free some, or scale it down") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        if isinstance(error, OSError) and not of_the_file(error):
            raise DataError(
                f"{path} cannot be read ({error.strerror or error}): see to that"
            ) from error
        why = str(error).partition("\n")[0] if str(path) not in str(error) else "no image"
        if isinstance(error, UnidentifiedImageError):
            why = "no image of a format that is known"
        if isinstance(error, FileNotFoundError):
            why = "there is no such file"
            advice = advice if os.path.islink(path) else "check its name"
        raise DataError(f"{path} cannot be read ({why}): {advice}") from error


def of_the_file(error):
    """Whether an error of `opened`, or its cause, says that the file is bad, and not the system that reads it."""
    # A place in the file that is none, a link in a circle, one to too long a name.
    faults = (errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG)
    return is_damage(error) or getattr(error, "errno", None) in faults


def _is_plain(image):
    """Whether a grey TIFF has 16 bits a pixel, of which 0 is black; Pillow reads others as if they had."""
    bits, white_is_zero = 258, 262  # tags
    return image.tag_v2.get(bits) == (16,) and image.tag_v2.get(white_is_zero) == 1


def upright_size(image):
    """(width, height) of a Pillow image after it is turned as its EXIF data says."""
    # Pillow itself turns the size of a TIFF by its tag, but not by its XMP data.
    turned = image.format == "TIFF" and ORIENTATION in image.tag_v2
    return image.size[::-1] if _lies(image) and not turned else image.size


def _lies(image):
    """Whether EXIF data says that an image lies on its side."""
    return image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def upright(image):
    """Turns a Pillow image as its EXIF data says. `ImageOps.exif_transpose` would write that data anew, which fails
    if it is odd."""
    # Here Pillow itself turns a TIFF.
    image.load()
    method = METHODS.get(image.getexif().get(ORIENTATION))
    return image if method is None else image.transpose(method)


def read_image(path, resize, crop, mode, background, advice):
    """Reads an image file: a Pillow image in mode L, RGB or RGBA, upright, and scaled to `resize`, a
    (height, width), unless that is None."""
    with opened(path, advice) as image:
        image = upright(image)
        if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
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
    """Finds image files: the given files, and those in the given folders and their subfolders. One path is a list of one.

    Hidden files and folders, and `__MACOSX`, are left out; links to folders are not followed.

    Returns:
        The paths: given files unchanged, the files of each folder sorted by path. And the number of files
        in folders that were left out because their suffix is not that of an image.

    Raises:
        DataError: a folder has no images or cannot be read.
    """
    files, others = [], 0
    for path in map(Path, map(os.fsdecode, _listed(paths))):
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


def _listed(paths):
    return [paths] if isinstance(paths, str | bytes | os.PathLike) else list(paths)


def _unreadable(error):
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def read_files(paths, shape, crop=False, invert=False, preparation=None):
    """Reads image files into the array that a model takes.

    Colours become grey, or grey becomes RGB. Each image is scaled to the size in `shape`. All else is
    done as in `import_folder`: a file of an imported dataset gives exactly the pixels of that dataset.

    Args:
        paths: paths of the files, or one path.
        shape: (H, W, C) of the model's images, C 1, 3 or 4.
        crop: if an image has other proportions, cut two opposite sides.
        invert: swap white and black: for ink on paper, if the model was trained on light on dark.
        preparation: the `Preparation` of the images that the model was trained on. None for a white
            background, nothing cropped and nothing stretched.

    Returns:
        (N, H, W, C) uint8.

    Raises:
        DataError: a file is not an image, cannot be read or has more pixels than Pillow's limit; its
            proportions are not those of `shape` and it may be neither cropped nor stretched; or the
            shape has another number of channels.
        TypeError: the preparation is none.
    """
    if not isinstance(preparation, Preparation | None):
        raise TypeError(
            f"preparation is a Preparation, such as Preparation.from_dict makes; got {preparation!r}"
        )
    paths, preparation = _listed(paths), preparation or Preparation()
    crop = crop or preparation.crop
    height, width, channels = shape
    if channels not in MODES:
        raise DataError(f"image files have 1, 3 or 4 channels, this model's images {channels}")
    if (size := len(paths) * math.prod(shape)) > max(memory_bound(), LEAST):
        raise DataError(
            f"{len(paths):,} images of {height} x {width} take {size / 2**30:,.1f} GiB, more than memory should hold "
            "(KAE_MEMORY): give fewer files"
        )
    images = np.empty((len(paths), *shape), np.uint8)
    for i, path in enumerate(paths):
        with opened(path, NAMED) as image:
            wide, high = upright_size(image)
        # Rounding may change a side of the result by half a pixel; that does not count as stretching.
        stretched = abs(wide / high - width / height) * min(height, width) > 0.5 * wide / high
        if stretched and not crop and not preparation.stretch:
            raise DataError(
                f"{path} is {wide}x{high} (width x height), and this model's images are "
                f"{width}x{height}: --crop cuts it to these proportions"
            )
        image = read_image(
            path, (height, width), crop, MODES[channels], preparation.background, NAMED
        )
        images[i] = np.asarray(image).reshape(shape)
    if invert:
        images[..., :3] = 255 - images[..., :3]
    return images
