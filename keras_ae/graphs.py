"""Describes a Functional network as a list of operations and arrays, for a runtime without Keras.

    graph = describe(model.decoder)
    graph["operations"][0]  # {"op": "dense", "name": "dense_0", "in": [0], "out": 2, "arrays": {"kernel": …}, …}

Only layers of Keras and of keras-ae are supported, because a user's class may compute anything.
"""

import math

import keras
import numpy as np
from keras import layers

from keras_ae.errors import UserError
from keras_ae.resampling import Down, Up

# For each name in `keras.activations`: the runtime's name for it, and its parameters.
ACTIVATIONS = {
    "linear": ["linear"],
    "relu": ["relu", 0.0, None],
    "relu6": ["relu", 0.0, 6.0],
    "leaky_relu": ["relu", 0.2, None],
    "elu": ["elu", 1.0],
    "silu": ["silu"],
    "sigmoid": ["sigmoid"],
    "tanh": ["tanh"],
    "gelu": ["gelu"],
    "softplus": ["softplus"],
    "softmax": ["softmax"],
}
# Layers that do nothing outside training.
IDENTITIES = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.ActivityRegularization,
)
MERGES = {
    layers.Add: "add",
    layers.Average: "average",
    layers.Multiply: "multiply",
    layers.Subtract: "subtract",
    layers.Maximum: "maximum",
    layers.Minimum: "minimum",
}


class Unsupported(UserError):
    """The network has a layer that is not supported; the message names it."""


def describe(network):
    """Describe a Functional network as operations in the order they run; batch normalisation is folded.

    Args:
        network: a Functional `keras.Model`, such as `model.encoder`; networks inside it are replaced by
            their operations.

    Returns:
        A dict: `shapes`, the shape of each tensor without the batch axis; `inputs` and `outputs`, {name:
        index of the tensor} (a single output is called "output"); `operations`, a list of dicts with `op`,
        `name`, `in` (indices), `out` (an index), `arrays` ({name: float32 array}), and parameters of the op.

    Raises:
        Unsupported: a layer is not supported.
    """
    if not getattr(network, "inputs", None):
        raise Unsupported(
            f"The network {network.name} is no Functional model: its layers are not known."
        )
    reader = _Reader(network.name)
    inputs = [reader.tensor(tensor) for tensor in network.inputs]
    output = network.output
    named = output if isinstance(output, dict) else {"output": output}
    known = reader.walk(network, inputs)
    graph = {
        "shapes": reader.shapes,
        "inputs": {tensor.name: index for tensor, index in zip(network.inputs, inputs)},
        "outputs": {name: known[id(tensor)] for name, tensor in named.items()},
        "operations": reader.operations,
    }
    _fold(graph)
    return graph


class _Reader:
    """Walks a network and collects its operations."""

    def __init__(self, network):
        self.network, self.shapes, self.operations = network, [], []

    def tensor(self, tensor):
        """Give a symbolic tensor an index."""
        shape = list(tensor.shape[1:])
        if None in shape:
            raise Unsupported(f"The {self.network} has tensors of no fixed shape: {tensor.shape}.")
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def walk(self, network, inputs):
        """Add the operations of a network that is called on tensors. Returns {id(tensor): index}."""
        known = {id(tensor): index for tensor, index in zip(network.inputs, inputs)}
        waiting = list(network.outputs)
        while waiting:
            tensor = waiting[-1]
            if id(tensor) in known:
                waiting.pop()
                continue
            operation, node_index, _ = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            missing = [t for t in node.input_tensors if id(t) not in known]
            if missing:
                waiting += missing
                continue
            sources = [known[id(t)] for t in node.input_tensors]
            if isinstance(operation, keras.Model) and getattr(operation, "inputs", None):
                inner = self.walk(operation, sources)
                targets = [inner[id(t)] for t in operation.outputs]
            else:
                targets = [self.add(operation, sources, node)]
            known.update((id(t), index) for t, index in zip(node.output_tensors, targets))
        return known

    def add(self, layer, sources, node):
        """Add a layer as an operation. Returns the index of its output."""
        where = f"The page cannot run the layer {layer.name} of the {self.network}, a {type(layer).__name__}"
        # Accept a class by the package that defines it: a user's subclass may compute something else.
        ours = type(layer).__module__.split(".")[0] in ("keras", "keras_ae")
        if not isinstance(layer, layers.Layer) or not ours or len(node.output_tensors) != 1:
            raise Unsupported(f"{where}.")
        if isinstance(layer, (*IDENTITIES, layers.InputLayer)):
            return sources[0]
        shapes = [tuple(t.shape) for t in node.input_tensors]
        try:
            found = _operation(layer, shapes)
        except _Reason as reason:
            raise Unsupported(f"{where}: {reason}.") from None
        if found is None:
            raise Unsupported(f"{where}.")
        target = self.tensor(node.output_tensors[0])
        shared = len(layer._inbound_nodes) > 1
        self.operations.append(
            {
                "name": layer.name,
                "in": sources,
                "out": target,
                "arrays": {},
                **found,
                "shared": shared,
            }
        )
        return target


