"""Several steps per execution on torch, where Keras makes one; they share look-ups that each step would repeat."""

import contextlib
import contextvars

import keras
import torch

from keras_ae import distributed, fast
from keras_ae.fast.networks import hooked, kept_functions, program_of

# The `LookUps` of the current execution in this thread.
_current = contextvars.ContextVar("look_ups", default=None)


class RunningMeans:
    """Fast updates of a model's metrics, among them the running means of the loss and its terms.

    The variables of each `keras.metrics.Mean` are looked up only once. For four of them, `update_state` and
    `result` take 400 us per step; `add` and `results` take 30.
    """

    def __init__(self, metrics):
        self.metrics = metrics
        self._variables = {
            mean: (mean.total.value, mean.count.value)
            for mean in metrics
            if fast.ON and type(mean) is keras.metrics.Mean
        }

    def add(self, values, n):
        """Call `tracker.update_state(value, sample_weight=n)` for each {tracker: value}, or do the same faster."""
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
        """`{metric.name: metric.result()}` after an update; None if some metrics are no plain means."""
        if not self._variables or len(self._variables) < len(self.metrics):
            return None
        totals, counts = zip(*self._variables.values())
        counts = torch._foreach_clamp_min(counts, 1e-12)  # a mean of nothing is 0, as in Keras
        means = torch._foreach_div(totals, counts)
        return {metric.name: mean for metric, mean in zip(self.metrics, means)}


class LookUps:
    """What the steps of an execution train and track; Keras would go through all layers for it in each step."""

    def __init__(self, model):
        self.model, self.trained = model, model.trained()
        self.means = RunningMeans(model.metrics)
        self.layers = model._flatten_layers()
        self.own_losses = type(model).losses is not keras.Model.losses or any(
            variable.regularizer is not None for variable in self.trained[0]
        )
        self.calls_forward = _calls_forward(model)


def _calls_forward(model):
    """Whether calling a model only calls a `forward` of ours, on known layers, without hooks."""
    return (
        type(model).forward.__module__.startswith("keras_ae.")
        and model.activity_regularizer is None
        and not hooked(model)
        and all(program_of(network) for network in (model.encoder, model.decoder))
    )


class Steps:
    """Makes `fit`, `evaluate` and `predict` take several batches per execution, where Keras takes one."""

    _compiled_loss = None

    def _symbolic_build(self, iterator=None, data_batch=None):
        # If the last execution has fewer steps, Keras thinks that data ran out, and would warn in every epoch.
        several = iterator is not None and iterator.steps_per_execution > 1
        if several and iterator.steps_per_epoch is None and iterator.data_adapter.num_batches:
            iterator._interrupted_warning = lambda: None
        super()._symbolic_build(iterator, data_batch)

    def make_train_function(self, force=False):
        self.inner_steps.takes_kl_weights = True
        self.train_function = self._train_steps
        if not self.jit_compile:
            self._compiled_loss = None
        elif self._compiled_loss is None or force:
            # Compile the loss and its gradients, but not the optimizer: torch does not compile its kernels.
            self._compiled_loss = torch.compile(super().step_loss)

    def make_test_function(self, force=False):
        self.test_function = self._test_steps

    def make_predict_function(self, force=False):
        step = self.predict_step
        if self.jit_compile:
            step = torch.compile(step)

        @torch.no_grad()
        def predict_steps(batches):
            outputs = [step(batch) for batch in batches]
            return keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)

        self.predict_function = predict_steps

    def _train_steps(self, batches):
        kl_weights, losses = self.inner_steps.take_kl_weights(), []
        kl_weight = None if kl_weights is None else self.kl_weight.value
        with self._looked_up():
            for i, batch in enumerate(batches):
                if kl_weight is not None:
                    kl_weight.fill_(float(kl_weights[i]))
                logs = self.train_step(batch)
                losses.append(logs.get("loss"))  # a user's own train step may log no loss
        self.inner_steps.losses = [loss for loss in losses if loss is not None]
        return logs

    @contextlib.contextmanager
    def _looked_up(self):
        token = _current.set(LookUps(self))
        try:
            with kept_functions():
                yield
        finally:
            _current.reset(token)

    def _look_ups(self):
        """The `LookUps` of the current execution of this model, or None outside one."""
        found = _current.get()
        return found if found is not None and found.model is self else None

    @torch.no_grad()
    def _test_steps(self, batches):
        with self._looked_up():
            for batch in batches:
                logs = self.test_step(batch)
        return logs

    def step_loss(self, data, training):
        step_loss = self._compiled_loss if training and self._compiled_loss else super().step_loss
        return step_loss(data, training)

    def outputs_of(self, x, training):
        look_ups = self._look_ups()
        plain = look_ups and look_ups.calls_forward and not self._compiled_loss
        # Losses left by `add_loss` need Keras' own call, which clears them.
        if not plain or any(layer._losses for layer in look_ups.layers):
            return super().outputs_of(x, training)
        return self.forward(x, training=training, sample=True)

    def noise(self, shape):
        """The numbers of `keras.random.normal`, whose way to the generator takes longer than drawing them."""
        if self._compiled_loss or self._look_ups() is None or distributed.size() > 1:
            return super().noise(shape)
        seed = self.seed_generator.state.value
        generator = torch.Generator(seed.device)
        generator.manual_seed(int(seed.sum()) & 0xFFFFFFFF)
        seed[1:] += 1
        dtype = getattr(torch, keras.config.floatx())
        return torch.normal(0.0, 1.0, shape, generator=generator, dtype=dtype, device=seed.device)

    def trained(self):
        look_ups = self._look_ups()
        return look_ups.trained if look_ups else super().trained()

    def track(self, values, n):
        look_ups = self._look_ups()
        if look_ups is None:
            return super().track(values, n)
        return look_ups.means.add(values, n)

    def get_metrics_result(self):
        look_ups = self._look_ups()
        return (look_ups and look_ups.means.results()) or super().get_metrics_result()

    def additional_losses(self):
        look_ups = self._look_ups()
        if look_ups is None or look_ups.own_losses or any(x._losses for x in look_ups.layers):
            return super().additional_losses()
        return []
