"""Running means of an epoch, on torch in a few calls for all of them and none of Keras' checks."""

import keras

from keras_ae import fast

if keras.backend.backend() == "torch":
    import torch
else:
    torch = None


class RunningMeans:
    """The metrics of a model, of which its trackers are the running means of the loss and its terms.

    On torch the variables of each `keras.metrics.Mean` are looked up here once. For four of them,
    `update_state` and `result` take 400 us a step, `add` and `results` 30.
    """

    def __init__(self, metrics):
        self.metrics = metrics
        self._variables = {
            mean: (mean.total.value, mean.count.value)
            for mean in metrics
            if torch is not None and fast.ON and type(mean) is keras.metrics.Mean
        }

    def add(self, values, n):
        """`tracker.update_state(value, sample_weight=n)` of each, given as {tracker: value}."""
        totals, counts, added = [], [], []
        for tracker, value in values.items():
            if tracker in self._variables:
                total, count = self._variables[tracker]
                totals.append(total)
                counts.append(count)
                added.append(value.detach())
            else:
                tracker.update_state(value, sample_weight=n)
        if added:
            torch._foreach_add_(totals, added, alpha=n)
            torch._foreach_add_(counts, n)

    def results(self):
        """`{metric.name: metric.result()}` after an update; None where some of them are other metrics."""
        if not self._variables or len(self._variables) < len(self.metrics):
            return None
        totals, counts = zip(*self._variables.values())
        means = torch._foreach_div(totals, counts)
        return {metric.name: mean for metric, mean in zip(self.metrics, means)}
