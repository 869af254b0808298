"""Several steps per execution on jax: our own loop over single compiled steps."""

import contextlib
import signal
import threading

import jax
import keras

# By the number of its parts, what a state of Keras' holds: that of training, of evaluation, of prediction.
TRAINED = ("trainable_variables", "non_trainable_variables")
STATES = {
    4: (*TRAINED, "optimizer_variables", "metrics_variables"),
    3: (*TRAINED, "metrics_variables"),
    2: TRAINED,
}


@contextlib.contextmanager
def held_interrupt():
    """A context at whose end a Ctrl-C within it is raised."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held = []
    signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for arguments in held:
            handler(*arguments)


def keeping(model, step):
    """A function (state, …) -> (result, new state), after which the model knows the new state at once.

    The arrays of the old state are given away to jax, so a model that knows only these has lost its weights.
    """

    def call(state, *arguments):
        with held_interrupt():
            result, state = step(state, *arguments)
            # Keras' own way to an attribute takes 0.1 ms.
            vars(model)["_jax_state"] = dict(zip(STATES[len(state)], state))
        return result, state

    return call


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
        step = keeping(self, jax.jit(self._annealed_step, donate_argnums=0))

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

    # Keras' own lose the weights of a model if they are interrupted, or given a batch of a wrong shape.

    def _make_function(self, step_function, concatenate_outputs=False):
        return super()._make_function(keeping(self, step_function), concatenate_outputs)

    def _get_jax_state(self, *args, purge_model_variables=False, **kwargs):
        vars(self)["_jax_state"] = None  # an older one
        return super()._get_jax_state(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with self._synced():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with self._synced():
            return super().predict(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        with self._synced():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        with self._synced():
            return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, *args, **kwargs):
        with self._synced():
            return super().predict_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def _synced(self):
        try:
            yield
        except BaseException:
            self.jax_state_sync()
            raise

    def _annealed_step(self, state, data, kl_weight):
        if kl_weight is not None:
            trainable, non_trainable, optimizer, metrics = state
            non_trainable = [
                kl_weight if variable is self.kl_weight else value
                for variable, value in zip(self.non_trainable_variables, non_trainable)
            ]
            state = trainable, non_trainable, optimizer, metrics
        return self.train_step(state, data)
