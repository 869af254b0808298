"""How near reconstructions come to their images."""

import numpy as np

from keras_ae.errors import UserError, installed
from keras_ae.evaluation.arrays import chunks
from keras_ae.pictures import to_float

LEAST = 1e-10  # mean squared error of a pixel that counts as none: 100 dB
WINDOW = 11  # pixels that the Gaussian window of SSIM spans


def reconstruction_error(images, reconstructions):
    """Mean absolute and mean squared error of a pixel in [0, 1].

    Args:
        images: (N, H, W, C), uint8 or float in [0, 1].
        reconstructions: (N, H, W, C), likewise: of the posterior means, from `model.reconstruct`.

    Returns:
        {"reconstruction_l1", "reconstruction_mse"}.
    """
    absolute, squared = errors_per_image(images, reconstructions)
    return {
        "reconstruction_l1": float(absolute.mean()),
        "reconstruction_mse": float(squared.mean()),
    }


def errors_per_image(images, reconstructions):
    """Mean absolute and mean squared error of a pixel in [0, 1], of each image: (N,) float64, (N,)."""
    absolute, squared = np.empty(len(images)), np.empty(len(images))
    for rows in chunks(len(images), images[0].size):
        difference = to_float(images[rows]) - to_float(reconstructions[rows])
        absolute[rows] = np.abs(difference).mean((1, 2, 3), dtype="float64")
        squared[rows] = np.square(difference).mean((1, 2, 3), dtype="float64")
    return absolute, squared


def psnr(squared):
    """Peak signal-to-noise ratio in decibels, -10 log10 of the mean squared error of a pixel in [0, 1].

    Shape (N,) -> (N,), an image each; an image rebuilt without error counts as 100 dB.
    """
    return -10 * np.log10(np.maximum(squared, LEAST))


def missing_for_ssim(image_shape):
    """Why there is no SSIM of images of a shape: one line, None where there is one."""
    if min(image_shape[:2]) < WINDOW:
        return f"its window is {WINDOW} pixels wide, these images {min(image_shape[:2])}"
    if not installed("skimage"):
        return "it needs scikit-image: pip install scikit-image"
    return None


def ssim(images, reconstructions):
    """Structural similarity of pairs of images, by scikit-image: 1 is equality.

    The Gaussian window and the constants of the paper; the mean over channels.

    Args:
        images, reconstructions: (N, H, W, C), uint8 or float in [0, 1], sides of 11 pixels or more.

    Returns:
        (N,) float64 in [-1, 1].

    Raises:
        UserError: scikit-image is not installed, or the images are too small.

    References:
        Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity.
    """
    if why := missing_for_ssim(images.shape[1:]):
        raise UserError(f"SSIM: {why}")
    from skimage.metrics import structural_similarity

    def of(image, rebuilt):
        return structural_similarity(
            to_float(image), to_float(rebuilt), data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip

    return np.array([of(*pair) for pair in zip(images, reconstructions, strict=True)])
