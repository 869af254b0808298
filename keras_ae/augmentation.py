"""Data augmentation: random changes of the training images by the preprocessing layers of Keras.

A batch is changed before it is fed to the model, so the changed image is input and target alike. Validation,
pictures, the prior and a saved model see unchanged images only.
"""

import keras
import numpy as np

from keras_ae.errors import RunError

LIKE = {"data_format": "channels_last", "dtype": "float32"}

AUGMENTATIONS = {
    # Mirrors left and right, with probability 1/2.
    "flip": lambda: keras.layers.RandomFlip("horizontal", **LIKE),
    # Moves by up to a tenth of each side, in whole pixels; copies of the edge pixels fill the gap.
    "shift": lambda: keras.layers.RandomTranslation(
        0.1, 0.1, fill_mode="nearest", interpolation="nearest", **LIKE
    ),
    "colour": lambda: keras.layers.RandomColorJitter(
        (0, 255),
        brightness_factor=0.1,
        contrast_factor=0.1,
        saturation_factor=(0.4, 0.6),  # 0.5 changes nothing
        hue_factor=0.02,
        **LIKE,
    ),
}


class Augment:
    """Applies some of `AUGMENTATIONS`, in the order of that dict.

    The random changes depend on the seed of a call alone, so a resumed run draws the same as an uninterrupted
    one (on the same backend: each backend has its own random numbers).

    Args:
        names: keys of `AUGMENTATIONS`.
    """

    def __init__(self, names):
        with keras.device("cpu"):
            self.layers = [make() for name, make in AUGMENTATIONS.items() if name in names]

    def __call__(self, images, seed):
        """Change images (N, H, W, C), uint8 or float in [0, 1]; returns the same shape and type.

        Args:
            seed: a sequence of integers.
        """
        whole = images.dtype.kind in "iu"
        x = np.asarray(images, "float32") * (1.0 if whole else 255.0)
        with keras.device("cpu"):
            for number, layer in enumerate(self.layers):
                drawn = np.random.SeedSequence([*seed, number]).generate_state(2)
                layer.generator.state.assign(drawn)
                x = layer(x, training=True)
            x = keras.ops.convert_to_numpy(x)
        return np.rint(x).clip(0, 255).astype(images.dtype) if whole else x / np.float32(255)


def check_images(names, data):
    """Refuse augmentations that do not fit the images of a dataset.

    Raises:
        RunError: "colour" was asked for, and the images are not RGB.
    """
    channels = data.images.shape[-1]
    if "colour" in names and channels != 3:
        raise RunError(
            f"--augment colour is for RGB images, of 3 channels; those of {data.name} have {channels}: leave "
            "it out."
        )
