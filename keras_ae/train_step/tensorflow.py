"""The training step on tensorflow: traced by `tf.function`, gradients by a tape."""

import keras
import tensorflow as tf


class StepMixin:
    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, sample_weight=sample_weight, training=True)
            # tf.distribute adds the gradients of the replicas up: each gives its share of the mean.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = self.optimizer.scale_loss(loss / replicas)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return self.get_metrics_result()

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.compute_loss(x, sample_weight=sample_weight, training=False)
        return self.get_metrics_result()
