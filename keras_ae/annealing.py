"""KL annealing: pure schedules of progress, and the callback that sets the model's `kl_weight`."""

import math
import warnings

import keras
import numpy as np


def constant(progress):
    """Full weight from the first step."""
    return 1.0


def linear(progress):
    """A straight line from 0 to 1 (Bowman et al. 2016)."""
    return progress


def cosine(progress):
    """Half a cosine: flat at both ends."""
    return (1.0 - math.cos(math.pi * progress)) / 2.0


def sigmoid(progress, steepness=12.0):
    """A logistic curve centred on the half-way point, rescaled to start at 0 and to end at 1."""

    def logistic(p):
        return 1.0 / (1.0 + math.exp(-steepness * (p - 0.5)))

    return (logistic(progress) - logistic(0.0)) / (logistic(1.0) - logistic(0.0))


def cyclical(progress, cycles=4, ramp=0.5):
    """`cycles` times: linear from 0 to 1 in the first `ramp` of a cycle, then 1 (Fu et al. 2019)."""
    if progress >= 1.0:
        return 1.0
    return min(1.0, (progress * cycles) % 1.0 / ramp)


SCHEDULES = {f.__name__: f for f in (constant, linear, cosine, sigmoid, cyclical)}


def kl_weight_at(step, total_steps, schedule="linear", weight=1.0, warmup=1.0):
    """The weight of the KL term at a training step: a pure function, so a resumed run just goes on.

    Args:
        step: optimizer steps done before this one, from 0.
        total_steps: steps of the whole run, epochs * steps per epoch.
        schedule: a name in `SCHEDULES`, or a function of progress in [0, 1].
        weight: the weight that the schedule ends at, >= 0.
        warmup: the fraction of the run, in (0, 1], after which the schedule has ended.

    Returns:
        A float in [0, weight].
    """
    schedule = SCHEDULES.get(schedule, schedule)
    return weight * schedule(min(1.0, step / (warmup * total_steps)))


def warn_of_early_choices(callbacks, epochs):
    """Warn of callbacks that choose an epoch while the loss of each one is another function.

    Until the weight of the KL term is reached, losses of different epochs do not compare: `val_loss`
    rises by construction, and the reconstruction is best where the weight is lowest.
    """
    annealed = [
        callback
        for callback in callbacks
        if isinstance(callback, KLAnnealing) and callback.schedule != "constant"
    ]
    if not annealed:
        return
    end = math.ceil(max(callback.warmup for callback in annealed) * epochs)
    for callback in callbacks:
        early = (
            isinstance(callback, keras.callbacks.EarlyStopping) and callback.start_from_epoch < end
        )
        best = isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_best_only
        if early or best:
            what = type(callback).__name__ + (f"(start_from_epoch={end})" if early else "")
            warnings.warn(
                f"The weight of the KL term rises until epoch {end} of {epochs}, and losses before that "
                f"do not compare: {type(callback).__name__} would choose an early epoch. Shorten the "
                f"warm-up (KLAnnealing(warmup=...)) and "
                + (
                    f"use {what}." if early else "save the last epoch, or choose after the warm-up."
                ),
                stacklevel=3,
            )


class KLAnnealing(keras.callbacks.Callback):
    """Sets `model.kl_weight` before every step (or epoch) of `fit`, from a schedule.

    It is every step also where `compile(steps_per_execution=...)` has the callbacks called for several
    steps at once, but for a train function that is not that of this package.

    The schedule spans the first `warmup` of the run that `fit(epochs=...)` announces, and depends on
    nothing but the epoch and the batch: `fit(initial_epoch=...)` continues where it stood.

    Args:
        schedule: "linear", "cosine", "sigmoid", "cyclical" (Fu et al. 2019) or "constant", or a function
            of progress in [0, 1] that returns a factor.
        weight: the final weight, on the scale of nats per image; 1 is the evidence lower bound,
            more is a beta-VAE (Higgins et al. 2017).
        warmup: fraction of the run in (0, 1] that the schedule takes.
        by: "step" (default) or "epoch".

    Raises:
        ValueError: for an unknown schedule or `by`, a negative weight, a warm-up outside (0, 1].
        TypeError: at the start of `fit`, for a model that has no `kl_weight`.

    References:
        Bowman et al. 2016, Generating Sentences from a Continuous Space, arXiv:1511.06349.
        Fu et al. 2019, Cyclical Annealing Schedule, arXiv:1903.10145.
    """

    def __init__(self, schedule="linear", weight=1.0, warmup=1.0, by="step"):
        super().__init__()
        if schedule not in SCHEDULES and not callable(schedule):
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}.")
        if not weight >= 0.0:
            raise ValueError(f"weight must be 0 or more; got {weight!r}.")
        if not 0.0 < warmup <= 1.0:
            raise ValueError(
                f"warmup is a fraction of the run, in (0, 1]; got {warmup!r}. A warm-up longer than "
                "the run would never reach the full weight."
            )
        if by not in ("step", "epoch"):
            raise ValueError(f"by must be 'step' or 'epoch'; got {by!r}.")
        self.schedule, self.weight, self.warmup, self.by = schedule, weight, warmup, by
        self._epoch = 0

    @property
    def per_step(self):
        """Whether the weight changes within an epoch."""
        return self.by == "step" and self.schedule != "constant"

    def value(self, epoch, batch=0):
        """The weight at a batch of an epoch, both from 0, of the run that `fit` announced."""
        # A data set of unknown length has no steps to count: each of its epochs is one step.
        steps = self.params.get("steps") or 1
        return kl_weight_at(
            epoch * steps + min(batch, steps),
            self.params["epochs"] * steps,
            self.schedule,
            self.weight,
            self.warmup,
        )

    def set_model(self, model):
        super().set_model(model)
        # Kept aside, as `self.model` has jax write back all that `fit` holds outside the variables.
        self._inner_steps = getattr(model, "inner_steps", None)
        self._steps_ahead = getattr(model, "steps_per_execution", 1)

    def on_train_begin(self, logs=None):
        if getattr(self.model, "kl_weight", None) is None:
            raise TypeError(
                f"KLAnnealing needs a VAE or CVAE; {type(self.model).__name__} has no kl_weight."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self.model.kl_weight.assign(self.value(epoch))

    def on_train_batch_begin(self, batch, logs=None):
        if not self.per_step:
            return
        if self._inner_steps is not None and self._inner_steps.takes_kl_weights:
            ahead = [self.value(self._epoch, batch + i) for i in range(self._steps_ahead)]
            self._inner_steps.kl_weights = np.array(ahead, "float32")
        else:
            # Through self.model, never a kept reference: on jax only this property synchronises the
            # values that `fit` holds outside the variables.
            self.model.kl_weight.assign(self.value(self._epoch, batch))

    def on_epoch_end(self, epoch, logs=None):
        # Where the schedule stands now: whoever saves the model after this saves the weight it reached.
        self.model.kl_weight.assign(self.value(epoch + 1))
