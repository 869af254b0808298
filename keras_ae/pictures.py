"""Grids of images: arrays in, Pillow images out. No framework is imported here."""

import math

import numpy as np
from PIL import Image

BACKGROUND = 40  # dark grey between the images, so that black and white borders both show


def to_uint8(images):
    """Images (..., H, W, C), float in [0, 1] or uint8 -> uint8 in 0..255."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def to_float(images):
    """Images (..., H, W, C), uint8 or float in [0, 1] -> float32 in [0, 1]."""
    images = np.asarray(images)
    return images / np.float32(255) if images.dtype == np.uint8 else images.astype("float32")


def grid(images, columns=None, gap=1, zoom=None):
    """Images (N, H, W, C), row by row, as one picture.

    Args:
        images: float in [0, 1] or uint8, of 1 (grey), 3 (RGB) or 4 (RGBA) channels, N >= 1.
        columns: images in a row; the smallest square that holds all by default.
        gap: pixels between images, before zooming.
        zoom: whole factor to enlarge by; by default what makes an image at least 56 pixels high.

    Returns:
        A Pillow image.
    """
    images = to_uint8(images)
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = zoom or max(1, math.ceil(56 / height))
    canvas = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels),
        BACKGROUND,
        np.uint8,
    )
    for i, image in enumerate(images):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        canvas[top : top + height, left : left + width] = image
    canvas = canvas.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def pairs(originals, reconstructions, columns=10):
    """Rows of originals, each row over the row of its reconstructions. Both (N, H, W, C)."""
    originals, reconstructions = to_uint8(originals), to_uint8(reconstructions)
    columns = min(columns, len(originals))
    rows = []
    for start in range(0, len(originals), columns):
        for images in (originals, reconstructions):
            row = images[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), BACKGROUND, np.uint8)
            rows += [row, blank]
    return grid(np.concatenate(rows), columns)


def stack(*pictures, gap=8):
    """Pictures one below the other."""
    width = max(p.width for p in pictures)
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new(pictures[0].mode, (width, height), BACKGROUND)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet
