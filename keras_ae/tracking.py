"""Running means of an epoch, on torch by one kernel for all of them and none of Keras' checks."""

import keras

if keras.backend.backend() == "torch":
    import torch
else:
    torch = None


class Means:
    """The metrics of a model, of which those that are `keras.metrics.Mean` track the loss and its terms.

    On torch their variables are looked up here once. For four means, `update_state` and `result` take 400 us a
    step, `add` and `results` 25.
    """

    def __init__(self, metrics):
        self.metrics = metrics
        self._fast = torch is not None and all(type(m) is keras.metrics.Mean for m in metrics)
        if self._fast:
            self._totals = {mean.name: mean.total.value for mean in metrics}
            self._counts = {mean.name: mean.count.value for mean in metrics}

    def add(self, values, n):
        """`mean.update_state(value, sample_weight=n)` of each value, by the name of its mean."""
        if self._fast:
            values = {name: value for name, value in values.items() if name in self._totals}
            added = [value.detach() for value in values.values()]
            torch._foreach_add_([self._totals[name] for name in values], added, alpha=n)
            torch._foreach_add_([self._counts[name] for name in values], n)
            return
        for mean in self.metrics:
            if mean.name in values:
                mean.update_state(values[mean.name], sample_weight=n)

    def results(self):
        """`{mean.name: mean.result()}` after an update."""
        if not self._fast:
            return {mean.name: mean.result() for mean in self.metrics}
        results = torch._foreach_div(list(self._totals.values()), list(self._counts.values()))
        return dict(zip(self._totals, results))