class _Reason(Exception):
    """Why a layer is not supported although its class is."""


def _require(condition, reason):
    if not condition:
        raise _Reason(reason)


def _operation(layer, shapes):
    """A layer as {"op": …, …}, or None if its class is not supported. `shapes` include the batch axis."""
    shape = shapes[0]
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _Reason("its data_format is channels_first")
    if isinstance(layer, layers.Dense):
        return {"op": "dense", **_weights(layer), "activation": _activation(layer.activation)}
    if isinstance(layer, layers.Conv2DTranspose):
        _require(layer.output_padding is None, "it has an output_padding")
        _require(set(layer.dilation_rate) == {1}, "it is dilated")
        overlaps = [max(k - s, 0) for k, s in zip(layer.kernel_size, layer.strides)]
        before = [o // 2 if layer.padding == "same" else 0 for o in overlaps]
        weights = _weights(layer)
        # Keras' kernel here is (height, width, out, in); make it (height, width, in, out), as in Conv2D.
        kernel = weights["arrays"]["kernel"]
        weights["arrays"]["kernel"] = np.ascontiguousarray(kernel.transpose(0, 1, 3, 2))
        activation = _activation(layer.activation)
        strides = list(layer.strides)
        return {
            "op": "deconv",
            **weights,
            "strides": strides,
            "crop": before,
            "activation": activation,
        }
    if isinstance(layer, layers.Conv2D):
        _require(layer.groups == 1, "it has groups")
        _require(set(layer.dilation_rate) == {1}, "it is dilated")
        pads = _pads(shape, layer.kernel_size, layer.strides, layer.padding)
        activation = _activation(layer.activation)
        strides = list(layer.strides)
        return {
            "op": "conv",
            **_weights(layer),
            "strides": strides,
            "pad": pads,
            "activation": activation,
        }
    if isinstance(layer, layers.BatchNormalization):
        axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
        _require({a % len(shape) for a in axes} == {len(shape) - 1}, "it is not over the last axis")
        variance, mean = _numbers(layer.moving_variance), _numbers(layer.moving_mean)
        scale = 1.0 / np.sqrt(variance.astype("float64") + layer.epsilon)
        if layer.scale:
            scale = scale * _numbers(layer.gamma)
        offset = (_numbers(layer.beta) if layer.center else 0.0) - mean * scale
        return {"op": "affine", "arrays": {"scale": _float(scale), "offset": _float(offset)}}
    if isinstance(layer, layers.Rescaling):
        return {
            "op": "affine",
            "arrays": {
                name: _float(np.broadcast_to(np.asarray(value), shape[-1:]))
                for name, value in (("scale", layer.scale), ("offset", layer.offset))
            },
        }
    if isinstance(layer, layers.Activation):
        return {"op": "activation", "activation": _activation(layer.activation)}
    if isinstance(layer, layers.ReLU):
        _require(not layer.threshold, "it has a threshold")
        top = None if layer.max_value is None else float(layer.max_value)
        return {"op": "activation", "activation": ["relu", float(layer.negative_slope), top]}
    if isinstance(layer, layers.LeakyReLU):
        return {"op": "activation", "activation": ["relu", float(layer.negative_slope), None]}
    if isinstance(layer, layers.ELU):
        return {"op": "activation", "activation": ["elu", float(layer.alpha)]}
    if isinstance(layer, layers.Softmax):
        _require(layer.axis in (-1, len(shape) - 1), "it is not over the last axis")
        return {"op": "activation", "activation": ["softmax"]}
    if isinstance(layer, (layers.Flatten, layers.Reshape)):
        return {"op": "reshape"}
    if isinstance(layer, Down):
        parts = 1 if layer.filters == shape[-1] else 2
        return {"op": "down", "parts": parts}
    if isinstance(layer, Up):
        return {"op": "up", "parts": shape[-1] // layer.filters}
    if isinstance(layer, layers.Permute):
        return {"op": "permute", "axes": [axis - 1 for axis in layer.dims]}
    if isinstance(layer, layers.Concatenate):
        axis = layer.axis % len(shape) - 1
        _require(axis >= 0, "it joins batches")
        return {"op": "concatenate", "axis": axis}
    for kind, op in MERGES.items():
        if isinstance(layer, kind):
            _require(len(set(shapes)) == 1, "its inputs have different shapes")
            return {"op": op}
    if isinstance(layer, layers.UpSampling2D):
        _require(layer.interpolation == "nearest", f"its interpolation is {layer.interpolation}")
        return {"op": "repeat", "size": list(layer.size)}
    if isinstance(layer, (layers.MaxPooling2D, layers.AveragePooling2D)):
        kind = "max" if isinstance(layer, layers.MaxPooling2D) else "average"
        pads = _pads(shape, layer.pool_size, layer.strides, layer.padding)
        if kind == "average" and layer.padding == "same":
            uneven = any(
                _padding(*of) % 2 for of in zip(shape[1:3], layer.pool_size, layer.strides)
            )
            _require(not uneven, "it pads unevenly, of which backends make different averages")
        size, strides = list(layer.pool_size), list(layer.strides)
        return {"op": "pool", "kind": kind, "size": size, "strides": strides, "pad": pads}
    if isinstance(layer, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)):
        kind = "max" if isinstance(layer, layers.GlobalMaxPooling2D) else "average"
        size = list(shape[1:3])
        return {"op": "pool", "kind": kind, "size": size, "strides": size, "pad": [0, 0]}
    if isinstance(layer, layers.ZeroPadding2D):
        return {"op": "shift", "by": [layer.padding[0][0], layer.padding[1][0]]}
    if isinstance(layer, layers.Cropping2D):
        return {"op": "shift", "by": [-layer.cropping[0][0], -layer.cropping[1][0]]}
    return None


def _numbers(variable):
    return keras.ops.convert_to_numpy(variable)


def _float(array):
    return np.ascontiguousarray(array, "float32")


def _weights(layer):
    """Kernel and bias of a dense or convolutional layer; the bias is zeros if the layer has none."""
    _require(not getattr(layer, "quantization_mode", None), "it is quantized")
    _require(not getattr(layer, "lora_enabled", False), "it has LoRA weights")
    kernel = _float(_numbers(layer.kernel))
    outputs = kernel.shape[-2 if isinstance(layer, layers.Conv2DTranspose) else -1]
    bias = _numbers(layer.bias) if layer.use_bias else np.zeros(outputs)
    return {"arrays": {"kernel": kernel, "bias": _float(bias)}}


def _activation(function):
    name = getattr(function, "__name__", str(function))
    known = getattr(keras.activations, name, None) is function or function is None
    _require(known and name in (*ACTIVATIONS, "None"), f"its activation is {name}")
    return ACTIVATIONS["linear" if function is None else name]


def _pads(shape, size, strides, padding):
    """The numbers of rows above and of columns to the left of an image that `padding` adds."""
    if padding == "valid":
        return [0, 0]
    _require(padding == "same", f"its padding is {padding}")
    return [_padding(*of) // 2 for of in zip(shape[1:3], size, strides)]


def _padding(side, extent, stride):
    """The total number of rows or columns that padding "same" adds."""
    return max((math.ceil(side / stride) - 1) * stride + extent - side, 0)


def _fold(graph):
    """Merge each `affine` operation into the dense or convolutional operation before it, if possible."""
    operations = graph["operations"]
    maker = {operation["out"]: operation for operation in operations}
    uses = [i for operation in operations for i in operation["in"]] + list(
        graph["outputs"].values()
    )
    for operation in [o for o in operations if o["op"] == "affine"]:
        channels = graph["shapes"][operation["in"][0]][-1]
        between, before = [], maker.get(operation["in"][0])
        # A reshape in between does no harm, as long as it keeps the channels last.
        while before and before["op"] == "reshape" and uses.count(before["out"]) == 1:
            between.append(before)
            before = maker.get(before["in"][0])
        if (
            not before
            or before["op"] not in ("dense", "conv", "deconv")
            or before["activation"] != ["linear"]
            or before["shared"]
            or uses.count(before["out"]) != 1
            or before["arrays"]["bias"].size % channels
            or graph["shapes"][before["out"]][-1] != before["arrays"]["bias"].size
            or (uses.count(operation["in"][0]) != 1)
        ):
            continue
        times = before["arrays"]["bias"].size // channels
        scale, offset = (np.tile(operation["arrays"][name], times) for name in ("scale", "offset"))
        arrays = before["arrays"]
        before["arrays"] = {
            "kernel": _float(arrays["kernel"] * scale),
            "bias": _float(arrays["bias"] * scale + offset),
        }
        last = between[0] if between else before
        last["out"] = operation["out"]
        maker[operation["out"]] = last
        operations.remove(operation)
    for operation in operations:
        del operation["shared"]
