"""Several steps per execution on jax: our own loop over single compiled steps."""

import jax
import keras


class Steps:
    """Makes `fit` use our own loop over single compiled steps.

    A step takes the weight of the KL term as an argument. If a callback assigned it instead, Keras would
    write the whole state back into the variables at every step. (A `lax.scan` over the steps is no faster
    than the loop, and makes convolutions 4 times slower on a CPU.)
    """

    def make_train_function(self, force=False):
        # Keras' own loop also handles keras.distribution and flax's variables; leave these to it.
        ours = self.jit_compile and not self.run_eagerly and not keras.distribution.distribution()
        self.inner_steps.takes_kl_weights = ours = ours and not keras.config.is_nnx_enabled()
        if not ours:
            return super().make_train_function(force)
        if self.train_function is not None and not force:
            return None
        step = jax.jit(self._annealed_step, donate_argnums=0)

        def train_steps(state, batches):
            kl_weights, losses = self.inner_steps.take_kl_weights(), []
            for i, data in zip(range(self.steps_per_execution), batches):
                logs, state = step(state, data, None if kl_weights is None else kl_weights[i])
                losses.append(logs.get("loss"))  # a user's own train step may log no loss
            if not losses:
                raise StopIteration
            self.inner_steps.losses = [loss for loss in losses if loss is not None]
            return logs, state

        self.train_function = train_steps
        return None

    def _annealed_step(self, state, data, kl_weight):
        if kl_weight is not None:
            trainable, non_trainable, optimizer, metrics = state
            non_trainable = [
                kl_weight if variable is self.kl_weight else value
                for variable, value in zip(self.non_trainable_variables, non_trainable)
            ]
            state = trainable, non_trainable, optimizer, metrics
        return self.train_step(state, data)
