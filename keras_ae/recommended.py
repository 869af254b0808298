"""Recommended values for settings that the user did not give, from the shape and number of the images.

The experiments behind this rule are in docs/defaults.md.
"""

import math

RECOMMENDED = ("latent_dim", "kl_weight", "batch_size", "epochs")
SMALL = 48  # pixels of the shorter side; smaller images usually show a single object
MANY_IMAGES = 20_000  # with so many images, batches of 128 give enough steps
STEPS = {128: 6000, 32: 17_000}  # of a run, by batch size, for images of up to 64 pixels a side
MOST_EPOCHS, FEWEST_EPOCHS = 200, 3
# Values measured to be better than the rule for one dataset. Digits are simple: 16 latents are enough, and the
# larger weight of the KL term leaves fewer codes between the digits.
OF_A_DATASET = {"mnist": {"latent_dim": 16, "kl_weight": 0.5, "batch_size": 128, "epochs": 14}}


def recommended(dataset, image_shape, num_images):
    """The recommended settings for a dataset: a dict with the keys in RECOMMENDED.

    Args:
        dataset: name of the dataset.
        image_shape: (H, W, C).
        num_images: number of training images.
    """
    if dataset in OF_A_DATASET:
        return OF_A_DATASET[dataset]
    shorter = min(image_shape[:2])
    batch_size = 128 if num_images >= MANY_IMAGES else 32
    # The time of a step grows with the square of the side.
    steps = STEPS[batch_size] * min(1.0, 64 / shorter) ** 1.5
    epochs = round(steps / math.ceil(num_images / batch_size))
    return {
        "latent_dim": 64 if shorter < SMALL else 192,
        "kl_weight": "auto",
        "batch_size": batch_size,
        "epochs": min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS),
    }
