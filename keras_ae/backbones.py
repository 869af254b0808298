"""Backbones: the encoder and the decoder of a name, Functional models of any image shape.

An encoder maps an image in [0, 1] to one output for each of its heads; a decoder maps a latent code to
an image in [0, 1]. With `num_classes`, both take a one-hot `label` as a second input, which joins at
the dense layers.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_ae import distributed
from keras_ae.settings import Registry

# What fills the weights of the networks built in this context: None for Keras' own initializers, else a
# function from the name of a weight to an initializer.
_filling = contextvars.ContextVar("filling", default=None)


@contextlib.contextmanager
def _filled_by(initializer):
    token = _filling.set(initializer)
    try:
        yield
    finally:
        _filling.reset(token)


def zero_weights():
    """A context in which networks are built with zeros, where weights are to be put in anyway.

    On jax each shape that an initializer of Keras fills, be it with zeros, is a program to compile: 6.8
    of 7 s of loading the released CVAE.
    """
    return _filled_by(lambda weight: Zeros())


def seeded_weights(seed):
    """A context in which the kernels of networks follow from a seed, and from no global state."""
    seeds = np.random.default_rng(seed)

    def initializer(weight):
        if weight != "kernel":
            return None
        return keras.initializers.GlorotUniform(int(seeds.integers(2**31)))

    return _filled_by(initializer)


@keras.saving.register_keras_serializable("keras_ae")
class Zeros(keras.initializers.Initializer):
    """Zeros from NumPy."""

    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"), dtype)


def _initializers(*weights):
    """Arguments of a layer for these of its weights; none where its own initializers are right."""
    filling = _filling.get() or (lambda weight: None)
    found = {f"{weight}_initializer": filling(weight) for weight in weights}
    return {name: initializer for name, initializer in found.items() if initializer is not None}


def dense(units, **kwargs):
    """`keras.layers.Dense`, filled as the context says."""
    return layers.Dense(units, **_initializers("kernel", "bias"), **kwargs)


def convolution(filters, size, kind=layers.Conv2D, use_bias=False, **kwargs):
    """A convolution of stride 2 that halves the sides, or, of kind Conv2DTranspose, doubles them."""
    weights = _initializers("kernel", *(["bias"] if use_bias else []))
    return kind(filters, size, strides=2, padding="same", use_bias=use_bias, **weights, **kwargs)


@keras.saving.register_keras_serializable("keras_ae")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, whose statistics are those of the batches of all processes."""

    def call(self, inputs, training=None, mask=None):
        shared = training and self.trainable and distributed.size() > 1
        plain = self.axis in (-1, len(inputs.shape) - 1) and self.scale and self.center
        if not (shared and plain and mask is None):
            return super().call(inputs, training=training, mask=mask)
        mean, variance = distributed.batch_moments(inputs)
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value.detach() * (1.0 - self.momentum))
        scale = self.gamma.value * (variance + self.epsilon).rsqrt()
        outputs = (inputs.float() - mean) * scale + self.beta.value
        return outputs.to(inputs.dtype)


def normalized_silu(x, name):
    """Batch normalisation, then SiLU.

    The normalisation is what keeps the l1 loss out of its trap, an output that is black everywhere:
    with it, three epochs reach what twelve reach without. Its averages remember about ten batches, so
    that they are of use after a few dozen.
    """
    weights = _initializers("beta", "gamma", "moving_mean", "moving_variance")
    x = BatchNormalization(momentum=0.9, name=f"{name}_norm", **weights)(x)
    return layers.Activation("silu", name=f"{name}_silu")(x)


def _image(image_shape):
    return keras.Input(image_shape, name="image")


def _join_label(x, inputs, num_classes):
    """x with a one-hot label beside it, which becomes an input; x itself without classes."""
    if not num_classes:
        return x
    inputs.append(label := keras.Input((num_classes,), name="label"))
    return layers.Concatenate(name="join_label")([x, label])


def _heads(x, inputs, widths, latent_dim, heads):
    """The end of an encoder: dense layers, and one more for each head."""
    for i, width in enumerate(widths):
        x = dense(width, activation="silu", name=f"dense_{i}")(x)
    outputs = {head: dense(latent_dim, name=head, dtype="float32")(x) for head in heads}
    return keras.Model(inputs, outputs, name="encoder")


