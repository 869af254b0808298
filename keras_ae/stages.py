"""The backbone that follows the image's side.

Images from 48 pixels on: stages of stride 2 until the shorter side is about 4, each with a shortcut
without weights around it, and the heads straight on the last map; a hidden dense layer between would
hold nearly all weights. Smaller images: two stages and a dense layer, which serve digits better.

What goes into the first dense layer is scaled down by the number of its inputs. A step of Adam moves
every weight by the learning rate, so that a sum over n inputs moves by n times as much, whatever the
initial weights and however small the gradient: without the scale, a few steps bring means and
log-variances of 64x64 pixels to hundreds, and the KL term to millions.
"""

import math
from typing import NamedTuple

import keras
from keras import layers

from keras_ae.layers import BatchNormalization, Conv2D, Conv2DTranspose, Dense, trace

SIDE_OF_STAGES = 48  # shorter side from which the stages go down to LAST_SIDE
LAST_SIDE = 4
INPUTS = 256  # of a dense layer, up to which nothing is scaled


class Widths(NamedTuple):
    """Filters of each stage, the first at the image; width of the dense layer, 0 for none; residual blocks."""

    filters: tuple
    hidden: int = 0
    blocks: int = 0


SIZES = {"small": (8, 128, 0), "base": (16, 256, 0), "large": (32, 512, 1)}
"""The dial, for stages: (filters of the first, at most so many, residual blocks each)."""
SMALL_IMAGES = {
    "small": Widths((16, 32), 128),
    "base": Widths((32, 64), 256),
    "large": Widths((64, 128), 512, 1),
}


def widths_of(image_shape, size="base"):
    """What a size means for an image (H, W, C)."""
    shorter = min(image_shape[:2])
    if shorter < SIDE_OF_STAGES:
        return SMALL_IMAGES[size]
    first, most, blocks = SIZES[size]
    stages = round(math.log2(shorter / LAST_SIDE))
    return Widths(tuple(min(first * 2**i, most) for i in range(stages)), 0, blocks)


def sides_of(image_shape, stages):
    """(rows, columns) of the image and after each stage: stages + 1 pairs."""
    sides = [tuple(image_shape[:2])]
    for _ in range(stages):
        sides.append(tuple(math.ceil(side / 2) for side in sides[-1]))
    return sides


def build_encoder(image_shape, latent_dim, heads, size="base", num_classes=0):
    """image (N, H, W, C) in [0, 1], perhaps a one-hot label (N, K) -> a (N, latent_dim) tensor per head.

    Inputs and outputs are named as those of `keras_ae.networks.build_encoder`.
    """
    filters, hidden, blocks = widths_of(image_shape, size)
    inputs = [image := keras.Input(image_shape, name="image")]
    x = image
    for i, f in enumerate(filters):
        name = f"down_{i}"
        y = Conv2D(f, 3, strides=2, padding="same", use_bias=False, name=name)(x)
        # (Two stages and a dense layer are the network of the digits, as it was.)
        shortcut = None if hidden or not i else Down(f, name=f"{name}_shortcut")(x)
        x = _residual(_finished(y, shortcut, name), blocks, name)
    x = layers.Flatten(name="flatten")(x)
    n = x.shape[-1]
    if n > INPUTS:
        x = layers.Rescaling(INPUTS / n, name="scale")(x)
    if num_classes:
        inputs.append(label := keras.Input((num_classes,), name="label"))
        x = layers.Concatenate(name="join_label")([x, label])
    if hidden:
        # A layer to come wants inputs of the usual size: weights as much larger, within reason.
        gain = keras.initializers.VarianceScaling(
            min(16.0, max(1.0, n / INPUTS)), "fan_avg", "uniform"
        )
        x = Dense(hidden, activation="silu", kernel_initializer=gain, name="dense")(x)
    outputs = {head: Dense(latent_dim, name=head, dtype="float32")(x) for head in heads}
    return trace(keras.Model(inputs, outputs, name="encoder"))


def build_decoder(image_shape, latent_dim, size="base", num_classes=0):
    """latent (N, D) [, one-hot label (N, K)] -> image (N, H, W, C) in [0, 1]: the encoder, mirrored."""
    filters, hidden, blocks = widths_of(image_shape, size)
    sides = sides_of(image_shape, len(filters))
    inputs = [latent := keras.Input((latent_dim,), name="latent")]
    x = latent
    if num_classes:
        inputs.append(label := keras.Input((num_classes,), name="label"))
        x = layers.Concatenate(name="join_label")([latent, label])
    if hidden:
        x = Dense(hidden, activation="silu", name="dense")(x)
    rows, columns = sides[-1]
    x = Dense(rows * columns * filters[-1], use_bias=False, name="unflatten")(x)
    x = layers.Reshape((rows, columns, filters[-1]), name="reshape")(x)
    x = _residual(_finished(x, None, "unflatten"), blocks, "unflatten")
    for i in range(len(filters) - 1, 0, -1):
        f, name = filters[i - 1], f"up_{i}"
        y = Conv2DTranspose(f, 4, strides=2, padding="same", use_bias=False, name=name)(x)
        y = _cropped(y, sides[i], f"{name}_crop")
        shortcut = None
        if not hidden:
            shortcut = _cropped(
                Up(f, name=f"{name}_shortcut")(x), sides[i], f"{name}_shortcut_crop"
            )
        x = _residual(_finished(y, shortcut, name), blocks, name)
    x = Conv2DTranspose(image_shape[2], 4, strides=2, padding="same", name="pixels")(x)
    x = _cropped(x, sides[0], "crop")
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return trace(keras.Model(inputs, image, name="decoder"))


