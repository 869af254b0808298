"""Backbones: named pairs of an encoder and a decoder, built as Functional models for any image shape.

An encoder maps an image in [0, 1] to one output for each of its heads; a decoder maps a latent code to
an image in [0, 1]. With `num_classes`, both take a one-hot `label` as a second input. It is concatenated
to the input of the dense layers.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from keras_ae import distributed
from keras_ae.resampling import Conv2DTranspose, Down, Up
from keras_ae.settings import SIZES, Registry

# How to initialize the weights of networks that are built in this context: None for Keras' own initializers,
# else a function (name of a weight, gain) -> initializer.
_filling = contextvars.ContextVar("filling", default=None)

SIDE_OF_STAGES = 48  # from this shorter side on, convolutions halve the sides down to LAST_SIDE
LAST_SIDE = 4
INPUTS = 256  # a dense layer with more inputs has them scaled down, as if it had only this many
PIXELS_OF_DIGITS = 1024  # up to this many inputs, a network of dense layers needs no scaling
LARGEST_GAIN = 16.0
# For layers without normalisation that follow SiLU: SiLU reduces a variance of 1 to 0.36 (He et al. 2015 did
# this for ReLU). With Glorot's variance, an AE of such layers soon drew all images black, and stayed there.
GAIN_AFTER_SILU = 2.8


@contextlib.contextmanager
def _filled_by(initializer):
    token = _filling.set(initializer)
    try:
        yield
    finally:
        _filling.reset(token)


@contextlib.contextmanager
def in_policy(policy):
    """A context in which Keras makes layers of this dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def zero_weights():
    """A context that builds networks with zeros, for use before weights are loaded.

    On jax, a Keras initializer, even one for zeros, compiles a program for each shape. This took 6.8 of
    the 7 s of loading the released CVAE.
    """
    return _filled_by(lambda weight, gain: Zeros())


def seeded_weights(seed):
    """A context in which the initial kernels of networks depend on a seed, not on global state."""
    seeds = np.random.default_rng(seed)

    def initializer(weight, gain):
        return _uniform(gain, int(seeds.integers(2**31))) if weight == "kernel" else None

    return _filled_by(initializer)


def _keras_own(weight, gain):
    return _uniform(gain) if weight == "kernel" and gain != 1.0 else None


def _uniform(gain, seed=None):
    """Glorot's uniform initializer with `gain` times its variance."""
    return keras.initializers.VarianceScaling(gain, "fan_avg", "uniform", seed)


@keras.saving.register_keras_serializable("keras_ae")
class Zeros(keras.initializers.Initializer):
    """Fills a weight with zeros made by NumPy."""

    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"), dtype)


def _initializers(*weights, gain=1.0):
    """Initializer arguments of a layer for these weights; empty where the layer's defaults apply."""
    filling = _filling.get() or _keras_own
    found = {f"{weight}_initializer": filling(weight, gain) for weight in weights}
    return {name: initializer for name, initializer in found.items() if initializer is not None}


def dense(units, gain=1.0, **kwargs):
    """`keras.layers.Dense` with the initializers of the context."""
    return layers.Dense(units, **_initializers("kernel", "bias", gain=gain), **kwargs)


LAST = "channels_last"  # whatever keras.json says


def convolution(filters, size, kind=layers.Conv2D, use_bias=False, strides=2, **kwargs):
    """A convolution. With stride 2 it halves the sides, or doubles them if kind is Conv2DTranspose."""
    weights = _initializers("kernel", *(["bias"] if use_bias else []))
    return kind(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=use_bias,
        data_format=LAST,
        **weights,
        **kwargs,
    )


@keras.saving.register_keras_serializable("keras_ae")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with statistics over the batches of all processes."""

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


def normalized_silu(x, name, shortcut=None):
    """Batch normalisation, then the sum with the shortcut if there is one, then SiLU.

    The normalisation keeps the l1 loss out of a local minimum, an output that is black everywhere: with it,
    3 epochs get as far as 12 without it. Its moving averages cover about 10 batches, so they are usable after
    a few dozen.
    """
    x = _normalized(x, f"{name}_norm")
    if shortcut is not None:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("silu", name=f"{name}_silu")(x)


def _normalized(x, name, **kwargs):
    weights = _initializers("beta", "gamma", "moving_mean", "moving_variance")
    return BatchNormalization(momentum=0.9, name=name, **(kwargs | weights))(x)


def _residual_blocks(x, blocks, name):
    """Residual blocks: two convolutions with a shortcut around them; each block starts as the identity."""
    filters = x.shape[-1]
    for i in range(blocks):
        part = f"{name}_block_{i}"
        y = convolution(filters, 3, strides=1, name=f"{part}_a")(x)
        y = normalized_silu(y, f"{part}_a")
        y = convolution(filters, 3, strides=1, name=f"{part}_b")(y)
        y = _normalized(y, f"{part}_b_norm", gamma_initializer="zeros")
        x = layers.Add(name=f"{part}_add")([x, y])
    return x


def _image(image_shape):
    return keras.Input(image_shape, name="image")


def _join_label(x, inputs, num_classes):
    """Concatenate a one-hot label, a new input of the network, to x; without classes, return x."""
    if not num_classes:
        return x
    inputs.append(label := keras.Input((num_classes,), name="label"))
    return layers.Concatenate(name="join_label")([x, label])


def _flattened(x, scaled, most=INPUTS):
    """Flatten x (N, …) to (N, n), scaled down if n is above `most`; and the gain for a hidden layer on it.

    A step of Adam moves every weight by about the learning rate, however small the gradient and whatever
    the initial weights. So a sum over n inputs moves by up to n times as much: with 64x64 pixels, a few
    steps bring means and log-variances to hundreds, and the KL term to millions.
    """
    x = layers.Flatten(LAST, name="flatten")(x)
    n = x.shape[-1]
    if not scaled or n <= most:
        return x, 1.0
    return layers.Rescaling(INPUTS / n, name="scale")(x), min(LARGEST_GAIN, n / INPUTS)


def _heads(x, inputs, widths, latent_dim, heads, first_gain, gain=1.0):
    """The last part of an encoder: dense layers, then one more dense layer for each head."""
    for i, width in enumerate(widths):
        own = gain if i else gain * first_gain
        x = dense(width, own, activation="silu", name=f"dense_{i}")(x)
    outputs = {head: dense(latent_dim, name=head, dtype="float32")(x) for head in heads}
    return keras.Model(inputs, outputs, name="encoder")


def _start(latent_dim, widths, num_classes, gain=1.0):
    """The first part of a decoder: its inputs, and the output of its dense layers."""
    inputs = [latent := keras.Input((latent_dim,), name="latent")]
    x = _join_label(latent, inputs, num_classes)
    for i, width in enumerate(widths):
        x = dense(width, gain, activation="silu", name=f"dense_{i}")(x)
    return inputs, x


def _in_unit_range(inputs, x):
    """The last part of a decoder: a sigmoid, in float32 even with mixed precision."""
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(inputs, image, name="decoder")


class Widths(NamedTuple):
    """The widths of an encoder; its decoder has them in reverse order.

    Attributes:
        filters: of each convolution of stride 2, starting at the image.
        dense: widths of the dense layers after them. If a convolutional network has none, its heads follow
            the last feature map directly, and shortcuts without weights go around the convolutions.
        blocks: number of residual blocks after each convolution.
        scaled: whether the inputs of the first dense layer are scaled down. (Not in format 1.)
    """

    filters: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()
    blocks: int = 0
    scaled: bool = True


def mlp_widths(image_shape, size, hidden):
    """The widths of two dense layers for a size, or the widths in `hidden`."""
    own = {"small": (256, 128), "base": (512, 256), "large": (1024, 512)}[size]
    return Widths(dense=hidden or own)


def mlp_encoder(image_shape, latent_dim, heads, widths, num_classes=0):
    """An encoder of dense layers."""
    inputs = [image := _image(image_shape)]
    x, gain = _flattened(image, widths.scaled, PIXELS_OF_DIGITS)
    x = _join_label(x, inputs, num_classes)
    return _heads(x, inputs, widths.dense, latent_dim, heads, gain, GAIN_AFTER_SILU)


def mlp_decoder(image_shape, latent_dim, widths, num_classes=0):
    """A decoder of dense layers: the mirror image of the encoder."""
    inputs, x = _start(latent_dim, widths.dense[::-1], num_classes, GAIN_AFTER_SILU)
    x = dense(math.prod(image_shape), name="pixels")(x)
    return _in_unit_range(inputs, layers.Reshape(image_shape, name="reshape")(x))


def _mlp_weights(image_shape, latent_dim, heads, widths, num_classes):
    pixels, hidden = math.prod(image_shape), widths.dense
    encoder = _dense_weights([pixels + num_classes, *hidden])
    encoder += heads * _dense_weights([hidden[-1], latent_dim])
    return encoder + _dense_weights([latent_dim + num_classes, *hidden[::-1], pixels])


def conv_widths(image_shape, size, hidden):
    """The widths for an image shape and a size, or `hidden`: the filters of each convolution, then a dense width.

    If the shorter side is 47 pixels or less, there are two convolutions and a dense layer. For larger
    images, convolutions halve it to about 4 pixels, and there is no dense layer: it would hold nearly all
    of the weights.
    """
    if hidden:
        return Widths(hidden[:-1], hidden[-1:])
    shorter = min(image_shape[:2])
    if shorter < SIDE_OF_STAGES:
        return {
            "small": Widths((16, 32), (128,)),
            "base": Widths((32, 64), (256,)),
            "large": Widths((64, 128), (512,), blocks=1),
        }[size]
    first, most, blocks = {"small": (8, 128, 0), "base": (16, 256, 0), "large": (32, 512, 1)}[size]
    stages = round(math.log2(shorter / LAST_SIDE))
    return Widths(tuple(min(first * 2**i, most) for i in range(stages)), blocks=blocks)


def _sides(image_shape, stages):
    """(rows, columns) of the image, then of the feature map after each stage: stages + 1 pairs."""
    return [
        tuple(math.ceil(side / 2**stage) for side in image_shape[:2]) for stage in range(stages + 1)
    ]


def conv_encoder(image_shape, latent_dim, heads, widths, num_classes=0):
    """An encoder of convolutions of stride 2, then dense layers."""
    inputs = [x := _image(image_shape)]
    for i, filters in enumerate(widths.filters):
        name, before = f"conv_{i}", x
        x = convolution(filters, 3, name=name)(x)
        shortcut = None
        if not widths.dense and i:
            shortcut = Down(filters, name=f"{name}_shortcut")(before)
        x = normalized_silu(x, name, shortcut)
        x = _residual_blocks(x, widths.blocks, name)
    x, gain = _flattened(x, widths.scaled)
    x = _join_label(x, inputs, num_classes)
    return _heads(x, inputs, widths.dense, latent_dim, heads, gain)


def conv_decoder(image_shape, latent_dim, widths, num_classes=0):
    """A decoder of transposed convolutions: the mirror image of the encoder."""
    up, sides = {"kind": Conv2DTranspose}, _sides(image_shape, len(widths.filters))
    *filters, last = widths.filters
    inputs, x = _start(latent_dim, widths.dense[::-1], num_classes)
    size = math.prod(sides[-1]) * last
    x = layers.Dense(size, use_bias=False, name="unflatten", **_initializers("kernel"))(x)
    x = layers.Reshape((*sides[-1], last), name="reshape")(x)
    x = normalized_silu(x, "unflatten")
    x = _residual_blocks(x, widths.blocks, "unflatten")
    for i, count in enumerate(reversed(filters)):
        name, before, side = f"upconv_{i}", x, sides[len(filters) - i]
        x = convolution(count, 4, name=name, **up)(x)
        shortcut = None
        if not widths.dense:
            x = _cropped(x, side, f"{name}_crop")
            shortcut = Up(count, name=f"{name}_shortcut")(before)
            shortcut = _cropped(shortcut, side, f"{name}_shortcut_crop")
        x = normalized_silu(x, name, shortcut)
        x = _residual_blocks(x, widths.blocks, name)
    x = convolution(image_shape[2], 4, use_bias=True, name="pixels", **up)(x)
    return _in_unit_range(inputs, _cropped(x, sides[0], "crop"))


def _cropped(x, sides, name):
    """Crop x to `sides`: doubling makes a side too long where halving had rounded it up."""
    over = [have - wanted for have, wanted in zip(x.shape[1:3], sides)]
    if not any(over):
        return x
    return layers.Cropping2D([(e // 2, e - e // 2) for e in over], LAST, name=name)(x)


def _conv_weights(image_shape, latent_dim, heads, widths, num_classes):
    filters, hidden = widths.filters, widths.dense
    flat, maps = (
        math.prod(_sides(image_shape, len(filters))[-1]) * filters[-1],
        [image_shape[2], *filters],
    )
    encoder = [flat + num_classes, *hidden]
    decoder = [latent_dim + num_classes, *hidden[::-1]]
    heads_and_dense = _dense_weights(encoder) + heads * _dense_weights([encoder[-1], latent_dim])
    unflatten = _dense_weights(decoder) + decoder[-1] * flat
    stages = 25 * sum(a * b for a, b in zip(maps, maps[1:])) + image_shape[2] + 8 * sum(filters)
    blocks = 2 * widths.blocks * sum(18 * count**2 + 8 * count for count in filters)
    return heads_and_dense + unflatten + stages + blocks


def _dense_weights(sizes):
    return sum((a + 1) * b for a, b in zip(sizes, sizes[1:]))


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An encoder, its decoder, and their properties.

    `BACKBONES["name"] = Backbone(...)` adds one; an object is accepted wherever a name is.

    Attributes:
        encoder: (image_shape, latent_dim, heads, widths, num_classes) -> a `keras.Model` from `image`
            (N, H, W, C) in [0, 1] [and one-hot `label` (N, K)] to a dict {head: (N, latent_dim) float32}.
            Each head needs a layer of its own: a VAE suffers more from a layer that mean and log-variance
            share than from anything else.
        decoder: (image_shape, latent_dim, widths, num_classes) -> a `keras.Model` from `latent` (N, D)
            [and one-hot `label`] to images (N, H, W, C) float32 in [0, 1].
        widths: (image_shape, size, hidden) -> an object of any kind, passed to encoder and decoder as
            `widths`. `hidden` holds the widths a user asked for, or None for those of the size (one of SIZES).
        count_weights: (image_shape, latent_dim, number of heads, widths, num_classes) -> how many numbers
            the weights of both networks hold, without building them.
        learning_rate: the peak learning rate that it trains well with.
        fewest: how many widths `hidden` must have at least.
    """

    encoder: Callable
    decoder: Callable
    widths: Callable
    count_weights: Callable
    learning_rate: float
    fewest: int = 1

    def widths_of(self, image_shape, size="base", hidden=None):
        """The widths for an image shape and a size, or for `hidden`.

        Raises:
            ValueError: the size is unknown, or `hidden` has too few widths or one below 1.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}.")
        if hidden is None:
            return self.widths(image_shape, size, None)
        if len(hidden) < self.fewest or min(hidden) < 1:
            raise ValueError(
                f"hidden must be {self.fewest} widths or more, each 1 or more; got {tuple(hidden)}."
            )
        return self.widths(image_shape, size, tuple(hidden))


BACKBONES = Registry(
    "backbone",
    Backbone,
    {
        "conv": Backbone(conv_encoder, conv_decoder, conv_widths, _conv_weights, 4e-3, fewest=2),
        "mlp": Backbone(mlp_encoder, mlp_decoder, mlp_widths, _mlp_weights, 1e-3),
    },
)


def backbone_of_format_1(name):
    """The backbone of this name in a model of format 1, which version 0.1.0 wrote."""
    found = BACKBONES.find(name)

    def widths(image_shape, size, hidden):
        before = {"conv": (32, 64, 256), "mlp": (512, 256)}
        return found.widths(image_shape, size, hidden or before[name])._replace(scaled=False)

    return dataclasses.replace(found, widths=widths)


def count_weights(
    image_shape, latent_dim, heads, backbone="conv", hidden=None, num_classes=0, size="base"
):
    """How many numbers the weights of an encoder and its decoder hold, without building them.

    Args:
        image_shape: (H, W, C).
        latent_dim: number of latents D.
        heads: number of outputs of the encoder, such as 2 for mean and log-variance.
        backbone: a name in `BACKBONES`, or a `Backbone`.
        hidden, size: see `Backbone.widths_of`.
        num_classes: number of classes K, or 0 for networks without a label.
    """
    found = BACKBONES.find(backbone)
    widths = found.widths_of(image_shape, size, hidden)
    return found.count_weights(image_shape, latent_dim, heads, widths, num_classes)


def check_encoder(network, image_shape, latent_dim, heads, num_classes=0):
    """Make an encoder, like one from `Backbone.encoder`, of a user's `keras.Model`.

    The network is called on the image or, with classes, on [image, one-hot label]. It must return one
    tensor (N, latent_dim) for each head, in a dict by head or in a list in the order of the heads.

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
    """Make a decoder, like one from `Backbone.decoder`, of a user's `keras.Model`.

    The network is called on the code (N, latent_dim) or, with classes, on [code, one-hot label]. It must
    return images (N, H, W, C) in [0, 1].

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
    """The symbolic outputs of a user's network."""
    if not isinstance(network, keras.Model):
        raise ValueError(f"The {role} must be a keras.Model; got {type(network).__name__}.")
    wanted = _described({tensor.name: tuple(tensor.shape) for tensor in inputs})
    taken = getattr(network, "inputs", None)  # None for a subclass that is not built yet
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if taken and [tuple(tensor.shape) for tensor in taken] != shapes:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in taken)
        raise ValueError(f"The {role} must take {wanted}; it takes {found}.")
    try:
        return network(inputs if len(inputs) > 1 else inputs[0])
    except Exception as error:  # a user's layers may raise anything
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"The {role} must take {wanted}, and fails: {why}") from error


