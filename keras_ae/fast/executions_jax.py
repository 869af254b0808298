"""Several steps per execution on jax: our own loop over single compiled steps."""

import contextlib
import signal
import threading

import jax
import keras

STATE = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)


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
        if held:
            handler(*held[0])


def keeping(model, function, names=STATE):
    """A function (state, …) -> (result, new state), after which the model knows the new state at once.

    The arrays of the old state are given away to jax, so a model that knows only these has lost its weights.
    """

    def call(state, *arguments):
        with held_interrupt():
            result, state = function(state, *arguments)
            model._jax_state = dict(zip(names, state))
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

    def make_test_function(self, force=False):
        before = self.test_function
        super().make_test_function(force)
        if self.test_function is not before:
            self.test_function = keeping(self, self.test_function, (*STATE[:2], STATE[3]))

    def make_predict_function(self, force=False):
        before = self.predict_function
        made = super().make_predict_function(force)
        if self.predict_function is not before:
            self.predict_function = keeping(self, self.predict_function)
        return made

    # Keras' own lose the weights of a model if they are interrupted, or given a batch of a wrong shape.

    def evaluate(self, *args, **kwargs):
        with self._synced():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with self._synced():
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def _synced(self):
        try:
            yield
        except BaseException:
            self.jax_state_sync()
            raise

    def _purge_model_variables(self, **kwargs):
        """Do not forget the old state before there is a new one."""

    def _annealed_step(self, state, data, kl_weight):
        if kl_weight is not None:
            trainable, non_trainable, optimizer, metrics = state
            non_trainable = [
                kl_weight if variable is self.kl_weight else value
                for variable, value in zip(self.non_trainable_variables, non_trainable)
            ]
            state = trainable, non_trainable, optimizer, metrics
        return self.train_step(state, data)