def count_weights(image_shape, latent_dim, heads, size="base", num_classes=0):
    """How many numbers the weights of an encoder and its decoder hold, without building them."""
    filters, hidden, blocks = widths_of(image_shape, size)
    rows, columns = sides_of(image_shape, len(filters))[-1]
    flat = rows * columns * filters[-1]
    maps = [image_shape[2], *filters]
    pairs = sum(a * b for a, b in zip(maps, maps[1:]))
    count = (9 + 16) * pairs + image_shape[2] + 8 * sum(filters)
    count += blocks * sum(2 * (2 * 9 * f * f + 8 * f) for f in filters)
    if hidden:
        count += (flat + num_classes + 1) * hidden + heads * (hidden + 1) * latent_dim
        return count + (latent_dim + num_classes + 1) * hidden + hidden * flat
    count += heads * (flat + num_classes + 1) * latent_dim
    return count + (latent_dim + num_classes) * flat


def _finished(x, shortcut, name):
    """Batch normalisation, the shortcut where there is one, SiLU."""
    x = BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    if shortcut is not None:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("silu", name=f"{name}_silu")(x)


def _residual(x, blocks, name):
    """Residual blocks of two convolutions, each of which begins as the identity."""
    filters = x.shape[-1]
    for i in range(blocks):
        part = f"{name}_block_{i}"
        y = Conv2D(filters, 3, padding="same", use_bias=False, name=f"{part}_a")(x)
        y = _finished(y, None, f"{part}_a")
        y = Conv2D(filters, 3, padding="same", use_bias=False, name=f"{part}_b")(y)
        y = BatchNormalization(momentum=0.9, gamma_initializer="zeros", name=f"{part}_b_norm")(y)
        x = layers.Add(name=f"{part}_add")([x, y])
    return x


def _cropped(x, sides, name):
    """What an odd side left over, cut off."""
    over = [have - want for have, want in zip(x.shape[1:3], sides)]
    if not any(over):
        return x
    return layers.Cropping2D([(e // 2, e - e // 2) for e in over], name=name)(x)


@keras.saving.register_keras_serializable("keras_ae")
class Down(keras.layers.Layer):
    """Half the sides without weights: (N, H, W, C) -> (N, ceil(H / 2), ceil(W / 2), C or 2 C).

    Two channels for each, the upper and the lower mean of 2x2 pixels, or one, the mean of all four
    (Chen et al. 2025, DC-AE, arXiv:2410.10733). Odd sides get a row or column of zeros.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, shape):
        if self.filters not in (shape[-1], 2 * shape[-1]):
            raise ValueError(f"filters must be {shape[-1]} or {2 * shape[-1]}; got {self.filters}.")

    def call(self, x):
        _, rows, columns, channels = x.shape
        if rows % 2 or columns % 2:
            x = keras.ops.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
        half = (-(-rows // 2), -(-columns // 2))
        x = keras.ops.reshape(x, (-1, half[0], 2, half[1], 2, channels))
        if self.filters == channels:
            return keras.ops.mean(x, axis=(2, 4))
        x = keras.ops.transpose(keras.ops.mean(x, axis=4), (0, 1, 3, 2, 4))
        return keras.ops.reshape(x, (-1, *half, self.filters))

    def compute_output_shape(self, shape):
        return (shape[0], math.ceil(shape[1] / 2), math.ceil(shape[2] / 2), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("keras_ae")
class Up(keras.layers.Layer):
    """Twice the sides without weights: (N, H, W, C) -> (N, 2 H, 2 W, C or C / 2), `Down` mirrored.

    A pixel becomes 2x2: all four from the same channel, or the upper two and the lower two from two.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, shape):
        if shape[-1] not in (self.filters, 2 * self.filters):
            raise ValueError(f"filters must be {shape[-1]} or half of it; got {self.filters}.")

    def call(self, x):
        _, rows, columns, channels = x.shape
        x = keras.ops.reshape(x, (-1, rows, columns, channels // self.filters, self.filters))
        x = keras.ops.transpose(x, (0, 1, 3, 2, 4))  # (N, H, 1 or 2, W, C')
        x = keras.ops.repeat(x, 2, axis=2) if channels == self.filters else x
        x = keras.ops.repeat(x, 2, axis=3)
        return keras.ops.reshape(x, (-1, 2 * rows, 2 * columns, self.filters))

    def compute_output_shape(self, shape):
        return (shape[0], 2 * shape[1], 2 * shape[2], self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}