def _described(shapes):
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _with_inputs(network, inputs, outputs, role):
    """The network itself if its inputs and outputs have our names, else a model around it."""
    names = [getattr(tensor, "name", None) for tensor in getattr(network, "inputs", None) or ()]
    if names == [tensor.name for tensor in inputs] and (
        keras.tree.map_structure(lambda _: 0, network.output)
        == keras.tree.map_structure(lambda _: 0, outputs)
    ):
        return network
    return keras.Model(inputs, outputs, name=role)


def ends_in_sigmoid(decoder):
    """Whether a decoder is a Functional model that ends in a sigmoid, and does nothing else there.

    It may also end in another such model. Forward hooks of torch, an activity regularizer or a replaced `call`
    of any of them make this False, because they would be left out if the sigmoid were computed outside the decoder.
    """
    outputs = getattr(decoder, "outputs", None)
    if not outputs or not type(decoder).__module__.startswith("keras."):
        return False  # a user's class may have its own `call`
    last = outputs[0]._keras_history.operation
    for layer in (decoder, last):
        more = ("_forward_hooks", "_forward_pre_hooks", "activity_regularizer")
        if any(getattr(layer, name, None) for name in more) or "call" in vars(layer):
            return False
    if isinstance(last, keras.Model):
        return ends_in_sigmoid(last)
    return type(last) is layers.Activation and last.activation is keras.activations.sigmoid


def logits_of(decoder):
    """A decoder without its last sigmoid, which shares its layers; None if it ends otherwise."""
    if not ends_in_sigmoid(decoder):
        return None
    last, node, _ = decoder.outputs[0]._keras_history
    inputs = last._inbound_nodes[node].input_tensors
    logits = logits_of(last)(inputs) if isinstance(last, keras.Model) else inputs[0]
    return keras.Model(decoder.inputs, logits, name="logits")
