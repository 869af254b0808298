"""The training step on torch: eager, with gradients by autograd."""

import functools
import warnings

import keras
import torch

from keras_ae import distributed


class StepMixin:
    """`train_step` and `test_step` of a model that has a `step_loss`.

    A call of a torch module also calls a method named `forward`. `_called_by_torch` tells these calls apart and
    passes them on to Keras, which calls `call`, as in any Keras model.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = _called_by_torch(cls.forward)

    def __call__(self, *args, return_outputs=False, **kwargs):
        return super().__call__(*args, return_outputs=return_outputs, **kwargs)

    def train_step(self, data):
        loss, logs = self.step_loss(data, training=True)
        loss = self.optimizer.scale_loss(loss)
        if distributed.size() > 1:
            # Each process sums over its n images; `weighted_mean` then averages over all images.
            n = len(keras.tree.flatten(data)[0])
            loss = loss * n
        variables, tensors = self.trained()
        if not variables:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            return {**self.get_metrics_result(), **logs}
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        with torch.no_grad():
            if distributed.size() > 1:
                pairs = zip(gradients, tensors)
                gradients = [torch.zeros_like(t) if g is None else g for g, t in pairs]
                gradients = distributed.weighted_mean(gradients, n)
            self.optimizer.apply(gradients, variables)
        return {**self.get_metrics_result(), **logs}

    def trained(self):
        """The variables that a step updates, and their tensors."""
        variables = self.trainable_variables
        return variables, [variable.value for variable in variables]

    def test_step(self, data):
        _, logs = self.step_loss(data, training=False)
        return {**self.get_metrics_result(), **logs}

    def get_metrics_result(self):
        """Keras' own, but with several processes, means are over the images of all of them."""
        results = super().get_metrics_result()
        if distributed.size() > 1:
            metrics = [part for m in self.metrics for part in getattr(m, "metrics", [m])]
            means = [m for m in metrics if isinstance(m, keras.metrics.Mean)]
            numbers = [value for m in means for value in (m.total, m.count)]
            totals = iter(distributed.total_over_processes(numbers))
            results |= {
                m.name: total / max(count, 1e-12) for m, total, count in zip(means, totals, totals)
            }
        return results


def _called_by_torch(forward):
    """Wrap `forward`: a call by `torch.nn.Module.__call__`, which passes an argument of `call`, goes to Keras."""

    @functools.wraps(forward)
    def wrapped(self, *args, **kwargs):
        if "return_outputs" in kwargs:
            return keras.layers.Layer.forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    # Hide the signature of `forward`: torch's exporter would pass its defaults to `call`, which differs.
    del wrapped.__wrapped__
    return wrapped
