"""The inputs of a model: checks and scales images, labels, targets and weights."""

import math
import types

import keras
import numpy as np
from keras import ops

TOLERANCE = 1e-3  # rounding may take values so far out of [0, 1]
LARGEST = 16.0  # floats with a larger absolute value are no images in [0, 1], not even noisy ones


def unit_range(images):
    """Images as float32 in [0, 1]: integers in 0..255 are divided by 255; floats and booleans keep their values."""
    if not hasattr(images, "dtype") or ops.is_tensor(images):
        # On torch, this also moves a DataLoader's batch to the GPU.
        images = ops.convert_to_tensor(images)
    dtype = keras.backend.standardize_dtype(images.dtype)
    if dtype == "float32":
        return images
    images = ops.cast(images, "float32")
    return images / 255.0 if "int" in dtype else images


def one_hot(labels, num_classes):
    """Convert class indices (N,) or (N, 1), or shares (N, K) of the classes, to (N, num_classes) float32.

    An index out of range gives a row of NaN, so that the loss becomes NaN too.

    Raises:
        ValueError: the labels have another shape.
    """
    if ops.is_tensor(labels):
        labels = ops.convert_to_tensor(labels)  # on torch, to the device of the model
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
    # `ops.one_hot` is not used: on torch it reads the largest label, and so waits for the GPU.
    classes = ops.arange(num_classes, dtype="int32")
    hits = ops.equal(labels[..., None], classes)
    # (XLA makes no NaN of 0 / 0 here, so the rows are not divided by their sums.)
    return ops.where(ops.any(hits, axis=-1, keepdims=True), ops.cast(hits, "float32"), math.nan)


def rank_of(x):
    """The number of axes of x. None in a tensorflow trace that has seen x with one and with two axes."""
    try:
        return len(x.shape)
    except ValueError:
        return None


def check_shape(images, image_shape, what="Images"):
    """Check that images have the shape that the model needs.

    Raises:
        ValueError: they are not (N, H, W, C) with the model's H, W and C.
    """
    shape = tuple(getattr(images, "shape", np.shape(images)))
    if len(shape) != 4 or any(a not in (None, b) for a, b in zip(shape[1:], image_shape)):
        expected = ", ".join(map(str, image_shape))
        raise ValueError(f"{what} must be (N, {expected}); got {shape}.")


def check_range(images, what="Images", strict=True):
    """Check that the values of images are on the right scale.

    Args:
        images: integers in 0..255 or floats in [0, 1], an array or a tensor.
        what: name of the images in the error message.
        strict: floats must be in [0, 1]. If False they may be noisy, and only values far outside are refused.

    Raises:
        ValueError: they are on another scale.
    """
    images = images if hasattr(images, "dtype") else np.asarray(images)
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
    """Whether x is an array or a tensor (or similar), and not something that yields batches."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def peek(source):
    """Look at the first batch of a source: (the batch, the source to use from now on).

    The batch is None if looking at it would take it from the source. A torch DataLoader draws the same random
    numbers of torch's later as without this look; a dataset that draws others goes on by one batch.
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
    """The inputs of `fit`, batch by batch, as the tuples that a training step gets.

    Args:
        inputs: images (N, H, W, C), a pair (images, labels), or something that yields batches.
        batch_size: used for arrays only; something that yields batches has its own size.

    Raises:
        ValueError: arrays have no rows, or not equally many, or a `tf.data.Dataset` repeats without end.
    """
    cardinality = getattr(inputs, "cardinality", None)
    if callable(cardinality) and int(cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError(
            "These batches repeat without end: leave repeat() out, or take(n) of them."
        )
    if isinstance(inputs, keras.utils.PyDataset):
        for i in range(len(inputs)):
            yield inputs[i]
    elif is_array(inputs) or isinstance(inputs, (tuple, list)):
        parts = [x if is_array(x) else np.asarray(x) for x in _parts(inputs)]
        if not parts:
            raise ValueError("Inputs are arrays with a row for each image; got none.")
        if not all(map(rank_of, parts)) or len({len(part) for part in parts}) > 1:
            shapes = " and ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"Inputs are arrays with a row for each image; got {shapes}.")
        for i in range(0, len(parts[0]), batch_size):
            rows = [part[i : i + batch_size] for part in parts]
            yield (rows[0] if len(rows) == 1 else tuple(rows),)
    else:
        for batch in inputs:
            yield keras.tree.map_structure(_of_this_backend, batch)


def _of_this_backend(part):
    """Make a NumPy array of a tensor from another framework; leave arrays and tensors of this backend."""
    return part if ops.is_tensor(part) or isinstance(part, np.ndarray) else np.asarray(part)


def _parts(inputs):
    return inputs if isinstance(inputs, (tuple, list)) else (inputs,)
