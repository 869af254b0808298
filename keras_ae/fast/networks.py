"""Runs a Functional network on torch as a list of torch's own functions, if it knows all its layers.

`Layer.__call__` checks masks, dtypes, shapes and scopes in every call of every layer, and Keras computes
convolutions and normalisations on torch through its own general code. Here each layer is a single torch
function with the same result. If a layer is unknown, or was changed after it was built (a hook, an adapter,
another dtype, its own `call`), Keras runs the whole network.
"""

import contextlib
import contextvars

import keras

from keras_ae import distributed, fast
from keras_ae.backbones import BatchNormalization
from keras_ae.resampling import Conv2DTranspose, Down, Up, even_margins

if keras.backend.backend() == "torch":
    import torch
    from torch.nn import functional
else:
    torch = None


# During an execution: the results of `bind` so far, by (program, training). Else None.
_kept = contextvars.ContextVar("kept", default=None)


@contextlib.contextmanager
def kept_functions():
    """A context that looks up the functions of a network only once; no layer may be changed or hooked in it."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def call_network(network, inputs, training=False):
    """Compute `network(inputs, training=training)` for a list of tensors, with its `Program` if possible."""
    if torch is not None and fast.ON and isinstance(inputs[0], torch.Tensor):
        program = program_of(network)
        functions = program and inputs[0].device.type != "meta" and program.functions(training)
        if functions:
            return program.compute(functions, inputs)
    # Keras warns if a Functional network that was made with one tensor is called with a list of it.
    if isinstance(getattr(network, "_inputs_struct", None), keras.KerasTensor):
        (inputs,) = inputs
    return network(inputs, training=training)


def program_of(network):
    """The `Program` of a network, made at the first call; None if the network has an unknown layer."""
    kept = vars(network).get("_program", network)  # the network itself means: not looked up yet
    if kept is network:
        try:
            kept = Program(network)
        except Unknown:
            kept = None
        network._program = kept
    return kept


class Unknown(Exception):
    """A layer that `Program` does not know."""


class Program:
    """The layers of a Functional network in order, each with the tensors of its inputs and its output."""

    def __init__(self, network):
        if not isinstance(network, keras.Model) or not hasattr(network, "operations"):
            raise Unknown
        if not type(network).__module__.startswith("keras."):  # it may have a `call` of its own
            raise Unknown
        outputs = network.output
        self._inputs = [id(tensor) for tensor in network.inputs]
        self._outputs = (
            {name: id(tensor) for name, tensor in outputs.items()}
            if isinstance(outputs, dict)
            else id(outputs)
        )
        self._network, self._steps = network, []
        for layer in network.operations:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            nodes = layer._inbound_nodes
            if (
                type(layer) not in FUNCTIONS
                or len(nodes) != 1
                or any(x is not None for x in nodes[0].arguments.kwargs.values())
            ):
                raise Unknown
            sources = [id(tensor) for tensor in keras.tree.flatten(layer.input)]
            self._steps.append((layer, layer.dtype_policy, sources, id(layer.output)))

    def functions(self, training):
        """The result of `bind`; in a context of `kept_functions`, `bind` is called only once."""
        kept = _kept.get()
        if kept is None:
            return self.bind(training)
        key = (self, training)
        if key not in kept:
            kept[key] = self.bind(training)
        return kept[key]

    def bind(self, training):
        """The functions of the layers with their current weights; None if Keras must run the network."""
        if hooked(self._network):
            return None
        functions = []
        for layer, policy, sources, target in self._steps:
            if (
                hooked(layer)
                or layer.dtype_policy is not policy
                or layer.compute_dtype != "float32"
                or layer.activity_regularizer is not None
                or isinstance(getattr(layer, "activation", None), keras.layers.Layer)
                or getattr(layer, "lora_enabled", False)
                or getattr(layer, "quantization_mode", None)
                or (function := FUNCTIONS[type(layer)](layer, training)) is None
            ):
                return None
            functions.append((function, sources, target))
        return functions

    def compute(self, functions, inputs):
        """The outputs of the network, for a list of tensors."""
        tensors = dict(zip(self._inputs, inputs))
        for function, sources, target in functions:
            tensors[target] = function(*[tensors[source] for source in sources])
        if isinstance(self._outputs, dict):
            return {name: tensors[target] for name, target in self._outputs.items()}
        return tensors[self._outputs]


def hooked(layer):
    """Whether a layer has torch hooks, or its `call` was replaced."""
    return (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "call" in vars(layer)
    )


def _to_torch(x):
    """A (N, C, H, W) view of x (N, H, W, C) on the same memory; torch calls this channels_last."""
    return x.permute(0, 3, 1, 2)


def _to_keras(x):
    return x.permute(0, 2, 3, 1)


def _activation(layer):
    """The layer's current activation, as torch's own function if there is one; None for no activation."""
    activations = keras.activations
    of_torch = {
        activations.linear: None,
        activations.silu: functional.silu,
        activations.relu: functional.relu,
        activations.sigmoid: torch.sigmoid,
    }
    return of_torch.get(layer.activation, layer.activation)


def _activated(function, layer):
    activation = _activation(layer)
    return function if activation is None else lambda x: activation(function(x))


def _dense(layer, training):
    kernel, bias = layer.kernel.value, layer.bias.value if layer.use_bias else None

    def dense(x):
        if x.ndim == 2 and bias is not None:
            return torch.addmm(bias, x, kernel)
        outputs = x @ kernel
        return outputs if bias is None else outputs + bias

    return _activated(dense, layer)


def _convolution(layer, training):
    if layer.data_format != "channels_last":
        return None
    kernel = layer.kernel.value.permute(3, 2, 0, 1)
    bias = layer.bias.value if layer.use_bias else None
    strides, dilation = layer.strides, layer.dilation_rate

    def convolution(x):
        x, padding = _to_torch(x), 0
        if layer.padding == "same":
            pads = [
                max(0, (-(-side // stride) - 1) * stride + (size - 1) * rate + 1 - side)
                for side, stride, size, rate in zip(
                    x.shape[2:], strides, kernel.shape[2:], dilation
                )
            ]
            if all(pad % 2 == 0 for pad in pads):
                padding = [pad // 2 for pad in pads]
            else:  # as in Keras, an odd row or column is added at the bottom or the right
                top, left = (pad // 2 for pad in pads)
                x = functional.pad(x, (left, pads[1] - left, top, pads[0] - top))
        return _to_keras(
            functional.conv2d(x, kernel, bias, strides, padding, dilation, layer.groups)
        )

    return _activated(convolution, layer)


def _transposed_convolution(layer, training):
    margins = even_margins(layer)
    if margins is None:
        return None
    kernel, padding = layer.kernel.value.permute(3, 2, 0, 1), [margin // 2 for margin in margins]
    bias = layer.bias.value if layer.use_bias else None

    def convolution(x):
        x = functional.conv_transpose2d(_to_torch(x), kernel, bias, layer.strides, padding)
        return _to_keras(x)

    return _activated(convolution, layer)


def _normalisation(layer, training):
    rank = len(layer.output.shape)
    known = rank in (2, 4) and layer.axis in (-1, rank - 1) and layer.scale and layer.center
    if not known or getattr(layer, "renorm", False):
        return None
    gamma, beta = layer.gamma.value, layer.beta.value
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    if training and layer.trainable and distributed.size() > 1:
        return lambda x: layer.call(x, training=True)

    def normalise(x):
        y = _to_torch(x) if x.ndim == 4 else x
        y, batch_mean, inverse_deviation = torch.native_batch_norm(
            y, gamma, beta, None, None, True, 0.0, layer.epsilon
        )
        with torch.no_grad():
            batch_variance = inverse_deviation.pow(-2).sub_(layer.epsilon)
            # Not in place: in a `StatelessScope` the averages are tensors of the caller.
            layer.moving_mean.assign(mean.lerp(batch_mean, 1.0 - layer.momentum))
            layer.moving_variance.assign(variance.lerp(batch_variance, 1.0 - layer.momentum))
        return _to_keras(y) if x.ndim == 4 else y

    def normalise_by_averages(x):
        scale = gamma * (variance + layer.epsilon).rsqrt()
        return torch.addcmul(beta - mean * scale, x, scale)

    return normalise if training and layer.trainable else normalise_by_averages


def _cropping(layer, training):
    if layer.data_format != "channels_last":
        return None
    (top, bottom), (left, right) = layer.cropping
    return lambda x: x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def _addition(layer, training):
    ranks = {len(tensor.shape) for tensor in keras.tree.flatten(layer.input)}
    return (lambda *x: sum(x[1:], x[0])) if len(ranks) == 1 else None


def _flattening(layer, training):
    if layer.data_format != "channels_last":
        return None
    return lambda x: x.reshape(x.shape[0], -1)


def _rescaling(layer, training):
    if not all(isinstance(x, (int, float)) for x in (layer.scale, layer.offset)):
        return None  # numbers for each channel
    return lambda x: x * layer.scale + layer.offset


# By the exact class of a layer: (layer, training) -> a function of tensors, or None if Keras must run it.
FUNCTIONS = {
    keras.layers.Dense: _dense,
    keras.layers.Conv2D: _convolution,
    keras.layers.Conv2DTranspose: _transposed_convolution,
    Conv2DTranspose: _transposed_convolution,
    keras.layers.BatchNormalization: _normalisation,
    BatchNormalization: _normalisation,
    keras.layers.Activation: lambda layer, training: _activation(layer) or (lambda x: x),
    keras.layers.Concatenate: lambda layer, training: lambda *x: torch.cat(x, layer.axis),
    keras.layers.Add: _addition,
    keras.layers.Reshape: lambda layer, training: (
        lambda x: x.reshape(x.shape[0], *layer.target_shape)
    ),
    keras.layers.Flatten: _flattening,
    keras.layers.Cropping2D: _cropping,
    keras.layers.Rescaling: _rescaling,
    Down: lambda layer, training: layer.call,
    Up: lambda layer, training: layer.call,
}
