"""What a model is given: images, labels, targets and weights, checked and put on one scale."""

import types

import keras
import numpy as np
from keras import ops

TOLERANCE = 1e-3  # by which rounding may leave [0, 1]
LARGEST = 16.0  # beyond this, floats are no images in [0, 1], noisy or not


def unit_range(images):
    """Images as float32 in [0, 1]: whole numbers are in 0..255, floats and truth values as they are."""
    if not hasattr(images, "dtype"):
        images = ops.convert_to_tensor(images)
    dtype = keras.backend.standardize_dtype(images.dtype)
    images = ops.cast(images, "float32")
    return images / 255.0 if "int" in dtype else images


def one_hot(labels, num_classes):
    """Class indices (N,) or (N, 1), or shares (N, K) of the classes -> (N, num_classes) float32.

    A row of an index out of range is NaN, which no loss hides.

    Raises:
        ValueError: for another shape.
    """
    rank = rank_of(labels)
    if rank is None and "int" in keras.backend.standardize_dtype(labels.dtype):
        labels, rank = ops.reshape(labels, (-1,)), 1
    if rank is None:
        raise ValueError("Labels came as (N,) and as one-hot: compile the model anew in between.")
    if rank == 2 and labels.shape[1] == num_classes > 1:
        return ops.cast(labels, "float32")
    if rank == 2 and labels.shape[1] == 1:
        labels, rank = labels[..., 0], 1
    if rank != 1:
        raise ValueError(
            f"Labels must be (N,) class indices, or (N, {num_classes}) one-hot; got {labels.shape}."
        )
    # Not `ops.one_hot`: on torch it reads the largest label back, for which a GPU has to be waited for.
    classes = ops.arange(num_classes, dtype="int32")
    hits = ops.cast(ops.equal(ops.cast(labels, "int32")[..., None], classes), "float32")
    return hits / ops.sum(hits, axis=-1, keepdims=True)


def rank_of(x):
    """The number of axes; None on tensorflow, whose traces forget it, for what came with one and with two."""
    try:
        return len(x.shape)
    except ValueError:
        return None


def check_shape(images, image_shape, what="Images"):
    """Refuse images of another shape than the model's.

    Raises:
        ValueError: they are not (N, H, W, C).
    """
    shape = tuple(getattr(images, "shape", np.shape(images)))
    if len(shape) != 4 or any(a not in (None, b) for a, b in zip(shape[1:], image_shape)):
        expected = ", ".join(map(str, image_shape))
        raise ValueError(f"{what} must be (N, {expected}); got {shape}.")


def check_range(images, what="Images", strict=True):
    """Refuse numbers that are on another scale than images are.

    Args:
        images: whole numbers in 0..255 or floats in [0, 1], an array or a tensor.
        what: they are called in the error.
        strict: floats must be in [0, 1]; else they may be noisy, and only those far out are refused.

    Raises:
        ValueError: they are on another scale.
    """
    dtype = keras.backend.standardize_dtype(images.dtype)
    if dtype in ("uint8", "bool") or not len(images):
        return
    numbers = ops.convert_to_numpy(images)
    low, high = float(numbers.min()), float(numbers.max())
    if "int" in dtype:
        allowed, fine = "whole numbers in 0..255", low >= 0 and high <= 255
    elif strict:
        allowed, fine = "floats in [0, 1]", low >= -TOLERANCE and high <= 1 + TOLERANCE
    else:
        allowed, fine = "floats in [0, 1]", max(-low, high) <= LARGEST
    if not fine:
        raise ValueError(
            f"{what} of {dtype} must be {allowed}; these go from {low:g} to {high:g}. "
            "Rescale them, or give uint8."
        )


def is_array(x):
    """Whether something is an array, a tensor, or like one, and not a set of batches."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def peek(source):
    """The first batch of what yields batches, None where asking costs it one; and what to go on with.

    Where the source draws random numbers, it draws them as if it had not been asked.
    """
    if isinstance(source, types.GeneratorType):
        for first in source:
            return first, _again(first, source)
    return _first_batch(source), source


def _again(first, rest):
    yield first
    yield from rest


def _first_batch(source):
    if isinstance(source, keras.utils.PyDataset):
        return source[0]
    kind = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(source).__mro__}
    if "tensorflow.DatasetV2" in kind:
        return next(iter(source.take(1)), None)
    if "torch.DataLoader" in kind:
        import torch

        own = getattr(source, "generator", None)
        before = own.get_state() if own is not None else None
        with torch.random.fork_rng(devices=[]):
            first = next(iter(source), None)
        if own is not None:
            own.set_state(before)
        return first
    return None


def batches_of(inputs, batch_size):
    """What `fit` was given, batch by batch: tuples as a step is given them.

    Args:
        inputs: images (N, H, W, C), a pair (images, labels), or something that yields batches.
        batch_size: of arrays; what yields batches has its own.
    """
    if isinstance(inputs, keras.utils.PyDataset):
        for i in range(len(inputs)):
            yield inputs[i]
    elif is_array(inputs) or isinstance(inputs, (tuple, list)):
        parts = [x if is_array(x) else np.asarray(x) for x in _parts(inputs)]
        for i in range(0, len(parts[0]), batch_size):
            rows = [part[i : i + batch_size] for part in parts]
            yield (rows[0] if len(rows) == 1 else tuple(rows),)
    else:
        for batch in inputs:
            yield keras.tree.map_structure(_of_this_backend, batch)


def _of_this_backend(part):
    """An array, or a tensor of the running backend, of one of any framework."""
    return part if ops.is_tensor(part) or isinstance(part, np.ndarray) else np.asarray(part)


def _parts(inputs):
    return inputs if isinstance(inputs, (tuple, list)) else (inputs,)
