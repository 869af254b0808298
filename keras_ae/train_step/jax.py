"""The training step on jax: a pure function of the state, with gradients by `jax.grad`."""

import jax
import keras


class StepMixin:
    """`train_step` and `test_step` of a model that has a `step_loss`."""

    def _stateless_loss(self, trainable, others, values, data, training):
        """`step_loss` as a pure function of the model's variables.

        Returns (loss to differentiate, (logs, new values of `others`)).
        """
        state = [*zip(self.trainable_variables, trainable), *zip(others, values)]
        with keras.StatelessScope(state, collect_losses=True) as scope:
            loss, more = self.step_loss(data, training)
            if training:
                loss = self.optimizer.scale_loss(loss)
            logs = {**self.get_metrics_result(), **more}
        return loss, (logs, [scope.get_current_value(v) for v in others])

    def train_step(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        others = [*self.non_trainable_variables, *self.optimizer.variables, *self.metrics_variables]
        gradients, (logs, values) = jax.grad(self._stateless_loss, has_aux=True)(
            trainable, others, [*non_trainable, *optimizer, *metrics], data, True
        )
        first, last = len(non_trainable), len(values) - len(metrics)
        trainable, optimizer = self.optimizer.stateless_apply(
            values[first:last], gradients, trainable
        )
        return logs, (trainable, values[:first], optimizer, values[last:])

    def test_step(self, state, data):
        trainable, non_trainable, metrics = state
        others = [*self.non_trainable_variables, *self.metrics_variables]
        _, (logs, values) = self._stateless_loss(
            trainable, others, [*non_trainable, *metrics], data, False
        )
        first = len(non_trainable)
        return logs, (trainable, values[:first], values[first:])
