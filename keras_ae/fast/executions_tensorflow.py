"""Several steps per execution on tensorflow: our own loop inside the graph."""

import keras
import tensorflow as tf


class Steps:
    """Makes `fit` use our own loop inside the graph, which also sets the weight of the KL term."""

    def make_train_function(self, force=False):
        with self.distribute_strategy.scope():
            ours = not self.run_eagerly and not tf.distribute.has_strategy()
        ours &= not self.logs_more  # our loop logs the metrics alone
        self.inner_steps.takes_kl_weights = ours
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        if ours:
            keras_function, train_steps = self.train_function, self._train_steps()

            def train_function(batches):
                if not isinstance(batches, tf.data.Iterator):  # called by train_on_batch
                    return keras_function(batches)
                logs, n, losses = train_steps(batches, self.inner_steps.take_kl_weights())
                if not n:
                    raise StopIteration
                self.inner_steps.losses = losses[:n]
                return logs

            self.train_function = train_function

    def _train_steps(self):
        """Make a graph function: (iterator, KL weights) -> (logs, number of steps made, their losses)."""
        size = self.steps_per_execution
        none = tf.experimental.Optional

        @tf.function(reduce_retracing=True, jit_compile=self.jit_compile, autograph=False)
        def step(data):
            data = keras.tree.map_structure(lambda x: None if isinstance(x, none) else x, data)
            # A user's own metrics may have no loss.
            return self.train_step(data).get("loss", tf.constant(0.0))

        @tf.function(reduce_retracing=True, autograph=False)
        def steps(iterator, kl_weights):
            first = iterator.get_next_as_optional()

            def more(i, batch, losses):
                return (i < size) & batch.has_value()

            def one(i, batch, losses):
                if kl_weights is not None:
                    self.kl_weight.assign(kl_weights[i])
                losses = losses.write(i, step(batch.get_value()))
                batch = tf.cond(i + 1 < size, iterator.get_next_as_optional, lambda: batch)
                return i + 1, batch, losses

            losses = tf.TensorArray(tf.float32, size)
            n, _, losses = tf.while_loop(more, one, (0, first, losses))
            return self.get_metrics_result(), n, losses.stack()

        return steps
