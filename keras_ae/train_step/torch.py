"""The training step on torch: eager, gradients by autograd."""

import contextlib
import warnings

import keras
import numpy as np
import torch

from keras_ae import distributed
from keras_ae.tracking import results
from keras_ae.train_step.memory import keep_memory

RESIDENT_BYTES = 8 << 30  # of images that are kept on a GPU


class Resident(keras.utils.PyDataset):
    """The batches of a `keras_ae.feed.Feed`, gathered on a device where its images lie.

    An epoch has one array of row numbers copied there, where each batch would have the host wait for the
    copies of its images.
    """

    def __init__(self, feed, device):
        super().__init__()
        arrays = [feed.images] if feed.labels is None else [feed.images, feed.labels]
        self.feed, self.device = feed, device
        self._arrays = [torch.as_tensor(np.ascontiguousarray(a), device=device) for a in arrays]
        self._copied = self._rows = None

    def __len__(self):
        return len(self.feed)

    def __getitem__(self, index):
        if self._copied is not self.feed.order:
            rows = [torch.from_numpy(self.feed.rows(i)) for i in range(len(self))]
            sizes = [len(part) for part in rows]
            self._rows = torch.cat(rows).to(self.device).split(sizes)
            self._copied = self.feed.order
        images, *labels = (array[self._rows[index]] for array in self._arrays)
        return ((images, *labels),) if labels else (images,)


def batches(feed):
    """What to give to `fit` for a `keras_ae.feed.Feed`: on a GPU, batches that are there already."""
    device = keras.ops.convert_to_tensor(0.0).device
    if device.type == "cpu" or feed.binarize or feed.images.nbytes > RESIDENT_BYTES:
        return feed
    return Resident(feed, device)


@contextlib.contextmanager
def _short_executions(steps):
    """Keras takes a last execution with fewer steps for data that ran out, and warns at every epoch."""
    with warnings.catch_warnings():
        if steps > 1:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


class Trained:
    """What a step trains and tracks, asked for once for several steps: Keras goes through all layers.

    With what `optimizers.Adam` need not look at again, 0.5 of 14 ms a step of the mlp.
    """

    def __init__(self, model):
        self.variables, self.metrics = model.trainable_variables, model.metrics
        self.tensors = [variable.value for variable in self.variables]


class StepMixin:
    """Keras has no `steps_per_execution` on torch; here are the three functions that loop over batches.

    With 16 steps an execution, what Keras does around a step costs 0.1 ms a step instead of 1.1.
    """

    _trained = None

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
        self.execution.takes_kl_weights = not self.jit_compile
        if self.jit_compile:  # torch.compile of single steps, by Keras
            super().make_train_function(force)
        else:
            self.train_function = self._train_steps

    def make_test_function(self, force=False):
        if self.steps_per_execution == 1:
            super().make_test_function(force)
        else:
            self.test_function = self._test_steps

    def make_predict_function(self, force=False):
        if self.steps_per_execution == 1:
            super().make_predict_function(force)
        else:
            self.predict_function = self._predict_steps

    def _train_steps(self, batches):
        kl_weights, losses = self.execution.take_kl_weights(), []
        self._trained = Trained(self)
        try:
            for i, batch in enumerate(batches):
                if kl_weights is not None:
                    self.kl_weight.value.fill_(float(kl_weights[i]))
                logs = self.train_step(batch)
                losses.append(logs["loss"])
        finally:
            self._trained = None
        self.execution.losses = losses
        return logs

    @torch.no_grad()
    def _test_steps(self, batches):
        for batch in batches:
            logs = self.test_step(batch)
        return logs

    @torch.no_grad()
    def _predict_steps(self, batches):
        outputs = [self.predict_step(batch) for batch in batches]
        return keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        loss = self.compute_loss(x, sample_weight=sample_weight, training=True)
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
        return results(trained.metrics)

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.compute_loss(x, sample_weight=sample_weight, training=False)
        return results(self.metrics)

    def get_metrics_result(self):
        """Called at the end of an epoch: over the images of all processes, where there are several."""
        if distributed.size() == 1:
            return super().get_metrics_result()
        totals = distributed.total([value for m in self.metrics for value in (m.total, m.count)])
        return {m.name: totals[2 * i] / totals[2 * i + 1] for i, m in enumerate(self.metrics)}
