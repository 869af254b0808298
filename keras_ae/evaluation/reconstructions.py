"""Measures how close reconstructions are to their images."""

import numpy as np

from keras_ae.errors import UserError, installed
from keras_ae.evaluation.arrays import chunks
from keras_ae.inputs import check_range
from keras_ae.pictures import to_float

LEAST = 1e-10  # a smaller mean squared error counts as zero (100 dB)
WINDOW = 11  # width of SSIM's Gaussian window in pixels


def reconstruction_error(images, reconstructions):
    """Mean absolute and mean squared error of pixels in [0, 1], over all images.

    Args:
        images: (N, H, W, C), uint8 or float in [0, 1].
        reconstructions: (N, H, W, C), uint8 or float in [0, 1], from `model.reconstruct`, which
            decodes posterior means.

    Returns:
        {"reconstruction_l1", "reconstruction_mse"}.

    Raises:
        ValueError: they are on another scale, of two shapes, or none.
    """
    _check(images, reconstructions)
    absolute, squared = errors_per_image(images, reconstructions)
    return {
        "reconstruction_l1": float(absolute.mean()),
        "reconstruction_mse": float(squared.mean()),
    }


def errors_per_image(images, reconstructions):
    """Mean absolute and mean squared error of pixels in [0, 1], per image: (N,) float64, (N,) float64."""
    absolute, squared = np.empty(len(images)), np.empty(len(images))
    for rows in chunks(len(images), images[0].size):
        difference = to_float(images[rows]) - to_float(reconstructions[rows])
        absolute[rows] = np.abs(difference).mean((1, 2, 3), dtype="float64")
        squared[rows] = np.square(difference).mean((1, 2, 3), dtype="float64")
    return absolute, squared


def psnr(squared):
    """Peak signal-to-noise ratio in decibels: -10 log10 of the mean squared error of pixels in [0, 1].

    Shape (N,) -> (N,), one value per image. An image without error has 100 dB.
    """
    return -10 * np.log10(np.maximum(squared, LEAST))


def missing_for_ssim(image_shape):
    """Explains in one line why images of a shape have no SSIM; None if they have one."""
    if min(image_shape[:2]) < WINDOW:
        return f"its window is {WINDOW} pixels wide, these images {min(image_shape[:2])}"
    if not installed("skimage"):
        return "it needs scikit-image: pip install scikit-image"
    return None


def ssim(images, reconstructions):
    """Structural similarity of pairs of images, computed by scikit-image: 1 for equal images.

    It uses the Gaussian window and the constants of the paper, and the mean over channels.

    Args:
        images, reconstructions: (N, H, W, C), uint8 or float in [0, 1], with sides of 11 pixels or more.

    Returns:
        (N,) float64 in [-1, 1].

    Raises:
        UserError: scikit-image is not installed, or the images are too small.
        ValueError: the images are on another scale, of two shapes, or none.

    References:
        Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity.
    """
    _check(images, reconstructions)
    if why := missing_for_ssim(images.shape[1:]):
        raise UserError(f"SSIM: {why}")
    from skimage.metrics import structural_similarity

    def of(image, rebuilt):
        return structural_similarity(
            to_float(image), to_float(rebuilt), data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip

    return np.array([of(*pair) for pair in zip(images, reconstructions, strict=True)])


def _check(images, reconstructions):
    """Refuses images on another scale, and reconstructions of another shape. (A decoder of one's own may give any values.)"""
    if images.shape != reconstructions.shape or not len(images):
        raise ValueError(
            "Images and reconstructions must be of one shape (N, H, W, C), N >= 1; "
            f"got {images.shape} and {reconstructions.shape}."
        )
    check_range(images)
