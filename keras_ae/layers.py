"""Keras' layers that the networks are made of, on torch by one kernel each.

Keras computes these on torch through its own general code: copies between memory layouts around each
convolution, a transposed convolution larger than asked and cut, a normalisation of a dozen small
operations. Here each is the one torch function that does it, to the same result, when torch runs in
float32; in every other case it is Keras' own code. Weights, configs and results are those of Keras.
"""

import functools
import types

import keras

from keras_ae import distributed

if keras.backend.backend() == "torch":
    import torch
    from torch.nn import functional
else:
    torch = None


def _fast(layer, x):
    """Whether torch's kernel may stand in: torch, float32, real tensors."""
    return torch is not None and layer.compute_dtype == "float32" and x.device.type != "meta"


def _to_torch(x):
    """(N, H, W, C) -> a (N, C, H, W) view of the same memory, which torch calls channels_last."""
    return x.permute(0, 3, 1, 2)


def _to_keras(x):
    return x.permute(0, 2, 3, 1)


@keras.saving.register_keras_serializable("keras_ae")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense`."""

    def call(self, inputs, training=None):
        plain = self.lora_enabled or self.quantization_mode or not self.use_bias
        if plain or not _fast(self, inputs) or inputs.ndim != 2:
            return super().call(inputs, training=training)
        outputs = torch.addmm(self.bias.value, inputs, self.kernel.value)
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable("keras_ae")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`."""

    def convolution_op(self, inputs, kernel):
        if not _fast(self, inputs) or self.padding != "same" or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        kernel = keras.ops.convert_to_tensor(kernel).permute(3, 2, 0, 1)
        x = _to_torch(inputs)
        pads = [
            max(0, (-(-side // stride) - 1) * stride + size - side)
            for side, stride, size in zip(x.shape[2:], self.strides, kernel.shape[2:])
        ]
        if all(pad % 2 == 0 for pad in pads):
            padding = [pad // 2 for pad in pads]
        else:  # the odd row and column go to the bottom and the right, as everywhere in Keras
            (top, left), padding = (pad // 2 for pad in pads), 0
            x = functional.pad(x, (left, pads[1] - left, top, pads[0] - top))
        return _to_keras(functional.conv2d(x, kernel, None, self.strides, padding))


@keras.saving.register_keras_serializable("keras_ae")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`."""

    def call(self, inputs):
        crops = [size - stride for size, stride in zip(self.kernel_size, self.strides)]
        if (
            not _fast(self, inputs)
            or self.padding != "same"
            or self.data_format != "channels_last"
            or self.output_padding is not None
            or any(crop < 0 or crop % 2 for crop in crops)
        ):
            return super().call(inputs)
        outputs = functional.conv_transpose2d(
            _to_torch(inputs),
            self.kernel.value.permute(3, 2, 0, 1),
            self.bias.value if self.use_bias else None,
            self.strides,
            [crop // 2 for crop in crops],
        )
        return self.activation(_to_keras(outputs))


@keras.saving.register_keras_serializable("keras_ae")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the last axis.

    Where several processes train on torch, its statistics are those of the batches of all.
    """

    def call(self, inputs, training=None, mask=None):
        if training and self.trainable and distributed.size() > 1:
            return self._normalise(inputs, *distributed.batch_moments(inputs))
        if not (training and self.trainable and _fast(self, inputs)) or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        x = _to_torch(inputs) if inputs.ndim == 4 else inputs
        outputs, mean, inverse_deviation = torch.native_batch_norm(
            x, self.gamma.value, self.beta.value, None, None, True, 0.0, self.epsilon
        )
        with torch.no_grad():
            variance = inverse_deviation.pow(-2).sub_(self.epsilon)
        self._remember(mean, variance)
        return _to_keras(outputs) if inputs.ndim == 4 else outputs

    def _normalise(self, inputs, mean, variance):
        self._remember(mean.detach(), variance.detach())
        scale = self.gamma.value * (variance + self.epsilon).rsqrt()
        outputs = (inputs.float() - mean) * scale + self.beta.value
        return outputs.to(inputs.dtype)

    def _remember(self, mean, variance):
        with torch.no_grad():
            self.moving_mean.value.lerp_(mean, 1.0 - self.momentum)
            self.moving_variance.value.lerp_(variance, 1.0 - self.momentum)


def trace(network):
    """Note the order of the layers of a Functional network, for `run`. Returns the network.

    Only for networks whose layers do all their work in `call`: no masks, no losses of their own.
    """
    if torch is None or any(layer.compute_dtype != "float32" for layer in network.layers):
        return network
    inputs = [id(tensor) for tensor in network.inputs]
    outputs = network.output  # a tensor, or a dict of them
    outputs = {k: id(t) for k, t in outputs.items()} if isinstance(outputs, dict) else id(outputs)
    route = [
        (_direct(layer), [id(t) for t in keras.tree.flatten(layer.input)], id(layer.output))
        for layer in network.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    # One weight and its tensor, to see that the tensors that `_direct` keeps are those in use.
    weight = network.trainable_weights[0]
    # (Not a tuple, whose weight Keras would take for one of the network's own.)
    network._route = types.SimpleNamespace(
        inputs=inputs, layers=route, outputs=outputs, weight=weight, tensor=weight.value
    )
    return network


def _direct(layer):
    """What a layer computes in a training step, as a function of tensors."""
    if isinstance(layer, BatchNormalization):
        return functools.partial(layer.call, training=True)
    if type(layer) is Dense and layer.use_bias and layer.activation is not None:
        # Its tensors and function, of which `call` asks Keras each time: 0.2 of 13 ms a step of the mlp.
        kernel, bias, activation = layer.kernel.value, layer.bias.value, _activation(layer)

        def dense(x):
            if layer.lora_enabled:
                return layer.call(x)
            outputs = torch.addmm(bias, x, kernel)
            return outputs if activation is None else activation(outputs)

        return dense
    if type(layer) is keras.layers.Activation:
        return _activation(layer) or layer.call
    if type(layer) is keras.layers.Concatenate:
        return functools.partial(torch.cat, dim=layer.axis)
    if type(layer) is keras.layers.Reshape:
        return lambda x: x.reshape(len(x), *layer.target_shape)
    if type(layer) is keras.layers.Flatten:
        return lambda x: x.reshape(len(x), -1)
    return layer.call


def _activation(layer):
    """The activation of a layer, by torch's own function where it has one; None for none."""
    of_torch = {"linear": None, "silu": functional.silu, "sigmoid": torch.sigmoid}
    return of_torch.get(layer.activation.__name__, layer.activation)


def run(network, inputs, training):
    """`network(inputs, training=training)`; a training step on torch calls the layers one by one.

    `Layer.__call__` looks at masks, dtypes, shapes and scopes anew each time, for every layer: with `Dense`, 3 of
    17 ms of a step of the mlp. A network that `trace` does not know is called as ever.
    """
    route = getattr(network, "_route", None)
    if not training or route is None or not isinstance(inputs[0], torch.Tensor):
        return network(inputs, training=training)
    if route.weight.value is not route.tensor:  # symbolic or stateless calls, new weights
        return network(inputs, training=training)
    tensors = dict(zip(route.inputs, inputs))
    for call, sources, target in route.layers:
        values = [tensors[source] for source in sources]
        tensors[target] = call(values[0] if len(values) == 1 else values)
    if isinstance(route.outputs, dict):
        return {name: tensors[target] for name, target in route.outputs.items()}
    return tensors[route.outputs]
