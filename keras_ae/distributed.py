"""Several processes, or several devices, that train one model on the same batches.

On torch, each process of `torchrun` takes its share of every batch, and gradients, statistics of batch
normalisation and figures are summed over all: what comes out is the run of one process, to rounding. On
jax one process spreads a batch over its devices (`keras.distribution.DataParallel`), and on tensorflow over
those of a `tf.distribute` strategy that is entered around the run.
"""

import contextlib
import contextvars
import os

import keras
import numpy as np
from keras import ops

from keras_ae.errors import UserError

if keras.backend.backend() == "torch":
    import torch
    import torch.distributed
else:
    torch = None


class LostWorker(UserError):
    """Another process of the run is gone."""


def launched_by_torchrun():
    """Whether this process is one of several that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def start():
    """Join the other processes of `torchrun`: gloo between CPUs, NCCL between GPUs.

    Raises:
        UserError: on a backend other than torch.
    """
    if torch is None:
        raise UserError(
            f"torchrun is for KERAS_BACKEND=torch; {keras.backend.backend()} uses all devices in one process."
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    with _watched():
        torch.distributed.init_process_group(backend)


def stop():
    """Leave the other processes."""
    if size() > 1:
        torch.distributed.destroy_process_group()


def size():
    """Number of processes, 1 without `start`."""
    joined = torch is not None and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1


def rank():
    """The number of this process, from 0; the first one writes and speaks."""
    return torch.distributed.get_rank() if size() > 1 else 0


def divisible(n, by):
    """The least multiple of `by` that is n or more."""
    return -(-n // by) * by


def local_rows(n, over):
    """Which rows of a batch of n are for this process, as an index: every nth, or all of a batch too small for that.

    Over several devices all are, and as many of them twice as it takes to divide by `over`, their number.
    """
    if size() == over == 1:
        return slice(n)
    rows = np.arange(n) if n < size() else np.arange(rank(), n, size())
    return np.resize(rows, divisible(len(rows), over))


def total_over_processes(n):
    """The sum of a whole number, or each of a list of scalars, over all processes."""
    if size() == 1:
        return n
    # On the CPU, so that nothing waits for a GPU.
    numbers = [float(x) for x in n] if isinstance(n, list) else n
    dtype = torch.float64 if isinstance(n, list) else torch.int64
    numbers = torch.tensor(numbers, dtype=dtype, device="cpu")
    with _watched():
        torch.distributed.all_reduce(numbers)
    return numbers.tolist()


def weighted_mean(tensors, n):
    """The sums of tensors over all processes, over the sum of `n`: all in one exchange."""
    parts = [tensor.reshape(-1) for tensor in tensors]
    flat = torch.cat([*parts, parts[0].new_tensor([n])])
    with _watched():
        torch.distributed.all_reduce(flat)
    means = (flat[:-1] / flat[-1]).split([len(part) for part in parts])
    return [mean.reshape(tensor.shape) for mean, tensor in zip(means, tensors)]


def batch_mean(x, weights=None):
    """The mean, or the weighted one, of x (N,) over the batches of all processes, with no gradient: a scalar."""
    x = ops.stop_gradient(x)
    total, count = ops.sum(x), ops.size(x)
    if weights is not None:
        total, count = ops.sum(x * weights), ops.sum(weights)
    if size() > 1:
        return weighted_mean([total], float(count))[0]
    return total / ops.maximum(ops.cast(count, "float32"), keras.config.epsilon())


def batch_moments(x):
    """Mean and variance (C,) of the channels of x (..., C), over the batches of all processes."""
    x = x.reshape(-1, x.shape[-1]).float()
    sums = torch.cat([x.sum(0), x.square().sum(0), x.new_tensor([len(x)])])
    mean, square = (_Sum.apply(sums)[:-1] / total_over_processes(len(x))).chunk(2)
    return mean, (square - mean.square()).clamp_min(0.0)


def normal(shape, seed):
    """`keras.random.normal`; of several processes, each draws the whole batch's and takes that of its images."""
    if size() == 1:
        return keras.random.normal(shape, seed=seed)
    whole = keras.random.normal((total_over_processes(shape[0]), *shape[1:]), seed=seed)
    return whole[rank() :: size()]


def on_first(function):
    """Call a function in the first process alone; its result, or its UserError, is that of all."""
    if size() == 1:
        return function()
    outcome = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = error
    with _watched():
        torch.distributed.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def broadcast(variables):
    """Give Keras variables the values that they have in the first process."""
    if size() > 1:
        with _watched(), torch.no_grad():
            for variable in variables:
                torch.distributed.broadcast(variable.value, 0)


def first_to_speak():
    """Whether no other process of the run has said yet why it ends. The job ends with one line."""
    if size() == 1:
        return True
    try:  # where the processes found each other; with torchrun it outlives them
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.add("keras_ae/spoken", 1) == 1
    except RuntimeError:
        return rank() == 0


# Replicas of a strategy of tensorflow that a run has entered.
_replicas = contextvars.ContextVar("replicas", default=None)


def devices():
    """Number of devices that Keras spreads a batch over, 1 on torch."""
    spread = keras.distribution.distribution()
    return _replicas.get() or 1 if spread is None else int(spread.device_mesh.devices.size)


def by_keras():
    """Whether Keras spreads the batches, be it over one device: then its own loops run, not ours."""
    return _replicas.get() is not None or keras.distribution.distribution() is not None


@contextlib.contextmanager
def all_devices():
    """Within it, Keras spreads batches over the devices of a jax that has several.

    On tensorflow, those of the `tf.distribute` strategy that the caller has entered, if any, are counted.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
        token = _replicas.set(strategy and strategy.num_replicas_in_sync)
        try:
            yield
        finally:
            _replicas.reset(token)
        return
    several = keras.backend.backend() == "jax" and len(keras.distribution.list_devices()) > 1
    if not several or keras.distribution.distribution() is not None:
        yield
        return
    with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
        yield


@contextlib.contextmanager
def _watched():
    """What torch raises when another process is gone, as a LostWorker."""
    try:
        yield
    except RuntimeError as error:
        raise LostWorker(
            f"Process {rank()} of {size()} lost another one: the run ends here. Whole epochs are kept; "
            "--resume goes on."
        ) from error


if torch is not None:

    class _Sum(torch.autograd.Function):
        """The sum of a tensor over all processes; its gradient is the sum of theirs."""

        @staticmethod
        def forward(context, x):
            x = x.clone()
            with _watched():
                torch.distributed.all_reduce(x)
            return x

        @staticmethod
        def backward(context, gradient):
            gradient = gradient.contiguous().clone()
            with _watched():
                torch.distributed.all_reduce(gradient)
            return gradient