def _start(latent_dim, widths, num_classes):
    """The start of a decoder: its inputs, and what dense layers make of them."""
    inputs = [latent := keras.Input((latent_dim,), name="latent")]
    x = _join_label(latent, inputs, num_classes)
    for i, width in enumerate(widths):
        x = dense(width, activation="silu", name=f"dense_{i}")(x)
    return inputs, x


def _in_unit_range(inputs, x):
    """The end of a decoder: a sigmoid, in float32 under mixed precision too."""
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(inputs, image, name="decoder")


def mlp_encoder(image_shape, latent_dim, heads, hidden, num_classes=0):
    """Dense layers of the widths `hidden`."""
    inputs = [image := _image(image_shape)]
    x = layers.Flatten(name="flatten")(image)
    return _heads(_join_label(x, inputs, num_classes), inputs, hidden, latent_dim, heads)


def mlp_decoder(image_shape, latent_dim, hidden, num_classes=0):
    """The encoder, mirrored."""
    inputs, x = _start(latent_dim, hidden[::-1], num_classes)
    x = dense(math.prod(image_shape), name="pixels")(x)
    return _in_unit_range(inputs, layers.Reshape(image_shape, name="reshape")(x))


def _mlp_weights(image_shape, latent_dim, heads, hidden, num_classes):
    pixels = math.prod(image_shape)
    encoder = _dense_weights([pixels + num_classes, *hidden]) + heads * _dense_weights(
        [hidden[-1], latent_dim]
    )
    return encoder + _dense_weights([latent_dim + num_classes, *hidden[::-1], pixels])


def conv_encoder(image_shape, latent_dim, heads, hidden, num_classes=0):
    """Convolutions of stride 2, then a dense layer: `hidden` is filters of each, then its width."""
    *filters, width = hidden
    inputs = [x := _image(image_shape)]
    for i, count in enumerate(filters):
        x = convolution(count, 3, name=f"conv_{i}")(x)
        x = normalized_silu(x, f"conv_{i}")
    x = layers.Flatten(name="flatten")(x)
    return _heads(_join_label(x, inputs, num_classes), inputs, [width], latent_dim, heads)


