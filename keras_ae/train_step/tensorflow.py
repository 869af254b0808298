"""The training step on tensorflow: traced by `tf.function`, gradients by a tape."""

import contextlib

import tensorflow as tf


class StepMixin:
    """`train_step` and `test_step` of a model that has a `step_loss`."""

    def _open_name_scope(self):
        # Under the model's name around the whole forward pass, tensorflow adds gradients up in another order in
        # some traces than in others: of ten runs of one seed, three had other weights, by 3e-8.
        return contextlib.nullcontext()

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.step_loss(data, training=True)
            # tf.distribute adds the gradients of the replicas up: each gives its share of the mean.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = self.optimizer.scale_loss(loss / replicas)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return self.get_metrics_result()

    def test_step(self, data):
        self.step_loss(data, training=False)
        return self.get_metrics_result()
