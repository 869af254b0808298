"""Gathers batches inside tensorflow's graph."""

import numpy as np
import tensorflow as tf

RESIDENT_BYTES = 1 << 30  # larger sets of images are not copied into the graph


def gathered(feed):
    """A dataset that gathers the batches of a `keras_ae.feed.Feed` in the graph.

    With a `PyDataset`, tensorflow fetches each batch from Python. This dataset fetches only the order of the
    images, once per epoch. The feed itself is returned if it binarizes or augments images, if there are too
    many to copy, or if batches are split over devices.
    """
    if (
        tf.distribute.has_strategy()
        or feed.binarize
        or feed.augment
        or feed.images.nbytes > RESIDENT_BYTES
    ):
        return feed
    arrays = [feed.images] if feed.labels is None else [feed.images, feed.labels]
    arrays = [tf.constant(array) for array in arrays]

    def order():  # called when an epoch begins
        yield np.concatenate([feed.rows(i) for i in range(len(feed))])

    def batches_of(order):
        starts = tf.data.Dataset.range(0, tf.size(order, tf.int64), feed.batch_size)
        return starts.map(lambda start: order[start : start + feed.batch_size])

    def gather(rows):
        images, *labels = (tf.gather(array, rows) for array in arrays)
        return ((images, *labels),) if labels else (images,)

    dataset = tf.data.Dataset.from_generator(
        order, output_signature=tf.TensorSpec([None], tf.int64)
    )
    dataset = dataset.flat_map(batches_of).map(gather)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(feed)))
