"""Networks over arrays: NumPy in, NumPy out, in batches, without gradients."""

import keras
import numpy as np

from keras_ae import distributed
from keras_ae.fast.prediction import predictor


class View(keras.Model):
    """Some of what a model's `forward` returns, as a model of its own, for Keras to compile."""

    def __init__(self, model, names):
        super().__init__(autocast=False, name="view")
        self.model, self.names, self.built = model, names, True

    def call(self, inputs, training=False):
        if isinstance(inputs, (tuple, list)) and len(inputs) == 1:
            inputs = inputs[0]
        outputs = self.model.forward(inputs, training=training, sample=False)
        return {name: outputs[name] for name in self.names}


def in_batches(network, inputs, batch_size):
    """The outputs of a network for a list of arrays, as arrays."""
    if not len(inputs[0]):  # Keras cannot: none of the outputs of one
        one = [np.zeros((1, *array.shape[1:]), array.dtype) for array in inputs]
        return keras.tree.map_structure(lambda output: output[:0], in_batches(network, one, 1))
    devices = distributed.devices()
    n, batch_size = len(inputs[0]), distributed.divisible(batch_size, devices)
    if (more := distributed.divisible(n, devices) - n) > 0:
        longer = [np.concatenate([array, array[-1:].repeat(more, 0)]) for array in inputs]
        outputs = in_batches(network, longer, batch_size)
        return keras.tree.map_structure(lambda output: output[:n], outputs)
    forward = predictor(network)
    batches = [
        forward([array[i : i + batch_size] for array in inputs]) for i in range(0, n, batch_size)
    ]
    return keras.tree.map_structure(_joined, *batches)


def _joined(*batches):
    """One NumPy array of the outputs for some batches, a single one uncopied."""
    first, *more = (b if isinstance(b, np.ndarray) else _array(b) for b in batches)
    return np.concatenate([first, *more]) if more else first


def _array(tensor):
    """A tensor as an array; `keras.ops.convert_to_numpy` of one on the host takes longer."""
    if keras.backend.backend() == "torch":
        return tensor.detach().cpu().numpy()
    return np.array(tensor)
