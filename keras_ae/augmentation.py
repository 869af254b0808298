"""Training images changed at random, by the preprocessing layers of Keras: more of few.

They are changed as a batch is fed, so that an image is rebuilt as it was changed; validation, pictures, the
prior and a saved model know nothing of it.
"""

import keras
import numpy as np

from keras_ae.errors import RunError

LIKE = {"data_format": "channels_last", "dtype": "float32"}

AUGMENTATIONS = {
    # Left and right exchanged, of every second image.
    "flip": lambda: keras.layers.RandomFlip("horizontal", **LIKE),
    # By whole pixels, up to a tenth of each side; the pixels of the edge fill what comes in.
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
    """Some of `AUGMENTATIONS`, in their order there.

    What is drawn is a function of the seed of a call alone, so that a resumed run draws what the whole one does
    (on one backend: each has random numbers of its own).

    Args:
        names: of them.
    """

    def __init__(self, names):
        with keras.device("cpu"):
            self.layers = [make() for name, make in AUGMENTATIONS.items() if name in names]

    def __call__(self, images, seed):
        """Images (N, H, W, C), uint8 or float in [0, 1], changed; the same type.

        Args:
            seed: whole numbers.
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
    """Refuse what a dataset's images have nothing for.

    Raises:
        RunError: colours, of images that are not RGB.
    """
    channels = data.images.shape[-1]
    if "colour" in names and channels != 3:
        raise RunError(
            f"--augment colour is for RGB images, of 3 channels; those of {data.name} have {channels}: leave "
            "it out."
        )