def conv_decoder(image_shape, latent_dim, hidden, num_classes=0):
    """The encoder, mirrored, by transposed convolutions."""
    (height, width, channels), up = image_shape, {"kind": layers.Conv2DTranspose}
    *filters, units = hidden
    filters = filters[::-1]
    inputs, x = _start(latent_dim, [units], num_classes)
    rows, columns = (math.ceil(side / 2 ** len(filters)) for side in (height, width))
    size = rows * columns * filters[0]
    x = layers.Dense(size, use_bias=False, name="unflatten", **_initializers("kernel"))(x)
    x = layers.Reshape((rows, columns, filters[0]), name="reshape")(x)
    x = normalized_silu(x, "unflatten")
    for i, count in enumerate(filters[1:]):
        x = convolution(count, 4, name=f"upconv_{i}", **up)(x)
        x = normalized_silu(x, f"upconv_{i}")
    x = convolution(channels, 4, use_bias=True, name="pixels", **up)(x)
    # Sides that are no multiple of the strides come out larger: cut off what is over.
    extra = (rows * 2 ** len(filters) - height, columns * 2 ** len(filters) - width)
    if any(extra):
        x = layers.Cropping2D([(e // 2, e - e // 2) for e in extra], name="crop")(x)
    return _in_unit_range(inputs, x)


def _conv_weights(image_shape, latent_dim, heads, hidden, num_classes):
    (height, width, channels), (*filters, units) = image_shape, hidden
    sides = [math.ceil(side / 2 ** len(filters)) for side in (height, width)]
    flat, maps, norm = math.prod(sides) * filters[-1], [channels, *filters], 4 * sum(filters)
    kernels = sum(a * b for a, b in zip(maps, maps[1:]))
    encoder = 9 * kernels + norm + _dense_weights([flat + num_classes, units])
    encoder += heads * _dense_weights([units, latent_dim])
    decoder = _dense_weights([latent_dim + num_classes, units]) + units * flat
    return encoder + decoder + 16 * kernels + channels + norm


def _dense_weights(sizes):
    return sum((a + 1) * b for a, b in zip(sizes, sizes[1:]))


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An encoder, its decoder, and what others need to know of them.

    `BACKBONES["name"] = Backbone(...)` adds one; an object is accepted wherever a name is.

    Attributes:
        encoder: (image_shape, latent_dim, heads, hidden, num_classes) -> a `keras.Model` from `image`
            (N, H, W, C) in [0, 1] [and one-hot `label` (N, K)] to a dict of (N, latent_dim) float32 by
            head. Each head needs a layer of its own: one shared by mean and log-variance costs more than
            anything else in a VAE.
        decoder: (image_shape, latent_dim, hidden, num_classes) -> a `keras.Model` from `latent` (N, D)
            [and one-hot `label`] to images (N, H, W, C) float32 in [0, 1].
        hidden: default widths of the hidden layers.
        count_weights: (image_shape, latent_dim, number of heads, hidden, num_classes) -> how many numbers
            the weights of both networks hold, without building them.
        learning_rate: the peak that it trains well with.
        fewest: how many widths `hidden` must have.
    """

    encoder: Callable
    decoder: Callable
    hidden: tuple[int, ...]
    count_weights: Callable
    learning_rate: float
    fewest: int = 1

    def widths(self, hidden=None):
        """`hidden`, checked, or the default.

        Raises:
            ValueError: for too few widths, or one below 1.
        """
        hidden = tuple(hidden or self.hidden)
        if len(hidden) < self.fewest or min(hidden) < 1:
            raise ValueError(
                f"hidden must be {self.fewest} widths or more, each 1 or more; got {hidden}."
            )
        return hidden


BACKBONES = Registry(
    "backbone",
    Backbone,
    {
        "conv": Backbone(conv_encoder, conv_decoder, (32, 64, 256), _conv_weights, 4e-3, fewest=2),
        "mlp": Backbone(mlp_encoder, mlp_decoder, (512, 256), _mlp_weights, 1e-3),
    },
)


def build_encoder(image_shape, latent_dim, heads, backbone="conv", hidden=None, num_classes=0):
    """image (N, H, W, C) in [0, 1], perhaps a one-hot label (N, K) -> a (N, latent_dim) tensor per head.

    Args:
        image_shape: (H, W, C).
        latent_dim: size D of the latent code.
        heads: names of the outputs, e.g. ("mean", "log_var").
        backbone: a name in `BACKBONES`, or a `Backbone`.
        hidden: widths of the hidden layers, None for the backbone's own.
        num_classes: number of classes K, 0 for a network without a label.
    """
    found = BACKBONES.find(backbone)
    return found.encoder(image_shape, latent_dim, heads, found.widths(hidden), num_classes)


def build_decoder(image_shape, latent_dim, backbone="conv", hidden=None, num_classes=0):
    """latent (N, D) [, one-hot label (N, K)] -> image (N, H, W, C) in [0, 1]; see `build_encoder`."""
    found = BACKBONES.find(backbone)
    return found.decoder(image_shape, latent_dim, found.widths(hidden), num_classes)


def count_weights(image_shape, latent_dim, heads, backbone="conv", hidden=None, num_classes=0):
    """How many numbers the weights of an encoder and its decoder hold, without building them.

    Args:
        heads: how many outputs the encoder has; the others as of `build_encoder`.
    """
    found = BACKBONES.find(backbone)
    return found.count_weights(image_shape, latent_dim, heads, found.widths(hidden), num_classes)


def check_encoder(network, image_shape, latent_dim, heads, num_classes=0):
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


def check_decoder(network, image_shape, latent_dim, num_classes=0):
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


def ends_in_sigmoid(decoder):
    """Whether a decoder is a Functional model that ends in a sigmoid, which nobody listens to.

    It may end in another such model. A forward hook of torch on any of them would not be called, were the
    sigmoid computed beside them.
    """
    outputs = getattr(decoder, "outputs", None)
    if not outputs or not type(decoder).__module__.startswith("keras."):
        return False  # with a `call` of the user's
    last = outputs[0]._keras_history.operation
    if any(
        getattr(layer, hooks, None)
        for layer in (decoder, last)
        for hooks in ("_forward_hooks", "_forward_pre_hooks")
    ):
        return False
    if isinstance(last, keras.Model):
        return ends_in_sigmoid(last)
    return type(last) is layers.Activation and last.activation is keras.activations.sigmoid


def logits_of(decoder):
    """A decoder that ends in a sigmoid, without it; None for any other. Both share their layers."""
    if not ends_in_sigmoid(decoder):
        return None
    last, node, _ = decoder.outputs[0]._keras_history
    inputs = last._inbound_nodes[node].input_tensors
    logits = logits_of(last)(inputs) if isinstance(last, keras.Model) else inputs[0]
    return keras.Model(decoder.inputs, logits, name="logits")
