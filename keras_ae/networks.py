"""Encoders and decoders: Functional models of any image shape, with named inputs.

An encoder maps an image in [0, 1] to one output for each of its heads; a decoder maps a latent code to
an image in [0, 1]. With `num_classes`, both take a one-hot `label` as a second input, which joins at
the dense layers.
"""

import contextlib
import math

import keras
import numpy as np
from keras import layers

from keras_ae import ops
from keras_ae.layers import BatchNormalization, Conv2D, Conv2DTranspose, Dense, trace

_blank = False


@contextlib.contextmanager
def blank():
    """Have networks built with weights of NumPy's zeros, where weights are to be put in anyway.

    On jax each shape that an initializer of Keras fills, be it with zeros, is a program to compile: 6.8
    of 7 s of loading the released CVAE.
    """
    global _blank
    before, _blank = _blank, True
    try:
        yield
    finally:
        _blank = before


@keras.saving.register_keras_serializable("keras_ae")
class Blank(keras.initializers.Initializer):
    """Zeros from NumPy."""

    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"), dtype)


def _initializers(*names):
    """Arguments of a layer for these of its weights: none, for its own initializers, unless `blank`."""
    return {f"{name}_initializer": Blank() for name in names} if _blank else {}


HIDDEN = {"conv": (32, 64, 256), "mlp": (512, 256)}
BACKBONES = tuple(HIDDEN)


def build_encoder(image_shape, latent_dim, heads, backbone="conv", hidden=None, num_classes=0):
    """image (N, H, W, C) in [0, 1], perhaps a one-hot label (N, K) -> a (N, latent_dim) tensor per head.

    Args:
        image_shape: (H, W, C).
        latent_dim: size D of the latent code.
        heads: names of the outputs, e.g. ("mean", "log_var"). Each is a dense layer of its own: one
            shared by mean and log-variance costs more than anything else in a VAE.
        backbone: "conv" or "mlp".
        hidden: "mlp": widths of the dense layers. "conv": filters of the convolutions, each of stride
            2, then the width of the dense layer.
        num_classes: number of classes K, 0 for a network without a label.

    Returns:
        A `keras.Model` with inputs named `image` [and `label`] and a dict of outputs by head, float32
        under mixed precision too.
    """
    hidden = tuple(hidden or HIDDEN[backbone])
    inputs = [image := keras.Input(image_shape, name="image")]
    x = image
    if backbone == "conv":
        for i, filters in enumerate(hidden[:-1]):
            x = Conv2D(
                filters,
                3,
                strides=2,
                padding="same",
                use_bias=False,
                name=f"conv_{i}",
                **_initializers("kernel"),
            )(x)
            x = normalized_silu(x, f"conv_{i}")
        hidden = hidden[-1:]
    x = layers.Flatten(name="flatten")(x)
    if num_classes:
        inputs.append(label := keras.Input((num_classes,), name="label"))
        x = layers.Concatenate(name="join_label")([x, label])
    for i, width in enumerate(hidden):
        x = Dense(width, activation="silu", name=f"dense_{i}", **_initializers("kernel", "bias"))(x)
    outputs = {
        head: Dense(latent_dim, name=head, dtype="float32", **_initializers("kernel", "bias"))(x)
        for head in heads
    }
    return trace(keras.Model(inputs, outputs, name="encoder"))


def build_decoder(image_shape, latent_dim, backbone="conv", hidden=None, num_classes=0):
    """latent (N, D) [, one-hot label (N, K)] -> image (N, H, W, C) in [0, 1].

    The encoder of the same arguments, mirrored; see `build_encoder`. The output is a sigmoid, in
    float32 under mixed precision too.
    """
    height, width, channels = image_shape
    hidden = tuple(hidden or HIDDEN[backbone])
    inputs = [latent := keras.Input((latent_dim,), name="latent")]
    x = latent
    if num_classes:
        inputs.append(label := keras.Input((num_classes,), name="label"))
        x = layers.Concatenate(name="join_label")([latent, label])
    dense = hidden[-1:] if backbone == "conv" else hidden[::-1]
    for i, units in enumerate(dense):
        x = Dense(units, activation="silu", name=f"dense_{i}", **_initializers("kernel", "bias"))(x)
    if backbone == "conv":
        filters = hidden[:-1][::-1]
        rows, columns = (math.ceil(side / 2 ** len(filters)) for side in (height, width))
        x = Dense(
            rows * columns * filters[0],
            use_bias=False,
            name="unflatten",
            **_initializers("kernel"),
        )(x)
        x = layers.Reshape((rows, columns, filters[0]), name="reshape")(x)
        x = normalized_silu(x, "unflatten")
        for i, f in enumerate(filters[1:]):
            x = Conv2DTranspose(
                f,
                4,
                strides=2,
                padding="same",
                use_bias=False,
                name=f"upconv_{i}",
                **_initializers("kernel"),
            )(x)
            x = normalized_silu(x, f"upconv_{i}")
        x = Conv2DTranspose(
            channels,
            4,
            strides=2,
            padding="same",
            name="pixels",
            **_initializers("kernel", "bias"),
        )(x)
        # Sides that are no multiple of the strides come out larger: cut off what is over.
        extra = (rows * 2 ** len(filters) - height, columns * 2 ** len(filters) - width)
        if any(extra):
            x = layers.Cropping2D([(e // 2, e - e // 2) for e in extra], name="crop")(x)
    else:
        x = Dense(math.prod(image_shape), name="pixels", **_initializers("kernel", "bias"))(x)
        x = layers.Reshape(image_shape, name="reshape")(x)
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return trace(keras.Model(inputs, image, name="decoder"))


def own_encoder(network, image_shape, latent_dim, heads, num_classes=0):
    """A `keras.Model` of the user's as an encoder: what `build_encoder` returns.

    It is called on the image or, with classes, on [image, one-hot label], and returns one tensor
    (N, latent_dim) for each head, in a dict by head or in a list in their order.

    Raises:
        ValueError: it takes or returns something else.
    """
    inputs = _inputs({"image": image_shape}, num_classes)
    outputs = _outputs("encoder", network, inputs)
    if not isinstance(outputs, dict):
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        if len(outputs) == len(heads):
            outputs = dict(zip(heads, outputs))
    expected = {head: (None, latent_dim) for head in heads}
    found = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), outputs)
    if found != expected:
        raise ValueError(f"The encoder must return {_described(expected)}; it returns {found}.")
    return _with_inputs(network, inputs, outputs, "encoder")


def own_decoder(network, image_shape, latent_dim, num_classes=0):
    """A `keras.Model` of the user's as a decoder: what `build_decoder` returns.

    It is called on the code (N, latent_dim) or, with classes, on [code, one-hot label], and returns
    images (N, H, W, C) in [0, 1].

    Raises:
        ValueError: it takes or returns something else.
    """
    inputs = _inputs({"latent": (latent_dim,)}, num_classes)
    output = _outputs("decoder", network, inputs)
    expected = (None, *image_shape)
    found = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), output)
    if found != expected:
        raise ValueError(f"The decoder must return images {expected}; it returns {found}.")
    return _with_inputs(network, inputs, output, "decoder")


