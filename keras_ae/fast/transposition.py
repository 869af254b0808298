"""A transposed convolution whose gradient is fast on jax.

XLA runs the gradient that jax derives for the kernel of a transposed convolution ten times slower on a CPU than that of
the convolution which it transposes. They are the same numbers, so the second is used.
"""

import functools

import jax
from keras import ops

from keras_ae.resampling import Conv2DTranspose


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_transpose(x, kernel, strides):
    """`ops.conv_transpose(x, kernel, strides, "same")` for x (N, H, W, C) and a kernel (height, width, filters, C).

    The kernel is longer than the stride by an even number on both sides, so the padding is the same on both.
    """
    return ops.conv_transpose(x, kernel, strides, padding="same", data_format="channels_last")


def _forward(x, kernel, strides):
    return conv_transpose(x, kernel, strides), (x, kernel)


def _backward(strides, saved, gradient):
    x, kernel = saved
    padding = [((size - stride) // 2,) * 2 for size, stride in zip(kernel.shape, strides)]

    def convolution(kernel):
        return jax.lax.conv_general_dilated(
            gradient, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    of_x, transposed = jax.vjp(convolution, kernel)
    return of_x, transposed(x)[0]


conv_transpose.defvjp(_forward, _backward)
Conv2DTranspose.faster = staticmethod(conv_transpose)
