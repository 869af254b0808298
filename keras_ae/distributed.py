"""Training one model with several processes or several devices, each on its share of every batch.

On torch, `torchrun` starts the processes. Gradients, statistics of batch normalisation and figures are
summed over all of them, so the result equals a run of one process, up to rounding. On jax, one process
spreads a batch over its devices (`keras.distribution.DataParallel`); on tensorflow, over the devices of a
`tf.distribute` strategy that is entered around the run.
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
    """Another process of the run has ended or cannot be reached."""


def launched_by_torchrun():
    """Whether this process is one of several that `torchrun` started.

    Raises:
        UserError: WORLD_SIZE is no number.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or len(given) > 9:
        raise UserError(
            f"WORLD_SIZE is the number of processes that torchrun started; got {given!r}."
        )
    return int(given) > 1


def start():
    """Connect to the other processes of `torchrun`: by gloo between CPUs, by NCCL between GPUs.

    Raises:
        UserError: on a backend other than torch; or the variables that torchrun sets are missing or odd; or there
            are more processes than GPUs; or the others do not answer.
    """
    if torch is None:
        raise UserError(
            f"torchrun is for KERAS_BACKEND=torch; {keras.backend.backend()} uses all devices in one process."
        )
    backend = "gloo"
    try:
        if torch.cuda.is_available():
            number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number >= gpus:
                raise UserError(
                    f"torchrun started process {number} on this machine, which has {gpus} GPUs: "
                    f"--nproc-per-node {gpus} at most, or CUDA_VISIBLE_DEVICES= for processes on the CPU."
                )
            torch.cuda.set_device(number)
            backend = "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(backend)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"The processes of torchrun cannot connect to each other: {why}") from error
    except (ValueError, KeyError) as error:
        why = (
            f"no {error.args[0]}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        )
        raise UserError(
            f"WORLD_SIZE says that torchrun started this process, but not with all it sets ({why}): start it by "
            "torchrun, or unset WORLD_SIZE."
        ) from error


def stop():
    """Disconnect from the other processes."""
    if size() > 1:
        torch.distributed.destroy_process_group()


def size():
    """Number of processes; 1 if `start` was not called."""
    joined = torch is not None and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1


def rank():
    """The number of this process, from 0; only process 0 writes files and prints."""
    return torch.distributed.get_rank() if size() > 1 else 0


def divisible(n, by):
    """The smallest multiple of `by` that is n or more."""
    return -(-n // by) * by


def local_rows(n, over):
    """The rows of a batch of n images that this process takes, as an index.

    With several processes it is every `size()`-th row, or all rows of a batch that has fewer rows than there
    are processes. Some rows are repeated if needed, so that their number is a multiple of `over`, the number
    of devices.
    """
    if size() == over == 1:
        return slice(n)
    rows = np.arange(n) if n < size() else np.arange(rank(), n, size())
    return np.resize(rows, divisible(len(rows), over))


def total_over_processes(n):
    """The sum over all processes of an integer, or of each of a list of scalars."""
    if size() == 1:
        return n
    # On the CPU, so that the call does not wait for a GPU.
    numbers = [float(x) for x in n] if isinstance(n, list) else n
    dtype = torch.float64 if isinstance(n, list) else torch.int64
    numbers = torch.tensor(numbers, dtype=dtype, device="cpu")
    with _watched():
        torch.distributed.all_reduce(numbers)
    return numbers.tolist()


def weighted_mean(tensors, n):
    """The sums of tensors over all processes, divided by the sum of `n`; one exchange of data does all."""
    parts = [tensor.reshape(-1) for tensor in tensors]
    flat = torch.cat([*parts, parts[0].new_tensor([n])])
    with _watched():
        torch.distributed.all_reduce(flat)
    means = (flat[:-1] / flat[-1]).split([len(part) for part in parts])
    return [mean.reshape(tensor.shape) for mean, tensor in zip(means, tensors)]


def batch_mean(x, weights=None):
    """The mean, weighted if `weights` are given, of x (N,) over the batches of all processes: a scalar, no gradient."""
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
    """`keras.random.normal`. Each of several processes draws noise for the whole batch and takes its own rows.

    So does each replica of a tensorflow strategy, where every replica's seed is the same.
    """
    if size() == 1:
        here, replicas = _replica()
        if replicas == 1:
            return keras.random.normal(shape, seed=seed)
        whole = keras.random.normal((replicas * shape[0], *shape[1:]), seed=seed)
        return whole[here * shape[0] :][: shape[0]]
    whole = keras.random.normal((total_over_processes(shape[0]), *shape[1:]), seed=seed)
    return whole[rank() :: size()]


def _replica():
    """The number of this replica of a tensorflow strategy, and how many there are."""
    if keras.backend.backend() != "tensorflow":
        return 0, 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, 1
    return context.replica_id_in_sync_group, context.num_replicas_in_sync


def on_first(function):
    """Call a function in the first process only; all processes return its result, or raise its UserError."""
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
    """Copy the values of Keras variables from the first process to all others."""
    if size() > 1:
        with _watched(), torch.no_grad():
            for variable in variables:
                torch.distributed.broadcast(variable.value, 0)


def first_to_speak():
    """Whether no other process has reported yet why the run ends, so that the job prints one line only."""
    if size() == 1:
        return True
    try:  # the store that connected the processes; with torchrun it outlives them
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.add("keras_ae/spoken", 1) == 1
    except RuntimeError:
        return rank() == 0


# Number of replicas of the tensorflow strategy that a run has entered, or None.
_replicas = contextvars.ContextVar("replicas", default=None)


def devices():
    """Number of devices that Keras spreads a batch over; 1 on torch."""
    spread = keras.distribution.distribution()
    return _replicas.get() or 1 if spread is None else int(spread.device_mesh.devices.size)


def by_keras():
    """Whether Keras spreads the batches, even over one device only: then Keras' loops run, not ours."""
    return _replicas.get() is not None or keras.distribution.distribution() is not None


@contextlib.contextmanager
def all_devices():
    """A context in which Keras on jax spreads batches over all devices, if there are several.

    On tensorflow, it only counts the replicas of the `tf.distribute` strategy, if the caller has entered one.
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
    """A context that turns torch's error about a lost process into a LostWorker."""
    try:
        yield
    except RuntimeError as error:
        raise LostWorker(
            f"Process {rank()} of {size()} lost another one: the run ends here. It is kept as of its last backup; "
            "--resume goes on."
        ) from error


if torch is not None:

    class _Sum(torch.autograd.Function):
        """The sum of a tensor over all processes; its gradient is the sum of their gradients."""

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
