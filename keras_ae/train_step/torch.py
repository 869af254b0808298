"""The training step on torch: eager, gradients by autograd."""

import contextlib
import warnings

import keras
import numpy as np
import torch

from keras_ae import distributed
from keras_ae.tracking import Means
from keras_ae.train_step.memory import keep_memory

RESIDENT_BYTES = 8 << 30  # of images that are kept on a GPU


class Batches(torch.utils.data.DataLoader):
    """The batches of a `keras_ae.feed.Feed` as tensors on a device.

    What Keras and torch do around each batch of a `PyDataset`, 0.1 of 13 ms a step of the mlp, is left out.

    Args:
        feed: the `Feed`.
        device: of the tensors.
        resident: keep all images on the device and gather there. An epoch has one array of row numbers
            copied, where each batch would have the host wait for the copies of its images.
    """

    def __init__(self, feed, device, resident):
        super().__init__(feed, batch_size=None)
        self.device, self.resident = device, resident
        if resident:
            arrays = [feed.images] if feed.labels is None else [feed.images, feed.labels]
            self._arrays = [self._tensor(np.ascontiguousarray(array)) for array in arrays]

    def _tensor(self, array):
        return torch.from_numpy(array).to(self.device)

    def __iter__(self):
        for tensors in self._gathered() if self.resident else self._fed():
            yield (tensors[0] if len(tensors) == 1 else tensors,)

    def _fed(self):
        for i in range(len(self.dataset)):
            (inputs,) = self.dataset[i]
            yield tuple(map(self._tensor, inputs if isinstance(inputs, tuple) else (inputs,)))

    def _gathered(self):
        rows = [torch.from_numpy(self.dataset.rows(i)) for i in range(len(self.dataset))]
        sizes = [len(part) for part in rows]
        for part in torch.cat(rows).to(self.device).split(sizes):
            yield tuple(array[part] for array in self._arrays)


def batches(feed):
    """What to give to `fit` for a `keras_ae.feed.Feed`: its batches as tensors."""
    device = keras.ops.convert_to_tensor(0.0).device
    fits = device.type != "cpu" and feed.images.nbytes <= RESIDENT_BYTES
    return Batches(feed, device, resident=fits and not feed.binarize)


@contextlib.contextmanager
def _short_executions(steps):
    """Keras takes a last execution with fewer steps for data that ran out, and warns at every epoch."""
    with warnings.catch_warnings():
        if steps > 1:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


class Trained:
    """What a step trains. (A model would take a list of variables that it holds for weights of its own.)"""

    def __init__(self, model):
        self.variables = model.trainable_variables
        self.tensors = [variable.value for variable in self.variables]


class StepMixin:
    """Keras has no `steps_per_execution` on torch; here are the three functions that loop over batches.

    With 16 steps an execution, what Keras does around a step costs 0.1 ms a step instead of 1.1.
    """

    _trained = _compiled_loss = None

    def fit(self, *args, **kwargs):
        with _short_executions(self.steps_per_execution):
            return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with _short_executions(self.steps_per_execution):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with _short_executions(self.steps_per_execution):
            return super().predict(*args, **kwargs)

    def make_train_function(self, force=False):
        keep_memory()
        self.execution.takes_kl_weights = True
        self.train_function = self._train_steps
        if not self.jit_compile:
            self._compiled_loss = None
        elif self._compiled_loss is None or force:
            # The loss and its gradients. Noise and optimizer, whose kernels torch does not compile, stay outside.
            if hasattr(self, "seed_generator"):
                self.seed_generator.normal = torch.compiler.disable(self.seed_generator.normal)
            self._compiled_loss = torch.compile(self.compute_loss)

    def make_test_function(self, force=False):
        self.test_function = self._test_steps

    def make_predict_function(self, force=False):
        if self.steps_per_execution == 1:
            super().make_predict_function(force)
        else:
            self.predict_function = self._predict_steps

    def _train_steps(self, batches):
        kl_weights, losses = self.execution.take_kl_weights(), []
        kl_weight = None if kl_weights is None else self.kl_weight.value
        with self._looked_up():
            for i, batch in enumerate(batches):
                if kl_weight is not None:
                    kl_weight.fill_(float(kl_weights[i]))
                logs = self.train_step(batch)
                losses.append(logs["loss"])
        self.execution.losses = losses
        return logs

    @contextlib.contextmanager
    def _looked_up(self):
        """Ask for what the steps train and track once: Keras goes through all layers.

        With what `optimizers.Adam` need not look at again, 0.5 of 14 ms a step of the mlp.
        """
        self._trained, self._means = Trained(self), Means(self.metrics)
        if self._compiled_loss is not None:
            self._means.add = torch.compiler.disable(self._means.add)
        try:
            yield
        finally:
            self._trained = self._means = None

    @torch.no_grad()
    def _test_steps(self, batches):
        with self._looked_up():
            for batch in batches:
                logs = self.test_step(batch)
        return logs

    @torch.no_grad()
    def _predict_steps(self, batches):
        outputs = [self.predict_step(batch) for batch in batches]
        return keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        compute_loss = self._compiled_loss or self.compute_loss
        loss = compute_loss(x, sample_weight=sample_weight, training=True)
        trained = self._trained or Trained(self)
        loss, n = self.optimizer.scale_loss(loss), 1
        if several := distributed.size() > 1:
            # The sum over the images of each process, for the mean over those of all.
            n = len(keras.tree.flatten(x)[0])
            loss = loss * n
        gradients = torch.autograd.grad(loss, trained.tensors, allow_unused=True)
        with torch.no_grad():
            if several:
                pairs = zip(gradients, trained.tensors)
                gradients = [torch.zeros_like(t) if g is None else g for g, t in pairs]
                gradients = distributed.weighted_mean(gradients, n)
            self.optimizer.apply(gradients, trained.variables)
        return self.means.results()

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.compute_loss(x, sample_weight=sample_weight, training=False)
        return self.means.results()

    def get_metrics_result(self):
        """Called at the end of an epoch: over the images of all processes, where there are several."""
        if distributed.size() == 1:
            return super().get_metrics_result()
        totals = distributed.total([value for m in self.metrics for value in (m.total, m.count)])
        return {m.name: totals[2 * i] / totals[2 * i + 1] for i, m in enumerate(self.metrics)}
