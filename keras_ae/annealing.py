"""KL annealing: schedules (pure functions of progress), and the callback that sets `kl_weight`."""

import math
import warnings

import keras
import numpy as np


def constant(progress):
    """Full weight from the first step."""
    return 1.0


def linear(progress):
    """The weight rises linearly from 0 to 1 (Bowman et al. 2016)."""
    return progress


def cosine(progress):
    """The weight rises from 0 to 1 along half a cosine, flat at both ends."""
    return (1.0 - math.cos(math.pi * progress)) / 2.0


def sigmoid(progress, steepness=12.0):
    """A logistic curve centred on the half-way point, rescaled to start at 0 and to end at 1."""

    def logistic(p):
        return 1.0 / (1.0 + math.exp(-steepness * (p - 0.5)))

    return (logistic(progress) - logistic(0.0)) / (logistic(1.0) - logistic(0.0))


def cyclical(progress, cycles=4, ramp=0.5):
    """The weight restarts `cycles` times (Fu et al. 2019).

    In each cycle it rises linearly from 0 to 1 during the first fraction `ramp`, then stays at 1.
    """
    if progress >= 1.0:
        return 1.0
    return min(1.0, (progress * cycles) % 1.0 / ramp)


SCHEDULES = {f.__name__: f for f in (constant, linear, cosine, sigmoid, cyclical)}


def kl_weight_at(step, total_steps, schedule="linear", weight=1.0, warmup=1.0):
    """The weight of the KL term at a training step. A pure function, so a resumed run gets the same weights.

    Args:
        step: number of optimizer steps before this one, from 0.
        total_steps: number of steps of the whole run: epochs * steps per epoch.
        schedule: a name in `SCHEDULES`, or a function of progress in [0, 1].
        weight: the final weight, >= 0.
        warmup: the fraction of the run, in (0, 1], after which the final weight is reached.

    Returns:
        A float in [0, weight].
    """
    schedule = SCHEDULES.get(schedule, schedule)
    return weight * schedule(min(1.0, step / (warmup * total_steps)))


def warn_of_early_choices(callbacks, epochs):
    """Warn of callbacks that select the best epoch by the loss while annealing still changes the loss.

    While the weight of the KL term rises, losses of different epochs cannot be compared: `val_loss`
    rises with the weight, and the reconstruction is best where the weight is lowest.
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
        if getattr(callback, "monitor", None) not in ("loss", "val_loss"):
            continue
        early = (
            isinstance(callback, keras.callbacks.EarlyStopping) and callback.start_from_epoch < end
        )
        best = isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_best_only
        if early or best:
            what = type(callback).__name__ + (f"(start_from_epoch={end})" if early else "")
            warnings.warn(
                f"The weight of the KL term rises until epoch {end} of {epochs}, and losses before that "
                f"do not compare: {type(callback).__name__} would choose an early epoch. Shorten the "
                f"warm-up (KLAnnealing(warmup=...), kl_warmup of a run) and "
                + (
                    f"use {what}." if early else "save the last epoch, or choose after the warm-up."
                ),
                stacklevel=3,
            )


class KLAnnealing(keras.callbacks.Callback):
    """Sets `model.kl_weight` before every step (or epoch) of `fit`, from a schedule.

    With `compile(steps_per_execution=...)`, Keras calls the callbacks once for several steps; the weight
    still changes at every step, unless the model has a train function from outside this package.

    The schedule takes the first `warmup` of the run, whose length is `fit(epochs=...)`. It depends only on
    the epoch and the batch, so `fit(initial_epoch=...)` continues it.

    Args:
        schedule: "linear", "cosine", "sigmoid", "cyclical" (Fu et al. 2019) or "constant", or a function
            of progress in [0, 1] that returns a factor for `weight`.
        weight: the final weight, for a KL term in nats per image. 1 gives the evidence lower bound, a
            larger weight a beta-VAE (Higgins et al. 2017).
        warmup: fraction of the run in (0, 1] that the schedule takes.
        by: "step" (default) or "epoch".

    Raises:
        ValueError: the schedule or `by` is unknown, the weight negative, or the warm-up outside (0, 1].
        TypeError: at the start of `fit`, if the model has no `kl_weight`.

    References:
        Bowman et al. 2016, Generating Sentences from a Continuous Space, arXiv:1511.06349.
        Fu et al. 2019, Cyclical Annealing Schedule, arXiv:1903.10145.
    """

    def __init__(self, schedule="linear", weight=1.0, warmup=1.0, by="step"):
        super().__init__()
        if schedule not in SCHEDULES and not callable(schedule):
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}.")
        if isinstance(weight, str) or not weight >= 0.0:
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
        """The weight at a batch of an epoch (both counted from 0) in the current run of `fit`."""
        steps = self.params.get("steps")
        if not steps:  # data of unknown length: each epoch counts as one step
            steps, batch = 1, 0
        return kl_weight_at(
            epoch * steps + min(batch, steps),
            self.params["epochs"] * steps,
            self.schedule,
            self.weight,
            self.warmup,
        )

    def set_model(self, model):
        super().set_model(model)
        # Read here once: on jax, each use of `self.model` copies the state of `fit` back into the variables.
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
            # Use the property self.model, not a stored reference: on jax only the property copies the
            # values that `fit` holds outside the variables back into them.
            self.model.kl_weight.assign(self.value(self._epoch, batch))

    def on_epoch_end(self, epoch, logs=None):
        # The weight after this epoch, so that a callback that saves the model next saves that weight.
        self.model.kl_weight.assign(self.value(epoch + 1))
