"""Runs networks on NumPy arrays, in batches and without gradients; returns NumPy arrays."""

import math
import numbers

import keras
import numpy as np

from keras_ae import distributed, gpu
from keras_ae.errors import LEAST, NotFinite, UserError, chosen_bound, memory_bound
from keras_ae.fast.networks import call_network

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch
if BACKEND == "jax":
    from keras_ae.fast.prediction import predictor

# Memory of a network, in outputs of its largest layer: the layer's input, its output and temporaries.
COPIES_OF_LARGEST = 4


class View(keras.Model):
    """A model that returns some outputs of another model's `forward`, so that Keras can compile it."""

    def __init__(self, model, names):
        super().__init__(autocast=False, name="view")
        self.model, self.names, self.built = model, names, True

    def call(self, inputs, training=False):
        if isinstance(inputs, (tuple, list)) and len(inputs) == 1:
            inputs = inputs[0]
        outputs = self.model.forward(inputs, training=training, sample=False)
        return {name: outputs[name] for name in self.names}


def check_count(name, number, least):
    """An argument that counts something, as an int. Raises ValueError if it is no whole number, or below `least`."""
    if not isinstance(number, numbers.Integral) or number < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; got {number!r}.")
    return int(number)


def in_batches(network, inputs, batch_size):
    """The outputs of a network for a list of arrays, as arrays.

    Batches are made smaller if one would take more memory than `keras_ae.errors.memory_bound`.

    Raises:
        UserError: a single image, or all outputs together, would take more.
        NotFinite: some outputs are NaN or infinite.
        ValueError: `batch_size` is no whole number of 1 or more.
    """
    check_count("batch_size", batch_size, 1)
    n = len(inputs[0])
    if not n:  # Keras cannot predict 0 images: predict one, and keep none of its outputs
        one = [np.zeros((1, *array.shape[1:]), array.dtype) for array in inputs]
        return keras.tree.map_structure(lambda output: output[:0], in_batches(network, one, 1))
    check_memory(4 * n * _numbers(network), f"{n:,} outputs")
    batch_size = batch_in_memory(network, batch_size)
    if keras.distribution.distribution() is not None:  # every device must get equally many images
        devices = distributed.devices()
        batch_size = distributed.divisible(batch_size, devices)
        if (more := distributed.divisible(n, devices) - n) > 0:
            inputs = [np.concatenate([array, array[-1:].repeat(more, 0)]) for array in inputs]
    forward, batches = _forward_pass(network), []
    for i in range(0, len(inputs[0]), batch_size):
        with gpu.in_float32():
            batches.append(forward([array[i : i + batch_size] for array in inputs]))
        if i == 0:  # now the size of the outputs is known for every network
            outputs = keras.tree.flatten(batches[0])
            check_memory(4 * n * sum(math.prod(x.shape[1:]) for x in outputs), f"{n:,} outputs")
    whole = keras.tree.map_structure(lambda *parts: _joined(*parts)[:n], *batches)
    check_finite(keras.tree.flatten(whole), "The codes or images that the model computes")
    return whole


def check_finite(arrays, what):
    """Check that all numbers in arrays that a model computed are finite.

    Raises:
        NotFinite: some are NaN or infinite.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise NotFinite(f"{what} are no finite numbers: its weights or its prior are broken")


def _forward_pass(network):
    """A function from the arrays of a batch (a list) to the outputs of a network."""
    if BACKEND == "torch":
        return lambda arrays: _without_gradients(network, arrays)
    # On OpenVINO, `predict` computes in bfloat16 if the CPU can; a call computes in float32. Under a
    # tensorflow strategy, `predict` would give the whole batch to each device.
    strategy = getattr(network, "distribute_strategy", None)
    if BACKEND == "openvino" or (strategy is not None and strategy.num_replicas_in_sync > 1):
        return network
    return predictor(network) if BACKEND == "jax" else network.predict_on_batch


def _without_gradients(network, arrays):
    with torch.no_grad():
        return call_network(network, [keras.ops.convert_to_tensor(array) for array in arrays])


def memory_of_one(network):
    """An estimate of the bytes that one image takes in a network."""
    return 4 * COPIES_OF_LARGEST * max(map(_numbers, network._flatten_layers()), default=0)


def memory_of_training(networks, images):
    """An estimate of the bytes of a training step: outputs of all layers, and the gradients of these."""
    return 8 * images * sum(_numbers(x) for network in networks for x in network._flatten_layers())


def batch_in_memory(network, batch_size):
    """`batch_size`, or as many images as a network can take in the memory that is allowed.

    Raises:
        UserError: a single image would take more.
    """
    one = memory_of_one(network)
    return batch_size if batch_size * one <= LEAST else min(batch_size, images_at_a_time(one))


def images_at_a_time(one):
    """How many images of `one` bytes each fit in memory at once."""
    check_memory(one, "one image in this network")
    return max(1, _bound() // one)


def in_memory(image_shape, most, least=LEAST):
    """How many images of a shape, at most `most` and at least one, fit in memory with what is computed of them.

    Reconstructions and differences are floats, in all 16 bytes per value. `least`: bytes that are allowed always.
    """
    return min(most, max(1, max(memory_bound(), least) // (16 * math.prod(image_shape))))


def check_memory(size, what):
    """Check, before memory is allocated, that it is not more than allowed.

    Raises:
        UserError: it would be more, or KAE_MEMORY is no number.
    """
    chosen_bound()  # a KAE_MEMORY that is no number is refused however little is needed
    if size > LEAST and size > (bound := _bound()):
        size = min(size, 2**90)  # more than any float holds can be asked for
        raise UserError(
            f"The memory of {what} would be about {size / 2**30:,.1f} GiB, and may be {bound / 2**30:,.1f}: "
            f"KAE_MEMORY={math.ceil(size / 2**30)} allows it."
        )


def _bound():
    return max(memory_bound(), LEAST)


def _numbers(layer):
    """How many numbers a layer returns for one image; 0 if that is unknown."""
    try:
        outputs = keras.tree.flatten(layer.output)
        return sum(math.prod(tensor.shape[1:]) for tensor in outputs)
    except (AttributeError, ValueError, TypeError):
        return 0  # the layer was never called in a graph, or its shape is not fixed


def _joined(*batches):
    """One NumPy array of the outputs for some batches; a single batch is not copied."""
    first, *more = (_array(batch) for batch in batches)
    return np.concatenate([first, *more]) if more else first


def _array(output):
    """A float32 array of a tensor or an array, which may have another precision."""
    if isinstance(output, np.ndarray):
        return output.astype("float32", copy=False)
    if BACKEND == "torch":
        # For a tensor in CPU memory, `keras.ops.convert_to_numpy` is slower.
        return output.detach().float().cpu().numpy()
    return np.array(output).astype("float32", copy=False)
