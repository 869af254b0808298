"""Layers that halve or double the sides of feature maps.

`Down` and `Up` have no weights. They are the shortcuts around convolutions of stride 2: space to depth with averaging,
and depth to space with repetition, as in Chen et al. 2025, DC-AE, arXiv:2410.10733.
"""

import math
from collections.abc import Callable

import keras
from keras import ops


def even_margins(layer):
    """By how much the kernel of a `Conv2DTranspose` is longer than its stride, (rows, columns).

    None if that is no even number, so that "same" padding is not the same on both sides, or if the layer has other
    options than stride and "same" padding.
    """
    margins = [size - stride for size, stride in zip(layer.kernel_size, layer.strides)]
    if (
        layer.padding != "same"
        or layer.data_format != "channels_last"
        or layer.output_padding is not None
        or tuple(layer.dilation_rate) != (1, 1)
        or any(margin < 0 or margin % 2 for margin in margins)
    ):
        return None
    return margins


@keras.saving.register_keras_serializable("keras_ae")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`.

    Attributes:
        faster: (x, kernel, strides) -> what `ops.conv_transpose` returns for "same" padding that is even. On jax,
            `keras_ae.fast.transposition` sets it; else it is None.
    """

    faster: Callable | None = None

    def call(self, inputs):
        if self.faster is None or even_margins(self) is None:
            return super().call(inputs)
        outputs = self.faster(inputs, ops.convert_to_tensor(self.kernel), tuple(self.strides))
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable("keras_ae")
class Down(keras.layers.Layer):
    """Halves the sides: (N, H, W, C) -> (N, ceil(H / 2), ceil(W / 2), C or 2 C).

    Each channel of 2x2 pixels becomes two channels, the mean of the left and of the right two pixels, or
    one channel, the mean of all four. An odd side is padded by a row or column of zeros.

    Args:
        filters: channels of the output.

    Raises:
        ValueError: filters is neither C nor 2 C.
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
            x = ops.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
        half = (-(-rows // 2), -(-columns // 2))
        # The left and the right pixel of two are neighbours in memory: no transposition is needed.
        x = ops.mean(ops.reshape(x, (-1, half[0], 2, half[1], 2 * channels)), axis=2)
        if self.filters == channels:
            x = ops.mean(ops.reshape(x, (-1, *half, 2, channels)), axis=3)
        return x

    def compute_output_shape(self, shape):
        return (shape[0], math.ceil(shape[1] / 2), math.ceil(shape[2] / 2), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("keras_ae")
class Up(keras.layers.Layer):
    """Doubles the sides: (N, H, W, C) -> (N, 2 H, 2 W, C or C / 2), the mirror image of `Down`.

    A pixel becomes 2x2 pixels. With C filters, all four repeat its value. With C / 2, the left two repeat one
    channel and the right two another.

    Args:
        filters: channels of the output.

    Raises:
        ValueError: filters is neither C nor C / 2.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, shape):
        if shape[-1] not in (self.filters, 2 * self.filters):
            raise ValueError(f"filters must be {shape[-1]} or half of it; got {self.filters}.")

    def call(self, x):
        _, rows, columns, channels = x.shape
        if channels == self.filters:
            x = ops.repeat(x, 2, axis=2)
        return ops.repeat(ops.reshape(x, (-1, rows, 2 * columns, self.filters)), 2, axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], 2 * shape[1], 2 * shape[2], self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}
