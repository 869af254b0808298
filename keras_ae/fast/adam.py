"""Adam with fused kernels on torch and tensorflow; elsewhere Keras' own. The variables are those of Keras."""

import math
import operator
import types

import keras

from keras_ae import fast

if fast.ON and keras.backend.backend() == "torch":
    import torch
else:
    torch = None
if fast.ON and keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


def rate_at(schedule, step):
    """The learning rate of a `LearningRateSchedule` at a step, as a float.

    Runs usually have a `CosineDecay`. It is computed here by Keras' formula, but without tensors.
    """
    if type(schedule) is not keras.optimizers.schedules.CosineDecay:
        with keras.device("cpu"):  # on a GPU, `float` would wait for it
            return float(schedule(step))
    start, peak, warmup = (
        schedule.initial_learning_rate,
        schedule.warmup_target,
        schedule.warmup_steps,
    )
    if peak is None:
        peak, warmup = start, 0
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / schedule.decay_steps)
    cosine = (1.0 + math.cos(math.pi * progress)) / 2.0
    return peak * ((1.0 - schedule.alpha) * cosine + schedule.alpha)


@keras.saving.register_keras_serializable("keras_ae")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`, with the fused kernels of torch and tensorflow on these backends.

    Keras' Adam makes about eight passes over the weights, each with temporaries. Torch's kernel adds epsilon
    after the bias correction, Keras before it. This class corrects for that, so weights agree up to float32
    rounding. Arguments, state and checkpoints are those of `keras.optimizers.Adam`.

    References:
        Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, arXiv:1412.6980.
    """

    _looked_up = None
    _counted = None  # the tensor of `iterations`, its version, and its value at that version

    def apply(self, grads, trainable_variables=None):
        """As Keras' own; on torch, without special options, it only calls the fused kernel."""
        options = (
            self.clipnorm,
            self.clipvalue,
            self.global_clipnorm,
            self.weight_decay,
            self.gradient_accumulation_steps,
            self.loss_scale_factor,
        )
        if (
            torch is None
            or not self.built
            or trainable_variables is None
            or self.use_ema
            or self.amsgrad
            or any(option is not None for option in options)
            or any(gradient is None for gradient in grads)
            or not (known := self._look_up(trainable_variables)).plain
        ):
            super().apply(grads, trainable_variables)
            return
        with torch.no_grad():
            self._step(grads, known, self._learning_rate)
            self.iterations.value.add_(1)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Keras does not document this hook. If a release renames it, Keras' own loop runs instead.
        if torch is None or self.amsgrad:
            return super()._backend_update_step(grads, trainable_variables, learning_rate)
        self._step(grads, self._look_up(trainable_variables), learning_rate)

    def _steps_done(self):
        """`int(iterations)`. It is read from the tensor, which waits for a GPU, only after someone else wrote it."""
        if self.gradient_accumulation_steps:
            return int(self.iterations)
        counter, kept = self.iterations.value, self._counted
        # Torch counts the writes to a tensor in `_version`; each step makes one.
        if kept and kept[0] is counter and kept[1] + 1 == counter._version:
            done = kept[2] + 1
        else:
            done = int(counter)
        self._counted = counter, counter._version, done
        return done

    def _step(self, gradients, known, rate):
        done = self._steps_done()
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = rate_at(rate, done)
        elif callable(rate):  # a function without arguments, as Keras takes it
            rate = rate()
        step = torch.full((), done + 1, dtype=torch.float32, device=known.weights[0].device)
        torch._fused_adam_(
            known.weights,
            # The kernel reads the memory of weight and gradient in parallel. A gradient that is a transposed
            # view, like those of convolutions, would be added to the wrong weights.
            [gradient.contiguous() for gradient in gradients],
            known.momentums,
            known.velocities,
            [],
            [step] * len(known.weights),
            lr=getattr(rate, "value", rate),
            beta1=self.beta_1,
            beta2=self.beta_2,
            weight_decay=0.0,
            eps=self.epsilon / math.sqrt(1.0 - self.beta_2 ** (done + 1)),
            amsgrad=False,
            maximize=False,
        )

    def _look_up(self, variables):
        """The tensors of these variables and of their moments, cached after the first call.

        `plain` is True if no variable needs more than the step itself, such as a constraint.
        """
        known = self._looked_up
        if (
            known is None
            or len(known.variables) != len(variables)
            or not all(map(operator.is_, known.variables, variables))
            or known.weights[0] is not variables[0].value
        ):
            self._check_variables_are_known(variables)
            which = [self._get_variable_index(variable) for variable in variables]
            moments = [(self._momentums[i], self._velocities[i]) for i in which]
            self._looked_up = known = types.SimpleNamespace(
                variables=tuple(variables),
                plain=not any(v.constraint or v.overwrite_with_gradient for v in variables),
                weights=[v.value for v in variables],
                # Keras has no moments for a variable that is overwritten with its gradient; it gets no step.
                momentums=[m.value for m, _ in moments if m is not None],
                velocities=[v.value for _, v in moments if v is not None],
            )
        return known

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable; on tensorflow with the fused kernel, whose formula is that of Keras."""
        dense = tf is not None and not isinstance(gradient, tf.IndexedSlices)
        if not dense or self.amsgrad or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return super().update_step(gradient, variable, learning_rate)
        dtype, i = variable.dtype, self._get_variable_index(variable)
        step = keras.ops.cast(self.iterations + 1, dtype)
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[i].value.handle,
            v=self._velocities[i].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, dtype), step),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )
