"""What the settings are that nobody has given: a rule of the images' shape and number.

The experiments behind it are in docs/defaults.md.
"""

import math

RECOMMENDED = ("latent_dim", "kl_weight", "batch_size", "epochs")
SMALL = 48  # of the shorter side: images below it are of one thing, in few pixels
MANY_IMAGES = 20_000  # from which on a batch of 128 leaves steps enough
STEPS = {128: 6000, 32: 12_000}  # of a run, by batch size, for images of up to 64 pixels a side
MOST_EPOCHS, FEWEST_EPOCHS = 200, 3
# What serves a dataset better than the rule, each measured. Digits are simple: 16 latents hold them, and the
# heavier KL term leaves fewer codes between them.
OF_A_DATASET = {"mnist": {"latent_dim": 16, "kl_weight": 0.5, "batch_size": 128, "epochs": 15}}


def recommended(dataset, image_shape, num_images):
    """The settings for a dataset that nobody has given: a dict.

    Args:
        dataset: its name.
        image_shape: (H, W, C).
        num_images: of the training.
    """
    if dataset in OF_A_DATASET:
        return OF_A_DATASET[dataset]
    shorter = min(image_shape[:2])
    batch_size = 128 if num_images >= MANY_IMAGES else 32
    # The time of a step grows with the square of the side.
    steps = STEPS[batch_size] * min(1.0, 64 / shorter) ** 1.5
    epochs = round(steps / math.ceil(num_images / batch_size))
    return {
        "latent_dim": 64 if shorter < SMALL else 128,
        "kl_weight": "auto",
        "batch_size": batch_size,
        "epochs": min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS),
    }