def _inputs(shapes, num_classes):
    shapes = shapes | ({"label": (num_classes,)} if num_classes else {})
    return [keras.Input(shape, name=name) for name, shape in shapes.items()]


def _outputs(role, network, inputs):
    """The symbolic outputs of a network of the user's."""
    if not isinstance(network, keras.Model):
        raise ValueError(f"The {role} must be a keras.Model; got {type(network).__name__}.")
    wanted = _described({tensor.name: tuple(tensor.shape) for tensor in inputs})
    taken = getattr(network, "inputs", None)  # None for a class that is not built yet
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if taken and [tuple(tensor.shape) for tensor in taken] != shapes:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in taken)
        raise ValueError(f"The {role} must take {wanted}; it takes {found}.")
    try:
        return network(inputs if len(inputs) > 1 else inputs[0])
    except Exception as error:  # whatever the user's layers raise
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"The {role} must take {wanted}, and fails: {why}") from error


def _described(shapes):
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _with_inputs(network, inputs, outputs, role):
    """The network itself where its inputs and outputs have our names; else a shell around it."""
    names = [getattr(tensor, "name", None) for tensor in getattr(network, "inputs", None) or ()]
    if names == [tensor.name for tensor in inputs] and (
        keras.tree.map_structure(lambda _: 0, network.output)
        == keras.tree.map_structure(lambda _: 0, outputs)
    ):
        return network
    return keras.Model(inputs, outputs, name=role)


def count_weights(image_shape, latent_dim, heads, backbone="conv", hidden=None, num_classes=0):
    """How many numbers the weights of an encoder and its decoder hold, without building them.

    Args:
        heads: how many outputs the encoder has; the others as of `build_encoder`.
    """
    height, width, channels = image_shape
    hidden = tuple(hidden or HIDDEN[backbone])

    def dense(sizes, bias=True):
        return sum((a + bias) * b for a, b in zip(sizes, sizes[1:]))

    pixels, count = height * width * channels, 0
    if backbone == "conv":
        *filters, units = hidden
        sides = [math.ceil(side / 2 ** len(filters)) for side in (height, width)]
        pixels = math.prod(sides) * filters[-1]  # what the convolutions leave
        maps = [channels, *filters]
        norm = 4 * sum(filters)
        count += 9 * sum(a * b for a, b in zip(maps, maps[1:])) + norm
        count += dense([units, pixels], bias=False)
        count += 16 * sum(a * b for a, b in zip(maps, maps[1:])) + channels + norm
        hidden = (units,)
    else:
        count += dense([hidden[0], pixels])
    count += dense([pixels + num_classes, *hidden]) + heads * dense([hidden[-1], latent_dim])
    return count + dense([latent_dim + num_classes, *hidden[::-1]])


def normalized_silu(x, name):
    """Batch normalisation, then SiLU.

    The normalisation is what keeps the l1 loss out of its trap, an output that is black everywhere:
    with it, three epochs reach what twelve reach without. Its averages remember about ten batches, so
    that they are of use after a few dozen.
    """
    weights = _initializers("beta", "gamma", "moving_mean", "moving_variance")
    x = BatchNormalization(momentum=0.9, name=f"{name}_norm", **weights)(x)
    return layers.Activation("silu", name=f"{name}_silu")(x)


def one_hot(labels, num_classes):
    """Class indices (N,) -> (N, num_classes) float32; NaN, which no loss hides, for one out of range."""
    # Not `ops.one_hot`: on torch it reads the largest label back, for which a GPU has to be waited for.
    labels = ops.cast(labels, "int32")[..., None]
    ones = ops.equal(labels, keras.ops.arange(num_classes, dtype="int32"))
    return ops.where(ops.any(ones, axis=-1, keepdims=True), ops.cast(ones, "float32"), math.nan)
