"""The training step on tensorflow: traced by `tf.function`, gradients by a tape."""

import keras
import numpy as np
import tensorflow as tf

from keras_ae.train_step.memory import keep_memory

RESIDENT_BYTES = 1 << 30  # of images that are worth a copy


def batches(feed):
    """What to give to `fit` for a `keras_ae.feed.Feed`: the same batches, gathered within the graph.

    Of a `PyDataset`, Keras has tensorflow fetch each batch from Python: 2.7 of 18 ms a step of the mlp.
    Here it fetches the order of the epoch. Coins for the pixels, images too many to copy, and
    batches that are split over devices are left to the feed.
    """
    if tf.distribute.has_strategy() or feed.binarize or feed.images.nbytes > RESIDENT_BYTES:
        return feed
    arrays = [feed.images] if feed.labels is None else [feed.images, feed.labels]
    arrays = [tf.constant(array) for array in arrays]

    def order():  # Keras asks for it when an epoch begins
        yield np.concatenate([feed.rows(i) for i in range(len(feed))])

    def split(order):
        starts = tf.data.Dataset.range(0, tf.size(order, tf.int64), feed.batch_size)
        return starts.map(lambda start: order[start : start + feed.batch_size])

    def gather(rows):
        images, *labels = (tf.gather(array, rows) for array in arrays)
        return ((images, *labels),) if labels else (images,)

    dataset = tf.data.Dataset.from_generator(
        order, output_signature=tf.TensorSpec([None], tf.int64)
    )
    dataset = dataset.flat_map(split).map(gather)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(feed)))


class StepMixin:
    """`fit` through a loop of our own within the graph, which sets the weight of the KL term as well."""

    def make_train_function(self, force=False):
        keep_memory()
        with self.distribute_strategy.scope():
            own = not self.run_eagerly and not tf.distribute.has_strategy()
        self.execution.takes_kl_weights = own
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        if own:
            keras_function, train_steps = self.train_function, self._train_steps()

            def train_function(batches):
                if not isinstance(batches, tf.data.Iterator):  # of train_on_batch
                    return keras_function(batches)
                logs, n, losses = train_steps(batches, self.execution.take_kl_weights())
                if not n:
                    raise StopIteration
                self.execution.losses = losses[:n]
                return logs

            self.train_function = train_function

    def _train_steps(self):
        """A graph: iterator, weights of the KL term -> (logs, number of steps made, their losses)."""
        size = self.steps_per_execution
        none = tf.experimental.Optional

        @tf.function(reduce_retracing=True, jit_compile=self.jit_compile, autograph=False)
        def step(data):
            data = keras.tree.map_structure(lambda x: None if isinstance(x, none) else x, data)
            return self.train_step(data)["loss"]

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
